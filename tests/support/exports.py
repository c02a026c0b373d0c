"""Exports for tests: what a detector and its exported graph say of the same images, and sabotage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ensemblead as ead
from ensemblead.common.manifests import checksum_of, file_entry
from ensemblead.deploy.contract import CONTRACT


def assert_same(found: ead.Predictions, expected: ead.Predictions, tolerance: float = 1e-4) -> None:
    """Scores and maps within a tolerance of the largest, and the same verdicts."""
    for name in ("anomaly_score", "anomaly_map"):
        ours, theirs = getattr(expected, name), getattr(found, name)
        assert theirs.dtype == ours.dtype
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)
    assert found.paths == expected.paths


def exported(detector: Any, folder: Path, images: Any, **options: Any) -> Any:
    """A detector exported to a folder and loaded from there."""
    report = detector.export(folder, verify=images, **options)
    assert report.passed
    return ead.load_exported(folder, threads=1)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a contract, whose checksum fits afterwards."""
    contract = json.loads((folder / CONTRACT).read_text())
    del contract["checksum"]
    change(contract)
    contract["checksum"] = checksum_of(contract)
    (folder / CONTRACT).write_text(json.dumps(contract))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Other bytes in a file of an export, with checksums that fit."""
    (folder / name).write_bytes(data)
    rewrite(folder, lambda contract: contract["files"].update({name: file_entry(data)}))
