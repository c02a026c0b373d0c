"""Reverse Distillation: against anomalib's recorded outputs, against NumPy in float64, and as a detector."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from support.students import feature_maps, fill, waves
from support.textures import normal_images
from support.trained import LAYERS, Pyramid, distilled

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.reverse_distillation import detector as method
from ensemblead.detectors.reverse_distillation.student import Plan, Student, new_student
from ensemblead.kernels.maps import render_maps
from ensemblead.networks.zoo import blueprint

RECORDED = load_file(Path(__file__).with_name("reverse_distillation.safetensors"))
STAGES = ("layer1", "layer2", "layer3")
SMALL, LARGE = (64, 128, 256), (256, 512, 1024)
SIDE = 32
HALVES = ("bfloat16", "float16")


def alike(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """One texture in noise."""
    noise = np.random.default_rng(seed).normal(0, 6, (count, SIDE, SIDE, 3))
    return np.clip(normal_images(1, side=SIDE) + noise, 0, 255).astype(np.uint8)


TRAIN, GOOD, BAD = alike(20, 0), alike(4, 1), alike(4, 2)
BAD[:, 8:24, 8:24] = (60, 30, 40)


pytestmark = pytest.mark.usefixtures("one_thread")


# The student


@pytest.mark.parametrize(
    ("backbone", "channels", "millions"),
    [
        ("resnet18", SMALL, 15.383),
        ("resnet34", SMALL, 22.171),
        ("resnet50", LARGE, 46.651),
        ("wide_resnet50_2", LARGE, 83.803),
    ],
)
def test_a_student_is_as_large_as_the_authors(
    backbone: str, channels: tuple[int, ...], millions: float
) -> None:
    plan = Plan.of(channels, blueprint(backbone), STAGES)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Student(plan).parameters())
    assert round(count / 1e6, 3) == millions


def test_a_network_of_no_residual_blocks_has_a_small_student() -> None:
    assert Plan.of((4, 6, 8), Pyramid(), LAYERS) == Plan((4, 6, 8), (2, 2, 2, 2), 0.0)


def filled(backbone: str, channels: tuple[int, ...]) -> Student:
    with torch.device("meta"):
        student = Student(Plan.of(channels, blueprint(backbone), STAGES))
    student.to_empty(device="cpu")
    fill(student)
    return student


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", SMALL), ("resnet50", LARGE)])
def test_forward_loss_and_map_are_anomalibs(backbone: str, channels: tuple[int, ...]) -> None:
    student, maps = filled(backbone, channels).eval(), feature_maps(channels, 16)
    for network in (student, student.folded()):
        with torch.no_grad():
            restored = network(maps)
        for number, own in enumerate(restored):
            assert own.shape == maps[number].shape
            expected = RECORDED[f"{backbone}.restored{number}"]
            most = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(own.flatten()[::997], expected, rtol=0.0, atol=most)
        expected = RECORDED[f"{backbone}.loss"]
        torch.testing.assert_close(method.cosine_loss(maps, restored), expected, rtol=1e-5, atol=1e-5)
        found = method.anomaly_grids(maps, restored, (64, 64))[:, ::5, ::5]
        torch.testing.assert_close(found, RECORDED[f"{backbone}.map"], rtol=1e-5, atol=1e-5)


def test_one_changed_weight_is_seen() -> None:
    student, maps = filled("resnet18", SMALL).eval(), feature_maps(SMALL, 16)
    with torch.no_grad():
        next(iter(student.decode[0].parameters())).view(-1)[7] += 0.1
        found = student(maps)[1].flatten()[::997]
    assert (found - RECORDED["resnet18.restored1"]).abs().max() > 1e-4


def test_five_updates_are_anomalibs() -> None:
    student = filled("resnet18", SMALL).train()
    assert method.Distillation.betas == (0.5, 0.999)
    adam = torch.optim.Adam(student.parameters(), 0.005, method.Distillation.betas, fused=True)
    for step, expected in enumerate(RECORDED["resnet18.losses"].tolist()):
        batch = feature_maps(SMALL, 16, 4, step)
        loss = method.cosine_loss(batch, student(batch))
        adam.zero_grad()
        loss.backward()
        adam.step()
        # Adam's first updates are signs of gradients: where one is next to nothing, rounding decides it, by
        # 3e-3 of the loss between instruction sets.
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-2 if step else 1e-5)


def test_initial_weights() -> None:
    student = new_student(Plan((16, 32, 64), (2, 2, 2, 2), 0.25), seed=3)
    for name, parameter in student.named_parameters():
        part = student.get_submodule(name.rpartition(".")[0])
        if isinstance(part, torch.nn.ConvTranspose2d):
            bound = (4 * part.out_channels) ** -0.5
            assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound
        elif isinstance(part, torch.nn.Conv2d):
            deviation = (2.0 / (part.out_channels * part.kernel_size[0] ** 2)) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(deviation, rel=0.2)
        else:
            assert set(parameter.tolist()) == {1.0 if name.endswith("weight") else 0.0}
    again = new_student(student.plan, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


def test_any_whole_number_is_a_seed() -> None:
    found = distilled(seed=2**70 + 3, steps=1).fit(TRAIN).losses_
    assert found != distilled(seed=2**70 + 4, steps=1).fit(TRAIN).losses_


# Loss and map in NumPy


def cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Any:
    """Along the first axis; 1 for two vectors of nothing."""
    lengths = np.sqrt((a * a).sum(0)), np.sqrt((b * b).sum(0))
    found = (a * b).sum(0) / (np.maximum(lengths[0], 1e-8) * np.maximum(lengths[1], 1e-8))
    return np.where(np.maximum(*lengths) < 1e-6, 1.0, found)


def corner_aligned(source: int, target: int) -> npt.NDArray[np.float64]:
    places = np.arange(target) * (source - 1) / max(target - 1, 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(source)[None]))


def pairs() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    teacher = feature_maps((5, 6, 7), 8)
    student = [waves(f"restored {i}", own.shape).relu().float() for i, own in enumerate(teacher)]
    for own in (teacher[0], student[0]):
        own[0, :, 2, 3] = 0.0
    teacher[1][1, :, 0, 0] = 0.0  # of the teacher alone
    return teacher, student


def test_maps_by_hand() -> None:
    teacher, student = pairs()
    size = (32, 48)
    expected = np.zeros((2, *size))
    for own, restored in zip(teacher, student, strict=True):
        for image in range(2):
            apart = 1.0 - cosine(own[image].double().numpy(), restored[image].double().numpy())
            rows, columns = (corner_aligned(a, b) for a, b in zip(apart.shape, size, strict=True))
            expected[image] += rows @ apart @ columns.T
    found = method.anomaly_grids(teacher, student, size)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    blurred = np.stack([gaussian_filter(own, 4.0) for own in expected])
    np.testing.assert_allclose(render_maps(found, size, sigma=4.0), blurred, atol=1e-5)


@pytest.mark.parametrize("form", method.LOSSES)
def test_losses_by_hand(form: str) -> None:
    teacher, student = pairs()
    teacher, student = ([own + 0.1 for own in maps] for maps in (teacher, student))
    expected = 0.0
    for own, restored in zip(teacher, student, strict=True):
        a, b = own.double().numpy(), restored.double().numpy()
        if form == "global":
            expected += (1.0 - cosine(a.reshape(2, -1).T, b.reshape(2, -1).T)).mean()
        else:
            expected += (1.0 - cosine(a.swapaxes(0, 1), b.swapaxes(0, 1))).mean()
    assert float(method.cosine_loss(teacher, student, form)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", method.LOSSES)
def test_maps_of_zeros_have_finite_gradients(form: str) -> None:
    """As where the last ReLU lets nothing through."""
    teacher, student = pairs()
    zeros = [torch.zeros_like(maps).requires_grad_() for maps in student]
    loss = method.cosine_loss(teacher, zeros, form)
    assert loss.item() == len(zeros)
    loss.backward()
    assert all(maps.grad is not None and maps.grad.isfinite().all() for maps in zeros)


# The detector


def test_it_learns_what_is_normal() -> None:
    detector = distilled(steps=60).fit(TRAIN)
    assert detector.losses_[-1] < 0.5 * detector.losses_[0]
    good, bad = detector.predict(GOOD), detector.predict(BAD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()
    assert good.anomaly_map.min() >= 0.0
    assert bad.anomaly_map.max() <= 3.0
    np.testing.assert_allclose(bad.anomaly_score, bad.anomaly_map.max((1, 2)), rtol=1e-5)


def test_steps_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ead.ReverseDistillation, "epochs", 3)
    assert len(distilled(steps="paper").fit(TRAIN).losses_) == 3 * 5  # of eighteen images, in fours
    assert ead.ReverseDistillation("resnet18").steps == "paper"


def test_precision() -> None:
    first = [float(distilled(precision=name, steps=1).fit(TRAIN).losses_) for name in HALVES]
    assert first == pytest.approx([float(distilled(steps=1).fit(TRAIN).losses_)] * 2, rel=1e-2)
    detector = distilled(precision="bfloat16", steps=60).fit(TRAIN)
    assert detector.predict(BAD).anomaly_score.min() > detector.predict(GOOD).anomaly_score.max()


def alone(**options: Any) -> ead.ReverseDistillation:
    return ead.ReverseDistillation("gabor", steps=4, batch_size=4, resize=None, device="cpu", **options)


FORMS: dict[str, Callable[[], Any]] = {
    "alone": alone,
    "backbones": lambda: ead.BackboneEnsemble(
        [alone(), ead.PatchCore("gabor", resize=None, coreset_fraction=0.1, device="cpu")]
    ),
    "tiles": lambda: ead.TiledEnsemble(alone(), SIDE, SIDE, image_size=(SIDE, 2 * SIDE)),
}


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_it_is_the_same(form: str, tmp_path: Path) -> None:
    detector = FORMS[form]().fit(TRAIN)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    found, expected = again.predict(BAD), detector.predict(BAD)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    assert again.threshold_ == detector.threshold_
    assert detector.calibration_.origin == "held_out"
    with pytest.raises(ValueError, match="ReverseDistillation cannot be extended, since it learns in many"):
        again.extend(GOOD)


def spoiled(state: method.Distilled, kind: str) -> method.Distilled:
    state = copy.copy(state)
    weights: Sequence[torch.Tensor] = state.weights
    changed: dict[str, Any] = {
        "a weight less": {"weights": tuple(weights[:-1])},
        "another shape": {"weights": (weights[0][:-1], *weights[1:])},
        "more blocks": {"plan": replace(state.plan, depths=(2, 2, 2, 10**9))},
    }
    for name, value in changed[kind].items():
        object.__setattr__(state, name, value)
    return state


@pytest.mark.parametrize("kind", ["a weight less", "another shape", "more blocks"])
def test_weights_of_another_student_are_damage(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = distilled(steps=1).fit(TRAIN)
    state = spoiled(detector.state_, kind)
    monkeypatch.setattr(detector, "_state_to_save", lambda: state)
    detector.save(tmp_path / "m")
    with pytest.raises(DamagedModelError, match="weights must have the shapes of the plan's student"):
        ead.load(tmp_path / "m", backbone=Pyramid())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"resize": (250, 256)},
            ValueError,
            "resize: .* multiples of 32, got 250 x 256; 224 x 256 or 256 x 288",
        ),
        (
            {"resize": 256, "image_size": 100},
            ValueError,
            "image_size: .* 100; 96 x 96 or 128 x 128",
        ),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": "all"}, ValueError, "steps must be a whole number or \"paper\", got 'all'"),
        ({"loss": "cosine"}, ValueError, "loss must be one of global, local, got 'cosine'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": "1"}, TypeError, "learning_rate must be a number, got '1'"),
        ({"layers": ("one", "two")}, ValueError, "layers must be 3, got one, two"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.ReverseDistillation(Pyramid(), **({"layers": LAYERS} | options))


def test_sizes_are_checked_where_they_are_known() -> None:
    with pytest.raises(ValueError, match="tile_size: ReverseDistillation needs .* multiples of 32"):
        ead.TiledEnsemble(distilled(), 48, 48, image_size=96)
    with pytest.raises(ValueError, match="images: ReverseD.* got 40 x 40; 32 x 32 or 64 x 64"):
        distilled().fit(normal_images(4, side=40))
    with pytest.raises(ValueError, match="batch_size must be at least 2 for images so small"):
        distilled(batch_size=1).fit(TRAIN)
    with pytest.raises(ValueError, match="layers must each have half .* one 8 x 8, two 4 x 4, one.0 8"):
        ead.ReverseDistillation(Pyramid(), ("one", "two", "one.0"), resize=None, device="cpu").fit(TRAIN)


def test_it_keeps_some_promises_of_detectors() -> None:
    names = ["description_is_inverse", "global_random_state_stays", "one_image_is_enough", "nan_is_refused"]
    assert ead.check_detector(alone(), checks=names[:3]) == names[:3]


@pytest.mark.slow
def test_it_keeps_all_promises_of_detectors() -> None:
    detector = ead.ReverseDistillation(
        "gabor", steps=40, batch_size=8, resize=SIDE, device="cpu", learning_rate=0.01
    )
    ead.check_detector(detector)
