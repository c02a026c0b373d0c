"""Weights that other code has trained: against anomalib's recorded outputs, in every layout, and refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.published import DRAEM_WIDTH, KEPT, SIDES, digest_of, pixels, value
from torch.nn import functional

import ensemblead as ead
from ensemblead.common.errors import NotFittedError
from ensemblead.detectors.reverse_distillation import published
from ensemblead.detectors.reverse_distillation.student import Plan, Student
from ensemblead.detectors.training.published import WeightFile
from ensemblead.networks.zoo import blueprint

FIXTURE = Path(__file__).with_name("published.safetensors")
RECORDED = load_file(FIXTURE)
with safe_open(FIXTURE, "pt") as _opened:
    DIGESTS: dict[str, str] = _opened.metadata()
Tensors = dict[str, torch.Tensor]


def sized(method: str, **options: Any) -> dict[str, Any]:
    return {"resize": (SIDES[method], SIDES[method]), "device": "cpu", **options}


METHODS: dict[str, Callable[[], Any]] = {
    "ReverseDistillation": lambda: ead.ReverseDistillation(
        "resnet18", weights=None, **sized("ReverseDistillation")
    ),
    "FastFlow": lambda: ead.FastFlow(
        "resnet18", weights=None, flow_steps=2, conv3x3_only=False, **sized("FastFlow")
    ),
    "EfficientAD": lambda: ead.EfficientAD("small", "pdn_small", weights=None, **sized("EfficientAD")),
    "EfficientAD medium": lambda: ead.EfficientAD(
        "medium", "pdn_medium", weights=None, **sized("EfficientAD")
    ),
    "DRAEM": lambda: ead.DRAEM(DRAEM_WIDTH, **sized("DRAEM")),
}


pytestmark = pytest.mark.usefixtures("one_thread")


class WantedError(Exception):
    """The names and shapes that a method reads."""


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of every method the names and shapes of anomalib's model."""

    def read(self: WeightFile, names: dict[str, tuple[int, ...]], *_: object) -> Tensors:
        raise WantedError(names)

    found, path = {}, tmp_path_factory.mktemp("wanted") / "w.safetensors"
    # By it alone a file of anomalib is told from one of DRAEM's authors.
    save_file({"model.reconstructive_subnetwork.x": torch.zeros(1)}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightFile, "read", read)
        for method, make in METHODS.items():
            detector = make()
            with pytest.raises(WantedError) as caught:
                detector.load_weights(path)
            names = {f"model.{name}": tuple(shape) for name, shape in caught.value.args[0].items()}
            if detector.frozen_prefix:
                state = detector.network_.module.state_dict()
                names |= {
                    f"model.{detector.frozen_prefix}{name}": tuple(own.shape)
                    for name, own in state.items()
                    if not name.startswith(("fc.", "layer4."))
                }
            found[method] = names
    for part, sides in (("conv4.weight", (512, 1024, 1, 1)), *((f"bn4.{kind}", (512,)) for kind in _NORM)):
        found["ReverseDistillation"][f"model.bottleneck.{part}"] = sides
    return found


_NORM = ("weight", "bias", "running_mean", "running_var")


