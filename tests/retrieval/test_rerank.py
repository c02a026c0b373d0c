"""rerank against the definitions and against ranx."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.retrieval import FUSED, ranked_lists

from ensemblead.retrieval.rerank import rerank

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())["fused"]


def test_rrf_is_that_of_ranx():
    merged = rerank([names for names, _ in ranked_lists()], k=FUSED)
    assert dict(merged) == pytest.approx(RECORDED["rrf"], rel=1e-12)
    assert [name for name, _ in merged] == ["a", "c", "f", "b", "e", "d"]


def test_scores_are_those_of_ranx():
    pairs = [list(zip(*lists, strict=True)) for lists in ranked_lists()]
    merged = rerank(pairs, method="score")
    assert dict(merged) == pytest.approx(RECORDED["score"], rel=1e-12)
    # f and a have 1: a stands in the earlier list.
    assert [name for name, _ in merged] == ["c", "a", "f", "e", "b", "d"]


def test_weights():
    lists = [["a", "b"], ["b", "c"]]
    assert rerank(lists, k=0, weights=[1, 4]) == [("b", 4.5), ("c", 2.0), ("a", 1.0)]
    assert [name for name, _ in rerank(lists, weights=[1, 0])] == ["a", "b", "c"]
    scored = [{"a": 3.0, "b": 1.0}, {"a": 5, "c": 5}]
    assert rerank(scored, method="score", weights=[2, 0.5]) == [("a", 2.5), ("c", 0.5), ("b", 0.0)]


def test_second_stage():
    first = ["a", "b", "c", "d", "e"]
    second = {"d": 0.9, "b": 0.5, "a": 0.5, "z": 1.0, "e": 2.0}
    assert rerank([first, second], method="second_stage", k=4) == [
        ("d", 0.9),
        ("a", 0.5),
        ("b", 0.5),
        ("c", -np.inf),
        ("e", -np.inf),
    ]
    assert [name for name, _ in rerank([first, second], method="second_stage")] == ["e", "d", "a", "b", "c"]
    assert rerank([first, {}], method="second_stage") == [(name, -np.inf) for name in first]


def test_equal_terms_make_equal_scores():
    """Each has the ranks 1, 2 and 3; summed in the order of the lists, some differ in the last bit."""
    lists = [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    for k in range(100):
        assert [name for name, _ in rerank(lists, k=k)] == ["a", "b", "c"]


def test_lists_of_other_kinds():
    expected = [(3, 1 / 61 + 1 / 61), (1, 1 / 62 + 1 / 62)]
    for one in ([3, 1], np.array([3, 1]), (3, 1), {1: 0.5, 3: 0.9}):
        assert rerank([one, [3, 1]]) == expected
    assert rerank([[], []]) == []
    assert rerank([[], [("a", 1.0)]], method="score") == [("a", 1.0)]


@given(
    st.lists(st.lists(st.integers(0, 12), unique=True, max_size=8), min_size=1, max_size=5),
    st.integers(0, 90),
)
def test_properties_of_rrf(lists, k):
    merged = rerank(lists, k=k)
    assert {name for name, _ in merged} == set().union(*lists)
    scores = [score for _, score in merged]
    assert scores == sorted(scores, reverse=True)
    for name, score in merged:
        expected = sum(1 / (k + one.index(name) + 1) for one in lists if name in one)
        assert score == pytest.approx(expected, rel=1e-12)
    assert rerank([lists[0]], k=k)[:8] == [(name, 1 / (k + rank)) for rank, name in enumerate(lists[0], 1)]


@pytest.mark.parametrize(
    ("lists", "options", "error", "message"),
    [
        ([], {}, ValueError, "lists must hold at least one result list"),
        ([["a"]], {"method": "borda"}, ValueError, "method must be one of rrf, score, second_stage"),
        ([["a", "a"]], {}, ValueError, r"lists\[0\] holds 'a' twice"),
        (["ab"], {}, TypeError, r"lists\[0\] must be a list of ids"),
        (
            [[("a", 1, 2)]],
            {},
            ValueError,
            r"lists\[0\] must hold ids or \(id, score\) pairs, got \('a', 1, 2\)",
        ),
        ([[("a", "b")]], {}, TypeError, "must have numbers as scores, got 'b' for 'a'"),
        ([[("a", np.nan)]], {}, ValueError, "must have finite scores, got nan for 'a'"),
        (
            [[("a", 1.0)], ["b"]],
            {"method": "score"},
            ValueError,
            r"lists\[1\] must have a score.*none for 'b'",
        ),
        ([{"a": 1.0, "b": None}], {}, ValueError, r"lists\[0\] must have a score .* none for 'b'"),
        ([np.array([3, -1])], {}, ValueError, r"lists\[0\] must hold ids, and end before .* got -1"),
        ([["a", None]], {}, ValueError, r"lists\[0\] must hold ids, and end before .* got None"),
        ([["a"]], {"k": -1}, ValueError, "k must be at least 0, got -1"),
        ([["a"]], {"k": 1.5}, TypeError, "k must be a whole number"),
        ([["a"], {}], {"method": "second_stage", "k": 0}, ValueError, "k must be at least 1"),
        ([["a"]], {"method": "second_stage"}, ValueError, "takes two lists and no weights, got 1 lists"),
        ([["a"], {}], {"method": "second_stage", "weights": [1, 1]}, ValueError, "no weights, got weights"),
        ([["a"], ["a"]], {"method": "second_stage"}, ValueError, r"lists\[1\] must have a score"),
        ([["a"]], {"weights": [1, 2]}, ValueError, "weights must be one for each of the 1 lists, got 2"),
        ([["a"], ["b"]], {"weights": [0, 0]}, ValueError, "weights must be at least 0, finite and not all 0"),
        ([["a"], ["b"]], {"weights": [1, -1]}, ValueError, "weights must be at least 0"),
    ],
)
def test_refusals(lists, options, error, message):
    with pytest.raises(error, match=message):
        rerank(lists, **options)
