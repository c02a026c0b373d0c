"""EfficientAD: against anomalib's recorded outputs, against NumPy in float64, and as a detector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.descriptions import NAMES, PLACES, make_narrow, named
from support.students import fill, waves
from support.textures import normal_images, with_defects
from support.trained import LAYERS, Pyramid, stop_at

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, WeightsUnavailableError
from ensemblead.detectors import Seen
from ensemblead.detectors.efficientad import detector as method
from ensemblead.detectors.efficientad import teacher
from ensemblead.detectors.efficientad.imitators import Imitators, Plan, grid_side
from ensemblead.kernels.maps import render_maps
from ensemblead.networks.pdn import PDN
from ensemblead.networks.zoo import IMAGENET_MEAN, IMAGENET_STD

RECORDED = load_file(Path(__file__).with_name("efficientad.safetensors"))
SIDE = 64
TRAIN, GOOD = normal_images(20, side=SIDE), normal_images(3, seed=1, side=SIDE)
BAD, _ = with_defects(normal_images(3, seed=2, side=SIDE))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    make_narrow(monkeypatch)


narrow = pytest.mark.usefixtures("_narrow")


# Engines


@narrow
@pytest.mark.slow
def test_all_networks_by_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("ensemblead.networks.engines.openvino")
    pytest.importorskip("openvino")
    names: list[str] = []
    real = openvino.converted

    def noted(part: Any, images: torch.Tensor) -> Any:
        names.append(part.name)
        return real(part, images)

    monkeypatch.setattr(openvino, "converted", noted)
    options: dict[str, Any] = {"steps": 2, "resize": None, "device": "cpu"}
    plain = ead.EfficientAD("small", "gabor", **options).fit(TRAIN[:10])
    plain.save(tmp_path / "model")
    quick = ead.load(tmp_path / "model", engine="openvino")
    found, expected = quick.predict(BAD), plain.predict(BAD)
    assert names == ["gabor", "the student and the autoencoder of EfficientAD"]
    most = 1e-3 * float(np.abs(expected.anomaly_map).max())
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=0, atol=most)
    # A copy, which a worker gets, has compiled nothing yet.
    np.testing.assert_array_equal(copy.deepcopy(quick).predict(BAD).anomaly_map, found.anomaly_map)


# The networks


def picture(name: str, side: int, scale: float = 1.0) -> torch.Tensor:
    """What the networks see of the recorded images."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((0.5 + 0.5 * waves(name, (1, 3, side, side))).float() * scale - mean) / std


def close(found: torch.Tensor, name: str) -> None:
    expected = RECORDED[name]
    most = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=most)


@pytest.mark.parametrize(
    ("size", "of_teacher", "of_student"), [("small", 2.694, 4.267), ("medium", 8.027, 11.615)]
)
def test_networks_are_as_large_as_the_papers(size: str, of_teacher: float, of_student: float) -> None:
    with torch.device("meta"):
        networks = Imitators(Plan.of(size, 384, (256, 256)))
        parts = (PDN(size), networks.student, networks.autoencoder)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert [round(count / 1e6, 3) for count in counts] == [of_teacher, of_student, 1.096]


@pytest.mark.parametrize("size", ["small", "medium"])
@torch.no_grad()
def test_teacher_and_student_are_anomalibs(size: str) -> None:
    image = picture("image", 64)
    network = PDN(size)
    fill(network)
    close(network(image).flatten()[::197], f"{size}.teacher.False")
    padded = PDN(size, is_padded=True)
    padded.load_state_dict(network.state_dict())
    close(padded(image).flatten()[::197], f"{size}.teacher.True")
    networks = Imitators(Plan.of(size, 384, (64, 64)))
    fill(networks)
    student = networks.student
    values = student.body(image)
    close(
        torch.cat([student.as_teacher(values), student.as_autoencoder(values)], 1).flatten()[::197],
        f"{size}.student",
    )


@torch.no_grad()
def test_the_autoencoder_is_anomalibs() -> None:
    networks = Imitators(Plan.of("small", 384, (256, 256)))
    fill(networks)
    found = networks.autoencoder(picture("image", 256))
    assert found.shape == (1, 384, 56, 56)
    close(found.flatten()[::9973], "autoencoder")


