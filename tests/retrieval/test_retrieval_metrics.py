"""retrieval_metrics against the definition, and against what other libraries recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.retrieval import DEEP, DEPTH, average_precisions, cosines, labelled

from ensemblead.retrieval import metrics
from ensemblead.retrieval.metrics import retrieval_metrics

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
DENOMINATORS = ["min", "relevant", "retrieved"]
# A cosine of float32 rows is within 1e-6 of that of float64; the embeddings here order alike in both.


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("k", [1, 5, DEPTH, 59])
def test_the_definition(k, denominator):
    embeddings, labels = labelled()
    found = retrieval_metrics(embeddings, labels, k=k, denominator=denominator, replicates=0)
    expected = average_precisions(cosines(embeddings), labels, k, denominator)
    np.testing.assert_allclose(found.average_precision, expected, rtol=1e-12)
    assert found.map == pytest.approx(np.nanmean(expected), rel=1e-12)
    asked = ~np.isnan(expected)
    classes = [np.mean(np.array(expected)[asked & (labels == one)]) for one in np.unique(labels[asked])]
    assert found.macro_map == pytest.approx(np.mean(classes), rel=1e-12)
    assert found.skipped == int(np.isnan(expected).sum()) > 0
    assert (found.k, found.denominator, found.intervals) == (k, denominator, {})


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_groups(denominator):
    embeddings, labels = labelled()
    groups = np.random.default_rng(0).integers(0, 12, len(labels))
    found = retrieval_metrics(embeddings, labels, k=6, denominator=denominator, groups=groups, replicates=0)
    expected = average_precisions(cosines(embeddings), labels, 6, denominator, groups)
    np.testing.assert_allclose(found.average_precision, expected, rtol=1e-12)
    alone = retrieval_metrics(embeddings, labels, k=6, groups=np.arange(60), replicates=0)
    assert alone.map == retrieval_metrics(embeddings, labels, k=6, replicates=0).map


def test_chunks_do_not_matter(monkeypatch):
    embeddings, labels = labelled()
    whole = retrieval_metrics(embeddings, labels, k=5)
    monkeypatch.setattr(metrics, "_CHUNK", 1000)
    monkeypatch.setattr(metrics, "_REPLICATES", 5000)
    parts = retrieval_metrics(embeddings, labels, k=5)
    np.testing.assert_allclose(parts.average_precision, whole.average_precision, rtol=1e-12)
    for name, ends in whole.intervals.items():
        np.testing.assert_allclose(parts.intervals[name], ends, atol=0.02)


# --- other libraries ------------------------------------------------------------------------------


def test_where_other_libraries_agree():
    embeddings, labels = labelled()
    found = {
        name: retrieval_metrics(embeddings, labels, k=DEPTH, denominator=name, replicates=0)
        for name in DENOMINATORS
    }
    ranx, learning = RECORDED["ranx"], RECORDED["pytorch-metric-learning"]
    assert found["relevant"].map == pytest.approx(ranx[f"map@{DEPTH}"], abs=1e-7)
    assert found["relevant"].map == pytest.approx(learning["mean_average_precision"], abs=1e-7)
    assert found["min"].precision == pytest.approx(ranx[f"precision@{DEPTH}"], abs=1e-7)
    assert found["min"].recall == pytest.approx(ranx[f"recall@{DEPTH}"], abs=1e-7)
    assert found["min"].r_precision == pytest.approx(ranx["r-precision"], abs=1e-7)
    assert found["min"].r_precision == pytest.approx(learning["r_precision"], abs=1e-7)
    assert found["min"].map_at_r == pytest.approx(learning["mean_average_precision_at_r"], abs=1e-7)
    torchmetrics = RECORDED["torchmetrics"]
    assert found["retrieved"].map == pytest.approx(torchmetrics["RetrievalMAP, at k"], abs=1e-6)
    assert found["min"].recall == pytest.approx(torchmetrics["RetrievalRecall, at k"], abs=1e-6)
    three = [found[name].map for name in DENOMINATORS]
    assert np.abs(np.subtract.outer(three, three))[~np.eye(3, dtype=bool)].min() > 0.005


def test_where_torchmetrics_differs():
    """It drops items with a similarity of 0 or below, and counts as if they were irrelevant."""
    embeddings, labels = labelled()
    deep = retrieval_metrics(embeddings, labels, k=DEEP, denominator="retrieved", replicates=0)
    torchmetrics = RECORDED["torchmetrics"]
    assert deep.map == pytest.approx(torchmetrics["RetrievalMAP, deep, above 0"], abs=1e-6)
    assert abs(deep.map - torchmetrics["RetrievalMAP, deep"]) > 0.005
    # The same from lists that end where similarities come to 0.
    similarities = cosines(embeddings)
    lists = [
        [n for n in np.argsort(-row, kind="stable") if row[n] > 0] + [-1] * int((row <= 0).sum() + 1)
        for row in similarities
    ]
    lists = np.array([row[:60] for row in lists])
    ended = retrieval_metrics(lists, labels, k=DEEP, denominator="retrieved", replicates=0)
    assert ended.map == pytest.approx(torchmetrics["RetrievalMAP, deep"], abs=1e-6)


# --- ready lists and names ------------------------------------------------------------------------


def ordered(similarities, depth):
    return np.argsort(-similarities, axis=1, kind="stable")[:, :depth]


def test_ready_lists_give_what_embeddings_give():
    embeddings, labels = labelled()
    names = [f"image {n}.png" for n in range(60)]
    expected = retrieval_metrics(embeddings, labels, k=DEPTH)
    with_self = ordered(cosines(embeddings), 40)
    without = np.array([[n for n in row if n != q] for q, row in enumerate(ordered(cosines(embeddings), 60))])
    for lists in (with_self, without, torch.from_numpy(without)):
        found = retrieval_metrics(lists, labels, k=DEPTH)
        assert found.map == expected.map
        assert found.intervals == expected.intervals
        assert (found.r_precision, found.map_at_r) == (expected.r_precision, expected.map_at_r)
    named = [[names[n] for n in row] for row in with_self]
    assert retrieval_metrics(named, labels, k=DEPTH, ids=names).map == expected.map
    short = retrieval_metrics(with_self[:, : DEPTH + 1], labels, k=DEPTH, replicates=10)
    assert short.map == expected.map
    assert short.r_precision is None
    assert short.map_at_r is None
    assert set(short.intervals) == {"map", "macro_map", "precision", "recall"}


def test_the_query_is_dropped_wherever_it_stands():
    """A duplicate image may come before the query itself: what is first is not what is dropped."""
    lists = [[1, 0, 2, 3], [0, 1, 3, 2], [3, 1, 2, 0], [3, 2, 1, 0]]
    found = retrieval_metrics(lists, [0, 0, 1, 1], k=2)
    assert found.average_precision.tolist() == [1.0, 1.0, 1.0, 1.0]
    lists[2] = [1, 3, 2, 0]
    assert retrieval_metrics(lists, [0, 0, 1, 1], k=2).average_precision[2] == 0.5


def test_lists_that_end():
    lists = [[1, -1, -1], [-1, -1, -1], [0, 1, 3], [0, -1, -1]]
    found = retrieval_metrics(lists, [0, 0, 1, 1], k=3)
    np.testing.assert_allclose(found.average_precision, [1.0, 0.0, 1 / 3, 0.0])
    assert found.precision == pytest.approx((1 / 3 + 0 + 1 / 3 + 0) / 4)
    named = [["b", None], [None, None], ["d", "a"], ["a", None]]
    assert retrieval_metrics(named, [0, 0, 1, 1], k=2, ids=list("abcd")).map == pytest.approx(0.5)


def test_ties_go_to_the_lowest_position():
    """Equal vectors of the unit axes: similarities are exactly 1 or 0."""
    embeddings = np.eye(2)[[0, 0, 0, 1, 0, 1]]
    found = retrieval_metrics(embeddings, ["x", "y", "x", "z", "y", "z"], k=2)
    # Query 0 sees 1, 2; query 4 sees 0, 1; queries 3 and 5 see each other first.
    np.testing.assert_allclose(found.average_precision, [0.5, 0.0, 1.0, 1.0, 0.5, 1.0])


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_are_those_of_drawing_queries():
    embeddings, labels = labelled(200)
    found = retrieval_metrics(embeddings, labels, k=10, replicates=4000, seed=1)
    again = retrieval_metrics(embeddings, labels, k=10, replicates=4000, seed=1)
    assert found.intervals == again.intervals
    assert found.intervals != retrieval_metrics(embeddings, labels, k=10, replicates=4000, seed=2).intervals
    values = found.average_precision[~np.isnan(found.average_precision)]
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(found.intervals["map"], [found.map - half, found.map + half], atol=0.1 * half)
    for name, (low, high) in found.intervals.items():
        assert low < getattr(found, name) < high, name


def test_groups_are_drawn_whole():
    """Every item is there four times as one part: the interval is that of a quarter of the queries."""
    embeddings, labels = labelled(80)
    copies = np.repeat(embeddings, 4, axis=0)
    groups = np.repeat(np.arange(80), 4)
    together = retrieval_metrics(copies, np.repeat(labels, 4), k=5, groups=groups, replicates=2000)
    single = [retrieval_metrics(copies, np.repeat(labels, 4), k=5, replicates=2000)]
    width = together.intervals["map"][1] - together.intervals["map"][0]
    values = together.average_precision[~np.isnan(together.average_precision)]
    alone = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert 1.7 < width / alone < 2.3
    assert single[0].map > together.map  # copies of the query are relevant, and retrieved first


# --- properties -----------------------------------------------------------------------------------


@given(st.integers(3, 25), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_properties(count, dims, seed, grouped, data):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    labels[:3] = [0, 1, 0]
    embeddings = rng.integers(-2, 3, (count, dims)).astype(np.float32)
    embeddings[~embeddings.any(axis=1)] = 1.0
    groups = rng.integers(0, count, count) if grouped else None
    if grouped:
        groups[:3] = [0, 1, 2]
    k = data.draw(st.integers(1, count - 1))
    found = {
        name: retrieval_metrics(embeddings, labels, k=k, denominator=name, groups=groups, replicates=0)
        for name in DENOMINATORS
    }
    for one in found.values():
        asked = one.average_precision[~np.isnan(one.average_precision)]
        assert ((asked >= 0) & (asked <= 1)).all()
        assert 0 <= one.macro_map <= 1
        assert one.skipped == count - len(asked)
    assert found["relevant"].map <= found["min"].map + 1e-12 <= found["retrieved"].map + 2e-12


@given(st.integers(3, 20), st.integers(0, 2**32 - 1))
def test_a_query_is_never_retrieved(count, seed):
    """All items alike and every label once but for one pair: a query that found itself would be relevant."""
    labels = np.arange(count)
    labels[-1] = labels[0]
    order = np.random.default_rng(seed).permutation(count)
    found = retrieval_metrics(np.ones((count, 2)), labels[order], k=count - 1, replicates=0)
    assert found.skipped == count - 2
    assert found.precision == pytest.approx(1 / (count - 1))


# --- refusals -------------------------------------------------------------------------------------

GOOD = np.eye(4)
LABELS = [0, 0, 1, 1]


def with_row(row):
    changed = np.array(GOOD)
    changed[[1, 2]] = row
    return changed


@pytest.mark.parametrize(
    ("given", "labels", "options", "error", "message"),
    [
        (GOOD, LABELS, {"k": 4}, ValueError, "k must be below the 4 items, got 4"),
        (GOOD, LABELS, {"k": 0}, ValueError, "k must be at least 1"),
        (GOOD, LABELS, {"k": 1.5}, TypeError, "k must be a whole number"),
        (
            GOOD,
            LABELS,
            {"denominator": "all"},
            ValueError,
            "denominator must be one of min, relevant, retrieved",
        ),
        (GOOD, LABELS, {"replicates": -1}, ValueError, "replicates must be at least 0"),
        (GOOD, [1] * 4, {}, ValueError, "labels must hold at least two classes, got 1"),
        (GOOD, [0, 1, 2, 3], {}, ValueError, "labels leave no query with a relevant item"),
        (GOOD, LABELS, {"groups": LABELS}, ValueError, "labels leave no query with a relevant item"),
        (GOOD, [[0, 1]], {}, ValueError, r"labels must be 1-D \[N\]"),
        (GOOD, [0.5, 1, 0, 1], {}, TypeError, "labels must be integers or strings"),
        (GOOD, [1, "1", 0, 0], {}, TypeError, "labels must be all integers or all strings, got both"),
        (GOOD, LABELS, {"groups": [1, 2]}, ValueError, r"groups must be as many as labels \(4\), got 2"),
        (GOOD[:3], LABELS, {}, ValueError, r"embeddings must be \[N, D\] with N = 4 .*got shape \(3, 4\)"),
        (with_row(0.0), LABELS, {"ids": list("abcd")}, ValueError, "zero vectors, .*: 'b', 'c'$"),
        (with_row(0.0), LABELS, {}, ValueError, "zero vectors, which have no direction: 1, 2$"),
        (with_row(np.nan), LABELS, {}, ValueError, "embeddings must be finite"),
        (
            torch.tensor(with_row(np.inf)),
            LABELS,
            {"ids": list("abcd")},
            ValueError,
            "must be finite, got others for 'b', 'c'",
        ),
        (GOOD, LABELS, {"ids": list("abca")}, ValueError, "ids must all be different, got twice: 'a'"),
        (GOOD, LABELS, {"ids": list("abc")}, ValueError, r"ids must be as many as labels \(4\), got 3"),
        ([["x", "y"]] * 4, LABELS, {"ids": list("abcd")}, ValueError, "names 'x', which is none of ids"),
        ([["x", "y"]] * 4, LABELS, {}, TypeError, "must hold numbers"),
        ([[0], [1, 2]] * 2, LABELS, {}, ValueError, "embeddings_or_top .* different lengths; fill lists"),
        ([[0, 4]] * 4, LABELS, {}, ValueError, "must hold positions below 4, got 4"),
        ([[0, -2]] * 4, LABELS, {}, ValueError, "must hold positions below 4, got -2"),
        ([[3, 3]] * 4, LABELS, {}, ValueError, "must name every item once, got one twice for 0"),
        ([[0, 1]] * 3, LABELS, {}, ValueError, r"lists with N = 4 as labels, got shape \(3, 2\)"),
        ([[0, 1], [2, 3], [0, 1], [1, 2]], LABELS, {}, ValueError, "must hold k = 2 items .* got 1 for 0"),
    ],
)
def test_refusals(given, labels, options, error, message):
    with pytest.raises(error, match=message):
        retrieval_metrics(given, labels, **{"k": 2} | options)
