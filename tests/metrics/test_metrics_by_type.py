"""Pixel metrics by type of defect, against the plain metrics of the type's images and the good ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemblead.metrics import PixelMetrics, PixelScores, TypeMetrics, aupro

sklearn_metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("scipy.ndimage")

# A map [H, W], its mask, and the type of its defect.
Image = tuple[np.ndarray, np.ndarray, str | None]

TIED = st.integers(-3, 3).map(lambda value: value / 2)
ANY = st.floats(-(2.0**20), 2.0**20, width=32)


@st.composite
def typed(draw: st.DrawFn) -> list[Image]:
    """Images of up to three types and good ones, in any order; masks of types may be empty, or full."""
    images: list[Image] = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from([None, "a", "b", "c"]))
        shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        values = draw(hnp.arrays(np.float32, shape, elements=draw(st.sampled_from([TIED, ANY]))))
        mask = np.zeros(shape, np.bool_) if kind is None else draw(hnp.arrays(np.bool_, shape))
        images.append((values, mask, kind))
    mask = np.array([[True, False, False], [False, False, True]])
    images.append((draw(hnp.arrays(np.float32, (2, 3), elements=TIED)), mask, draw(st.sampled_from("abc"))))
    return images


def computed(images: list[Image], **options: Any) -> PixelMetrics:
    pixels = PixelScores(**options)
    for values, mask, kind in images:
        pixels.add(values, mask, kind)
    return pixels.compute()


def naive(images: list[Image], kind: str) -> tuple[float, float]:
    """Pixel AUROC by scikit-learn, and AUPRO, of the images of one type and the good ones."""
    own = [(values, mask) for values, mask, other in images if other in (None, kind)]
    scores = np.concatenate([values.ravel() for values, _ in own])
    labels = np.concatenate([mask.ravel() for _, mask in own])
    if labels.all() or not labels.any():
        return math.nan, math.nan
    area = aupro([values for values, _ in own], [mask for _, mask in own])
    return float(sklearn_metrics.roc_auc_score(labels, scores)), area


@pytest.mark.slow
@given(typed())
@settings(max_examples=150, deadline=None)
def test_types_are_the_plain_metrics_of_their_images(images: list[Image]) -> None:
    found = computed(images)
    assert list(found.types) == sorted({kind for *_, kind in images if kind is not None})
    for kind, metrics in found.types.items():
        expected = naive(images, kind)
        assert (metrics.pixel_auroc, metrics.aupro) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert metrics.error == 0.0 or (math.isnan(metrics.error) and math.isnan(expected[0]))


@pytest.mark.slow
@given(typed(), st.sampled_from([10, 12, 22]))
@settings(max_examples=75, deadline=None)
def test_streamed_types_are_off_by_no_more_than_their_bound(images: list[Image], bits: int) -> None:
    exact, found = computed(images), computed(images, memory_limit=0, bits=bits)
    assert list(found.types) == list(exact.types)
    for kind, expected in exact.types.items():
        metrics = found.types[kind]
        assert math.isnan(metrics.aupro) == math.isnan(expected.aupro)
        if not math.isnan(expected.aupro):
            assert abs(metrics.pixel_auroc - expected.pixel_auroc) <= metrics.error + 1e-9
            assert abs(metrics.aupro - expected.aupro) <= metrics.error + 1e-9


@pytest.mark.slow
@given(typed(), st.sampled_from([2 << 30, 0, 60]))
@settings(max_examples=75, deadline=None)
def test_metrics_by_type_change_nothing_else(images: list[Image], memory_limit: int) -> None:
    found = computed(images, memory_limit=memory_limit, bits=14)
    plain = computed([(values, mask, None) for values, mask, _ in images], memory_limit=memory_limit, bits=14)
    assert plain.types == {}
    assert found.values == pytest.approx(plain.values, abs=1e-12)
    assert found.errors == pytest.approx(plain.errors, abs=1e-12)
    assert found.f1_threshold == plain.f1_threshold
    np.testing.assert_array_equal(found.ranking.false_at, plain.ranking.false_at)
    np.testing.assert_allclose(found.component_weights, plain.component_weights)


def defect(value: float, kind: str | None) -> Image:
    values = np.array([[0.0, 1.0, 2.0], [0.5, 1.5, value]], np.float32)
    mask = np.zeros((2, 3), np.bool_)
    mask[1, 2] = True
    return values, mask, kind


@pytest.mark.parametrize("memory_limit", [2 << 30, 0])
def test_a_single_type_is_all_there_is(memory_limit: int) -> None:
    good = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), np.zeros((2, 3), np.bool_), None
    found = computed([good, defect(1.2, "scratch"), defect(0.7, "scratch")], memory_limit=memory_limit)
    metrics = found.types["scratch"]
    assert metrics.pixel_auroc == found.values["pixel_auroc"]
    assert metrics.aupro == found.values["aupro"]
    assert metrics.error == max(found.errors["pixel_auroc"], found.errors["aupro"])


@pytest.mark.parametrize("memory_limit", [2 << 30, 0])
def test_defects_of_no_type_count_for_none(memory_limit: int) -> None:
    images = [defect(1.2, "scratch"), defect(0.2, None)]
    found = computed(images, memory_limit=memory_limit)
    alone = computed(images[:1], memory_limit=memory_limit).types["scratch"]
    assert found.types == {"scratch": alone}
    assert found.values["pixel_auroc"] < alone.pixel_auroc


@pytest.mark.parametrize("memory_limit", [2 << 30, 0])
def test_masks_that_are_empty_or_all_there_is(memory_limit: int) -> None:
    everywhere = np.ones((2, 3), np.bool_)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    images = [defect(1.2, "scratch"), (values, everywhere, "whole"), (values, ~everywhere, "cropped")]
    found = computed(images, memory_limit=memory_limit).types
    for name in ("whole", "cropped"):
        assert all(math.isnan(value) for value in vars(found[name]).values())
    # With a good image there is something to compare with; an empty mask stays one.
    found = computed([*images, (values, ~everywhere, None)], memory_limit=memory_limit).types
    assert found["whole"].pixel_auroc == 0.5
    assert math.isnan(found["cropped"].aupro)


def test_types_come_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images: list[Image] = []
    for index in range(12):
        mask = np.zeros((20, 20), np.bool_)
        kind = (None, "a", "b")[index % 3]
        if kind is not None:
            mask[index : index + 4, 3:9] = True
        values = np.round(rng.normal(size=(20, 20)) + mask, 1).astype(np.float32)
        images.append((values, mask, kind))
    whole = computed(images).types
    monkeypatch.setattr("ensemblead.metrics.pixels._CHUNK", 500)
    assert computed(images).types == whole
    assert whole["a"] == TypeMetrics(*(pytest.approx(value, abs=1e-12) for value in naive(images, "a")), 0.0)


@pytest.mark.parametrize("kind", [1, b"scratch", ("scratch",)])
def test_a_type_has_a_name(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"kind must be a str or None, got {type(kind).__name__}"):
        PixelScores().add(np.zeros((2, 2)), np.eye(2), kind)
