"""What a fresh process loads to predict: not the packages that fitting, reports and other methods need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm")

from PIL import Image

import ensemblead as ead
from ensemblead.common.extras import EXTRAS

# Packages of extras, and methods, that a prediction does not need.
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
    "ensemblead.detectors.draem",
    "ensemblead.detectors.padim",
]
CODE = f"""
import json, sys
import numpy as np
import ensemblead as ead
images = np.random.default_rng(1).integers(90, 110, (1, 64, 64, 3), dtype=np.uint8)
score = float(ead.load(sys.argv[1]).predict(images).anomaly_score[0])
print(json.dumps([score, [name for name in {NEEDLESS!r} if name in sys.modules]]))
"""


@pytest.mark.parametrize("backbone", [pytest.param("gabor", marks=pytest.mark.slow), "resnet18"])
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


COMMAND = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from ensemblead.cli import main
main()
"""


@pytest.mark.slow
def test_the_extra_predict_is_enough(tmp_path: Path) -> None:
    """`ensemblead predict` with all its outputs, where only what the extra brings can be imported."""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^predict = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    brought = {re.match(r"[\w-]+", one)[0].lower() for one in re.findall(r'"(.*?)"', listed)}  # type: ignore[index]
    imported = {"pillow": "PIL", "pyyaml": "yaml"}
    blocked = sorted(set(EXTRAS) - {imported.get(name, name) for name in brought})
    assert {"timm", "matplotlib", "sklearn", "faiss"} <= set(blocked)
    images = np.random.default_rng(0).integers(90, 110, (12, 48, 48, 3), dtype=np.uint8)
    common = {"weights": None, "resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}
    ead.PatchCore("resnet18", ("layer1",), **common).fit(images).save(tmp_path / "model")
    images[0, 10:30, 10:30] = 220
    Image.fromarray(images[0]).save(tmp_path / "part.png")
    out = tmp_path / "out"
    arguments = [
        "predict",
        str(tmp_path / "model"),
        str(tmp_path / "part.png"),
        "--out",
        str(out),
        "--masks",
        "--maps",
    ]
    command = [sys.executable, "-W", "error", "-c", COMMAND, ",".join(blocked), *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert {"scores.csv", "objects.json", "report.html"} <= {path.name for path in out.iterdir()}
