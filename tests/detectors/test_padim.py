"""PaDiM: every number against a float64 computation by hand, position by position, and its behaviour."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from support.networks import NATIVE, TinyNet
from support.padim import BAD, MASKS, gabor, tiny
from support.sources import Interrupting
from support.textures import SIDE, normal_images, with_defects
from torch import nn

import ensemblead as ead
from ensemblead.calibration import conformal_threshold
from ensemblead.detectors import Run, Seen
from ensemblead.detectors.padim.detector import choose_dimensions

Array = np.ndarray[Any, Any]


def _small(count: int, seed: int = 0) -> Array:
    """What the computation by hand looks at, 16 x 16 positions of `tiny`."""
    return normal_images(count, seed, side=32)


@pytest.fixture(scope="module")
def fitted() -> ead.PaDiM:
    return gabor().fit(normal_images(12))


SMALL_BAD = with_defects(_small(1, seed=5))[0]


def warned_of_two(num_images: int) -> AbstractContextManager[Any]:
    """Of two images the statistics say nothing; the numbers hold all the same."""
    expected = pytest.warns(UserWarning, match="two training images are each scored against the other alone")
    return expected if num_images == 2 else nullcontext()


# By hand, in float64


def _embed_by_hand(detector: ead.PaDiM, images: Array) -> Array:
    """All channels of all layers, resized to the first grid; then the subset. `[B, h, w, D]`"""
    extractor = detector.network_
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (extractor.mean, extractor.std))
    maps = [m.double() for m in extractor(((pixels - mean) / std).float())]
    size = maps[0].shape[2:]
    joined = torch.cat(
        [nn.functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], 1
    )
    channels = [m.shape[1] for m in maps]
    starts = np.cumsum([0, *channels[:-1]])
    picks = choose_dimensions(channels, detector.num_dimensions, detector.seed)
    kept = np.concatenate([own + start for own, start in zip(picks, starts, strict=True)])
    return np.asarray(joined.permute(0, 2, 3, 1)[..., kept].numpy())


def _grade_by_hand(train: Array, image: Array, size: tuple[int, int]) -> tuple[float, Array]:
    """Score and map of one embedded image, with a loop over positions."""
    grid = np.empty(image.shape[:2])
    for y, x in np.ndindex(*grid.shape):
        rows = train[:, y, x]
        covariance = np.cov(rows, rowvar=False, ddof=1) if len(rows) > 1 else np.zeros((rows.shape[1],) * 2)
        covariance = np.atleast_2d(covariance) + 0.01 * np.eye(rows.shape[1])
        d = image[y, x] - rows.mean(0)
        grid[y, x] = np.sqrt(d @ np.linalg.solve(covariance, d))
    up = nn.functional.interpolate(
        torch.from_numpy(grid[None, None]), size=size, mode="bilinear", align_corners=False
    )
    blurred = gaussian_filter(up[0, 0].numpy(), 4.0, mode="reflect", truncate=4.0)
    return float(blurred.max()), blurred


@pytest.mark.parametrize("num_images", [2, 5, 20, 70])  # fewer than dimensions, and several groups
def test_scores_and_maps_equal_the_computation_by_hand(num_images: int) -> None:
    train = _small(num_images)
    with warned_of_two(num_images):
        detector = tiny().fit(train)
    images = np.concatenate([_small(2, 1), with_defects(_small(2, 2))[0]])
    predictions = detector.predict(images)
    known = _embed_by_hand(detector, train)
    for i, embedded in enumerate(_embed_by_hand(detector, images)):
        score, expected = _grade_by_hand(known, embedded, (32, 32))
        assert predictions.anomaly_score[i] == pytest.approx(score, rel=2e-4)
        np.testing.assert_allclose(predictions.anomaly_map[i], expected, rtol=2e-4)


@pytest.mark.parametrize("num_images", [2, 3, 5, 20])
def test_leave_one_out_equals_fitting_without_the_image(num_images: int) -> None:
    """And the mean of the maps' pixels, which the fused maps of ensembles rest on."""
    train = _small(num_images)
    with warned_of_two(num_images):
        detector = tiny(batch_size=3).fit(train)
    embedded = _embed_by_hand(detector, train)
    found = [_grade_by_hand(np.delete(embedded, i, 0), embedded[i], (32, 32)) for i in range(num_images)]
    calibration = detector.calibration_
    np.testing.assert_allclose(calibration.scores, [score for score, _ in found], rtol=5e-4)
    assert calibration.map_mean == pytest.approx(np.mean([m for _, m in found]), rel=5e-4)
    assert calibration.map_std == pytest.approx(np.std([m for _, m in found]), rel=2e-3)
    assert calibration.origin == "leave_one_out"


