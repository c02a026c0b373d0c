"""Checkpoints of anomalib: equal scores and maps, thresholds, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.other_tools import (
    BACKBONE,
    IMAGES,
    LAYERS,
    NEIGHBORS,
    checkpoint,
    model_state,
    normalize,
    precision_type,
    resize,
    transform,
    transforms,
)

import ensemblead as ead
from ensemblead.common.errors import ConversionError
from ensemblead.conversion import definitions
from ensemblead.conversion.anomalib import read_detector
from ensemblead.conversion.checkpoints import read_checkpoint
from ensemblead.conversion.verify import verify
from ensemblead.images import open_images

pytest.importorskip("timm")
# What anomalib 2.7 makes of these models, by record_anomalib.py.
RECORDED = dict(np.load(Path(__file__).with_name("anomalib.npz")))
COMMON = {"images": IMAGES, "false_alarm_rate": 0.2, "device": "cpu"}
GIVEN = {"backbone": BACKBONE, "layers": LAYERS, "resize": (64, 64)}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def convert(path: Path, out: Path | None = None, **options: Any) -> Any:
    return ead.convert("anomalib", path, out, **{**COMMON, **options})


@pytest.mark.parametrize("kind", ["patchcore", "padim"])
def test_scores_and_maps_are_those_of_anomalib(kind: str, tmp_path: Path) -> None:
    made = convert(write(tmp_path / "one.ckpt", checkpoint(kind)), tmp_path / "model")
    assert made.verified_images == 4
    assert 0 < made.largest_difference < 1e-4
    scores, maps = RECORDED[f"{kind}_scores"], RECORDED[f"{kind}_maps"]
    for detector in (made.detector, ead.load(tmp_path / "model")):
        found = detector.predict(IMAGES)
        np.testing.assert_allclose(found.anomaly_score, scores, rtol=1e-4)
        np.testing.assert_allclose(found.anomaly_map[:, ::5, ::5], maps, rtol=2e-4)
        assert detector.threshold_ == 60.5
        np.testing.assert_array_equal(found.is_anomalous, scores > 60.5)


def test_one_neighbour_is_not_reweighted(tmp_path: Path) -> None:
    path = write(tmp_path / "state.pt", model_state("patchcore"))
    made = convert(path, num_neighbors=1, **GIVEN)
    np.testing.assert_allclose(
        made.detector.predict(IMAGES).anomaly_score, RECORDED["patchcore_of_one_scores"], rtol=1e-4
    )


def test_a_bare_state_dict_needs_names(tmp_path: Path) -> None:
    path = write(tmp_path / "state.pt", model_state("patchcore"))
    with pytest.raises(ValueError, match="backbone must be given: .*does not state it"):
        convert(path)
    made = convert(path, num_neighbors=NEIGHBORS, **GIVEN)
    np.testing.assert_allclose(
        made.detector.predict(IMAGES).anomaly_score, RECORDED["patchcore_scores"], rtol=1e-4
    )
    assert made.detector.calibration_.is_guaranteed  # of the images, since no threshold is known
    without = convert(path, images=None, **GIVEN)
    assert without.detector.threshold_ == np.inf
    assert any("num_neighbors 9: the default of anomalib" in note for note in without.notes)
    assert any("it has no threshold" in note for note in without.notes)


@pytest.mark.parametrize("by_name", [False, True])
def test_the_precision_in_hyper_parameters_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    content = checkpoint("patchcore")
    content["hyper_parameters"]["precision"] = precision_type(monkeypatch, by_name=by_name)
    path = write(tmp_path / "one.ckpt", content)
    monkeypatch.undo()
    assert read_checkpoint(path).hyper["precision"] == "float32"
    assert convert(path).detector.threshold_ == 60.5


class Reaching:
    """Pickles as an attribute of something."""

    def __init__(self, of: Any, name: Any) -> None:
        self.of, self.name = of, name

    def __reduce__(self) -> Any:
        return getattr, (self.of, self.name)


@pytest.mark.parametrize("of", ["text", torch.Size([1]), {}])
def test_attributes_of_other_things_are_not_read(tmp_path: Path, of: Any) -> None:
    content = checkpoint("patchcore")
    content["hyper_parameters"]["precision"] = Reaching(of, "__class__")
    with pytest.raises(ValueError, match=r"which is not read \(it names getattr\)"):
        read_checkpoint(write(tmp_path / "one.ckpt", content))


@pytest.mark.parametrize("kind", ["patchcore", "padim"])
def test_layers_come_in_the_order_of_the_network(kind: str, tmp_path: Path) -> None:
    """As from timm's `features_only`, whichever order they are named in."""
    content = checkpoint(kind)
    content["hyper_parameters"]["layers"] = list(LAYERS[::-1])
    made = convert(write(tmp_path / "one.ckpt", content))
    assert any("layers layer1, layer2: in the order of the network" in note for note in made.notes)
    scores = made.detector.predict(IMAGES).anomaly_score
    np.testing.assert_allclose(scores, RECORDED[f"{kind}_scores"], rtol=1e-4)


