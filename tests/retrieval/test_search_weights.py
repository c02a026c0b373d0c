"""search_weights against joining every combination in float64, and against retrieval_metrics."""

from __future__ import annotations

import csv
import itertools
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.retrieval import average_precisions, cosines, labelled

from ensemblead.common.errors import MissingExtraError
from ensemblead.retrieval import weights as module
from ensemblead.retrieval.metrics import retrieval_metrics
from ensemblead.retrieval.weights import distinct_combinations, search_weights

DIMS = (6, 9, 4)


def networks(count=70, seed=0):
    """Three networks of different dimensions, norms and quality, and labels [N]."""
    _, labels = labelled(count, seed=seed)
    rng = np.random.default_rng(seed)
    found = []
    for index, dims in enumerate(DIMS):
        centres = rng.standard_normal((21, dims))
        noise = (0.7 + 0.5 * index) * rng.standard_normal((count, dims))
        lengths = rng.uniform(0.2, 5.0, (count, 1)) * 10.0**index
        found.append(((centres[labels] + noise) * lengths).astype(np.float32))
    return found, labels


def joined(embeddings, weights, normalize):
    parts = [one.astype(np.float64) for one in embeddings]
    if normalize == "each":
        parts = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in parts]
    return np.concatenate([weight * one for weight, one in zip(weights, parts, strict=True)], axis=1)


@pytest.mark.parametrize("normalize", ["each", "joint"])
def test_125_combinations_are_those_of_joined_vectors(normalize):
    embeddings, labels = networks()
    table = search_weights(embeddings, labels, k=10, normalize=normalize, holdout=0)
    assert len(table.rows) == 115
    assert [row.rank for row in table.rows] == list(range(1, 116))
    maps = [row.map for row in table.rows]
    assert maps == sorted(maps, reverse=True)
    assert table.best is table.rows[0]
    for row in table.rows:
        similarities = cosines(joined(embeddings, row.weights, normalize))
        expected = average_precisions(similarities, labels, 10, "min")
        assert row.map == pytest.approx(np.nanmean(expected), abs=1e-6), row.weights


def test_rows_are_what_retrieval_metrics_finds():
    """Intervals included: both draw the same queries."""
    embeddings, labels = networks()
    groups = np.random.default_rng(1).integers(0, 30, len(labels))
    for options in ({}, {"groups": groups}):
        table = search_weights(embeddings, labels, grid=[1, 3], k=7, holdout=0, seed=5, **options)
        for row in table.rows:
            vectors = joined(embeddings, row.weights, "each")
            found = retrieval_metrics(vectors, labels, k=7, seed=5, **options)
            assert row.map == pytest.approx(found.map, abs=1e-6)
            assert row.macro_map == pytest.approx(found.macro_map, abs=1e-6)
            np.testing.assert_allclose(row.interval, found.intervals["map"], atol=1e-6)
            assert row.holdout_map is row.holdout_macro_map is row.holdout_interval is None
        assert table.skipped == found.skipped
        assert (table.queries, table.holdout_queries) == (len(labels) - found.skipped, 0)


def test_holdout_has_its_share_of_every_class():
    embeddings, labels = networks(100)
    table = search_weights(embeddings, labels, grid=[1, 2], k=5, holdout=0.3)
    whole = search_weights(embeddings, labels, grid=[1, 2], k=5, holdout=0)
    queries = whole.queries
    assert table.queries + table.holdout_queries == queries
    assert table.holdout_queries == int(queries * 0.3)
    items = module.Items.of(labels)
    chosen, held = module._split(items, 0.3, None, 0)
    assert not set(chosen) & set(held)
    for one in np.unique(labels[np.concatenate([chosen, held])]):
        share = (labels[held] == one).sum() - 0.3 * (labels == one).sum()
        assert abs(share) < 1.0
    both = {row.weights: row for row in whole.rows}
    for row in table.rows:
        mean = row.map * table.queries + row.holdout_map * table.holdout_queries
        assert mean / queries == pytest.approx(both[row.weights].map, abs=1e-6)
        assert row.holdout_interval[0] <= row.holdout_map <= row.holdout_interval[1]
    again = search_weights(embeddings, labels, grid=[1, 2], k=5, holdout=0.3)
    assert again == table
    assert search_weights(embeddings, labels, grid=[1, 2], k=5, holdout=0.3, seed=1) != table


