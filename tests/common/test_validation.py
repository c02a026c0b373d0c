"""Near matches among known names."""

from __future__ import annotations

from ensemblead.common.validation import did_you_mean


def test_near_names_are_suggested_and_all_are_listed_otherwise() -> None:
    assert did_you_mean("sed", ["seed", "score"]) == "did you mean seed?"
    assert did_you_mean("xyz", ["seed", "score"]) == "there are: seed, score"
    assert did_you_mean("xyz", []) == "there are: none"
