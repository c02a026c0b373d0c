"""PatchCore: every number against a float64 computation by hand, and its behaviour as a detector."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from support.networks import NATIVE, TinyNet
from support.sources import Interrupting
from support.textures import SIDE, normal_images, with_defects
from torch import nn

import ensemblead as ead
from ensemblead.calibration import conformal_threshold
from ensemblead.common.errors import (
    BackboneUnavailableError,
    DamagedModelError,
    NonFiniteFeaturesError,
    NotFittedError,
)
from ensemblead.kernels.build import has_cuda_kernels

DEFAULTS: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.01, "precision": "float32"}


def _gabor(**options: Any) -> ead.PatchCore:
    defaults = {**NATIVE, "coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore("gabor", ("layer1", "layer2"), **(defaults | options))


@pytest.fixture(scope="module")
def fitted() -> ead.PatchCore:
    return _gabor().fit(normal_images(12))


# By hand, in float64


def _embed_by_hand(detector: ead.PatchCore, images: np.ndarray) -> np.ndarray:
    """Unfold, resize every plane, pool each layer, pool the whole: the reference's order, nothing shared with
    the library but the network.
    """
    extractor = detector.network_
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (extractor.mean, extractor.std))
    maps = [m.double().cpu() for m in extractor(((pixels - mean) / std).float().to(extractor.device))]
    p, size, pooled = detector.patch_size, maps[0].shape[2:], []
    for m in maps:
        batch, channels, height, width = m.shape
        planes = nn.functional.unfold(m, p, padding=(p - 1) // 2).view(batch, -1, height, width)
        planes = nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        rows = planes.permute(0, 2, 3, 1).reshape(-1, 1, channels * p * p)
        own = channels if channels < 512 else 1024
        pooled.append(nn.functional.adaptive_avg_pool1d(rows, own))
    joined = torch.cat(pooled, 2)
    target = min(detector.target_dim, joined.shape[2])
    out = nn.functional.adaptive_avg_pool1d(joined, target)
    return out.view(len(images), *size, target).numpy()


def _grade_by_hand(
    detector: ead.PatchCore, patches: np.ndarray, bank: np.ndarray, size: tuple[int, int]
) -> tuple[float, np.ndarray]:
    """Section by section: the score and the map of one image."""
    queries = patches.reshape(-1, patches.shape[-1])
    squared = ((queries[:, None] - bank[None]) ** 2).sum(2)
    order = np.argsort(squared, axis=1)
    nearest = np.take_along_axis(squared, order[:, : detector.num_neighbors], 1)
    distances = (np.sqrt(nearest) if detector.score == "reweighted" else nearest).mean(1)
    if detector.score == "topk":
        score = np.sort(distances)[-max(1, int(len(distances) * 0.01)) :].mean()
    else:
        score = distances.max()
    if detector.score == "reweighted":
        patch = distances.argmax()
        winner = order[patch, 0]
        count = min(detector.reweight_neighbors, len(bank))
        around = [j for j in np.argsort(((bank - bank[winner]) ** 2).sum(1)) if j != winner][: count - 1]
        d = np.sqrt(((queries[patch] - bank[[winner, *around]]) ** 2).sum(1))
        score *= 1.0 if count == 1 else 1 - np.exp(d[0]) / np.exp(d).sum()
    grid = torch.from_numpy(distances.reshape(1, 1, *patches.shape[:2]))
    up = nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return float(score), gaussian_filter(up[0, 0].numpy(), 4.0, mode="reflect", truncate=4.0)


@pytest.mark.parametrize("score", ["max", "reweighted", "topk"])
@pytest.mark.parametrize(("num_neighbors", "reweight_neighbors"), [(1, 9), (3, 4), (2, 1), (1, 500)])
def test_scores_and_maps_equal_the_computation_by_hand(
    torch_device: str, score: str, num_neighbors: int, reweight_neighbors: int
) -> None:
    detector = ead.PatchCore(
        TinyNet(),
        ("first", "second"),
        **NATIVE,
        target_dim=20,
        coreset_fraction=0.02,
        score=score,
        num_neighbors=num_neighbors,
        reweight_neighbors=reweight_neighbors,
        device=torch_device,
        precision="float32",
    ).fit(normal_images(4))
    bank = detector.memory_bank_.rows_.double().cpu().numpy()
    images = np.concatenate([normal_images(2, 1), with_defects(normal_images(2, 2))[0]])
    predictions = detector.predict(images)
    for i, patches in enumerate(_embed_by_hand(detector, images)):
        expected_score, expected_map = _grade_by_hand(detector, patches, bank, (SIDE, SIDE))
        assert predictions.anomaly_score[i] == pytest.approx(expected_score, rel=1e-4)
        np.testing.assert_allclose(predictions.anomaly_map[i], expected_map, rtol=1e-4, atol=1e-5)


def test_the_bank_by_injected_projection_and_start_rows() -> None:
    detector = ead.PatchCore(TinyNet(), ("first", "second"), **NATIVE, target_dim=20, device="cpu")
    images = normal_images(3)
    rows = _embed_by_hand(detector, images).reshape(-1, 20)
    rng = np.random.default_rng(0)
    projection, start = rng.normal(size=(8, 20)), [5, 1000, 2000]
    bank = ead.MemoryBank(0.03)
    per_image = len(rows) // 3
    extractor = detector.network_
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    embedded = detector.embed(extractor(extractor.normalize(pixels))).reshape(-1, 20)
    np.testing.assert_allclose(embedded.numpy(), rows, rtol=1e-4, atol=1e-5)
    bank.add(embedded, np.repeat(range(3), per_image))
    bank.fit(projection=projection.astype(np.float32), start_indices=start)
    # Replay: in float64 every pick is worth at least (1 - 1e-4) of the best one of its turn.
    short = rows @ projection.T
    picks = [int(np.abs(rows - row).sum(1).argmin()) for row in bank.rows_.double().numpy()]
    assert len(picks) == int(len(rows) * 0.03)
    values = np.mean([np.linalg.norm(short - short[s], axis=1) for s in start], axis=0)
    for pick in picks:
        assert values[pick] >= (1 - 1e-4) * values.max()
        values = np.minimum(values, np.linalg.norm(short - short[pick], axis=1))
    assert bank.images_.tolist() == [pick // per_image for pick in picks]


@pytest.mark.parametrize("score", ["max", "reweighted"])
def test_leave_one_out_statistics_by_hand(torch_device: str, score: str) -> None:
    images = normal_images(5)
    detector = ead.PatchCore(
        TinyNet(), ("first",), **(DEFAULTS | {"score": score, "batch_size": 2, "device": torch_device})
    ).fit(images)
    bank = detector.memory_bank_
    scores, maps = [], []
    for i, patches in enumerate(_embed_by_hand(detector, images)):
        others = bank.rows_[bank.images_ != i].double().cpu().numpy()
        assert 0 < len(others) < len(bank)
        expected_score, expected_map = _grade_by_hand(detector, patches, others, (SIDE, SIDE))
        scores.append(expected_score)
        maps.append(expected_map)
    calibration = detector.calibration_
    np.testing.assert_allclose(calibration.scores, scores, rtol=1e-4)
    assert calibration.map_mean == pytest.approx(np.mean(maps), rel=1e-4)
    assert calibration.map_std == pytest.approx(np.std(maps), rel=1e-3)
    assert calibration.origin == "leave_one_out"
    # Five images: the largest score, with the rate that it stands for.
    assert detector.threshold_ == pytest.approx(max(scores), rel=1e-4)
    assert calibration.false_alarm_rate == pytest.approx(1 / 6)


@pytest.mark.parametrize("aggregation", ["adaptive", "concat"])
def test_dimensions_of_embeddings(aggregation: Any) -> None:
    def width(**options: Any) -> int:
        detector = ead.PatchCore(
            TinyNet(),
            ("first", "second"),
            **NATIVE,
            aggregation=aggregation,
            coreset_fraction=0.01,
            device="cpu",
            **options,
        )
        return int(detector.fit(normal_images(2)).memory_bank_.rows_.shape[1])

    adaptive = aggregation == "adaptive"
    assert width() == 24
    assert width(target_dim=6) == (6 if adaptive else 24)
    assert width(pretrain_dim=30, target_dim=50) == (50 if adaptive else 24)
    assert width(pretrain_dim=(4, 8), target_dim=12) == (12 if adaptive else 24)


# As a detector


def test_defects_are_found_and_placed(torch_device: str) -> None:
    detector = _gabor(device=torch_device).fit(normal_images(12))
    spoiled, masks = with_defects(normal_images(6, seed=5))
    good, bad = detector.predict(normal_images(6, seed=6)), detector.predict(spoiled)
    assert bad.anomaly_score.min() > 3 * good.anomaly_score.max()
    assert bad.is_anomalous.all()
    assert bad.paths == [None] * 6
    assert (bad.anomaly_score.dtype, bad.anomaly_map.dtype, bad.is_anomalous.dtype) == ("f4", "f4", "?")
    assert bad.anomaly_map.shape == (6, SIDE, SIDE)
    for anomaly_map, mask in zip(bad.anomaly_map, masks, strict=True):
        assert mask[np.unravel_index(anomaly_map.argmax(), mask.shape)]
        assert anomaly_map[mask].mean() > 3 * anomaly_map[~mask].mean()


def test_batches_do_not_change_results(fitted: ead.PatchCore) -> None:
    images = normal_images(5, seed=3)
    whole = fitted.predict(images)
    parts = list(fitted.predict_batches(images))
    assert [len(part) for part in parts] == [4, 1]
    np.testing.assert_array_equal(np.concatenate([part.anomaly_map for part in parts]), whole.anomaly_map)
    single = fitted.predict(images[4:])
    np.testing.assert_allclose(single.anomaly_map[0], whole.anomaly_map[4], rtol=1e-4, atol=1e-6)


def test_files_crop_and_paths(tmp_path: Path) -> None:
    for i, image in enumerate(normal_images(4, side=80)):
        Image.fromarray(image).convert("L" if i == 2 else "RGB").save(tmp_path / f"{i}.png")
    detector = _gabor(resize=70, image_size=(48, 56)).fit(tmp_path)
    predictions = detector.predict([tmp_path / "3.png", str(tmp_path / "0.png")])
    assert predictions.anomaly_map.shape == (2, 48, 56)
    assert predictions.paths == [str(tmp_path / "3.png"), str(tmp_path / "0.png")]
    assert detector.geometry.apply_mask(np.ones((80, 80))).shape == (48, 56)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    images = []
    for i, side in enumerate((64, 80)):
        images.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(normal_images(1, seed=i, side=side)[0]).save(images[-1])
    with pytest.raises(ValueError, match=r"0\.png comes out as \(64, 64\) and .*1\.png as \(80, 80\)"):
        _gabor().fit(images)
    detector = _gabor(batch_size=1).fit(images)
    sizes = [batch.anomaly_map.shape[1:] for batch in detector.predict_batches(images)]
    assert sizes == [(64, 64), (80, 80)]
    with pytest.raises(ValueError, match=r"differ in size \(\(64, 64\), \(80, 80\)\).* use predict_batches"):
        detector.predict(images)


def test_same_seed_same_detector() -> None:
    images = normal_images(4)
    first, second, other = (_gabor(seed=seed).fit(images) for seed in (0, 0, 1))
    assert torch.equal(first.memory_bank_.rows_, second.memory_bank_.rows_)
    assert not torch.equal(first.memory_bank_.rows_, other.memory_bank_.rows_)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    _gabor().fit(normal_images(3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_one_training_image_works_and_warns() -> None:
    with pytest.warns(UserWarning, match="no training image can be scored without"):
        detector = _gabor().fit(normal_images(1))
    spoiled, _ = with_defects(normal_images(2, seed=1))
    assert detector.predict(spoiled).is_anomalous.all()
    assert detector.calibration_.false_alarm_rate == 0.5


def test_constant_images_work() -> None:
    with pytest.warns(UserWarning, match="no training image can be scored without its own"):
        detector = _gabor().fit(np.full((3, SIDE, SIDE, 3), 99, np.uint8))
    assert len(detector.memory_bank_) <= 3 * 256 * 0.05
    predictions = detector.predict(np.full((3, SIDE, SIDE, 3), 99, np.uint8))
    np.testing.assert_allclose(predictions.anomaly_score, 0.0, atol=1e-9)
    assert detector.predict(normal_images(1)).is_anomalous[0]


def test_calibrate_takes_over(torch_device: str) -> None:
    detector = _gabor(device=torch_device).fit(normal_images(12))
    fresh = normal_images(30, seed=8)
    with pytest.warns(UserWarning, match="30 images cannot guarantee a false-alarm rate of 0.01"):
        detector.calibrate(fresh)
    detector.calibrate(fresh, 0.1)
    scores = detector.predict(fresh).anomaly_score
    assert detector.threshold_ == conformal_threshold(scores, 0.1)[0]
    assert detector.predict(fresh).is_anomalous.sum() == 30 - 28
    assert detector.calibration_.is_guaranteed
    assert detector.calibration_.score_mean == pytest.approx(scores.mean(), rel=1e-5)
    with pytest.raises(ValueError, match="false_alarm_rate must be between 0 and 1, got 2"):
        detector.calibrate(fresh, 2)


def test_extend_learns_what_is_new(torch_device: str) -> None:
    detector = _gabor(device=torch_device).fit(normal_images(6))
    new = 255 - normal_images(6, seed=4)
    probe = 255 - normal_images(3, seed=9)
    before, rows = detector.predict(probe), detector.memory_bank_.rows_.clone()
    known = detector.predict(normal_images(3, seed=2)).anomaly_score
    detector.extend(new)
    bank = detector.memory_bank_
    assert torch.equal(bank.rows_[: len(rows)], rows)
    assert set(bank.images_[len(rows) :].tolist()) <= set(range(6, 12))
    assert detector.predict(probe).anomaly_score.max() < before.anomaly_score.min() / 3
    assert (detector.predict(normal_images(3, seed=2)).anomaly_score <= known * (1 + 1e-5)).all()
    assert len(detector.calibration_.scores) == 12
    detector.calibrate(normal_images(9, seed=3), 0.1)
    threshold = detector.threshold_
    assert detector.extend(normal_images(2, seed=5)).threshold_ == threshold


@pytest.mark.parametrize("action", ["fit", "extend"])
def test_an_interrupted_run_changes_nothing(action: str) -> None:
    detector = _gabor().fit(normal_images(5))
    probe = normal_images(2, seed=1)
    before, bank, calibration = detector.predict(probe), detector.memory_bank_, detector.calibration_
    with pytest.raises(KeyboardInterrupt):
        getattr(detector, action)(Interrupting(255 - normal_images(9), after=6))
    assert detector.memory_bank_ is bank
    assert detector.calibration_ is calibration
    np.testing.assert_array_equal(detector.predict(probe).anomaly_map, before.anomaly_map)


def test_unreadable_images(tmp_path: Path) -> None:
    for i, image in enumerate(normal_images(4)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with pytest.raises(ead.EnsembleADError, match=r"1\.png"):
        _gabor().fit(tmp_path)
    with pytest.warns(UserWarning, match=r"left out 1 of 4 images .*1\.png"):
        detector = _gabor().fit(tmp_path, errors="skip")
    assert [skipped.index for skipped in detector.skipped_] == [1]
    with pytest.warns(UserWarning, match="left out 1 of 4"):
        assert len(detector.predict(tmp_path, errors="skip")) == 3
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="none of the 1 images"):
        detector.predict([tmp_path / "1.png"], errors="skip")


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    _gabor().fit(normal_images(6), progress=lambda *what: told.append(what))
    stages = [stage for stage, _ in itertools.groupby(told, key=lambda what: what[0])]
    assert stages[0] == "embed"
    assert stages[-1] == "calibrate"
    assert ("embed", 6, 6) in told
    assert ("calibrate", 6, 6) in told


def test_predict_before_fit() -> None:
    detector = _gabor()
    for call in (detector.predict, detector.predict_batches, detector.extend, detector.calibrate):
        with pytest.raises(NotFittedError, match="this PatchCore is not fitted; call fit first"):
            call(normal_images(1))
    with pytest.raises(NotFittedError, match="cannot save"):
        detector.save("never-written")
    with pytest.raises(NotFittedError):
        _ = detector.threshold_


def test_overflow_in_half_precision_is_an_error() -> None:
    net = TinyNet()
    net.first.weight.data *= 1e6
    detector = ead.PatchCore(net, ("first",), **NATIVE, precision="float16", device="cpu")
    with pytest.raises(NonFiniteFeaturesError, match=r"TinyNet .* in float16; use precision='float32'"):
        detector.fit(normal_images(2))
    assert not detector.is_fitted


def test_bfloat16_is_close_to_float32() -> None:
    images, probe = normal_images(4), with_defects(normal_images(2, 1))[0]
    options: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.02, "device": "cpu"}
    full = ead.PatchCore(TinyNet(), ("second",), **options).fit(images).predict(probe)
    half = ead.PatchCore(TinyNet(), ("second",), **options, precision="bfloat16").fit(images).predict(probe)
    np.testing.assert_allclose(half.anomaly_score, full.anomaly_score, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 2}, "patch_size must be odd and positive, got 2"),
        ({"aggregation": "mean"}, "aggregation must be one of adaptive, concat, got 'mean'"),
        ({"score": "min"}, "score must be one of max, reweighted, topk, got 'min'"),
        ({"target_dim": 0}, "target_dim must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"reweight_neighbors": 0}, "reweight_neighbors"),
        ({"pretrain_dim": "all"}, "pretrain_dim must be \"auto\", an int, or one int per layer, got 'all'"),
        ({"pretrain_dim": (1, 2, 3)}, r"pretrain_dim must be positive, one per layer \(2\), got \(1, 2, 3\)"),
        ({"coreset_fraction": 2}, "coreset_fraction"),
        ({"index": "tree"}, "index must be one of"),
        ({"device": "abacus"}, "device must be \"auto\" or a torch device, got 'abacus'"),
        ({"precision": "int8"}, "precision must be"),
        ({"resize": (40, 40), "image_size": 64}, "crop"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _gabor(**options)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        ead.PatchCore("gabor", ("layer9",), **NATIVE).fit(normal_images(1))
    with pytest.raises(TypeError, match='layers must be "auto" or a sequence of names'):
        ead.PatchCore("gabor", "layer1")
    with pytest.raises(ValueError, match="layers must not be empty"):
        ead.PatchCore("gabor", [])


def test_more_neighbours_than_rows() -> None:
    with pytest.raises(ValueError, match="num_neighbors is 50, but the memory bank has only 2 rows"):
        _gabor(num_neighbors=50, coreset_fraction=0.005).fit(normal_images(2))


# Saved


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, index: str) -> None:
    detector = _gabor(index=index, score="reweighted", seed=2).fit(normal_images(8))
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert isinstance(again, ead.PatchCore)
    assert again.parameters() == detector.parameters()
    probe = with_defects(normal_images(3, 1))[0]
    expected, found = detector.predict(probe), again.predict(probe)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)
    assert (tmp_path / "m" / "learned.index").exists() == (index != "flat")
    again.extend(normal_images(3, 5))
    detector.extend(normal_images(3, 5))
    assert torch.equal(again.memory_bank_.rows_, detector.memory_bank_.rows_)


def _save_small(backbone: Any, path: Path, include_backbone: bool = False, **options: Any) -> ead.PatchCore:
    layers = ("features.2",) if isinstance(backbone, str) else ("first", "second")
    detector = ead.PatchCore(backbone, layers, **NATIVE, coreset_fraction=0.02, device="cpu", **options)
    detector.fit(normal_images(3)).save(path, include_backbone)
    return detector


def test_a_module_must_be_brought_along(tmp_path: Path) -> None:
    detector = _save_small(TinyNet(1), tmp_path / "m")
    with pytest.raises(BackboneUnavailableError, match=r"load\(.*backbone=module\)"):
        ead.load(tmp_path / "m")
    with pytest.raises(ValueError, match="not the architecture"):
        ead.load(tmp_path / "m", backbone=nn.Conv2d(3, 4, 1))
    # Any of the architecture: the weights come with the model.
    other = TinyNet(7)
    again = ead.load(tmp_path / "m", backbone=other)
    assert all(map(torch.equal, other.parameters(), TinyNet(7).parameters()))
    probe = normal_images(2, 1)
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, detector.predict(probe).anomaly_map)


@pytest.mark.parametrize(
    "name", ["batch_size", "target_dim", "patch_size", "num_neighbors", "reweight_neighbors", "seed"]
)
@pytest.mark.parametrize("value", [2.5, 3.0, True, "3", None])
def test_numbers_that_count_are_whole(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        _gabor(**{name: value})


def test_numpy_scalars_are_saved_as_plain_numbers(tmp_path: Path) -> None:
    names = ("batch_size", "target_dim", "patch_size", "num_neighbors", "reweight_neighbors", "seed")
    options: dict[str, Any] = {name: np.int64(3) for name in names}
    options |= {"coreset_fraction": np.float32(0.1), "resize": np.int64(64), "pretrain_dim": np.int64(8)}
    detector = _gabor(**options, image_size=(np.int64(32), np.int64(48)))
    detector.fit(normal_images(6)).save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert isinstance(again, ead.PatchCore)
    assert again.parameters() == detector.parameters()
    assert (again.resize, again.image_size, again.batch_size) == (64, (32, 48), 3)


def test_a_module_of_another_precision_stays_as_it_is() -> None:
    module, probe = TinyNet(1).double(), normal_images(2, 1)
    parts = [
        ead.PatchCore(module, (layer,), **NATIVE, coreset_fraction=0.02, device="cpu")
        for layer in ("first", "second")
    ]
    ensemble = ead.BackboneEnsemble(parts).fit(normal_images(3))
    assert all(tensor.dtype == torch.float64 for tensor in module.parameters())
    assert parts[0].network_.dtype == torch.float32
    assert parts[0].network_.module is parts[1].network_.module is not module
    again = ead.PatchCore(TinyNet(1), ("first",), **NATIVE, coreset_fraction=0.02, device="cpu")
    expected = again.fit(normal_images(3)).predict(probe).anomaly_map
    np.testing.assert_array_equal(ensemble.members[0].predict(probe).anomaly_map, expected)


@pytest.mark.parametrize("weights", [None, "state dict"])
def test_weights_without_another_source_are_stored(tmp_path: Path, weights: Any) -> None:
    if weights is not None:
        import torchvision

        weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    detector = _save_small("squeezenet1_1", tmp_path / "m", weights=weights, seed=5)
    again = ead.load(tmp_path / "m")
    probe = normal_images(2, 1)
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, detector.predict(probe).anomaly_map)
    again.save(tmp_path / "n")
    np.testing.assert_array_equal(
        ead.load(tmp_path / "n").predict(probe).anomaly_map, detector.predict(probe).anomaly_map
    )


def test_a_weights_file_is_read_again(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    file = tmp_path / "w.pth"
    torch.save(state, file)
    detector = _save_small("squeezenet1_1", tmp_path / "m", weights=file)
    detector.save(tmp_path / "whole", include_backbone=True)
    probe = normal_images(2, 1)
    expected = detector.predict(probe).anomaly_map
    assert not (tmp_path / "m" / "backbone.safetensors").exists()
    np.testing.assert_array_equal(ead.load(tmp_path / "m").predict(probe).anomaly_map, expected)
    file.rename(tmp_path / "moved.pth")
    with pytest.raises(BackboneUnavailableError, match=r"no longer at .*w\.pth; pass ead\.load\(.*weights="):
        ead.load(tmp_path / "m")
    moved = ead.load(tmp_path / "m", weights=tmp_path / "moved.pth")
    np.testing.assert_array_equal(moved.predict(probe).anomaly_map, expected)
    numbered = ead.load(tmp_path / "m", weights={0: tmp_path / "moved.pth"})
    np.testing.assert_array_equal(numbered.predict(probe).anomaly_map, expected)
    with pytest.raises(ValueError, match="weights: the model is one detector, number 0, .* got 1"):
        ead.load(tmp_path / "m", weights={1: tmp_path / "moved.pth"})
    np.testing.assert_array_equal(ead.load(tmp_path / "whole").predict(probe).anomaly_map, expected)
    torch.save({**state, "features.0.bias": torch.ones(64)}, file)
    with pytest.raises(BackboneUnavailableError, match="has changed since the model was fitted"):
        ead.load(tmp_path / "m")
    with pytest.warns(UserWarning, match="not the weights file that the model was fitted with"):
        ead.load(tmp_path / "m", weights=file)


def test_options_of_load_that_do_not_fit(tmp_path: Path, fitted: ead.PatchCore) -> None:
    fitted.save(tmp_path / "m")
    with pytest.raises(ValueError, match="gabor backbone has none"):
        ead.load(tmp_path / "m", weights="x.pth")
    with pytest.raises(ValueError, match="knows its network, gabor"):
        ead.load(tmp_path / "m", backbone=TinyNet())
    if not (has_cuda_kernels() and torch.cuda.is_available()):
        with pytest.raises(ValueError, match="sees no GPU|not part of this version"):
            ead.load(tmp_path / "m", device="cuda")


def test_a_gpu_without_kernels_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblead.networks.placement.has_cuda_kernels", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda:1', but the CUDA kernels are not part of"):
        ead.PatchCore("gabor", ("layer1",), device="cuda:1")


def test_a_damaged_bank_is_refused(tmp_path: Path, fitted: ead.PatchCore) -> None:
    fitted.save(tmp_path / "m")
    path = tmp_path / "m" / "learned.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedModelError, match=r"learned\.safetensors was altered"):
        ead.load(tmp_path / "m")


def test_the_manifest_reads_like_one(tmp_path: Path, fitted: ead.PatchCore) -> None:
    fitted.save(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "model.json").read_text())
    assert manifest["class"] == "PatchCore"
    assert manifest["state"]["parameters"]["coreset_fraction"] == 0.05
    assert manifest["state"]["summary"]["threshold"] == fitted.threshold_
    assert not [p for p in (tmp_path / "m").rglob("*") if p.suffix in (".pkl", ".pt", ".pth", ".pickle")]