@torch.no_grad()
def test_losses_and_maps_are_anomalibs() -> None:
    size, statistics = (
        (128, 128),
        (0.1 * waves("mean", (384,)).float(), 1.0 + 0.5 * waves("std", (384,)).float()),
    )
    network, networks = PDN("small"), Imitators(Plan.of("small", 384, size))
    fill(network)
    fill(networks)
    image, student = picture("image", 128), networks.student
    images = torch.cat([picture("image", 128, 0.9), image, picture("penalty", 128)])
    known, values = teacher.standardised(network(images[:2]), statistics), student.body(images)
    outputs = (
        known,
        student.as_teacher(values[1:]),
        student.as_autoencoder(values[:1]),
        networks.autoencoder(images[:1]),
    )
    parts = object.__new__(method.Imitating).loss(outputs)
    found = [parts["student"] + parts["penalty"], parts["autoencoder"], parts["agreement"]]
    torch.testing.assert_close(torch.stack(found), RECORDED["losses"], rtol=1e-5, atol=1e-7)
    maps = torch.cat(method.distance_maps(networks, image, known[1:]))
    rendered = render_maps(maps, size, sigma=0.0)
    torch.testing.assert_close(rendered[:, ::7, ::7], RECORDED["maps"], rtol=1e-4, atol=1e-6)
    next(iter(student.body.parameters())).view(-1)[7] += 0.1
    changed, _ = method.distance_maps(networks, image, known[1:])
    assert (changed - maps[:1]).abs().max() > 1e-4


