"""A registry of a test's own: names that it registers are gone when it is done."""

from __future__ import annotations

import pytest

from ensemblead.config import names


def separate_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test register classes beside those that are known, without leaving them behind."""
    for table in ("_classes", "_names"):
        monkeypatch.setattr(names, table, dict(getattr(names, table)))