def test_a_crop_in_the_checkpoint_is_kept(tmp_path: Path) -> None:
    steps = transforms(resize([96, 80]), transform("CenterCrop", size=[64, 64]), normalize())
    content = checkpoint("patchcore", anomalib_pre_processor_config={"transform": steps})
    detector = convert(write(tmp_path / "one.ckpt", content)).detector
    assert (detector.resize, detector.image_size) == ((96, 80), (64, 64))


def test_padim_cannot_be_extended(tmp_path: Path) -> None:
    detector = convert(write(tmp_path / "one.ckpt", checkpoint("padim"))).detector
    with pytest.raises(ValueError, match="it is not known of how many images"):
        detector.extend(IMAGES[::-1])


class Runs:
    """Calls a function when it is unpickled the usual way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    content = checkpoint("patchcore", extra=Runs(tmp_path / "ran"))
    path = write(tmp_path / "one.ckpt", content)
    with pytest.raises(ValueError, match="holds more than tensors and plain values") as caught:
        convert(path, tmp_path / "model")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model").exists()


def state_without(name: str) -> dict[str, Any]:
    content = checkpoint("patchcore" if name == "memory_bank" else "padim")
    del content["state_dict"][f"model.{name}"]
    return content


def state_with(kind: str, name: str, change: Any) -> dict[str, Any]:
    content = checkpoint(kind)
    content["state_dict"][f"model.{name}"] = change(content["state_dict"][f"model.{name}"])
    return content


def indefinite(inverse: torch.Tensor) -> torch.Tensor:
    inverse[3, 2, 2] = -1.0
    return inverse


def many_times(value: Any, doublings: int) -> Any:
    for _ in range(doublings):
        value = [value, value]
    return value


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no bank": (lambda: state_without("memory_bank"), {}, "neither a PatchCore .* nor a PaDiM"),
    "no idx": (lambda: state_without("idx"), {}, "must have idx"),
    "not fitted": (
        lambda: state_with("patchcore", "memory_bank", lambda _: torch.empty(0)),
        {},
        "must have memory_bank of 2 axes, not empty, got .*was it fitted",
    ),
    "half": (
        lambda: state_with("patchcore", "memory_bank", torch.Tensor.half),
        {},
        "memory_bank in float16, in which anomalib then computes",
    ),
    "not finite": (
        lambda: state_with("patchcore", "memory_bank", lambda bank: bank / 0),
        {},
        "memory_bank must be finite",
    ),
    "one row": (
        lambda: state_with("patchcore", "memory_bank", lambda bank: bank[:1]),
        {},
        "a memory bank of one row",
    ),
    "another dimension": (
        lambda: state_with("patchcore", "memory_bank", lambda bank: bank[:, 1:]),
        {},
        "191 dimensions, but the layers layer1, layer2 have 192 channels",
    ),
    "indefinite": (
        lambda: state_with("padim", "gaussian.inv_covariance", indefinite),
        {},
        "positive definite, but is not at position 3",
    ),
    "a channel beyond the last": (
        lambda: state_with("padim", "idx", lambda index: index + 1000),
        {},
        "keeps channel 1.*have 192 channels",
    ),
    "another blur": (
        lambda: state_with("padim", "anomaly_map_generator.blur.kernel", lambda kernel: kernel[..., 1:]),
        {},
        "blurs maps otherwise",
    ),
    "no pre-processor": (
        lambda: checkpoint("padim", anomalib_components_enabled={"pre_processor": False}),
        {},
        "has no pre-processor",
    ),
    "another transform": (
        lambda: checkpoint(
            "padim",
            anomalib_pre_processor_config={"transform": transforms(transform("Grayscale"), normalize())},
        ),
        {},
        "has the transform Grayscale, which cannot be converted",
    ),
    "another order": (
        lambda: checkpoint(
            "padim", anomalib_pre_processor_config={"transform": transforms(normalize(), resize([64, 64]))}
        ),
        {},
        "has the transform Resize, which cannot be converted",
    ),
    "another interpolation": (
        lambda: checkpoint(
            "padim",
            anomalib_pre_processor_config={
                "transform": transforms(resize([64, 64], interpolation="bicubic"), normalize())
            },
        ),
        {},
        "only bilinear and antialiased",
    ),
    "no normalisation": (
        lambda: checkpoint("padim", anomalib_pre_processor_config={"transform": resize([64, 64])}),
        {},
        "does not normalise images",
    ),
    "another normalisation": (
        lambda: checkpoint(
            "padim",
            anomalib_pre_processor_config={
                "transform": transforms(
                    resize([64, 64]), transform("Normalize", mean=[0.5] * 3, std=[0.5] * 3)
                )
            },
        ),
        {},
        "normalises images by mean",
    ),
    "another size": (lambda: checkpoint("padim"), {"resize": (96, 96)}, r"resize is \(64, 64\) in .*, got"),
    "another backbone": (lambda: checkpoint("padim"), {"backbone": "resnet18"}, "backbone is 'resnet10t'"),
    "neighbours of PaDiM": (
        lambda: checkpoint("padim"),
        {"num_neighbors": 3},
        "num_neighbors is of PatchCore",
    ),
    "no neighbours": (
        lambda: {f"model.{name}": value for name, value in model_state("patchcore").items()},
        {**GIVEN, "num_neighbors": 0},
        "num_neighbors of .* must be at least 1, got 0",
    ),
    "a fusion": (lambda: checkpoint("padim"), {"fusion": "mean"}, "fusion is of ensembles"),
    "an unknown backbone": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": "resnet10x", "layers": ["layer1"]}),
        {},
        "resnet10x",
    ),
    "an unknown layer": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": BACKBONE, "layers": ["layer9"]}),
        {},
        "layer9",
    ),
    "other positions": (
        lambda: checkpoint("padim", anomalib_pre_processor_config={"transform": None}),
        {"resize": (96, 64)},
        "has Gaussians at 256 positions, but images of 96 x 64 give 24 x 16",
    ),
    "a tensor beyond the file": (
        lambda: state_with("patchcore", "memory_bank", lambda _: torch.zeros(1).expand(10**9, 10**9)),
        {},
        r"is damaged: it has \d+ bytes, but tensors of 4\d{18}",
    ),
    "a tensor without values": (
        lambda: state_with("patchcore", "memory_bank", lambda bank: bank.to("meta")),
        {},
        "sparse, quantized or without values",
    ),
    "arguments without end": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": many_times([1], 40)}),
        {},
        "states arguments that cannot be read: it is of more than",
    ),
    "a layer without weights": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": BACKBONE, "layers": ["layer1", "layer3"]}),
        {},
        "weights: .* lacks",
    ),
    "layers by number": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": BACKBONE, "layers": [1, 2]}),
        {},
        r"must be names, got 'resnet10t' and \[1, 2\]",
    ),
    "fewer dimensions": (
        lambda: state_with("padim", "gaussian.inv_covariance", lambda inverse: inverse[:, :5, :5]),
        {},
        r"inv_covariance of shape \(256, 5, 5\), which does not go with gaussian.mean of shape \(12, 256\)",
    ),
    "a channel twice": (
        lambda: state_with("padim", "idx", torch.zeros_like),
        {},
        "num_dimensions must be different channels",
    ),
    "a transform of another form": (
        lambda: checkpoint(
            "padim", anomalib_pre_processor_config={"transform": transforms(transform("Normalize"))}
        ),
        {},
        "does not describe its transforms as anomalib 2 does: 'mean'",
    ),
    "no network": (
        lambda: {"memory_bank": torch.ones(9, 4)},
        {"backbone": BACKBONE, "layers": LAYERS},
        r"has no tensors feature_extractor.feature_extractor.\*",
    ),
    "no state dict": (lambda: {"epoch": 3}, {}, "must hold a state dict of tensors"),
    "a transformer": (
        lambda: checkpoint("padim", hyper_parameters={"backbone": "test_vit", "layers": ["blocks.1"]}),
        {},
        "has the transformer test_vit, whose tokens anomalib normalises",
    ),
    "a numbered tensor": (lambda: {0: torch.zeros(1)}, {}, "must hold a state dict of tensors"),
    "a list": (lambda: [torch.zeros(1)], {}, "must hold a state dict of tensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_represented_is_refused(case: str, tmp_path: Path) -> None:
    content, options, message = WRONG[case]
    path = write(tmp_path / "one.ckpt", content())
    with pytest.raises(ValueError, match=message):
        convert(path, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(tmp_path / "none.ckpt")
    whole = write(tmp_path / "one.ckpt", checkpoint("padim")).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    archive = zipfile.ZipFile(tmp_path / "one.ckpt")
    with archive, zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    for name in ("half", "packed"):
        with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
            convert(tmp_path / f"{name}.ckpt")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_image_threshold": float("nan")}, "threshold 50: that of the checkpoint"),
        ({"image_min": float("nan")}, "is not carried over"),
    ],
)
def test_thresholds_as_the_post_processor_applies_them(
    changes: dict[str, float], says: str, tmp_path: Path
) -> None:
    content = checkpoint("patchcore")
    for name, value in changes.items():
        content["state_dict"][f"post_processor.{name}"] = torch.tensor(value)
    made = convert(write(tmp_path / "one.ckpt", content), images=None)
    assert any(says in note for note in made.notes)
    assert made.detector.threshold_ == (50.0 if "50" in says else np.inf)


def test_another_sensitivity_is_not_carried_over(tmp_path: Path) -> None:
    content = checkpoint("patchcore", anomalib_post_processor_config={"image_sensitivity": 0.7})
    made = convert(write(tmp_path / "one.ckpt", content), images=None)
    assert made.detector.threshold_ == np.inf


@pytest.mark.parametrize("kind", ["patchcore", "padim"])
def test_a_detector_that_is_not_the_definition_is_not_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blurred = definitions._blurred
    monkeypatch.setattr(definitions, "_blurred", lambda grid, mode: 1.0005 * blurred(grid, mode))
    path = write(tmp_path / "one.ckpt", checkpoint(kind))
    with pytest.raises(ConversionError, match="but by definition .*nothing is written"):
        convert(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_definition_that_is_not_a_number_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "_blurred", lambda grid, mode: grid * np.nan)
    with pytest.raises(ConversionError, match="the map of image 0 is .*, but by definition nan"):
        convert(write(tmp_path / "one.ckpt", checkpoint("patchcore")))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("patchcore", "reweight_neighbors", 4),
        ("patchcore", "map_kind", "reflect"),
        ("patchcore", "score", "topk"),
        ("padim", "map_kind", "bilinear"),
        ("padim", "interpolation", "bilinear"),
    ],
)
def test_every_choice_is_seen_by_the_verification(kind: str, name: str, value: Any, tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("backbone", "layers", "num_neighbors", "resize", "image_size"), None
    )
    path = write(tmp_path / "one.ckpt", checkpoint(kind))
    converted = read_detector(path, device="cpu", **nothing)
    source = open_images(IMAGES)
    assert verify([converted], source, None)[1] < 1e-5
    setattr(converted.detector, name, value)
    with pytest.raises(ConversionError, match="by definition"):
        verify([converted], source, None)