def written(shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    """A checkpoint of anomalib, converted."""
    tensors = {name: value(name, shape).float().contiguous() for name, shape in shapes.items()}
    for name in [name for name in tensors if name.endswith("w_perm")]:
        tensors[f"{name}_inv"] = value(f"{name}_inv", shapes[name]).contiguous()
    tensors |= {
        "post_processor.image_min": torch.tensor(0.0),
        "model.bn.num_batches_tracked": torch.tensor(1),
    }
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def files(
    wanted: dict[str, dict[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {
        method: written(shapes, folder / f"{method}.safetensors")
        for method, shapes in wanted.items()
        if method in SIDES  # of others only the names are recorded
    }


def images(method: str) -> np.ndarray[Any, Any]:
    return pixels(SIDES[method]).permute(0, 2, 3, 1).numpy()


def calibrated(detector: Any, method: str) -> Any:
    with pytest.warns(UserWarning, match="1 images cannot guarantee"):
        return detector.calibrate(images(method))


def close(found: torch.Tensor, expected: str) -> None:
    torch.testing.assert_close(found, RECORDED[expected], rtol=1e-5, atol=1e-5)


def same(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# Against anomalib


@pytest.mark.parametrize("method", METHODS)
def test_names_and_shapes_are_anomalibs(method: str, wanted: dict[str, dict[str, tuple[int, ...]]]) -> None:
    assert digest_of(wanted[method]) == DIGESTS[method]


@torch.no_grad()
def restored(detector: Any) -> list[torch.Tensor]:
    teacher = detector.network_
    found = detector.state_.student()(teacher(teacher.normalize(pixels(SIDES["ReverseDistillation"]))))
    return [own.flatten()[::KEPT] for own in found]


def test_reverse_distillation(files: dict[str, Path], tmp_path: Path) -> None:
    detector = METHODS["ReverseDistillation"]().load_weights(files["ReverseDistillation"])
    for number, own in enumerate(restored(detector)):
        close(own, f"restored{number}")
    # The teacher of the file is stored in the model, since it is nowhere else.
    calibrated(detector, "ReverseDistillation").save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert again.losses_.shape == (0,)
    expected = detector.predict(images("ReverseDistillation"))
    np.testing.assert_array_equal(
        again.predict(images("ReverseDistillation")).anomaly_map, expected.anomaly_map
    )
    # The authors' code names the embedding otherwise, and keeps the teacher elsewhere.
    tensors = {
        name.removeprefix("model.").replace("bottleneck.", "bn."): own
        for name, own in load_file(files["ReverseDistillation"]).items()
        if name.startswith(("model.bottleneck.", "model.decoder."))
    }
    save_file(tensors, tmp_path / "authors.safetensors")
    theirs = ead.ReverseDistillation("resnet18", weights=detector.weights, **sized("ReverseDistillation"))
    same(theirs.load_weights(tmp_path / "authors.safetensors").state_.weights, detector.state_.weights)


def test_fastflow(files: dict[str, Path], tmp_path: Path) -> None:
    detector = METHODS["FastFlow"]().load_weights(files["FastFlow"])
    found = calibrated(detector, "FastFlow").predict(images("FastFlow"))
    close(torch.from_numpy(found.anomaly_map)[:, ::5, ::5], "flows")
    tensors = {
        name.replace("model.fast_flow_blocks", "nf_flows").replace("model.", ""): own
        for name, own in load_file(files["FastFlow"]).items()
        if name.startswith("model.")
    }
    save_file(tensors, tmp_path / "gathierry.safetensors")
    theirs = METHODS["FastFlow"]().load_weights(tmp_path / "gathierry.safetensors")
    again = calibrated(theirs, "FastFlow").predict(images("FastFlow"))
    np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)


def usual_names(name: str) -> str:
    """What the usual code calls a tensor of anomalib's EfficientAD: all its networks are in a row."""
    name = name.removeprefix("model.")
    small = {f"conv{number}": place for number, place in enumerate((0, 3, 6, 8), 1)}
    row = {f"encoder.enconv{number}": 2 * number - 2 for number in range(1, 7)}
    row |= {f"decoder.deconv{number}": 9 + 3 * number for number in range(1, 7)}
    row |= {"decoder.deconv7": 30, "decoder.deconv8": 32}
    for own, place in small.items():
        name = name.replace(f"teacher.{own}", f"teacher.{place}").replace(
            f"student.{own}", f"student.{place}"
        )
    for own, place in row.items():
        name = name.replace(f"ae.{own}.", f"autoencoder.{place}.")
    quantiles = {"qa_st": "q_st_start", "qb_st": "q_st_end", "qa_ae": "q_ae_start", "qb_ae": "q_ae_end"}
    for own, other in quantiles.items():
        name = name.replace(f"quantiles.{own}", other)
    return name.replace("mean_std.", "teacher_")


def test_efficientad(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = {
        usual_names(name): own
        for name, own in load_file(files["EfficientAD"]).items()
        if not name.startswith("post_processor.") and name != "model.bn.num_batches_tracked"
    }
    assert "autoencoder.27.weight" in tensors
    save_file(tensors, tmp_path / "usual.safetensors")
    detector = METHODS["EfficientAD"]().load_weights(files["EfficientAD"])
    seen = detector._seen(pixels(SIDES["EfficientAD"]), detector.geometry, None)
    with torch.no_grad():
        maps = torch.stack(detector._maps(detector.state_, seen))
    close(functional.interpolate(maps, (256, 256), mode="bilinear")[:, 0, ::13, ::13], "distances")
    assert detector.state_.quantiles == pytest.approx((0.3, 0.7, 0.2, 0.5))
    again = METHODS["EfficientAD"]().load_weights(tmp_path / "usual.safetensors")
    assert again.state_.quantiles == detector.state_.quantiles
    same(again.state_.weights + again.state_.statistics, detector.state_.weights + detector.state_.statistics)
    same(again.network_.module.state_dict().values(), detector.network_.module.state_dict().values())


def test_draem(files: dict[str, Path], tmp_path: Path) -> None:
    detector = METHODS["DRAEM"]().load_weights(files["DRAEM"])
    found = calibrated(detector, "DRAEM").predict(images("DRAEM")).anomaly_map
    close(torch.from_numpy(found).flatten()[::KEPT], "probabilities")
    # The authors' networks read blue first, and the restored image before the image.
    tensors = {
        name.removeprefix("model.")
        .removeprefix("reconstructive_subnetwork.")
        .removeprefix("discriminative_subnetwork."): own.clone()
        for name, own in load_file(files["DRAEM"]).items()
        if "subnetwork" in name
    }
    entrance = tensors["encoder_segment.block1.0.weight"]
    halves = entrance[:, 3:].flip(1), entrance[:, :3].flip(1)
    tensors["encoder_segment.block1.0.weight"] = torch.cat(halves, 1)
    for name, side in (
        ("encoder.block1.0.weight", 1),
        ("decoder.fin_out.0.weight", 0),
        ("decoder.fin_out.0.bias", 0),
    ):
        tensors[name] = tensors[name].flip(side)
    save_file({name: own.contiguous() for name, own in tensors.items()}, tmp_path / "authors.safetensors")
    theirs = METHODS["DRAEM"]().load_weights(tmp_path / "authors.safetensors")
    again = calibrated(theirs, "DRAEM").predict(images("DRAEM")).anomaly_map
    np.testing.assert_allclose(again, found, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("backbone", "blocks"), [("wide_resnet50_2", 3), ("resnet34", 2)])
def test_the_embedding_of_anomalib_is_taken(backbone: str, blocks: int, tmp_path: Path) -> None:
    """Half as wide for WideResNet50, and with a block less for ResNet34."""
    layers = ("layer1", "layer2", "layer3")
    channels = (256, 512, 1024) if blocks == 3 else (64, 128, 256)
    path = tmp_path / "w.safetensors"
    save_file({f"bottleneck.bn_layer.{i}.conv1.weight": torch.zeros(512, 1) for i in range(blocks)}, path)
    plan = Plan.of(channels, blueprint(backbone), layers)
    found = published._plan(WeightFile(path), "bottleneck.", plan)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Student(found).parameters())
    # As anomalib 2.7.0 has them.
    assert round(count / 1e6, 3) == {3: 55.747, 2: 17.451}[blocks]


# Use


def test_until_calibrate_there_is_no_threshold(files: dict[str, Path]) -> None:
    detector = METHODS["DRAEM"]()
    with pytest.raises(NotFittedError, match="cannot calibrate: this DRAEM is not fitted; call fit first"):
        detector.calibrate(images("DRAEM"))
    assert detector.load_weights(files["DRAEM"]) is detector
    assert not detector.is_fitted
    assert repr(detector).endswith("no threshold")
    for name, arguments in {"predict": (images("DRAEM"),), "save": ("m",)}.items():
        with pytest.raises(NotFittedError, match=f"cannot {name}: this DRAEM has no threshold; call"):
            getattr(detector, name)(*arguments)
    with pytest.raises(NotFittedError, match="has no threshold; call calibrate"):
        _ = detector.threshold_
    with pytest.raises(ValueError, match="has learned already"):
        detector.load_weights(files["DRAEM"])
    fresh = np.random.default_rng(0).integers(0, 255, (120, 32, 32, 3), dtype=np.uint8)
    assert detector.calibrate(fresh).calibration_.origin == "calibrated"
    assert detector.calibration_.rounding > 0.0
    assert detector.threshold_ == detector.calibration_.scores.max()  # rank 120 of 120


def test_members_of_an_ensemble(files: dict[str, Path]) -> None:
    members = [METHODS[method]().load_weights(files[method]) for method in ("FastFlow", "DRAEM")]
    ensemble = calibrated(ead.BackboneEnsemble(members), "DRAEM")
    assert ensemble.predict(images("DRAEM")).anomaly_map.shape == (1, 64, 64)
    assert ensemble.calibration_.is_guaranteed


# Refusals


def changed(files: dict[str, Path], tmp_path: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = load_file(files["FastFlow"])
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


FLOW = "model.fast_flow_blocks.0.module_list.1"
SCALES = "norms.0.weight"
CHANGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "too little": (
        lambda tensors: tensors.pop(f"{FLOW}.global_scale"),
        r"it lacks fast_flow_blocks.0.module_list.1.global_scale$",
    ),
    "too much": (
        lambda tensors: tensors.update({"model.extra": torch.ones(1)}),
        "it has besides extra$",
    ),
    "another shape": (
        lambda tensors: tensors.update({"model.norms.1.weight": torch.ones(128, 4, 8)}),
        r"other shapes: norms.1.weight \(128, 4, 8\) for \(128, 8, 8\)$",
    ),
    "not finite": (
        lambda tensors: tensors[f"{FLOW}.subnet.0.bias"].fill_(float("nan")),
        "not finite in fast_flow_blocks.0.module_list.1.subnet.0.bias$",
    ),
    "quantized": (
        lambda tensors: tensors.update({f"model.{SCALES}": tensors[f"model.{SCALES}"].to(torch.int8)}),
        f"no floating point numbers in {SCALES}$",
    ),
    "too large for float32": (
        lambda tensors: tensors.update({f"model.{SCALES}": torch.full((128,), 1e300, dtype=torch.float64)}),
        f"not finite in {SCALES}$",
    ),
    "no permutation": (
        lambda tensors: tensors[f"{FLOW}.w_perm"].zero_(),
        "w_perm must be the matrix of a permutation",
    ),
    "another network": (
        lambda tensors: tensors.pop("model.feature_extractor.layer3.1.conv2.weight"),
        r"frozen network in .*changed.safetensors does not fit: .* lacks 1 tensors needed for layer1, layer2",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_does_not_fit(what: str, files: dict[str, Path], tmp_path: Path) -> None:
    change, message = CHANGES[what]
    detector = METHODS["FastFlow"]()
    with pytest.raises(ValueError, match=message):
        detector.load_weights(changed(files, tmp_path, change))
    assert not detector.has_learned
    assert detector.weights is None


def test_variances_below_zero(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["DRAEM"])
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = -1.0
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"variances below 0 in {name.removeprefix('model.')}$"):
        METHODS["DRAEM"]().load_weights(tmp_path / "w.safetensors")


def test_tiles_do_not_take_a_member_that_has_learned(files: dict[str, Path]) -> None:
    """Every location would train anew, and the weights would be lost without a word."""
    member = METHODS["DRAEM"]().load_weights(files["DRAEM"])
    with pytest.raises(ValueError, match="must be unfitted, .* this DRAEM has learned already"):
        ead.TiledEnsemble(member, 64, 64)


def test_statistics_that_were_never_set(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(files["EfficientAD"])
    for name in tensors:
        if ".quantiles." in name:
            tensors[name].zero_()
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"quantiles.qa_st, .* are 0, since they were never set"):
        METHODS["EfficientAD"]().load_weights(tmp_path / "w.safetensors")


def test_pickled_checkpoints_are_refused_with_the_line_that_converts_them(tmp_path: Path) -> None:
    flat = {f"{part}.conv.{kind}": torch.rand(3, 2).T for part in ("bn", "decoder") for kind in ("w", "b")}
    parts: dict[str, Tensors] = {"bn": {}, "decoder": {}}
    for name, tensor in flat.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    kinds = {"nested.pth": parts, "lightning.ckpt": {"epoch": 3, "state_dict": flat}, "flat.pckl": flat}
    for name, content in kinds.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match="pickled checkpoints can run code") as caught:
            METHODS["ReverseDistillation"]().load_weights(tmp_path / name)
        command, option, line = shlex.split(str(caught.value).split("converts one: ")[1])
        assert (command, option) == ("python", "-c")
        exec(line, {})
        found = load_file((tmp_path / name).with_suffix(".safetensors"))
        assert set(found) == set(flat)
        assert all(torch.equal(found[one], flat[one]) for one in flat)


def test_paths_and_sizes(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*w\.safetensors"):
        METHODS["DRAEM"]().load_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"12345678 no header")
    with pytest.raises(ValueError, match="cannot read .* as safetensors"):
        METHODS["DRAEM"]().load_weights(tmp_path / "w.safetensors")
    with pytest.raises(TypeError, match="path must be a path, got 3"):
        METHODS["DRAEM"]().load_weights(3)
    with pytest.raises(ValueError, match='resize="auto" is decided by the images of fit'):
        ead.DRAEM(DRAEM_WIDTH, resize="auto").load_weights(files["DRAEM"])
    with pytest.raises(ValueError, match="fit a DRAEM with these parameters: it has other shapes: rec"):
        ead.DRAEM(4, **sized("DRAEM")).load_weights(files["DRAEM"])
