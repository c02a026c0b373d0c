"""Metrics against scikit-learn, and the per-region overlap against a sweep over all thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemblead.metrics import (
    PRO_LIMITS,
    PixelScores,
    aupro,
    auroc,
    average_precision,
    curve_points,
    f1_max,
    precision_recall_points,
    rank_scores,
    score_intervals,
)
from ensemblead.metrics.bootstrap import BinnedImages, bin_edges, multiplicities
from ensemblead.metrics.histogram import bin_of, lower_edge
from ensemblead.metrics.regions import split_pixels

sklearn_metrics = pytest.importorskip("sklearn.metrics")
ndimage = pytest.importorskip("scipy.ndimage")

Case = tuple[list[np.ndarray], list[np.ndarray]]

# Few distinct values, so that ties within and between the classes are the rule.
TIED = st.integers(-3, 3).map(lambda value: value / 2)
ANY = st.floats(-(2.0**20), 2.0**20, width=32)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(2, 40))
    scores = draw(hnp.arrays(np.float32, size, elements=draw(st.sampled_from([TIED, ANY]))))
    labels = draw(hnp.arrays(np.bool_, size))
    labels[0], labels[-1] = True, False
    return scores, labels


@st.composite
def mapped(draw: st.DrawFn) -> Case:
    """Maps of different sizes with their masks, at least one pixel of each kind."""
    maps, masks = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        maps.append(draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from([TIED, ANY])))))
        masks.append(draw(hnp.arrays(np.bool_, shape)))
    maps.append(draw(hnp.arrays(np.float32, (2, 3), elements=TIED)))
    masks.append(np.array([[True, False, False], [False, False, True]]))
    return maps, masks


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components of a mask as masks, by flood fill."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = []
    while left:
        part = np.zeros(mask.shape, np.bool_)
        waiting = [left.pop()]
        while waiting:
            y, x = waiting.pop()
            part[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
        found.append(part)
    return found


def naive_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float, average: str) -> float:
    """Every distinct value as a threshold, every component on its own, then the trapezoid rule."""
    regions = [components(mask) for mask in masks]
    outside = sum(int((~mask).sum()) for mask in masks)
    x, y = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([values.ravel() for values in maps]))[::-1]:
        hits = [values >= threshold for values in maps]
        false = sum(int((hit & ~mask).sum()) for hit, mask in zip(hits, masks, strict=True))
        overlaps = [
            [float((hit & region).sum() / region.sum()) for region in parts]
            for hit, parts in zip(hits, regions, strict=True)
        ]
        if average == "image":
            y.append(float(np.mean([np.mean(parts) for parts in overlaps if parts])))
        else:
            y.append(float(np.mean([overlap for parts in overlaps for overlap in parts])))
        x.append(false / outside)
    area = 0.0
    for left, right, low, high in zip(x[:-1], x[1:], y[:-1], y[1:], strict=True):
        if left >= limit:
            break
        if right > limit:
            high = low + (high - low) * (limit - left) / (right - left)
        area += (min(right, limit) - left) * (low + high) / 2
    return area / limit


def blobs(seed: int, count: int = 12, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps [N, H, W] that see the blobs of their masks more or less; the first third has none."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, count, size, size))
    masks = ndimage.gaussian_filter(noise[0], (0, 4, 4)) > 0.1
    masks[: count // 3] = False
    seen = ndimage.gaussian_filter(masks.astype(float), (0, 2, 2))
    maps = ndimage.gaussian_filter(noise[1], (0, 2, 2)) + 0.15 * seen
    return maps.astype(np.float32), masks


@pytest.mark.slow
@given(scored())
@settings(max_examples=150, deadline=None)
def test_scores_agree_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@given(scored())
@settings(max_examples=75, deadline=None)
def test_f1_max_is_the_best_over_all_thresholds(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    every = {
        float(threshold): sklearn_metrics.f1_score(labels, scores >= threshold)
        for threshold in np.unique(scores)
    }
    best, threshold = f1_max(scores, labels)
    assert best == pytest.approx(max(every.values()), abs=1e-12)
    assert every[threshold] == pytest.approx(best, abs=1e-12)
    assert all(value < best - 1e-12 for other, value in every.items() if other > threshold)


@pytest.mark.slow
@given(mapped(), st.sampled_from([0.05, 0.3, 0.77, 1.0]), st.sampled_from(["component", "image"]))
@settings(max_examples=150, deadline=None)
def test_aupro_agrees_with_a_sweep_over_all_thresholds(case: Case, limit: float, average: Any) -> None:
    maps, masks = case
    expected = naive_aupro(maps, masks, limit, average)
    assert aupro(maps, masks, fpr_limit=limit, average=average) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@given(mapped())
@settings(max_examples=75, deadline=None)
def test_pixel_scores_agree_with_scikit_learn(case: Case) -> None:
    maps, masks = case
    pixels = PixelScores()
    for values, mask in zip(maps, masks, strict=True):
        pixels.add(values, mask)
    found = pixels.compute()
    scores = np.concatenate([values.ravel() for values in maps])
    labels = np.concatenate([mask.ravel() for mask in masks])
    expected = sklearn_metrics.roc_auc_score(labels, scores)
    assert found.values["pixel_auroc"] == pytest.approx(expected, abs=1e-12)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert found.values["pixel_ap"] == pytest.approx(expected, abs=1e-12)
    assert (found.values["pixel_f1_max"], found.f1_threshold) == f1_max(scores, labels)
    defective = [index for index, mask in enumerate(masks) if mask.any()]
    among = sklearn_metrics.roc_auc_score(
        np.concatenate([masks[index].ravel() for index in defective]),
        np.concatenate([maps[index].ravel() for index in defective]),
    )
    assert found.values["anomaly_pixel_auroc"] == pytest.approx(among, abs=1e-12)
    for name, limit in PRO_LIMITS.items():
        average: Any = "image" if "image" in name else "component"
        alone = aupro(maps, masks, fpr_limit=limit, average=average)
        assert found.values[name] == pytest.approx(alone, abs=1e-12)


@pytest.mark.slow
@given(mapped(), st.sampled_from([10, 12, 22]))
@settings(max_examples=75, deadline=None)
def test_streaming_is_off_by_no_more_than_its_bound(case: Case, bits: int) -> None:
    maps, masks = case
    exact, streaming = PixelScores(), PixelScores(memory_limit=0, bits=bits)
    for values, mask in zip(maps, masks, strict=True):
        exact.add(values, mask)
        streaming.add(values, mask)
    assert streaming.streaming
    found, expected = streaming.compute(), exact.compute()
    assert expected.exact
    assert not found.exact
    assert set(found.errors) == set(expected.values)
    for name, value in expected.values.items():
        assert abs(found.values[name] - value) <= found.errors[name] + 1e-9, name


def test_streaming_bounds_the_precision_lost_within_a_bin() -> None:
    # All positives lie in one bin below 100 negatives, so that as a tie they hide how precision grows.
    values = np.concatenate([np.full(100, 8.0), 1.01 + np.arange(100) * 1e-4, [1.0]]).astype(np.float32)
    mask = (np.arange(201) >= 100) & (np.arange(201) < 200)
    exact, streaming = PixelScores(), PixelScores(memory_limit=0, bits=10)
    for pixels in (exact, streaming):
        pixels.add(values[None], mask[None])
    found, expected = streaming.compute(), exact.compute().values["pixel_ap"]
    assert 0.1 < found.values["pixel_ap"] - expected <= found.errors["pixel_ap"] < 0.3


def test_streaming_is_close_on_smooth_maps() -> None:
    maps, masks = blobs(0)
    streaming = PixelScores(memory_limit=3 * maps[0].nbytes)  # begins exact, then changes over
    for values, mask in zip(maps, masks, strict=True):
        streaming.add(values, mask)
    found = streaming.compute()
    assert not found.exact
    assert 0 < max(found.errors.values()) < 2e-3
    assert found.values["aupro"] == pytest.approx(aupro(maps, masks), abs=found.errors["aupro"])


def test_chunks_of_negatives_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = blobs(1)
    whole = aupro(maps, masks)
    monkeypatch.setattr("ensemblead.metrics.pixels._CHUNK", 5000)
    assert aupro(maps, masks) == pytest.approx(whole, abs=1e-12)


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=75, deadline=None)
def test_bins_keep_the_order_and_hold_their_lower_edge(values: np.ndarray) -> None:
    ordered = np.sort(values)
    bins = bin_of(ordered, 14).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    edges = lower_edge(bins, 14)
    # The bin of the most negative numbers begins beyond the finite ones.
    finite = np.isfinite(edges)
    assert (edges[finite] <= ordered[finite]).all()
    assert (bin_of(edges[finite], 14) == bins[finite]).all()


def test_both_zeros_share_a_bin() -> None:
    assert bin_of(np.array([-0.0], np.float32)) == bin_of(np.array([0.0], np.float32))


def test_components_are_eight_connected() -> None:
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]], bool)
    pixels = split_pixels(np.arange(12, dtype=np.float32).reshape(3, 4), mask)
    assert pixels.sizes.tolist() == [2, 2]
    assert pixels.component_weights().tolist() == [0.5] * 4
    assert pixels.image_weights().tolist() == [0.25] * 4
    assert pixels.positives.tolist() == [0, 5, 7, 11]


def test_perfect_and_useless_maps() -> None:
    _, masks = blobs(2)
    assert aupro(masks.astype(np.float32), masks) == pytest.approx(1.0, abs=1e-12)
    assert auroc(masks, masks) == 1.0
    assert auroc(np.zeros(10), np.arange(10) < 3) == 0.5
    # A constant map is one diagonal from (0, 0) to (1, 1).
    assert aupro(np.zeros(masks.shape), masks) == pytest.approx(0.15, abs=1e-12)


def test_float64_maps_are_ranked_by_all_of_their_bits() -> None:
    base = 1.0 + np.arange(6).reshape(2, 3) * 1e-12
    mask = base > 1.0 + 3.5e-12
    assert aupro(base, mask) == 1.0
    assert aupro(base.astype(np.float32), mask) < 0.5


def test_metrics_do_not_change_their_arguments() -> None:
    maps, masks = blobs(3)
    before = maps.copy(), masks.copy()
    pixels = PixelScores()
    for values, mask in zip(maps, masks, strict=True):
        pixels.add(values, mask)
    pixels.compute(replicates=5)
    aupro(maps, masks)
    aupro(maps[-1], masks[-1])
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


@pytest.mark.parametrize("kind", ["float16", "int64", "list", "torch", "torch.bfloat16"])
def test_scores_may_be_of_any_kind_of_array(kind: str) -> None:
    values, labels = [1.0, 3.0, 2.0, 5.0], [0, 1, 0, 1]
    if kind.startswith("torch"):
        torch = pytest.importorskip("torch")
        scores = torch.tensor(values, requires_grad=True)
        assert auroc(scores.bfloat16() if "bf" in kind else scores, torch.tensor(labels)) == 1.0
    else:
        assert auroc(values if kind == "list" else np.array(values, kind), labels) == 1.0


def test_masks_are_binarised_above_zero() -> None:
    maps, masks = blobs(4)
    assert aupro(maps, masks * np.uint8(255)) == aupro(maps, masks)
    assert aupro(maps, np.where(masks, 0.3, -1.0)) == aupro(maps, masks)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [0, 1, 1], r"scores and labels must have one shape, got \(2,\) and \(3,\)"),
        ([1.0, 2.0], [1, 1], "both classes, got 0 normal and 2 anomalous"),
        ([1.0, 2.0], [0, 0], "both classes, got 2 normal and 0 anomalous"),
        ([], [], "both classes, got 0 normal and 0 anomalous"),
        ([1.0, np.nan, np.inf], [0, 1, 1], r"scores must be finite, got 2 .* first is nan at index \(1\)"),
        ([1.0, 2.0], [0, 2], "labels must hold only 0 and 1, got 2"),
        ([[1.0], [2.0, 3.0]], [0, 1], "scores must be one array"),
    ],
)
def test_bad_scores_are_refused(scores: Any, labels: Any, message: str) -> None:
    for metric in (auroc, average_precision, f1_max):
        with pytest.raises(ValueError, match=message):
            metric(scores, labels)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="scores must hold numbers"):
        auroc(["a", "b"], [0, 1])


ZEROS = np.zeros((2, 4, 4))
ONE = np.eye(4)[None].repeat(2, 0)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (ZEROS, ONE[:1], "masks must be as many as anomaly_maps, got only 1 masks"),
        (ZEROS[:1], ONE, "masks must be as many as anomaly_maps, got more than the 1 maps"),
        ([], [], "anomaly_maps must hold at least one map"),
        (ZEROS, ONE[:, :3], r"masks\[0\] must have the shape of its anomaly map \(4, 4\), got \(3, 4\)"),
        (ZEROS[None], ONE[None], r"anomaly_maps must be \[N, H, W\].* got shape \(1, 2, 4, 4\)"),
        ([ZEROS], [ONE], r"anomaly_maps\[0\] must be 2-D \[H, W\], got shape \(2, 4, 4\)"),
        (ZEROS * np.nan, ONE, r"anomaly_maps\[0\] must be finite, got 16 .* nan at index \(0, 0\)"),
        (ZEROS, ZEROS, "masks must hold a defective pixel, got none"),
        (ZEROS, ZEROS + 1, "masks must hold a defect-free pixel, got none"),
    ],
)
def test_bad_maps_are_refused(maps: Any, masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aupro(maps, masks)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.01, float("nan")])
def test_a_limit_out_of_range_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=r"fpr_limit must be in \(0, 1\]"):
        aupro(ZEROS, ONE, fpr_limit=limit)


def test_other_bad_options_are_refused() -> None:
    average: Any = "images"
    with pytest.raises(ValueError, match='average must be "component" or "image", got \'images\''):
        aupro(ZEROS, ONE, average=average)
    number: Any = 3
    with pytest.raises(TypeError, match="anomaly_maps must be an array or a sequence of arrays, got int"):
        aupro(number, ONE)
    with pytest.raises(ValueError, match="memory_limit must be at least 0, got -1"):
        PixelScores(memory_limit=-1)
    with pytest.raises(ValueError, match=r"bits must be in 10\.\.28, got 5"):
        PixelScores(bits=5)
    with pytest.raises(ValueError, match="masks must hold a defective pixel"):
        PixelScores().compute()


def test_curves_have_the_area_of_the_metric() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + labels, 1)
    ranking = rank_scores(scores, labels)
    x, y = curve_points(ranking)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(auroc(scores, labels), abs=1e-12)
    recall, precision = precision_recall_points(ranking)
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(average_precision(scores, labels))
    maps, masks = blobs(6)
    pixels = PixelScores()
    for values, mask in zip(maps, masks, strict=True):
        pixels.add(values, mask)
    found = pixels.compute()
    x, y = curve_points(found.ranking, found.component_weights, most=400)
    assert x.size <= 402
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(aupro(maps, masks, fpr_limit=1.0), abs=5e-3)


def resampled_auroc(scores: np.ndarray, labels: np.ndarray, drawn: np.ndarray) -> float:
    index = np.repeat(np.arange(scores.size), drawn.astype(int))
    return float(sklearn_metrics.roc_auc_score(labels[index], scores[index]))


def test_score_intervals_are_those_of_resampled_images() -> None:
    rng = np.random.default_rng(7)
    labels = rng.random(60) < 0.5
    scores = np.round(rng.normal(size=60) + labels, 1)
    found = score_intervals(scores, labels, 200, 0.9, seed=11)
    assert found == score_intervals(scores, labels, 200, 0.9, seed=11)
    assert found != score_intervals(scores, labels, 200, 0.9, seed=12)
    order = np.argsort(scores)[::-1]
    drawn = multiplicities(labels[order], 200, np.random.default_rng(11))
    assert (drawn[:, labels[order]].sum(axis=1) == labels.sum()).all()
    samples = [resampled_auroc(scores[order], labels[order], row) for row in drawn]
    assert found["image_auroc"] == pytest.approx(tuple(np.quantile(samples, [0.05, 0.95])), abs=1e-12)
    assert set(found) == {"image_auroc", "image_ap", "image_f1_max"}
    low, high = found["image_ap"]
    assert 0 < low < average_precision(scores, labels) < high < 1


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [2 << 30, 0])
def test_pixel_intervals_are_those_of_resampled_images(memory_limit: int) -> None:
    maps, masks = blobs(8, count=20)
    pixels = PixelScores(memory_limit=memory_limit, bits=18)
    for values, mask in zip(maps[::-1], masks[::-1], strict=True):
        pixels.add(values, mask)
    found = pixels.compute(replicates=300, confidence=0.8, seed=1).intervals
    samples: dict[str, list[float]] = {name: [] for name in found}
    for row in multiplicities(masks.any(axis=(1, 2)), 300, np.random.default_rng(2)):
        replicate = PixelScores()
        for position in np.repeat(np.arange(20), row.astype(int)):
            replicate.add(maps[position], masks[position])
        for name, value in replicate.compute().values.items():
            samples[name].append(value)
    for name, values in samples.items():
        low, high = np.quantile(values, [0.1, 0.9])
        # Two different draws of 300: the ends of the intervals vary by a fraction of their width.
        assert found[name] == pytest.approx((low, high), abs=0.25 * (high - low)), name


def test_bins_for_replicates_shift_the_metrics_little() -> None:
    maps, masks = blobs(9, count=10)
    images = [split_pixels(values, mask) for values, mask in zip(maps, masks, strict=True)]
    binned = BinnedImages(bin_edges(images))
    exact = PixelScores()
    for image, values, mask in zip(images, maps, masks, strict=True):
        binned.add(image)
        exact.add(values, mask)
    on_bins = binned._metrics(np.ones((1, 10)), PRO_LIMITS)
    for name, value in exact.compute().values.items():
        assert on_bins[name][0] == pytest.approx(value, abs=2e-3), name


def test_maps_that_overflow_float32_are_refused() -> None:
    pixels = PixelScores()
    with pytest.raises(ValueError, match=r"anomaly_maps must fit into float32, got 1e\+39"):
        pixels.add(np.array([[0.0, 1e39]]), np.array([[0, 1]]))
    large = np.array([[-3e38, 3e38]])
    pixels.add(large, np.array([[0, 1]]))
    assert pixels.compute(replicates=10).values["pixel_auroc"] == 1.0
    wide = PixelScores(dtype=np.float64)
    wide.add(np.array([[0.0, 1e39]]), np.array([[0, 1]]))
    assert wide.compute().values["pixel_auroc"] == 1.0


def test_repr_of_pixel_scores_is_one_line() -> None:
    scores = PixelScores()
    scores.add(np.zeros((2, 3), np.float32), np.array([[1, 0, 1], [0, 0, 0]], bool))
    assert repr(scores) == "PixelScores of 6 pixels, 2 of them defective, 2 defects"