def test_groups_are_held_out_whole():
    _, labels = networks(100)
    groups = np.random.default_rng(1).integers(0, 25, 100)
    items = module.Items.of(labels, groups)
    chosen, held = module._split(items, 0.4, None, 3)
    assert len(held) > 0
    assert not set(groups[chosen]) & set(groups[held])


def test_max_queries():
    embeddings, labels = networks()
    table = search_weights(embeddings, labels, grid=[1, 2], k=5, max_queries=20)
    assert (table.queries, table.holdout_queries) == (10, 10)
    more = search_weights(embeddings, labels, grid=[1, 2], k=5, max_queries=10_000)
    assert more.queries + more.holdout_queries + more.skipped == len(labels)


@pytest.mark.parametrize("normalize", ["each", "joint"])
def test_the_memory_budget_changes_nothing(normalize, monkeypatch):
    embeddings, labels = networks()
    expected = search_weights(embeddings, labels, grid=[1, 2, 3], k=5, normalize=normalize)
    steps = []
    # Passes of a few combinations over a few queries at a time.
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 4)
    found = search_weights(
        embeddings,
        labels,
        grid=[1, 2, 3],
        k=5,
        normalize=normalize,
        memory_budget=10_000,
        progress=lambda stage, done, total: steps.append((stage, done, total)),
    )
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row.weights == other.weights
        assert row.map == pytest.approx(other.map, abs=1e-6)
        assert row.holdout_map == pytest.approx(other.holdout_map, abs=1e-6)
    total = 25 * (found.queries + found.holdout_queries)
    done = [step[1] for step in steps]
    assert done == sorted(done)
    assert len(done) > 8
    assert steps[-1] == ("weights", total, total)


@pytest.mark.parametrize("normalize", ["each", "joint"])
def test_the_memory_budget_bounds_the_factors_of_joint_and_the_replicates(normalize):
    """NumPy's memory: factors of all combinations for all items would take 17 MB, replicates 18 MB."""
    rng = np.random.default_rng(0)
    budget = 2_000_000
    for count, grid in ((20_000, range(1, 9)), (300, range(1, 31))):
        embeddings = [rng.standard_normal((count, 2)).astype(np.float32) for _ in range(2)]
        options = {"k": 2, "normalize": normalize, "max_queries": 4, "memory_budget": budget}
        tracemalloc.start()
        search_weights(embeddings, np.arange(count) % 2, grid=grid, **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * budget


def test_an_exception_in_progress_ends_the_search():
    embeddings, labels = networks()

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_weights(embeddings, labels, k=5, progress=stop)


def test_tensors_and_arrays_give_the_same():
    embeddings, labels = networks()
    expected = search_weights(embeddings, labels, grid=[1, 2], k=5)
    tensors = [torch.from_numpy(one).double() for one in embeddings]
    assert search_weights(tensors, torch.from_numpy(labels), grid=[1, 2], k=5) == expected
    assert search_weights(tensors, [f"class {label:02}" for label in labels], grid=[1, 2], k=5) == expected


def test_joint_takes_lengths_that_float32_cannot_square():
    """By powers of two, which change no bit of the result."""
    embeddings, labels = networks()
    expected = search_weights(embeddings, labels, grid=[1, 2], k=5, normalize="joint")
    for factor in (2.0**90, 2.0**-90):
        scaled = [(one * np.float32(factor)) for one in embeddings]
        found = search_weights(scaled, labels, grid=[1, 2], k=5, normalize="joint")
        assert found == expected
    # One network beside others of quite another scale: alone it orders as it did.
    embeddings[2] *= np.float32(2.0**-100)
    (found,) = search_weights(embeddings, labels, grid=[(0, 0, 1)], k=5, normalize="joint").rows
    embeddings[2] *= np.float32(2.0**100)
    (expected,) = search_weights(embeddings, labels, grid=[(0, 0, 1)], k=5, normalize="joint").rows
    assert found == expected


def test_weights_that_float32_cannot_square():
    embeddings, labels = networks()
    small, large = (
        search_weights(embeddings, labels, grid=[factor, 2 * factor], k=5) for factor in (1.0, 1e30)
    )
    assert [row.map for row in large.rows] == [row.map for row in small.rows]


def test_a_network_of_weight_0_is_left_out():
    embeddings, labels = networks()
    table = search_weights(embeddings, labels, grid=[0, 1], k=5, holdout=0)
    assert len(table.rows) == 7
    rows = {row.weights: row for row in table.rows}
    alone = retrieval_metrics(embeddings[1], labels, k=5, replicates=0)
    assert rows[0.0, 1.0, 0.0].map == pytest.approx(alone.map, abs=1e-6)


# --- combinations ---------------------------------------------------------------------------------


def test_proportional_combinations_share_the_row_of_the_first():
    assert len(distinct_combinations(range(1, 6), 3)) == 115
    assert distinct_combinations([1, 2], 2) == [(1, 1), (1, 2), (2, 1)]
    assert distinct_combinations([0.1, 0.2, 0.3], 2)[0] == (0.1, 0.1)
    assert len(distinct_combinations([0.1, 0.2, 0.3], 2)) == 7
    assert distinct_combinations([(3, 1), (6, 2), (1, 3)], 2) == [(3, 1), (1, 3)]
    assert distinct_combinations(np.array([[3.0, 1.0], [1.0, 3.0]]), 2) == [(3, 1), (1, 3)]
    assert distinct_combinations([5], 1) == [(5,)]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any), st.integers(2, 9))
