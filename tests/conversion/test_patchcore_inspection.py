"""Folders of patchcore-inspection: equal scores and maps, ensembles, and what is refused."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from support.other_tools import BACKBONE, IMAGES, LAYERS, PARAMETERS, SIDE, network_state, write_inspection

import ensemblead as ead
from ensemblead.common.errors import ConversionError
from ensemblead.conversion import definitions, patchcore_inspection, verify
from ensemblead.networks.zoo import blueprint

timm = pytest.importorskip("timm")
faiss = pytest.importorskip("faiss")
F = torch.nn.functional
INDEX, PICKLE = "nnscorer_search_index.faiss", "patchcore_params.pkl"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return network_state()


def convert(folder: Path, out: Path | None = None, **options: Any) -> Any:
    common = {"images": IMAGES, "false_alarm_rate": 0.2, "device": "cpu", "resize": SIDE}
    return ead.convert("patchcore-inspection", folder, out, **{**common, **options})


def reference(folder: Path, prefix: str, network: Any) -> tuple[Any, Any]:
    """What the tool computes, in its own steps: torch's unfold, interpolate and pooling, FAISS's search."""
    known = pickle.loads((folder / (prefix + PICKLE)).read_bytes())
    index = faiss.read_index(str(folder / (prefix + INDEX)))
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous()
    layers = network(network.normalize(pixels))
    grid, side, features = layers[0].shape[2:], known["patchsize"], []
    for layer in layers:
        count, channels, height, width = layer.shape
        windows = F.unfold(layer, side, padding=side // 2).reshape(
            count * channels * side**2, 1, height, width
        )
        windows = F.interpolate(windows, grid, mode="bilinear", align_corners=False)
        rows = windows.reshape(count, channels * side**2, -1).transpose(1, 2).flatten(0, 1)
        features.append(F.adaptive_avg_pool1d(rows[:, None], known["pretrain_embed_dimension"])[:, 0])
    joined = torch.stack(features, 1).flatten(1)[:, None]
    embedded = F.adaptive_avg_pool1d(joined, known["target_embed_dimension"])[:, 0]
    distances, _ = index.search(embedded.numpy(), known["anomaly_scorer_num_nn"])
    grids = torch.from_numpy(distances.mean(1)).reshape(len(IMAGES), 1, *grid)
    maps = F.interpolate(grids, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    return grids.flatten(1).amax(1).numpy(), np.stack([gaussian_filter(one, 4) for one in maps.numpy()])


def test_scores_and_maps_are_those_of_the_tool(tmp_path: Path, weights: Any) -> None:
    folder = write_inspection(tmp_path / "theirs")
    made = convert(folder, tmp_path / "model", weights=weights)
    assert made.verified_images == 4
    assert made.largest_difference < 1e-4
    scores, maps = reference(folder, "", made.detector.network_)
    for detector in (made.detector, ead.load(tmp_path / "model")):
        assert [step.action for step in detector.history_] == ["convert", "calibrate"]
        found = detector.predict(IMAGES)
        np.testing.assert_allclose(found.anomaly_score, scores, rtol=1e-4)
        np.testing.assert_allclose(found.anomaly_map, maps, rtol=1e-4)
    assert made.detector.calibration_.is_guaranteed
    assert (made.detector.resize, made.detector.image_size) == (SIDE, SIDE)
    assert made.detector.extend(IMAGES[::-1] // 2).memory_bank_.rows_.shape[0] > 40


def test_an_ensemble_scores_as_the_tool_over_a_set(tmp_path: Path, weights: Any) -> None:
    folder = tmp_path / "theirs"
    prefixes = ["Ensemble-1-2_", "Ensemble-2-2_"]
    write_inspection(folder, prefixes[0])
    write_inspection(folder, prefixes[1], seed=106, layers_to_extract_from=(LAYERS[1],))
    made = convert(folder, tmp_path / "model", weights=weights, images=None)
    assert len(made.detector.members) == 2
    assert made.detector.threshold_ == math.inf
    assert any("single images have no score" in note for note in made.notes)
    apart = [
        reference(folder, prefix, member.network_)
        for prefix, member in zip(prefixes, made.detector.members, strict=True)
    ]
    loaded = ead.load(tmp_path / "model").predict_set(IMAGES)
    for kind, name in enumerate(("anomaly_score", "anomaly_map")):
        scaled = [(one[kind] - one[kind].min()) / (one[kind].max() - one[kind].min()) for one in apart]
        np.testing.assert_allclose(getattr(loaded, name), np.mean(scaled, axis=0), atol=2e-4)
    single = convert(folder, weights={0: weights, 1: weights}, fusion="calibrated")
    assert single.detector.predict(IMAGES).anomaly_score.shape == (4,)
    with pytest.raises(ValueError, match="fusion='calibrated' needs images"):
        convert(folder, weights=weights, fusion="calibrated", images=None)
    with pytest.raises(ValueError, match="the model has members 0 to 1, got 2"):
        convert(folder, weights={2: weights})


def test_notes_say_what_the_files_do_not(tmp_path: Path, weights: Any) -> None:
    folder = write_inspection(tmp_path / "theirs", input_shape=(3, 224, 224))
    made = convert(folder, weights=weights, resize=None, images=IMAGES[:1], false_alarm_rate=0.5)
    assert made.detector.resize == 256
    assert any("resize 256 before the crop to 224" in note for note in made.notes)
    assert any(f"weights of {BACKBONE}: those given" in note for note in made.notes)
    assert any("the mean over 2 neighbours, as when it was fitted" in note for note in made.notes)
    folder = write_inspection(tmp_path / "smaller", input_shape=(3, 96, 96))
    with pytest.raises(ValueError, match="resize must be given: .*has the input size 96 x 96"):
        convert(folder, weights=weights, resize=None)


def test_densenet_has_the_weights_that_the_tool_takes() -> None:
    """It asks timm for them, whose default is not torchvision's."""
    own = blueprint(patchcore_inspection._BACKBONES["densenet121"])
    assert own.pretrained_cfg["tag"] == timm.get_pretrained_cfg("densenet121").tag


