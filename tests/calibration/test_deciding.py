"""The one or two training images that decide an estimated threshold: found, warned of, saved, reported."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.methods import Epochs
from support.textures import normal_images, with_defects
from typer.testing import CliRunner

import ensemblead as ead
from ensemblead.calibration import (
    Calibration,
    Origin,
    deciding_images,
    estimated_threshold,
    odd_images,
)
from ensemblead.cli.app import app
from ensemblead.common.warnings import ThresholdWarning

EVEN = np.linspace(1, 3, 41)
IMAGES = normal_images(20)
SPOILED = IMAGES.copy()
SPOILED[6] = with_defects(IMAGES[6:7])[0][0]


def calibration(scores: Any, origin: Origin = "leave_one_out", **more: Any) -> Calibration:
    values = np.asarray(scores, np.float32)
    pixels = np.zeros((len(values), 1024), np.float32)
    more = {"positions": tuple(range(len(values)))} | more
    return Calibration(values, pixels, 0.0, 1.0, 0.01, origin, "", **more)


def gabor(score: str = "max", fraction: float = 0.1) -> ead.PatchCore:
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "coreset_fraction": fraction}
    return ead.PatchCore("gabor", ("layer1",), score=score, device="cpu", **sizes)


# Scores


def test_one_image_decides() -> None:
    found, without = deciding_images(calibration([*EVEN[:20], 10.0, *EVEN[20:]]))
    assert found == [(20, 10.0)]
    assert without == pytest.approx(estimated_threshold(EVEN, 0.01)[0])
    assert without == pytest.approx(3.474, abs=1e-3)


def test_two_images_decide_where_neither_does_alone() -> None:
    scores = [10.0, *EVEN, 10.5]
    found, without = deciding_images(calibration(scores))
    assert found == [(42, 10.5), (0, 10.0)]
    assert without == pytest.approx(3.474, abs=1e-3)


def test_a_set_without_odd_images_has_none() -> None:
    whole = calibration([*EVEN, 3.5])
    assert deciding_images(whole) == ([], whole.threshold)
    # Three odd ones are not one or two.
    assert deciding_images(calibration([*EVEN, 10.0, 10.0, 10.0]))[0] == []
    many = calibration([*np.random.default_rng(0).gamma(4, size=399), 20.0])
    assert deciding_images(many)[0] == []
    still = calibration([2.0] * 20 + [2.0 + 1e-6], rounding=1e-5)
    assert deciding_images(still)[0] == []


def test_few_scores_and_those_of_unknown_images_tell_nothing() -> None:
    assert deciding_images(calibration([*EVEN[:19], 99.0]))[0] == [(19, 99.0)]
    assert deciding_images(calibration([*EVEN[:18], 99.0]))[0] == []
    assert deciding_images(calibration([*EVEN, 10.0], positions=()))[0] == []


def test_images_are_told_by_their_positions() -> None:
    placed = calibration([*EVEN, 10.0], positions=tuple(range(100, 142)))
    assert deciding_images(placed)[0] == [(141, 10.0)]


@pytest.mark.parametrize("positions", [(0, 1), (0, 1, 1), (0, 1, -1), (0, 1, 2.0)])
def test_a_calibration_refuses_positions_that_cannot_be(positions: Any) -> None:
    with pytest.raises(ValueError, match="positions must be 3 different indices"):
        calibration([1.0, 2.0, 3.0], positions=positions)


def test_an_image_behind_copies_and_unreadable_ones_is_told_by_its_place(tmp_path: Path) -> None:
    for i, image in enumerate([*SPOILED[:3], SPOILED[1], *SPOILED[3:]]):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "02b.png").write_bytes(b"no image")
    with (
        pytest.warns(ThresholdWarning, match="decides the threshold"),
        pytest.warns(UserWarning, match="cannot be read"),
    ):
        known = gabor().fit(tmp_path, errors="skip").calibration_
    assert known.positions == (0, 1, 2, *range(5, 22))  # the third is unreadable, the fourth a copy
    assert known.deciding_names == (str(tmp_path / "07.png"),)
    assert odd_images(known)[0][0] == 8


def test_trained_methods_tell_the_images_that_they_hold_out() -> None:
    images = np.concatenate([IMAGES[:5], IMAGES[:1], IMAGES[5:]])
    known = Epochs().fit(images).calibration_
    held = Epochs.trainings[-1][0]
    assert known.positions
    assert set(known.positions) <= set(range(len(images))) - set(held)


@pytest.mark.parametrize(
    ("which", "names"),
    [((3,), ("a",)), ((-1,), ("a",)), ((0, 1, 2), ("a", "b", "c")), ((0,), ()), ((0,), (1,))],
)
def test_a_calibration_refuses_what_cannot_be(which: Any, names: Any) -> None:
    with pytest.raises(ValueError, match="deciding"):
        calibration([1.0, 2.0, 3.0], deciding=which, deciding_names=names)


def test_a_sentence() -> None:
    plain = calibration([*EVEN, 10.0])
    assert plain.describe_deciding() == ""
    assert plain.threshold_without == plain.threshold
    named = replace(plain, deciding=(41,), deciding_names=("a.png",))
    assert named.describe_deciding() == (
        "1 of 42 images decides the threshold: it is 4.655 with a.png, and 3.474 without"
    )
    two = calibration([10.0, *EVEN, 10.5], deciding=(42, 0), deciding_names=("a.png", "b.png"))
    assert two.describe_deciding().startswith("2 of 43 images decide the threshold: it is ")
    assert two.describe_deciding().endswith(" with a.png and b.png, and 3.474 without")


# Detectors


def test_fit_warns_of_it_and_the_saved_model_knows_it(tmp_path: Path) -> None:
    with pytest.warns(ThresholdWarning, match="1 of 20 images decides the threshold.* with image 6, and"):
        detector = gabor().fit(SPOILED)
    known = detector.calibration_
    assert (known.deciding, known.deciding_names) == ((6,), ("image 6",))
    assert known.threshold_without < known.threshold / 3
    detector.save(tmp_path / "m")
    assert ead.load(tmp_path / "m").calibration_.describe_deciding() == known.describe_deciding() != ""
    # New statistics do not hang on it.
    detector.calibrate(normal_images(20, seed=3), 0.1)
    assert detector.calibration_.deciding_names == ()


def test_good_images_and_other_warnings_are_enough() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gabor().fit(IMAGES).calibration_.deciding_names == ()
    with pytest.warns(ThresholdWarning) as caught:
        few = gabor(fraction=0.005).fit(SPOILED)
    assert few.calibration_.deciding_names == ("image 6",)
    assert [str(warning.message)[:24] for warning in caught] == ["the memory bank has only"]


def test_extending_forgets_it() -> None:
    with pytest.warns(ThresholdWarning, match="image 6"):
        detector = gabor().fit(SPOILED)
    assert detector.extend(normal_images(3, seed=4)).calibration_.deciding_names == ()


def test_an_ensemble_names_what_decides_the_fused_threshold(tmp_path: Path) -> None:
    ensemble = ead.BackboneEnsemble([gabor(), gabor("topk")])
    with pytest.warns(ThresholdWarning, match="decides the threshold.* image 6") as caught:
        ensemble.fit(SPOILED)
    assert len(caught) == 1
    ensemble.save(tmp_path / "m")
    again = ead.load(tmp_path / "m").calibration_
    assert again.deciding_names == ("image 6",)
    assert again.threshold_without == pytest.approx(ensemble.calibration_.threshold_without)
    assert again.threshold_without < again.threshold


# Reports and commands


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of 20 training images, 06.png spoiled, and four to test on."""
    folder = tmp_path_factory.mktemp("data") / "part"
    tests = normal_images(4, seed=9)
    bad, masks = with_defects(tests[2:])
    for place, images in (("train/good", SPOILED), ("test/good", tests[:2]), ("test/blot", bad)):
        (folder / place).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / place / f"{number:02d}.png")
    (folder / "ground_truth/blot").mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"ground_truth/blot/{number:02d}_mask.png")
    return folder