@narrow
@pytest.mark.parametrize("side", [33, 64, 70, 129, 254])
def test_grids(side: int) -> None:
    image = torch.zeros(1, 3, side, side)
    assert PDN("small")(image).shape[2:] == (grid_side(side),) * 2
    assert PDN("small", is_padded=True)(image).shape[2:] == (-(-side // 4),) * 2
    if side >= 64:
        networks = Imitators(Plan.of("small", 5, (side, side + 3)))
        found = networks.autoencoder(torch.zeros(2, 3, side, side + 3))
        assert found.shape == (2, 5, grid_side(side), grid_side(side + 3))


def test_dropping_follows_from_the_generator() -> None:
    networks, image = Imitators(Plan.of("small", 5, (64, 64))), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        first, again, other = (
            networks.autoencoder(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# In NumPy


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 5000, 12345])
def test_the_hard_loss_by_hand(count: int) -> None:
    values = waves("squares", (count,)).square().float()
    exact = values.double().numpy()
    expected = exact[exact >= np.quantile(exact, 0.999) - 1e-12].mean()
    assert float(method.hard_loss(values)) == pytest.approx(expected, rel=1e-6)


def resized(grid: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Bilinear, corners not aligned."""
    for axis, target in enumerate(size):
        source = grid.shape[axis]
        places = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(source)))
        grid = np.moveaxis(np.tensordot(weights, grid, (1, axis)), 0, axis)
    return grid


def test_maps_by_hand() -> None:
    first, second = (waves(name, (2, 6, 5)).square().float() for name in ("first", "second"))
    quantiles = (0.2, 0.7, 0.1, 0.4)
    grids = method.anomaly_grids(first, second, quantiles)
    assert grids.shape == (2, 14, 13)
    for image in range(2):
        a, b = first[image].double().numpy(), second[image].double().numpy()
        mean = (0.1 * (a - 0.2) / 0.5 + 0.1 * (b - 0.1) / 0.3) / 2
        expected = resized(np.pad(mean, 4, constant_values=mean.min()), (56, 52))
        found = render_maps(grids, (56, 52), sigma=0.0)[image]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equal_quantiles_divide_nothing_by_nothing() -> None:
    flat = torch.full((1, 2, 2), 3.0)
    assert method.anomaly_grids(flat, flat, (3.0, 3.0, 0.0, 0.0))[0, 4, 4] == pytest.approx(0.15)


def test_statistics_by_hand() -> None:
    values = waves("descriptions", (4, 3, 5, 6)).float() + torch.tensor([0.0, 3000.0, 0.0])[:, None, None]
    values[:, 2] = 0.1
    mean, std = teacher.channel_statistics(values.split(3))
    exact = values.double().numpy()
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std[:2], exact.std((0, 2, 3))[:2], rtol=1e-6)
    assert std[2] == 1.0


def test_the_rate_falls_once() -> None:
    recipe = object.__new__(method.Imitating)
    recipe.steps = 70_000
    assert [recipe.schedule(step) for step in (0, 66_499, 66_500, 69_999)] == [1.0, 1.0, 0.1, 0.1]
    assert method.Imitating.weight_decay == 1e-5


# The teacher


def shifted(describe: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
    """The centre of what a small change at row 36, column 28 of an image changes in its descriptions."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = image.clone()
    changed[..., 34:38, 26:30] += 1.0
    apart = (describe(changed) - describe(image)).square().sum(1)[0]
    total = float(apart.sum())
    return tuple(float((apart.sum(1 - axis) * torch.arange(8)).sum() / total) for axis in (0, 1))  # type: ignore[return-value]


@narrow
@torch.no_grad()
def test_descriptions_of_both_kinds_of_teachers_lie_on_one_grid() -> None:
    for extractor in (
        ead.FeatureExtractor("pdn_small", ("conv4",), weights=None),
        ead.FeatureExtractor("gabor", ("layer2", "layer3")),
    ):
        row, column = shifted(lambda images, own=extractor: teacher.describe(own, images))  # type: ignore[misc]
        # Description i is of pixels 4 i to 4 i + 32, around pixel 4 i + 16.
        assert row == pytest.approx((36 - 16) / 4, abs=0.6)
        assert column == pytest.approx((28 - 16) / 4, abs=0.6)


@narrow
def test_weights_by_the_names_of_both_codes(tmp_path: Path) -> None:
    save_file(named(PLACES), tmp_path / "places.safetensors")
    save_file(named(NAMES), tmp_path / "names.safetensors")
    image, found = torch.rand(1, 3, 64, 64), []
    for name in ("places", "names"):
        detector = ead.EfficientAD(
            "small", "pdn_small", weights=tmp_path / f"{name}.safetensors", device="cpu"
        )
        assert detector.layers == ("conv4",)
        found.append(teacher.describe(detector.network_, image))
    assert torch.equal(*found)


@narrow
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    cases = {
        "does not know: conv9.weight": {
            **named(NAMES),
            "conv9.weight": torch.zeros(1),
        },
        "lacks 2 tensors": {name: own for name, own in named(PLACES).items() if not name.startswith("6.")},
        "two tensors are conv1.bias of the PDN": {**named(PLACES), **named(NAMES)},
        "other shapes than PDN: conv1.weight": {**named(PLACES), "0.weight": torch.zeros(8, 3, 5, 5)},
    }
    for number, (message, state) in enumerate(cases.items()):
        save_file(state, tmp_path / f"{number}.safetensors")
        with pytest.raises(ValueError, match=message):
            _ = ead.EfficientAD(
                "small", "pdn_small", weights=tmp_path / f"{number}.safetensors", device="cpu"
            ).network_
    with pytest.raises(
        WeightsUnavailableError, match="no weights are published for pdn_small; pass weights=PATH"
    ):
        _ = ead.EfficientAD("small", "pdn_small").network_
    with pytest.raises(FileNotFoundError, match="no such file"):
        _ = ead.EfficientAD("small", "pdn_medium", weights=tmp_path / "none.safetensors").network_


def test_the_first_layer_has_stride_8() -> None:
    detector = ead.EfficientAD("small", "gabor", ("layer1", "layer2"), resize=None, device="cpu")
    with pytest.raises(
        ValueError, match="layers: the first must have stride 8, but layer1 has a grid of 32 x 32"
    ):
        detector.fit(TRAIN)


# The detector


def small(**options: Any) -> ead.EfficientAD:
    """On a network of few channels."""
    defaults: dict[str, Any] = {"steps": 4, "resize": None, "device": "cpu"}
    return ead.EfficientAD("small", Pyramid(), LAYERS[1:], **(defaults | options))


def alone(steps: int = 2) -> ead.EfficientAD:
    """On filters, which need not be given again."""
    return ead.EfficientAD("small", "gabor", steps=steps, resize=None, device="cpu")


@narrow
def test_it_learns_what_is_normal() -> None:
    detector = small(steps=30, learning_rate=1e-3).fit(TRAIN)
    assert detector.losses_[-5:].mean() < 0.8 * detector.losses_[:5].mean()
    good, bad = detector.predict(GOOD), detector.predict(BAD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()
    np.testing.assert_allclose(bad.anomaly_score, bad.anomaly_map.max((1, 2)), rtol=1e-5)
    assert detector.calibration_.origin == "held_out"


@narrow
def test_quantiles_are_those_of_the_images_held_out() -> None:
    detector = small().fit(TRAIN)
    held_out = TRAIN[list(detector.calibration_.positions)]
    assert len(held_out) == 2
    seen = Seen((torch.from_numpy(held_out).permute(0, 3, 1, 2),), (SIDE, SIDE))
    expected = [
        np.quantile(own.double().numpy(), (0.9, 0.995)) for own in detector._maps(detector.state_, seen)
    ]
    np.testing.assert_allclose(detector.state_.quantiles, np.concatenate(expected), rtol=1e-6)


@narrow
def test_images_of_several_sizes_are_refused_before_all_are_read() -> None:
    images, stages = [Image.fromarray(image) for image in TRAIN], list[str]()
    images[3] = images[3].resize((SIDE, SIDE + 8))
    with pytest.raises(ValueError, match="images must all have one size to be trained on"):
        small(batch_size=1).fit(images, progress=lambda *call: stages.append(call[0]))
    assert stages == []


@narrow
def test_parts_of_the_loss_and_penalty_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "photograph.png")
    shown: list[torch.Tensor] = []
    normalize = ead.FeatureExtractor.normalize

    def keep(self: ead.FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        return normalize(self, images)

    monkeypatch.setattr(ead.FeatureExtractor, "normalize", keep)
    losses = {}
    for source in (None, "procedural", tmp_path):
        shown.clear()
        losses[source] = small(penalty_images=source, steps=2).fit(TRAIN).losses_
        batches = [images for images in shown if len(images) > 1]
        assert [len(images) for images in batches] == [2 if source is None else 3] * 2
    assert len({float(own[0]) for own in losses.values()}) == 3
    colours = {tuple(images[2, :, 9, 9].tolist()) for images in batches}
    assert colours <= {(200, 100, 50), (124, 124, 124)}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small(penalty_images=tmp_path / "nowhere").fit(TRAIN)


@narrow
def test_precision_and_batches() -> None:
    exact, half = (small(precision=name, steps=1).fit(TRAIN).losses_ for name in ("float32", "bfloat16"))
    assert float(half) == pytest.approx(float(exact), rel=0.1)
    detector = small(batch_size=3, steps=2).fit(TRAIN)
    np.testing.assert_allclose(
        detector.predict(BAD).anomaly_map[0], detector.predict(BAD[:1]).anomaly_map[0], rtol=1e-3, atol=1e-3
    )


FORMS: dict[str, Callable[[], Any]] = {
    "alone": alone,
    "backbones": lambda: ead.BackboneEnsemble(
        [alone(), ead.PatchCore("gabor", resize=None, coreset_fraction=0.1, device="cpu")]
    ),
    "tiles": lambda: ead.TiledEnsemble(alone(), SIDE, SIDE, image_size=(SIDE, 2 * SIDE)),
}


@narrow
@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_it_is_the_same(form: str, tmp_path: Path) -> None:
    detector = FORMS[form]().fit(TRAIN)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(BAD).anomaly_map, detector.predict(BAD).anomaly_map)
    assert again.threshold_ == detector.threshold_
    modules = {id(network.network.extractor.module) for network in again._networks()}
    assert len(modules) == 1  # one teacher, whatever number of students


@narrow
def test_a_saved_model_knows_the_file_of_its_teacher(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(named(PLACES), path)
    detector = ead.EfficientAD("small", "pdn_small", weights=path, steps=1, resize=None, device="cpu").fit(
        TRAIN
    )
    detector.save(tmp_path / "m")
    expected = detector.predict(GOOD).anomaly_score
    np.testing.assert_array_equal(ead.load(tmp_path / "m").predict(GOOD).anomaly_score, expected)
    moved = path.rename(tmp_path / "moved.safetensors")
    again = ead.load(tmp_path / "m", weights=moved)
    np.testing.assert_array_equal(again.predict(GOOD).anomaly_score, expected)
    with pytest.raises(ead.EnsembleADError, match="weights of pdn_small are no longer at"):
        ead.load(tmp_path / "m")


@narrow
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = small(steps=5).fit(TRAIN)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 5"):
        small(steps=5).fit(TRAIN, checkpoint=tmp_path / "c", progress=stop_at(3))
    resumed = small(steps=5).fit(TRAIN, checkpoint=tmp_path / "c")
    assert resumed.state_.quantiles == whole.state_.quantiles
    assert torch.equal(resumed.losses_, whole.losses_)
    assert all(map(torch.equal, resumed.state_.weights, whole.state_.weights))


@narrow
def test_states_of_other_networks_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small(steps=1).fit(TRAIN)
    state = detector.state_
    cases: dict[str, dict[str, Any]] = {
        "weights must have the shapes and dtypes": {"weights": state.weights[1:]},
        "shapes and dtypes of the plan's": {"weights": tuple(one.half() for one in state.weights)},
        "losses must be one float32 for every step": {"losses": state.losses[None]},
        "deviations must be positive": {"statistics": (state.statistics[0], 0.0 * state.statistics[1])},
        "a mean and a deviation for each": {"statistics": tuple(one.double() for one in state.statistics)},
        "kernel must be two numbers of 1 to 8": {"plan": _spoiled(state.plan, "kernel", (2, 9))},
        "size must be one of small, medium, got 'huge'": {"plan": _spoiled(state.plan, "size", "huge")},
        "statistics must be a mean and a deviation": {"statistics": state.statistics[:1]},
        "quantiles must be four finite numbers": {"quantiles": state.quantiles[:3]},
    }
    for number, (message, changed) in enumerate(cases.items()):
        wrong = _spoiled(state, *next(iter(changed.items())))
        monkeypatch.setattr(detector, "_state_to_save", lambda wrong=wrong: wrong)
        detector.save(tmp_path / str(number))
        with pytest.raises(DamagedModelError, match=message):
            ead.load(tmp_path / str(number), backbone=Pyramid())


def _spoiled(value: Any, name: str, other: Any) -> Any:
    twin = replace(value)
    object.__setattr__(twin, name, other)
    return twin


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": "large"}, ValueError, "size must be one of small, medium, got 'large'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": "1"}, TypeError, "learning_rate must be a number, got '1'"),
        ({"resize": (63, 256)}, ValueError, "resize: EfficientAD needs sides of at least 64 .* 63 x 256"),
        ({"penalty_images": ""}, ValueError, "penalty_images must not be empty"),
        ({"backbone": "pdn_small", "layers": ("conv3",)}, ValueError, "its layer conv4 puts out; got conv3"),
        ({"penalty_images": 3}, TypeError, "penalty_images must be .* a folder or None, got 3"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.EfficientAD(**{"backbone": "gabor", **options})


@narrow
def test_sizes_are_checked_where_they_are_known() -> None:
    with pytest.raises(ValueError, match="tile_size: EfficientAD needs sides of at least 64"):
        ead.TiledEnsemble(small(), 48, 48, image_size=96)
    with pytest.raises(ValueError, match="images: EfficientAD needs .* got 40 x 40"):
        small().fit(normal_images(4, side=40))
    detector = small(steps=1).fit(normal_images(4, side=96))
    with pytest.raises(ValueError, match="trained on larger ones, and needs sides of at least 96 pixels"):
        detector.predict(GOOD)


@narrow
def test_it_keeps_some_promises_of_detectors() -> None:
    names = ["description_is_inverse", "global_random_state_stays", "one_image_is_enough"]
    assert ead.check_detector(alone(1), checks=names) == names


@narrow
@pytest.mark.slow
def test_it_keeps_all_promises_of_detectors() -> None:
    ead.check_detector(
        ead.EfficientAD("small", "gabor", steps=30, learning_rate=1e-3, resize=SIDE, device="cpu")
    )
