"""DRAEM: against anomalib's recorded outputs, against NumPy in float64, and as a detector."""

from __future__ import annotations

import copy
import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import uniform_filter
from support.students import fill, waves
from support.textures import normal_images
from torch.nn import functional

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, MissingExtraError
from ensemblead.detectors import Run, TrainingData
from ensemblead.detectors.draem import defects
from ensemblead.detectors.draem import detector as method
from ensemblead.detectors.draem.losses import _window, dissimilarity, focal_loss
from ensemblead.detectors.draem.networks import Networks, _doubling, doubled, new_networks
from ensemblead.images import AS_IS, Images, open_images

RECORDED = load_file(Path(__file__).with_name("draem.safetensors"))
WIDTH, SIDE, KEPT = 8, 32, 97
HALVES = ("bfloat16", "float16")


def alike(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """One texture in noise."""
    noise = np.random.default_rng(seed).normal(0, 6, (count, SIDE, SIDE, 3))
    return np.clip(normal_images(1, side=SIDE) + noise, 0, 255).astype(np.uint8)


TRAIN, TEST = normal_images(20, side=SIDE), normal_images(3, seed=5, side=SIDE)


def draem(width: int = 2, **options: Any) -> ead.DRAEM:
    defaults: dict[str, Any] = {"steps": 2, "batch_size": 2, "resize": None, "device": "cpu"}
    return ead.DRAEM(width, **(defaults | options))


def learning() -> ead.DRAEM:
    """In so many steps its batch norms have statistics, without which all maps are alike."""
    return draem(4, steps=24, batch_size=4, learning_rate=0.01)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained() -> ead.DRAEM:
    return learning().fit(TRAIN)


# The networks


@pytest.mark.parametrize(
    ("width", "millions"),
    [(128, (69.049, 28.374)), (64, (17.272, 7.100)), (32, (4.323, 1.778)), (16, (1.083, 0.446))],
)
def test_networks_are_as_large_as_the_authors(width: int, millions: tuple[float, float]) -> None:
    with torch.device("meta"):
        networks = Networks(width)
    halves = (networks.reconstruct, networks.discriminate)
    counts = [sum(parameter.numel() for parameter in half.parameters()) for half in halves]
    assert tuple(round(count / 1e6, 3) for count in counts) == millions


def filled(dtype: torch.dtype = torch.float32) -> Networks:
    networks = Networks(WIDTH).to(dtype)
    fill(networks)
    return networks


def images(name: str) -> torch.Tensor:
    return waves(name, (2, 3, 64, 64)) / 2 + 0.5


def check(found: tuple[torch.Tensor, torch.Tensor], mode: str) -> None:
    for kind, own in zip(("restored", "logits"), found, strict=True):
        expected = RECORDED[f"{mode}.{kind}"]
        most = 1e-5 * float(expected.abs().max())
        found_here = own.contiguous().flatten()[::KEPT].float()
        torch.testing.assert_close(found_here, expected, rtol=0.0, atol=most)


@torch.no_grad()
def test_forward_is_anomalibs() -> None:
    networks = filled().eval()
    check(networks(images("image").float()), "eval")
    check(networks.folded()(images("image").float()), "eval")
    # Norms of the few values of the smallest grids enlarge rounding.
    check(filled(torch.float64).train()(images("image")), "train")


@torch.no_grad()
def test_one_changed_weight_is_seen() -> None:
    networks = filled().eval()
    next(networks.discriminate.parameters()).view(-1)[7] += 0.1
    found = networks(images("image").float())[1].contiguous().flatten()[::KEPT]
    assert (found - RECORDED["eval.logits"]).abs().max() > 1e-4


def test_three_updates_are_anomalibs() -> None:
    networks = filled(torch.float64).train()
    adam = torch.optim.Adam(networks.parameters(), 1e-4, fused=True)
    for step, expected in enumerate(RECORDED["losses"].tolist()):
        batch = images(f"image {step}")
        restored, logits = networks(batch)
        wanted = (batch[:, 0] > 0.5).long()
        loss = functional.mse_loss(restored, batch) + functional.cross_entropy(logits, wanted)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (6, 8)])
