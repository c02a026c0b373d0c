"""examples/exported.cpp, built with the headers and libraries of OpenVINO's wheel: the same scores."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
import openvino
from PIL import Image
from support.networks import TinyNet
from support.textures import normal_images

import ensemblead as ead

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "exported.cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(openvino.__file__).parent
    libraries = sorted((root / "libs").glob("libopenvino.so*"))
    compiler = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
    if not (root / "include" / "openvino" / "openvino.hpp").is_file() or not libraries:
        pytest.skip("this OpenVINO has no headers or no library to link")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    target = tmp_path_factory.mktemp("program") / "exported"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", target]
    # Headers of others, whose warnings are not ours.
    command += [
        "-isystem",
        root / "include",
        libraries[0],
        f"-Wl,-rpath,{root / 'libs'}",
        "-Wl,--allow-shlib-undefined",
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return target


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_the_scores_of_python(tmp_path: Path, program: Path) -> None:
    images, probe = normal_images(6, side=40), normal_images(10, 1, side=40)
    probe[8:, 10:30, 10:30] = 255
    options = {"resize": (32, 36), "coreset_fraction": 0.1, "device": "cpu"}
    detector = ead.PatchCore(TinyNet(), ("first", "second"), **options).fit(images)
    detector.export(tmp_path / "export", verify=probe)
    paths = []
    for number, pixels in enumerate(probe):
        paths.append(tmp_path / f"{number}.ppm")
        Image.fromarray(pixels).save(paths[-1])
    outcome = run(program, tmp_path / "export", *paths)
    assert outcome.returncode == 0, outcome.stderr
    rows = [line.split() for line in outcome.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(path) for path in paths]
    expected = ead.load_exported(tmp_path / "export").predict(probe)
    np.testing.assert_allclose([float(row[1]) for row in rows], expected.anomaly_score, rtol=1e-5)
    np.testing.assert_allclose(
        [float(row[1]) for row in rows], detector.predict(probe).anomaly_score, rtol=1e-4
    )
    assert [row[2] == "anomalous" for row in rows] == expected.is_anomalous.tolist()
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    assert "0.ppm is incomplete" in run(program, tmp_path / "export", paths[0]).stderr
    assert run(program, tmp_path / "none", paths[1]).returncode == 1


def test_it_stays_an_example() -> None:
    assert len(SOURCE.read_text().splitlines()) <= 60