@pytest.mark.parametrize("known", [0, 30])
def test_four_hundred_sampled_images_stand_for_all(known: int) -> None:
    """More images than are scored, and an extension, whose images are left out of the whole."""
    images = _small(430)
    detector = tiny(num_dimensions=4)
    if known:
        detector.fit(images[:known]).extend(images[known:])
    else:
        detector.fit(images)
    calibration = detector.calibration_
    assert len(calibration.scores) == 400 + known
    embedded = _embed_by_hand(detector, images)
    score, _ = _grade_by_hand(embedded[:-1], embedded[-1], (32, 32))
    assert calibration.scores[-1] == pytest.approx(score, rel=5e-4)


@pytest.mark.slow
def test_wide_embeddings_in_several_blocks_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """67 dimensions make two block rows; chunks of a few positions, the last one shorter."""
    monkeypatch.setattr("ensemblead.detectors.padim.gaussians._CPU_CHUNK", 8 * 67 * 67 * 7)
    options: dict[str, Any] = {"num_dimensions": 67, "batch_size": 16}
    train, probe = normal_images(20), with_defects(normal_images(6, 3))[0]
    detector = gabor(**options).fit(train)
    known, embedded = (_embed_by_hand(detector, images) for images in (train, probe))
    for few in (1, 6):  # the two ways of multiplying
        predictions = detector.predict(probe[:few])
        for i in range(few):
            _, expected = _grade_by_hand(known, embedded[i], (SIDE, SIDE))
            np.testing.assert_allclose(predictions.anomaly_map[i], expected, rtol=1e-3)
    covariance = torch.zeros(1)
    for position in (0, 100, 255):
        rows = known.reshape(20, 256, 67)[:, position]
        count, mean, scatter = detector.gaussians_.moments().finish()
        np.testing.assert_allclose(mean[position], rows.mean(0), rtol=1e-5, atol=1e-6)
        covariance = torch.cat([nn.functional.pad(b[position], (0, 67 - b.shape[2])) for b in scatter])
        expected = np.cov(rows, rowvar=False) * (count - 1)
        np.testing.assert_allclose(covariance.tril(), np.tril(expected), rtol=1e-3, atol=1e-4)


def test_a_common_offset_costs_no_accuracy() -> None:
    """Features around 1,000 with deviations around 1: sums of squares in float32 would lose them."""
    net = TinyNet()
    moved = TinyNet()
    moved.second.bias.data += 1000.0
    images, probe = normal_images(40), normal_images(3, 5)
    for one in (net, moved):  # no ReLU cuts anything off
        one.forward = lambda x, one=one: one.second(one.first(x))  # type: ignore[method-assign]
    plain, offset = (
        ead.PaDiM(one, ("second",), **NATIVE, num_dimensions=9, device="cpu").fit(images).predict(probe)
        for one in (net, moved)
    )
    np.testing.assert_allclose(offset.anomaly_map, plain.anomaly_map, rtol=2e-3)


# The subset