def test_grids_are_doubled_as_torch_does_it(size: tuple[int, int]) -> None:
    values = waves("grid", (2, 5, *size)).requires_grad_()
    found = doubled(values)
    expected = functional.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, expected)
    weights = waves("weights", found.shape)
    torch.testing.assert_close(
        *(torch.autograd.grad((own * weights).sum(), values)[0] for own in (found, expected))
    )
    half = doubled(values.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected.detach(), rtol=0.0, atol=0.02)


def test_initial_weights() -> None:
    networks = new_networks(16, seed=3)
    for name, parameter in networks.named_parameters():
        values = parameter.detach()
        if values.ndim == 4:
            assert float(values.std()) == pytest.approx(0.02, rel=0.2)
        elif ".norm." in name:
            expected = (1.0, 0.02) if name.endswith("weight") else (0.0, 0.0)
            assert (float(values.mean()), float(values.std())) == pytest.approx(expected, abs=0.02)
    again = new_networks(16, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(networks.parameters(), again.parameters(), strict=True))


# Losses and scores in NumPy


def window_means(planes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian means of 11 x 11 pixels of `[..., H, W]`, with zeros outside."""
    taps = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(planes, [(0, 0)] * (planes.ndim - 2) + [(5, 5), (5, 5)])
    views = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), (-2, -1))
    return np.einsum("...yxij,ij->...yx", views, window)


def test_ssim_by_hand() -> None:
    first = waves("first", (2, 3, 17, 23)).numpy() / 2 + 0.5
    second = 0.7 * first + 0.3 * waves("second", first.shape).numpy()
    a, b = window_means(first), window_means(second)
    aa, bb, ab = (window_means(x * y) for x, y in ((first, first), (second, second), (first, second)))
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * a * b + c1) * (2 * (ab - a * b) + c2) / ((a**2 + b**2 + c1) * (aa - a**2 + bb - b**2 + c2))
    found = dissimilarity(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    assert float(found) == pytest.approx(1.0 - similar.mean(), rel=1e-5)
    assert 0.05 < float(found) < 0.95


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_focal_loss_by_hand(scale: float) -> None:
    logits = scale * waves("logits", (2, 2, 9, 7)).numpy()
    masks = (waves("masks", (2, 1, 9, 7)).numpy() > 0.4).astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    wanted = np.clip(np.concatenate([1 - masks, masks], 1), 1e-5, 1 - 1e-5)
    right = (wanted * shares).sum(1) + 1e-5
    expected = (-((1 - right) ** 2) * np.log(right)).mean()
    found = focal_loss(torch.from_numpy(logits).float(), torch.from_numpy(masks).float())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_counts_both_classes_and_is_capped() -> None:
    for wrong in (0, 1):
        logits = torch.full((1, 2, 1, 1), -200.0)
        logits[:, wrong] = 200.0
        loss = focal_loss(logits, torch.full((1, 1, 1, 1), 1.0 - wrong))
        assert float(loss) == pytest.approx(-math.log(2e-5), rel=1e-3)


def test_image_scores_by_hand() -> None:
    maps = (waves("maps", (3, 33, 40)) / 2 + 0.5).float()
    expected = [uniform_filter(own.astype(np.float64), 21, mode="constant").max() for own in maps.numpy()]
    np.testing.assert_allclose(method.image_scores(maps), expected, rtol=1e-5)


# Training


def recipe(threads: ThreadPoolExecutor, **options: Any) -> method.Discrimination:
    detector = draem(**({"steps": 50, "batch_size": 3} | options))
    data = TrainingData(
        detector, Images(open_images(TRAIN), [AS_IS]), Run(lambda *_: None, 12, frozenset({5})), 0
    )
    return method.Discrimination(new_networks(2, 0), data, 50, detector, threads)


def test_a_batch_follows_from_the_step_alone() -> None:
    with ThreadPoolExecutor(3) as threads:
        one, other = recipe(threads), recipe(threads)
        in_order = [one.batch(step) for step in range(4)]
        for step in (3, 1):
            assert all(torch.equal(a, b) for a, b in zip(other.batch(step), in_order[step], strict=True))
        assert not torch.equal(in_order[0][0], in_order[1][0])
        assert set(one._coming) == {4}
        one.batch(49)
        assert 50 not in one._coming


def test_a_texture_is_shuffled_from_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        method, "example", lambda image, other, *_: seen.append((image, other)) or (image,) * 3
    )
    with ThreadPoolExecutor(1) as threads:
        for step in range(4):
            recipe(threads).batch(step)
    assert not any(torch.equal(image, other) for image, other in seen)


def test_learning_rates() -> None:
    with ThreadPoolExecutor(1) as threads:
        own = recipe(threads)
    factors = [own.schedule(step) for step in range(50)]
    assert factors == pytest.approx([1.0] * 40 + [0.2] * 5 + [0.04] * 5)
    assert own.learning_rate == 1e-4
    assert own.betas == (0.9, 0.999)


def test_the_loss_falls(trained: ead.DRAEM) -> None:
    losses = trained.losses_
    assert losses[-5:].mean() < 0.75 * losses[:2].mean()


def test_steps_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ead.DRAEM, "epochs", 1)
    detector = draem(steps="paper", batch_size=8).fit(TRAIN)
    assert len(detector.losses_) == 3  # of eighteen images, in eights
    networks = Networks(2)
    norms = sum(own.numel() for name, own in networks.named_parameters() if ".norm." in name)
    whole = sum(own.numel() for own in networks.parameters())
    assert detector.learned_ == {"parameters": whole - norms}
    assert (ead.DRAEM().steps, ead.DRAEM().width, ead.DRAEM().batch_size) == ("paper", 128, 8)


def test_precision(trained: ead.DRAEM) -> None:
    first = [float(draem(precision=name, steps=1).fit(TRAIN).losses_) for name in HALVES]
    assert first == pytest.approx([float(draem(steps=1).fit(TRAIN).losses_)] * 2, rel=1e-2)
    expected = trained.predict(TEST).anomaly_map
    for name in HALVES:
        half = draem(4, precision=name)
        half._take([trained.state_], trained._reading)
        half._accept([trained.calibration_])
        # The largest difference is where a probability is steep, and depends on the machine's kernels.
        apart = np.abs(half.predict(TEST).anomaly_map - expected)
        assert apart.mean() < 0.01
        assert 0.0 < apart.max() < 0.2


def test_both_networks_by_openvino(trained: ead.DRAEM, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    expected = trained.predict(TEST)
    trained.save(tmp_path / "model")
    quick = ead.load(tmp_path / "model", engine="openvino", precision="float32")
    assert (trained.engine, quick.engine, quick.precision) == ("torch", "openvino", "float32")
    found = quick.predict(TEST)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-3)
    quick.save(tmp_path / "again")
    assert ead.load(tmp_path / "again").engine == "openvino"
    # A copy, which a worker gets, has compiled nothing yet.
    np.testing.assert_array_equal(copy.deepcopy(quick).predict(TEST).anomaly_map, found.anomaly_map)
    with pytest.raises(ValueError, match="quantize: this DRAEM has no frozen network"):
        quick.quantize(TRAIN)


def test_an_engine_that_is_not_there_shows_before_the_training(
    trained: ead.DRAEM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        draem(engine="openvino").fit(TRAIN, progress=lambda stage, *_: pytest.fail(stage))
    with pytest.raises(MissingExtraError, match="openvino"):
        ead.load(tmp_path / "model", engine="openvino")
    with pytest.raises(
        ValueError, match="engine must be one of torch, openvino, cuda-graph, auto, got 'openvin'"
    ):
        draem(engine="openvin")


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", step):
            raise KeyboardInterrupt

    return progress


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    detector = draem(steps=5)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 5"):
        detector.fit(TRAIN, progress=stop_at(3), checkpoint=tmp_path / "c")
    assert not any(own.name.startswith("ensemblead-defects") for own in threading.enumerate())
    counts: list[int] = []
    report = lambda stage, done, _: counts.append(done) if stage == "train" else None  # noqa: E731
    detector.fit(TRAIN, progress=report, checkpoint=tmp_path / "c")
    assert counts == [4, 5]
    expected = draem(steps=5).fit(TRAIN)
    assert torch.equal(detector.losses_, expected.losses_)
    np.testing.assert_array_equal(detector.predict(TEST).anomaly_map, expected.predict(TEST).anomaly_map)


@pytest.mark.parametrize("changed", ["1.png", "2.png"])
def test_a_checkpoint_with_other_textures_is_refused(changed: str, tmp_path: Path) -> None:
    folder = tmp_path / "textures"
    folder.mkdir()
    Image.new("RGB", (48, 20), (200, 10, 10)).save(folder / "1.png")
    options = {"textures": folder, "steps": 3}
    with pytest.raises(KeyboardInterrupt):
        draem(**options).fit(TRAIN, progress=stop_at(2), checkpoint=tmp_path / "c")
    Image.new("RGB", (48, 20), (200, 10, 11)).save(folder / changed)
    with pytest.raises(ValueError, match="is of another call, with other contents of textures"):
        draem(**options).fit(TRAIN, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_waits_for_examples_that_nobody_will_see(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def some(image: torch.Tensor, *_: Any) -> defects.Example:
        made.append(0)
        if len(made) == 5:
            raise error("while examples are made")
        time.sleep(0.02)
        return image / 255.0, image / 255.0, torch.zeros(1, SIDE, SIDE)

    monkeypatch.setattr(method, "example", some)
    monkeypatch.setattr(method, "_THREADS", 1)
    detector = draem(batch_size=18)
    with pytest.raises(error, match="while examples are made|stopped"):
        detector.fit(TRAIN)
    assert len(made) < 12  # of 36
    assert not detector.is_fitted


@torch.inference_mode()
def restored_in_inference_mode(networks: Networks, image: torch.Tensor) -> torch.Tensor:
    restored: torch.Tensor = networks(image)[0]
    assert dissimilarity(restored, image) > 0.0
    return restored


def test_networks_used_in_inference_mode_do_not_spoil_later_training() -> None:
    _doubling.cache_clear()
    _window.cache_clear()
    restored_in_inference_mode(new_networks(2, 0), torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator()))
    assert len(draem(steps=1).fit(TRAIN).losses_) == 1


def test_two_fits_at_once_are_as_one_after_the_other() -> None:
    expected = draem().fit(TRAIN)
    for _ in range(3):
        with ThreadPoolExecutor(2) as threads:
            both = list(threads.map(lambda _: draem().fit(TRAIN), range(2)))
        for own in both:
            assert torch.equal(own.losses_, expected.losses_)


# The detector

FORMS: dict[str, Callable[[], Any]] = {
    "backbones": lambda: ead.BackboneEnsemble(
        [draem(), ead.PatchCore("gabor", resize=None, coreset_fraction=0.1, device="cpu")]
    ),
    "tiles": lambda: ead.TiledEnsemble(learning(), SIDE, SIDE, image_size=(SIDE, 2 * SIDE)),
}


@pytest.mark.parametrize("form", ["alone", *FORMS])
def test_saved_and_loaded_it_is_the_same(form: str, trained: ead.DRAEM, tmp_path: Path) -> None:
    detector = trained if form == "alone" else FORMS[form]().fit(TRAIN)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    found, expected = again.predict(TEST), detector.predict(TEST)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    assert again.threshold_ == detector.threshold_
    assert detector.calibration_.origin == "held_out"
    with pytest.raises(ValueError, match="DRAEM cannot be extended, since it learns in many passes"):
        again.extend(TEST)


def test_maps_are_probabilities_and_scores_their_averages(trained: ead.DRAEM) -> None:
    found = trained.predict(TEST)
    assert np.ptp(found.anomaly_map[0] - found.anomaly_map[1]) > 0.01
    with torch.no_grad():
        pixels = torch.from_numpy(TEST).permute(0, 3, 1, 2) / 255.0
        logits = trained.state_.networks()(pixels)[1]
    np.testing.assert_allclose(found.anomaly_map, logits.softmax(1)[:, 1], atol=1e-5)
    expected = [
        uniform_filter(own.astype(np.float64), 21, mode="constant").max() for own in found.anomaly_map
    ]
    np.testing.assert_allclose(found.anomaly_score, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["losses of another shape", "a weight less", "no weights", "another shape", "a great width"]
)
def test_weights_of_other_networks_are_damage(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = draem(steps=1).fit(TRAIN)
    state, weights = copy.copy(detector.state_), detector.state_.weights
    name, value = {
        "losses of another shape": ("losses", state.losses[None]),
        "a weight less": ("weights", weights[:-1]),
        "no weights": ("weights", ()),
        "another shape": ("weights", (*weights[:-1], weights[-1][:-1])),
        "a great width": ("width", 10**9),
    }[kind]
    object.__setattr__(state, name, value)
    monkeypatch.setattr(detector, "_state_to_save", lambda: state)
    detector.save(tmp_path / "m")
    said = "weights must have the shapes of networks of the width"
    if name == "losses":
        said = "losses must be one float32 for every step"
    with pytest.raises(DamagedModelError, match=said):
        ead.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 3}, ValueError, "width must be even, got 3"),
        ({"width": 0}, ValueError, "width must be at least 2, got 0"),
        ({"width": 2.0}, TypeError, "width must be a whole number, got 2.0"),
        ({"textures": ""}, ValueError, "textures must be a folder or None, got ''"),
        ({"textures": 3}, TypeError, "textures must be a folder or None, got 3"),
        ({"rotate": 1.5}, ValueError, "rotate must be a probability, between 0 and 1, got 1.5"),
        ({"rotate": math.nan}, ValueError, "rotate must be a probability, between 0 and 1, got nan"),
        ({"rotate": 10**400}, ValueError, "rotate must be a probability, between 0 and 1, got 1000"),
        ({"rotate": True}, TypeError, "rotate must be a number, got True"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": "all"}, ValueError, "steps must be a whole number or \"paper\", got 'all'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be positive and finite, got inf"),
        ({"learning_rate": 10**400}, ValueError, "learning_rate must be positive and finite, got 1000"),
        ({"learning_rate": "1"}, TypeError, "learning_rate must be a number, got '1'"),
        ({"precision": "half"}, ValueError, "precision must be \"auto\" or one of float32, .*, got 'half'"),
        ({"precision": "int8", "engine": "openvino"}, ValueError, "got 'int8': no network is frozen"),
        ({"resize": (250, 256)}, ValueError, "resize: DRAEM needs .* multiples of 32, got 250 x 256"),
        ({"resize": 256, "image_size": 100}, ValueError, "image_size: .* 100; 96 x 96 or 128 x 128"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.DRAEM(**options)


def test_what_shows_in_fit_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tile_size: DRAEM needs .* multiples of 32"):
        ead.TiledEnsemble(draem(), 48, 48, image_size=96)
    with pytest.raises(ValueError, match="images: DRAEM.* got 40 x 40; 32 x 32 or 64 x 64"):
        draem().fit(normal_images(4, side=40))
    with pytest.raises(ValueError, match="batch_size must be at least 2 for images so small"):
        draem(batch_size=1).fit(TRAIN)
    with pytest.raises(FileNotFoundError, match="textures: no such image or folder of images: .*none"):
        draem(textures=tmp_path / "none").fit(TRAIN)
    with pytest.raises(ValueError, match="textures: images: no image files in"):
        draem(textures=tmp_path).fit(TRAIN)


def test_it_keeps_some_promises_of_detectors() -> None:
    names = ["description_is_inverse", "global_random_state_stays", "one_image_is_enough"]
    assert ead.check_detector(draem(), checks=names) == names


@pytest.mark.slow
def test_it_finds_defects() -> None:
    detector = draem(WIDTH, steps=250, batch_size=8, learning_rate=0.003, rotate=0.0).fit(alike(20, 0))
    fresh = torch.from_numpy(alike(60, 9)).permute(0, 3, 1, 2)
    made = [
        defects.example(own, fresh[0], np.random.default_rng([7, i]), 0.0, None)
        for i, own in enumerate(fresh)
    ]
    shown = (torch.stack([own[1] for own in made]) * 255.0).round().byte().permute(0, 2, 3, 1)
    masks = torch.stack([own[2] for own in made])
    assert ead.auroc(detector.predict(shown.numpy()).anomaly_map.ravel(), masks.numpy().ravel() > 0) > 0.75


@pytest.mark.slow
def test_it_keeps_all_promises_of_detectors() -> None:
    ead.check_detector(ead.DRAEM(4, steps=24, batch_size=4, learning_rate=0.01, resize=SIDE, device="cpu"))
