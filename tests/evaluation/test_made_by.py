"""Results say what made them: the detector, its weights, its images, the versions and the machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
import torch
from support.brightness import Brightness, draw_category
from support.networks import TinyNet

import ensemblead as ead
from ensemblead.common.processor import processor_name
from ensemblead.evaluation import run
from ensemblead.evaluation.made_by import machine, made_by
from ensemblead.networks.engines.engine import digest_of
from ensemblead.networks.extractor import FeatureExtractor

IMAGES = np.random.default_rng(0).integers(90, 110, (12, 48, 48, 3), dtype=np.uint8)
COMMON: dict[str, Any] = {"resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}


def test_a_detector(tmp_path: Path) -> None:
    detector = ead.PatchCore("test_resnet", ("layer1",), weights=None, **COMMON).fit(IMAGES)
    found = made_by(detector)
    assert found["detector"].startswith("PatchCore(backbone='test_resnet'")
    assert ead.create(found["parameters"]).describe() == detector.describe()
    (network,) = found["weights"]
    assert network["network"].startswith("test_resnet")
    assert network["sha256"] == digest_of(detector.network_.state_dict())
    assert found["learned_images"] == 12
    assert [step["action"] for step in found["history"]] == ["fit"]
    assert found["model"] is None
    assert {"ensemblead", "python", "numpy", "torch"} <= set(found["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date"])
    assert set(found["machine"]) == {"system", "processor", "cores", "gpus"}
    json.dumps(found, allow_nan=False)
    detector.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    again = made_by(loaded)
    assert again["weights"] == found["weights"]
    assert again["model"] == json.loads((tmp_path / "model/model.json").read_text())["checksum"]
    loaded.extend(np.random.default_rng(1).integers(90, 110, (5, 48, 48, 3), dtype=np.uint8))
    assert made_by(loaded)["learned_images"] == 17
    assert made_by(loaded)["model"] is None


def test_folders_of_this_machine_are_not_told(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    network = FeatureExtractor("test_resnet", ("layer1",), weights=None)
    torch.save(network.module.state_dict(), weights)
    detector = ead.PatchCore("test_resnet", ("layer1",), weights=str(weights), **COMMON).fit(IMAGES)
    found = made_by(detector)
    assert str(tmp_path) not in json.dumps(found)
    # A long path is left out of the one line as a whole.
    assert repr(detector).replace(f"{tmp_path}{os.sep}", "").startswith(found["detector"])
    assert found["parameters"]["weights"] == "weights.pth"


def test_what_cannot_be_said() -> None:
    found = made_by(ead.PatchCore(TinyNet(), ("first",), **COMMON).fit(IMAGES))
    assert found["parameters"] is None
    assert found["weights"][0]["network"] == "TinyNet"
    assert made_by(ead.PatchCore("gabor", **COMMON).fit(IMAGES))["weights"] == []
    other = made_by(Brightness())
    assert other["detector"] == "Brightness"
    assert (other["weights"], other["history"], other["learned_images"]) == ([], [], None)
    assert other["machine"] == machine()


def test_members_that_share_a_network_are_one() -> None:
    members = [
        ead.PatchCore("test_resnet", (layer,), weights=None, patch_size=size, **COMMON)
        for layer, size in (("layer1", 3), ("layer2", 3), ("layer1", 1))
    ]
    weights = made_by(ead.BackboneEnsemble(members).fit(IMAGES))["weights"]
    assert len(weights) == 2
    assert weights[0]["sha256"] != weights[1]["sha256"]  # the second one reads further


def test_files_and_page(tmp_path: Path) -> None:
    category = ead.MVTecAD(draw_category(tmp_path / "part", 0))
    detector = ead.PatchCore("gabor", device="cpu", resize=(20, 24), image_size=16, coreset_fraction=0.5)
    report = ead.evaluate(detector.fit(category.train), category, bootstrap=0)
    report.to_json(tmp_path / "results.json")
    (written,) = json.loads((tmp_path / "results.json").read_text())["categories"]
    known = made_by(detector)
    assert {**written["made_by"], "date": ""} == {**json.loads(json.dumps(known)), "date": ""}
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "What made these results" in text
    assert f"a model of {known['learned_images']} images" in text
    for shown in (
        "PatchCore(backbone=&#x27;gabor&#x27;",
        known["machine"]["processor"],
        f"torch {known['versions']['torch']}",
    ):
        assert shown in text


def test_suites_keep_it(tmp_path: Path) -> None:
    draw_category(tmp_path / "part", 0)
    gabor = {
        "type": "PatchCore",
        "backbone": "gabor",
        "resize": [20, 24],
        "image_size": 16,
        "coreset_fraction": 0.5,
    }
    suite = {
        "bootstrap": 0,
        "device": "cpu",
        "detectors": [{"name": "good", **gabor}],
        "datasets": [{"type": "MVTecAD", "root": str(tmp_path / "part")}],
    }
    first, again = (run(suite, tmp_path / "out") for _ in range(2))
    (cell,) = again.cells
    assert cell.reused
    (before,) = first.cells
    assert before.finished is not None
    assert cell.finished is not None
    assert cell.finished.details.made_by == json.loads(json.dumps(before.finished.details.made_by))
    (document,) = json.loads((tmp_path / "out/results.json").read_text())["cells"]
    assert document["made_by"]["learned_images"] == before.finished.details.made_by["learned_images"]


def test_names_of_processors(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Quick 3000\nmodel name\t: Quick 3000\n")
    assert processor_name(file) == "Quick 3000"
    assert processor_name(tmp_path / "none") != ""
