"""Exports of PatchCore with position_radius: the graph leaves the same rows out."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
from support.exports import assert_same, exported

import ensemblead as ead
from ensemblead.common.errors import NotExportableError


def _fitted(images: np.ndarray, **options: object) -> ead.PatchCore:
    given = {"coreset_fraction": 0.2, "position_radius": 1, "resize": None, "device": "cpu", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images and rows
        return ead.PatchCore("gabor", ("layer1",), **given).fit(images)  # type: ignore[arg-type]


def _images(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(90, 110, (count, 32, 32, 3), dtype=np.uint8)
    images[:, :, 16:] += 100  # what is normal on one side is not on the other
    images[-1] = images[-1, :, ::-1]
    return images


@pytest.mark.parametrize(("score", "neighbors"), [("topk", 1), ("max", 3)])
def test_the_graph_compares_by_place(score: str, neighbors: int, tmp_path: Path) -> None:
    images = _images(12)
    detector = _fitted(images[:6], score=score, num_neighbors=neighbors)
    found = exported(detector, tmp_path / "near", images).predict(images)
    assert_same(found, detector.predict(images))
    free = _fitted(images[:6], score=score, num_neighbors=neighbors, position_radius=None)
    assert found.anomaly_score[-1] > 2 * free.predict(images[-1:]).anomaly_score[0]


def test_reweighted_scores_are_refused(tmp_path: Path) -> None:
    detector = _fitted(_images(6), score="reweighted")
    with pytest.raises(NotExportableError, match='score="reweighted" with position_radius'):
        detector.export(tmp_path / "out", verify=_images(12))