def test_the_subset_is_drawn_from_the_seed_over_all_layers() -> None:
    picks = [np.concatenate(choose_dimensions((64, 128, 256), 100, seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(picks[0], picks[1])
    assert picks[0].tolist() != picks[2].tolist()
    layers = choose_dimensions((64, 128, 256), 100, 0)
    assert sum(map(len, layers)) == 100
    for own, channels in zip(layers, (64, 128, 256), strict=True):
        assert len(set(own.tolist())) == len(own)
        assert 0 <= own.min() <= own.max() < channels
        assert len(own) == pytest.approx(100 * channels / 448, abs=15)
    assert [own.tolist() for own in choose_dimensions((2, 3), None, 7)] == [[0, 1], [0, 1, 2]]


@pytest.mark.parametrize("seed", range(4))
def test_few_dimensions_may_leave_a_layer_out(seed: int) -> None:
    """One dimension: it is of one layer only, and the grid is the first layer's all the same."""
    detector = tiny(num_dimensions=1, seed=seed).fit(_small(8))
    kept = [len(own) for own in choose_dimensions((10, 14), 1, seed)]
    assert sum(kept) == 1
    embedded = _embed_by_hand(detector, _small(8))
    score, expected = _grade_by_hand(embedded, _embed_by_hand(detector, SMALL_BAD)[0], (32, 32))
    found = detector.predict(SMALL_BAD)
    np.testing.assert_allclose(found.anomaly_map[0], expected, rtol=5e-4)
    assert found.anomaly_score[0] == pytest.approx(score, rel=5e-4)


def test_both_layers_are_left_out_by_some_seed() -> None:
    firsts = {len(choose_dimensions((10, 14), 1, seed)[0]) for seed in range(4)}
    assert firsts == {0, 1}


def test_same_seed_same_detector() -> None:
    images = normal_images(4)
    first, second, other = (gabor(seed=seed).fit(images).predict(BAD) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.anomaly_map, second.anomaly_map)
    assert not np.allclose(first.anomaly_map, other.anomaly_map)
    changed = gabor(seed=0).fit(images)
    changed.seed = 1  # a parameter, which the next fit takes up
    np.testing.assert_array_equal(changed.fit(images).predict(BAD).anomaly_map, other.anomaly_map)


# Batches, threads


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 32, 50])
def test_batches_do_not_change_what_is_learned(batch_size: int) -> None:
    images = normal_images(70)
    expected = gabor(batch_size=16).fit(images)
    detector = gabor(batch_size=batch_size).fit(images)
    torch.testing.assert_close(detector.gaussians_.mean, expected.gaussians_.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        detector.predict(BAD).anomaly_map, expected.predict(BAD).anomaly_map, rtol=1e-4
    )


def test_low_precision_of_products_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before, bmm, baddbmm = torch.get_float32_matmul_precision(), torch.bmm, torch.Tensor.baddbmm_
    inside: list[tuple[torch.dtype, str]] = []

    def noted(product: Any) -> Any:
        def compute(*factors: torch.Tensor) -> torch.Tensor:
            inside.append((factors[-1].dtype, torch.get_float32_matmul_precision()))
            return product(*factors)  # type: ignore[no-any-return]

        return compute

    monkeypatch.setattr(torch, "bmm", noted(bmm))
    monkeypatch.setattr(torch.Tensor, "baddbmm_", noted(baddbmm))
    try:
        torch.set_float32_matmul_precision("medium")
        gabor().fit(normal_images(3)).predict(BAD)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert {precision for dtype, precision in inside if dtype == torch.float32} == {"highest"}


def test_threads_do_not_change_the_result() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(tiny().fit(_small(9)).predict(SMALL_BAD).anomaly_map)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.slow
def test_extending_equals_fitting_on_all(tmp_path: Path) -> None:
    images = normal_images(50)
    whole = gabor().fit(images)
    detector = gabor().fit(images[:20]).extend(images[20:23])
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert isinstance(again, ead.PaDiM)
    for one in (detector, again):
        one.extend(images[23:])
        assert one.gaussians_.count == 50
        torch.testing.assert_close(one.gaussians_.mean, whole.gaussians_.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one.predict(BAD).anomaly_map, whole.predict(BAD).anomaly_map, rtol=1e-4)
    assert len(detector.calibration_.scores) == 50


def test_extending_a_single_image() -> None:
    images = normal_images(9)
    with pytest.warns(UserWarning, match="a single training image"):
        detector = gabor().fit(images[:1])
    with warned_of_two(2):
        detector.extend(images[1:2])
    detector.extend(images[2:])
    expected = gabor().fit(images).predict(BAD).anomaly_map
    np.testing.assert_allclose(detector.predict(BAD).anomaly_map, expected, rtol=1e-4)


# As a detector


def test_defects_are_found_and_placed(torch_device: str) -> None:
    detector = gabor(device=torch_device).fit(normal_images(40))
    good, bad = detector.predict(normal_images(6, seed=6)), detector.predict(BAD)
    assert bad.anomaly_score.min() > 1.5 * good.anomaly_score.max()
    assert bad.is_anomalous.all()
    assert bad.paths == [None] * 6
    assert (bad.anomaly_score.dtype, bad.anomaly_map.dtype, bad.is_anomalous.dtype) == ("f4", "f4", "?")
    assert bad.anomaly_map.shape == (6, SIDE, SIDE)
    np.testing.assert_array_equal(bad.anomaly_score, bad.anomaly_map.max((1, 2)))
    for anomaly_map, mask in zip(bad.anomaly_map, MASKS, strict=True):
        assert mask[np.unravel_index(anomaly_map.argmax(), mask.shape)]
        assert anomaly_map[mask].mean() > 2 * anomaly_map[~mask].mean()


def test_batches_of_predictions(fitted: ead.PaDiM) -> None:
    whole = fitted.predict(BAD)
    parts = list(fitted.predict_batches(BAD))
    assert [len(part) for part in parts] == [4, 2]
    np.testing.assert_array_equal(np.concatenate([part.anomaly_map for part in parts]), whole.anomaly_map)
    single = fitted.predict(BAD[4:5])
    np.testing.assert_allclose(single.anomaly_map[0], whole.anomaly_map[4], rtol=1e-4)


def test_rectangles_and_paths(tmp_path: Path) -> None:
    for i, image in enumerate(normal_images(4, side=80)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    detector = gabor(resize=70, image_size=(48, 56)).fit(tmp_path)
    assert detector.gaussians_.num_positions == 12 * 14
    predictions = detector.predict([tmp_path / "3.png", str(tmp_path / "0.png")])
    assert predictions.anomaly_map.shape == (2, 48, 56)
    assert predictions.paths == [str(tmp_path / "3.png"), str(tmp_path / "0.png")]


def test_images_of_different_sizes_have_no_common_grid(fitted: ead.PaDiM, tmp_path: Path) -> None:
    files = []
    for i, side in enumerate((64, 80)):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(normal_images(1, seed=i, side=side)[0]).save(files[-1])
    with pytest.raises(ValueError, match=r"one grid.*: it is \(16, 16\), but images of 80 x 80 pixels give"):
        gabor(batch_size=1).fit(files)
    for action in (fitted.predict, fitted.extend, fitted.calibrate):
        with pytest.raises(
            ValueError, match=r"pixels give \(20, 20\); set resize=\(h, w\), or an image_size"
        ):
            action(normal_images(2, side=80))


def test_constant_images_work() -> None:
    grey = np.full((3, SIDE, SIDE, 3), 99, np.uint8)
    with pytest.warns(UserWarning, match="a single training image, or copies of one, cannot be scored"):
        detector = gabor().fit(grey)
    predictions = detector.predict(grey)
    np.testing.assert_allclose(predictions.anomaly_score, 0.0, atol=1e-4)
    assert not detector.predict(grey[:1]).anomaly_map.any() or predictions.anomaly_map.max() < 1e-4
    assert detector.predict(normal_images(1)).is_anomalous[0]


def test_one_training_image_works_and_warns() -> None:
    with pytest.warns(UserWarning, match="a single training image, or copies of one, cannot be"):
        detector = tiny().fit(_small(1))
    embedded = _embed_by_hand(detector, np.concatenate([_small(1), SMALL_BAD]))
    distance = np.linalg.norm(embedded[1] - embedded[0], axis=2) / 0.1
    assert detector.predict(SMALL_BAD).anomaly_score[0] == pytest.approx(
        _grade_by_hand(embedded[:1], embedded[1], (32, 32))[0], rel=1e-4
    )
    assert distance.max() > detector.predict(SMALL_BAD).anomaly_score[0] > detector.threshold_
    assert detector.predict(_small(1)).anomaly_score[0] == 0.0


def test_calibrate_takes_over() -> None:
    detector = gabor().fit(normal_images(12))
    fresh = normal_images(30, seed=8)
    detector.calibrate(fresh, 0.1)
    scores = detector.predict(fresh).anomaly_score
    assert detector.threshold_ == conformal_threshold(scores, 0.1)[0]
    assert detector.calibration_.is_guaranteed


@pytest.mark.parametrize("action", ["fit", "extend"])
def test_an_interrupted_run_changes_nothing(action: str) -> None:
    detector = gabor().fit(normal_images(5))
    before, model, calibration = detector.predict(BAD), detector.gaussians_, detector.calibration_
    with pytest.raises(KeyboardInterrupt):
        getattr(detector, action)(Interrupting(255 - normal_images(9), after=6))
    assert detector.gaussians_ is model
    assert detector.calibration_ is calibration
    np.testing.assert_array_equal(detector.predict(BAD).anomaly_map, before.anomaly_map)


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    gabor().fit(normal_images(6), progress=lambda *what: told.append(what))
    stages = [stage for stage, _ in itertools.groupby(told, key=lambda what: what[0])]
    assert stages == ["embed", "calibrate"]
    assert ("embed", 6, 6) in told
    assert told[-1] == ("calibrate", 256, 256)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    gabor().fit(normal_images(3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def _seen(detector: ead.PaDiM, images: Array, numbers: tuple[int, ...], sampled: tuple[bool, ...]) -> Seen:
    extractor = detector.network_
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    embedded = detector.embed(extractor(extractor.normalize(pixels)))
    return Seen((embedded,), (images.shape[1], images.shape[2]), numbers, sampled, kind="embeddings")


def _quiet(num_images: int) -> Run:
    return Run(lambda stage, done, total: None, num_images, frozenset(range(num_images)))


@pytest.mark.parametrize("tiles", [2, 3])
def test_rows_of_one_image_are_left_out_together(tiles: int) -> None:
    """Tiles of an image come under its number: an image scores against the other images' tiles."""
    detector = tiny()
    images = _small(tiles * 7)
    numbers = tuple(i % 7 for i in range(len(images)))  # location by location
    accumulator = detector.start()
    accumulator.add(_seen(detector, images, numbers, tuple(number != 3 for number in numbers)))
    fitted = accumulator.finish(_quiet(7))
    assert not fitted.warnings
    scores = fitted.sample.calibration(0.01, "leave_one_out", "").scores
    rows = _embed_by_hand(detector, images)
    known = [i for i in range(len(images)) if numbers[i] != 3]
    assert len(scores) == len(known)
    for score, i in zip(scores, known, strict=True):
        others = rows[[j for j in range(len(images)) if numbers[j] != numbers[i]]]
        assert score == pytest.approx(_grade_by_hand(others, rows[i], (32, 32))[0], rel=1e-3)


def test_without_a_sampled_image_there_are_no_statistics() -> None:
    """As when just those cannot be read."""
    detector = tiny()
    accumulator = detector.start()
    accumulator.add(_seen(detector, _small(4), (0, 1, 2, 3), (False,) * 4))
    fitted = accumulator.finish(_quiet(4))
    with pytest.raises(ValueError, match="no normal images to take statistics from"):
        fitted.sample.calibration(0.01, "leave_one_out", "")