def test_the_report_says_it(part: Path, tmp_path: Path) -> None:
    with pytest.warns(ThresholdWarning, match="06.png"):
        detector = gabor().fit(part / "train/good")
    with pytest.warns(UserWarning, match="decides the threshold"):
        report = ead.evaluate(detector, ead.MVTecAD(part), bootstrap=0)
    (line,) = (line for line in report.warnings if "decides the threshold" in line)
    assert line.startswith("part: 1 of 20 images")
    assert str(part / "train/good/06.png") in line
    report.to_json(tmp_path / "results.json")
    assert line in json.loads((tmp_path / "results.json").read_text())["warnings"]


def test_the_command_line_says_it(part: Path, tmp_path: Path) -> None:
    call = ["fit", str(part / "train/good"), "-b", "gabor", "--resize", "none", "--image-size", "none"]
    call += ["-p", "0.1", "--device", "cpu", "--overwrite", "--model", str(tmp_path / "m")]
    outcome = CliRunner().invoke(app, [*call, "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    summary = json.loads(outcome.stdout)
    (image,) = summary["deciding_images"]
    assert image == summary["odd_images"][0]
    assert Path(image["path"]).name == "06.png"
    assert summary["threshold_without_deciding"] < summary["threshold"] / 3
    outcome = CliRunner().invoke(app, call)
    lines = outcome.stdout.splitlines()
    assert any("06.png" in line and line.endswith("(decides the threshold)") for line in lines)
    assert f"without it the threshold is {summary['threshold_without_deciding']:.4g}" in lines