def test_proportional_weights_give_equal_results(weights, factor):
    embeddings, labels = networks(40)
    one, other = (
        search_weights(embeddings, labels, grid=[row], k=5, holdout=0)
        for row in (weights, [factor * weight for weight in weights])
    )
    assert one.best.map == pytest.approx(other.best.map, abs=1e-6)
    assert 0 <= one.best.map <= 1


# --- the table ------------------------------------------------------------------------------------


def test_to_csv(tmp_path):
    embeddings, labels = networks()
    table = search_weights(embeddings, labels, grid=[1, 2], k=5)
    table.to_csv(tmp_path / "weights.csv")
    rows = list(csv.DictReader((tmp_path / "weights.csv").read_text().splitlines()))
    assert len(rows) == len(table.rows) == 7
    assert list(rows[0])[:6] == ["rank", "weight_1", "weight_2", "weight_3", "map", "macro_map"]
    for line, row in zip(rows, table.rows, strict=True):
        assert tuple(float(line[f"weight_{n}"]) for n in (1, 2, 3)) == row.weights
        assert float(line["map"]) == row.map
        assert (float(line["low"]), float(line["high"])) == row.interval
        assert float(line["holdout_map"]) == row.holdout_map
        assert (float(line["holdout_low"]), float(line["holdout_high"])) == row.holdout_interval
    whole = search_weights(embeddings, labels, grid=[1], k=5, holdout=0)
    whole.to_csv(tmp_path / "weights.csv")
    (line,) = csv.DictReader((tmp_path / "weights.csv").read_text().splitlines())
    assert line["holdout_map"] == line["holdout_low"] == ""


def test_to_pandas(monkeypatch):
    embeddings, labels = networks()
    table = search_weights(embeddings, labels, grid=[1], k=5)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert table.to_pandas() == table.columns()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_pandas needs pandas, .*\[retrieval\]"):
        table.to_pandas()


# --- refusals -------------------------------------------------------------------------------------

GOOD, LABELS = networks(30)
ZERO = [GOOD[0], np.where(np.arange(30)[:, None] == 7, 0, GOOD[1]), GOOD[2]]