def hostile(folder: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {folder / 'ran'}",)

    (folder / PICKLE).write_bytes(pickle.dumps({**PARAMETERS, "patchsize": Runs()}))


def truncated(folder: Path) -> None:
    whole = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(whole[:-3])


def approximate(folder: Path) -> None:
    index = faiss.IndexHNSWFlat(80, 4)
    index.add(np.ones((9, 80), np.float32))
    faiss.write_index(index, str(folder / INDEX))


def of_products(folder: Path) -> None:
    data = bytearray((folder / INDEX).read_bytes())
    data[33:37] = bytes(4)  # the metric, of L2 distances 1
    (folder / INDEX).write_bytes(bytes(data))


def not_finite(folder: Path) -> None:
    data = bytearray((folder / INDEX).read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (folder / INDEX).write_bytes(bytes(data))


def other_rows(folder: Path) -> None:
    index = faiss.IndexFlatL2(81)
    index.add(np.ones((9, 81), np.float32))
    faiss.write_index(index, str(folder / INDEX))


def changed(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        (folder / PICKLE).write_bytes(pickle.dumps({**PARAMETERS, **changes}))

    return change


WRONG: dict[str, tuple[Any, str]] = {
    "code": (hostile, "patchcore_params.pkl is refused: its instruction"),
    "truncated index": (truncated, "faiss is damaged: it states 40 rows of 80 dimensions"),
    "approximate index": (approximate, "must be a FAISS IndexFlatL2, which begins with 'IxF2', got b'IHNf'"),
    "another metric": (of_products, "faiss is damaged"),
    "not finite": (not_finite, "rows must be finite"),
    "other rows": (other_rows, "rows of 81 dimensions, but target_embed_dimension in .* is 80"),
    "no index": (lambda folder: (folder / INDEX).unlink(), f"lacks {INDEX} of a patchcore-inspection model"),
    "no parameters": (lambda folder: (folder / PICKLE).unlink(), f"lacks {PICKLE}"),
    "a stride": (changed(patchstride=2), "patchstride in .* must be 1, got 2"),
    "a huge patch": (changed(patchsize=10**9 + 1), "patchsize in .* must be at most 15, got 1000000001"),
    "a huge image": (
        changed(input_shape=(3, 64, 10**6)),
        "input_shape in .* must be at most 8192, got 1000000",
    ),
    "an even patch": (changed(patchsize=4), "patch_size must be odd and positive, got 4"),
    "a text": (changed(patchsize="3"), "patchsize in .* must be a whole number, got '3'"),
    "another key": (changed(extra=1), "must hold the parameters backbone.name, .*got .*extra"),
    "a list": (lambda folder: (folder / PICKLE).write_bytes(pickle.dumps([1])), "must hold the parameters"),
    "a shape": (changed(input_shape=(1, 64, 64)), r"input_shape in .* must be \(3, height, width\)"),
    "layers": (changed(layers_to_extract_from="layer1"), "must be names of layers, got 'layer1'"),
    "an unknown layer": (changed(layers_to_extract_from=["layer9"]), "layer9"),
    "an unknown backbone": (changed(**{"backbone.name": "resnet10x"}), "resnet10x"),
    "no text": (changed(**{"backbone.name": 5}), "backbone.name in .* must be a text, got 5"),
    "many neighbours": (changed(anomaly_scorer_num_nn=41), "asks for 41 neighbours, but .* has 40 rows"),
    "another normalisation": (
        changed(**{"backbone.name": "test_resnet"}),
        "normalises images by mean",
    ),
    "a large pickle": (
        lambda folder: (folder / PICKLE).write_bytes(bytes(2 << 20)),
        "must have at most 1048576 bytes, got 2097152",
    ),
    "two models": (lambda folder: write_inspection(folder, "Ensemble-1-1_"), "holds several models"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_represented_is_refused(case: str, tmp_path: Path, weights: Any) -> None:
    damage, message = WRONG[case]
    folder = write_inspection(tmp_path / "theirs")
    damage(folder)
    own = None if case == "another normalisation" else weights
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
        convert(folder, tmp_path / "model", weights=own)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (((1, 3), (3, 3)), "lacks Ensemble-2-3_patchcore_params.pkl, Ensemble-2-3_nnscorer"),
        (((1, 2), (2, 3)), "holds several models"),
        (((1, 2), (3, 2)), "holds members that are not 1 to 2"),
        (((1, 999999999),), "holds members that are not 1 to 999999999"),
    ],
)
def test_ensembles_with_missing_parts(
    numbers: tuple[tuple[int, int], ...], message: str, tmp_path: Path, weights: Any
) -> None:
    for number, total in numbers:
        write_inspection(tmp_path, f"Ensemble-{number}-{total}_")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(tmp_path, weights=weights)


def test_arguments_that_the_files_have(tmp_path: Path, weights: Any) -> None:
    folder = write_inspection(tmp_path / "theirs")
    for name, value in {"backbone": BACKBONE, "layers": LAYERS, "num_neighbors": 1}.items():
        with pytest.raises(ValueError, match=f"{name} is in the files of patchcore-inspection"):
            convert(folder, weights=weights, **{name: value})
    with pytest.raises(ValueError, match="image_size is in the parameters"):
        convert(folder, weights=weights, image_size=64)
    with pytest.raises(ValueError, match="tool must be one of patchcore-inspection, anomalib"):
        ead.convert("patchcore", folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "none")


def test_a_model_that_is_there_stays(tmp_path: Path, weights: Any) -> None:
    folder = write_inspection(tmp_path / "theirs")
    convert(folder, tmp_path / "model", weights=weights)
    with pytest.raises(ValueError, match="there is a model in"):
        convert(folder, tmp_path / "model", weights=weights)


def test_a_detector_that_is_not_the_definition_is_not_written(
    tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_inspection(tmp_path / "theirs")
    nearest = definitions._nearest

    def off(*arguments: Any) -> Any:
        distances, found = nearest(*arguments)
        return distances * 1.0005, found

    monkeypatch.setattr(definitions, "_nearest", off)
    with pytest.raises(ConversionError, match="the score of image 0 is .*but by definition"):
        convert(folder, tmp_path / "model", weights=weights)
    assert not (tmp_path / "model").exists()


def test_drawn_images_differ_and_follow_from_the_seed() -> None:
    drawn = verify.drawn_images()
    assert drawn.shape == (4, 320, 384, 3)
    assert np.array_equal(drawn, verify.drawn_images())
    assert all(np.abs(drawn[i].astype(int) - drawn[0]).mean() > 10 for i in range(1, 4))
