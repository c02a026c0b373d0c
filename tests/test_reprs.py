"""Objects that users meet say what they are in one line, as a notebook shows it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from support.brightness import Brightness, draw_category

import ensemblead as ead
from ensemblead.conversion.converting import Conversion
from ensemblead.detectors.exporting import ComparedImage, ExportReport
from ensemblead.evaluation import ScoredImage, Suite, TradeOff, run
from ensemblead.images import Region

COMMON: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
IMAGES = np.random.default_rng(0).integers(90, 110, (12, 48, 48, 3), dtype=np.uint8)
LONGEST = 260


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Objects by what their text must have in it."""
    folder = tmp_path_factory.mktemp("part")
    dataset = ead.MVTecAD(draw_category(folder / "part", 0))
    detector = ead.PatchCore("gabor", coreset_fraction=0.1, **COMMON).fit(IMAGES)
    found = detector.predict(IMAGES)
    embedder = ead.Embedder("gabor", layer="layer2", **COMMON)
    index = ead.ImageIndex.from_vectors(["a", "b", "c"], np.eye(3, dtype=np.float32), folder / "index")
    hits = index.search(np.eye(3, dtype=np.float32), top=2)
    index.close()
    vectors = [np.eye(6, dtype=np.float32) + 0.1 * number for number in range(2)]
    report = ead.evaluate(Brightness(), dataset, bootstrap=0)
    gabor = {
        "type": "PatchCore",
        "backbone": "gabor",
        "resize": 24,
        "image_size": None,
        "coreset_fraction": 0.5,
    }
    suite = {
        "bootstrap": 0,
        "device": "cpu",
        "detectors": [{"name": "one", **gabor}],
        "datasets": [{"type": "MVTecAD", "root": str(folder / "part")}],
    }
    results, maps = run(suite, folder / "out"), np.zeros((300, 300), np.float32)
    row = ComparedImage("a.png", 1.0, 1.0, 0.0, 0.0, True, True)
    return {
        "PatchCore(backbone='gabor'": detector,
        "Predictions(12 images": found,
        "Calibration(threshold": detector.calibration_,
        "MemoryBank(coreset_fraction=0.1": detector.memory_bank_,
        "FeatureExtractor('gabor'": detector.network_,
        "Step(fit on 20": detector.history_[0],
        "DetectedRegion(image 0, box (0, 0, 48, 48)": found.objects(0.0)[0],
        "not fitted": ead.BackboneEnsemble([ead.PatchCore("gabor", **COMMON)]),
        "TiledEnsemble(member=PatchCore": ead.TiledEnsemble(ead.PatchCore("gabor", device="cpu"), 24, 24),
        "Embedder(backbone='gabor'": embedder,
        "EmbeddingEnsemble(members=[Embedder])": ead.EmbeddingEnsemble([embedder]),
        "Hits(3 queries, 2 images each)": hits,
        "WeightTable(": ead.search_weights(vectors, labels=[0, 0, 1, 1, 2, 2], k=2, grid=(1, 2)),
        "MVTecAD(part": dataset,
        "Category('part': ": dataset.categories[0],
        "Sample(": dataset.categories[0].test[0],
        "Report(1 category": report,
        "Row('part', ": report.rows[0],
        "Details(": report.details["part"],
        "ImageResult(": report.details["part"].images[0],
        "TypeRow(": report.details["part"].types[0],
        "TradeOff(2 normal, 1 defective": TradeOff(np.ones(2, np.float32), np.ones(1, np.float32)),
        "Suite(1 detectors, 1 data sets)": Suite.parse(suite),
        "SuiteResults(1 of 1 cells done": results,
        "CellResult(one on ": results.cells[0],
        "ScoredImage(category='part'": ScoredImage("part", dataset.test[0], 1.0, True, maps, maps > 0),
        "RetrievalMetrics(map=": ead.retrieval_metrics(vectors[0], [0, 0, 1, 1, 2, 2], k=5),
        "ExportReport(passed: 99 images, scores move by 0,": ExportReport((row,) * 99, 0.02, 0),
        "Conversion(detector=PatchCore": Conversion(detector, ("a note that is long " * 9,) * 9, 8, 1e-6),
        "Comparison(2 images": ead.compare(detector, detector, IMAGES[:2]),
        "DriftMonitor(": ead.DriftMonitor(detector),
        "Region(1 polygon": Region.of([[[0, 0], [10, 0], [10, 10]]]),
        "Geometry(": detector.geometry,
    }


def test_one_line_says_what_it_is(made: dict[str, Any]) -> None:
    for beginning, thing in made.items():
        text = repr(thing)
        assert beginning in text
        assert "\n" not in text, text
        # Wherever the tests' files lie.
        assert len(re.sub(r"'/[^']*/", "'", text)) <= LONGEST, text
        assert "array(" not in text, text