@pytest.mark.parametrize(
    ("given_", "labels", "options", "error", "message"),
    [
        ([], LABELS, {}, TypeError, "embeddings must be a list of one array per network"),
        (GOOD[0], LABELS, {}, TypeError, "embeddings must be a list .* got ndarray"),
        ([GOOD[0], GOOD[1][:9]], LABELS, {}, ValueError, r"embeddings\[1\] must be \[N, D\] with N = 30"),
        (ZERO, LABELS, {}, ValueError, r"embeddings\[1\] has zero vectors, .*: 7$"),
        (ZERO, LABELS, {"normalize": "joint"}, ValueError, r"embeddings\[1\] has zero vectors, .*: 7$"),
        ([GOOD[0] * np.nan], LABELS, {}, ValueError, r"embeddings\[0\] must be finite"),
        (GOOD, [1] * 30, {}, ValueError, "labels must hold at least two classes"),
        (GOOD, list(range(30)), {}, ValueError, "labels leave 0 queries to choose by"),
        (GOOD, LABELS, {"k": 30}, ValueError, "k must be below the 30 items, got 30"),
        (GOOD, LABELS, {"normalize": "both"}, ValueError, "normalize must be one of each, joint"),
        (GOOD, LABELS, {"grid": []}, ValueError, "grid must have 1 to 100,000 combinations, got 0"),
        (
            GOOD,
            LABELS,
            {"grid": range(47)},
            ValueError,
            "grid must have 1 to 100,000 combinations, got 103,823",
        ),
        (GOOD, LABELS, {"grid": [0]}, ValueError, "grid has weights that are all zero"),
        (GOOD, LABELS, {"grid": [(1, 0, 0), (0, 0, 0)]}, ValueError, "grid has weights that are all zero"),
        (GOOD, LABELS, {"grid": [(1, 2)]}, ValueError, "a weight for each of the 3 networks, got .1, 2."),
        (GOOD, LABELS, {"grid": [1, -2]}, ValueError, "not negative, got -2"),
        (GOOD, LABELS, {"grid": [1, np.inf]}, ValueError, "grid must hold finite weights .* got inf"),
        (GOOD, LABELS, {"grid": ["a"]}, TypeError, "grid must hold numbers"),
        (GOOD, LABELS, {"grid": 3}, TypeError, "grid must hold numbers, or rows of 3 numbers, got 3"),
        (GOOD, LABELS, {"grid": "123"}, TypeError, "grid must hold numbers, .* got '123'"),
        (GOOD, LABELS, {"holdout": 1.0}, ValueError, "holdout must be at least 0 and below 1, got 1.0"),
        (GOOD, LABELS, {"holdout": "half"}, TypeError, "holdout must be a number"),
        (GOOD, LABELS, {"max_queries": 1}, ValueError, "labels leave 1 queries to choose by and 0 held out"),
        (GOOD, LABELS, {"max_queries": 0}, ValueError, "max_queries must be at least 1"),
        (GOOD, LABELS, {"memory_budget": 0}, ValueError, "memory_budget must be at least 1"),
        (GOOD, LABELS, {"seed": -1}, ValueError, "seed must be at least 0"),
        (GOOD, LABELS, {"progress": 3}, TypeError, "progress must be callable, got int"),
    ],
)
def test_refusals(given_, labels, options, error, message):
    with pytest.raises(error, match=message):
        search_weights(given_, labels, **{"k": 3} | options)


def test_rows_of_a_grid_may_be_arrays():
    rows = [(1, 2, 0), (0.5, 1, 3)]
    for grid in (np.array(rows), [np.array(row) for row in rows], torch.tensor(rows)):
        assert distinct_combinations(grid, 3) == rows
    assert distinct_combinations(np.arange(2), 2) == [(0, 1), (1, 0), (1, 1)]


def test_grids_are_counted_before_they_are_made():
    """Of ten networks with a thousand weights each there are 10^30."""
    with pytest.raises(ValueError, match="got 1,000,000,000,000,000,000,000,000,000,000"):
        distinct_combinations(range(1000), 10)
    with pytest.raises(ValueError, match="100,000 combinations, got more"):
        distinct_combinations(itertools.count(), 1)
    assert len(list(itertools.product(range(1, 6), repeat=3))) == 125
