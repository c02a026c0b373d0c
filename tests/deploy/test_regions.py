"""Exported detectors with a region: the same scores, maps and verdicts, and as blind to the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from support.exports import assert_same, exported
from support.regions import DETECTORS, MASK, padim, painted_outside, patchcore, photographs, tiled

import ensemblead as ead
from ensemblead.deploy.contract import CONTRACT, FORMAT_VERSION
from ensemblead.images import Region

pytestmark = pytest.mark.filterwarnings("ignore::ensemblead.common.warnings.ThresholdWarning")

TRAIN, TEST = photographs(8), photographs(10, seed=9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk", {}),
        pytest.param("nearest", {"input": "resized"}, marks=pytest.mark.slow),
        pytest.param("padim", {"format": "onnx"}, marks=pytest.mark.slow),
        pytest.param("tiles", {}, marks=pytest.mark.slow),
        pytest.param("reweighted", {"format": "onnx"}, marks=pytest.mark.slow),
        pytest.param("fastflow", {}, marks=pytest.mark.slow),
    ],
)
def test_a_region_is_exported(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    detector = DETECTORS[name](MASK).fit(TRAIN)
    graph = exported(detector, tmp_path / "export", TEST, **options)
    found, outside = graph.predict(TEST), graph.predict(painted_outside(TEST))
    assert_same(found, detector.predict(TEST), 1e-3)  # as `export` allows; some scores are standardised
    assert np.array_equal(found.anomaly_score, outside.anomaly_score)
    assert np.array_equal(found.anomaly_map, outside.anomaly_map)
    assert not found.anomaly_map[:, ~detector.geometry.inside()].any()


@pytest.mark.slow
def test_the_contract_has_the_pixels(tmp_path: Path) -> None:
    exported(patchcore(region=MASK).fit(TRAIN), tmp_path / "with", TEST)
    exported(patchcore().fit(TRAIN), tmp_path / "without", TEST)
    known, other = (json.loads((tmp_path / name / CONTRACT).read_text()) for name in ("with", "without"))
    assert Region.of(known["geometry"]["region"]) == Region(MASK)
    # Readers that know no region must not read it.
    assert (known["format"], other["format"]) == (FORMAT_VERSION, 1)
    assert ead.load_exported(tmp_path / "with").contract.geometry.region == Region(MASK)


@pytest.mark.slow
def test_a_tile_that_is_skipped_is_not_in_the_graph(tmp_path: Path) -> None:
    mask = np.zeros_like(MASK)
    mask[36:, 20:] = True
    detector = tiled(padim(), region=mask).fit(TRAIN)
    assert detector.state_.frame.skipped[0] == 0
    graph = exported(detector, tmp_path / "export", TEST)
    assert_same(graph.predict(TEST), detector.predict(TEST))
