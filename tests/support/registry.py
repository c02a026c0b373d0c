"""A registry of a test's own: names that it registers are gone when it is done."""

from __future__ import annotations

import importlib

import pytest

from ensemblead.config import names


def separate_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test register classes beside those that are known, without leaving them behind."""
    # The library's own classes register once, when they are first imported: into the tables that stay.
    for module in names._MODULES.values():
        importlib.import_module(module)
    for table in ("_classes", "_names"):
        monkeypatch.setattr(names, table, dict(getattr(names, table)))
