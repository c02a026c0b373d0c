"""What a fresh process loads to predict: not the packages that fitting, reports and other methods need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm")

import ensemblead as ead

# Packages of extras that a prediction does not need.
NEEDLESS = [
    "timm",
    "torchvision",
    "matplotlib",
    "sklearn",
    "scipy",
    "faiss",
    "huggingface_hub",
    "yaml",
    "typer",
    "rich",
]
CODE = f"""
import json, sys
import numpy as np
import ensemblead as ead
images = np.random.default_rng(1).integers(90, 110, (1, 64, 64, 3), dtype=np.uint8)
score = float(ead.load(sys.argv[1]).predict(images).anomaly_score[0])
print(json.dumps([score, [name for name in {NEEDLESS!r} if name in sys.modules]]))
"""


@pytest.mark.parametrize("backbone", ["gabor", "resnet18"])
def test_a_prediction_loads_no_model_zoo(backbone: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
    options = {} if backbone == "gabor" else {"weights": None}
    detector = ead.PatchCore(
        backbone,
        ("layer1", "layer2"),
        resize=None,
        image_size=None,
        coreset_fraction=0.1,
        device="cpu",
        **options,
    ).fit(images)
    detector.save(tmp_path / "model")
    command = [sys.executable, "-W", "error", "-c", CODE, str(tmp_path / "model")]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    score, loaded = json.loads(outcome.stdout)
    assert loaded == []
    probe = np.random.default_rng(1).integers(90, 110, (1, 64, 64, 3), dtype=np.uint8)
    assert score == pytest.approx(float(detector.predict(probe).anomaly_score[0]), rel=1e-4)
