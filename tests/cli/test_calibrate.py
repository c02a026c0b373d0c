"""`calibrate`: before and after, what is guaranteed, known defects, and thresholds of the user's."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("scipy")
from PIL import Image
from support.commands import call, call_json
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.evaluation import trade_off


def draw(folder: Path, images: Any) -> Path:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders fresh, blot and faint (defects that are hard to see), and a model of other images."""
    root = tmp_path_factory.mktemp("calibrate")
    draw(root / "fresh", normal_images(9, seed=1, side=48))
    spoiled, _ = with_defects(normal_images(4, seed=2, side=48))
    draw(root / "blot", spoiled)
    whole = normal_images(3, seed=3, side=48)
    faint = (0.9 * whole + 0.1 * with_defects(whole)[0]).astype(np.uint8)
    draw(root / "faint", faint)
    detector = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.2, device="cpu")
    detector.fit(draw(root / "good", normal_images(8, side=48))).save(root / "model")
    return root


def manifest(model: Path) -> bytes:
    return (model / "model.json").read_bytes()


def test_before_after_and_the_guarantee(made: Path, tmp_path: Path) -> None:
    new, rate = tmp_path / "new", ("--false-alarm-rate", 0.1)
    before = manifest(made / "model")
    outcome = call("calibrate", made / "model", made / "fresh", *rate, "--out", new)
    assert outcome.exit_code == 0, outcome.stderr
    old, threshold = ead.load(made / "model").threshold_, ead.load(new).threshold_
    assert f"threshold {threshold:.4g} by 9 images, before {old:.4g}" in outcome.stdout
    assert "with a probability of at most 0.1 (split conformal prediction, 9 images)" in outcome.stdout
    assert manifest(made / "model") == before
    summary = call_json("calibrate", made / "model", made / "fresh", "--out", tmp_path / "other")
    assert "at most 0.1 " in summary["guarantee"]  # 9 images guarantee no less
    assert summary["threshold_before_is"] == "estimated, leaving one image out"


def test_an_ensemble_s_guarantee_is_an_approximate_one(made: Path, tmp_path: Path) -> None:
    first = ead.load(made / "model")
    second = ead.create(first.describe()).fit(made / "good")
    ead.BackboneEnsemble([first, second]).save(tmp_path / "m")
    summary = call_json("calibrate", tmp_path / "m", made / "fresh", "--false-alarm-rate", 0.2)
    assert "up to terms of order 1/n" in summary["guarantee"]


def test_a_proposal_is_taken_only_if_asked(made: Path, tmp_path: Path) -> None:
    defects = ("--defects", made / "blot", "--defects", made / "faint")
    given = (made / "model", made / "fresh", *defects, "--false-alarm-rate", 0.1)
    files = ("--html", tmp_path / "t.html", "--csv", tmp_path / "t.csv")
    summary = call_json("calibrate", *given, *files, "--out", tmp_path / "one")
    calibrated = ead.load(made / "model").calibrate(made / "fresh", 0.1)
    paths = [*sorted((made / "blot").iterdir()), *sorted((made / "faint").iterdir())]
    expected = trade_off(calibrated, paths)
    points = summary["trade_off"]["points"]
    assert points["proposed"]["threshold"] == expected.proposal.threshold
    assert points["model"]["misses"] == expected.at(calibrated.threshold_).misses
    assert (summary["trade_off"]["defective"], summary["trade_off"]["proposal_taken"]) == (7, False)
    assert ead.load(tmp_path / "one").threshold_ == calibrated.threshold_
    assert "is proposed" in (tmp_path / "t.html").read_text()
    with (tmp_path / "t.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(expected.thresholds)
    outcome = call("calibrate", *given, "--take-proposal", "--out", tmp_path / "two")
    assert outcome.exit_code == 0, outcome.stderr
    assert "it was taken" in outcome.stdout
    assert "no guarantee: by 9 good images about" in outcome.stdout
    taken = ead.load(tmp_path / "two")
    assert taken.threshold_ == expected.proposal.threshold
    assert taken.calibration_.threshold_origin == "user"


def test_without_good_images_statistics_stay(made: Path, tmp_path: Path) -> None:
    before = manifest(made / "model")
    outcome = call("calibrate", made / "model", "--defects", made / "blot", "--miss-cost", 3)
    assert outcome.exit_code == 0, outcome.stderr
    assert "a miss counting 3 times" in outcome.stdout
    assert "not taken" in outcome.stdout
    assert "the model was left as it is" in outcome.stdout
    assert manifest(made / "model") == before
    call_json("calibrate", made / "model", "--threshold", 0.75, "--out", tmp_path / "m")
    found, old = ead.load(tmp_path / "m"), ead.load(made / "model")
    assert found.threshold_ == 0.75
    np.testing.assert_array_equal(found.calibration_.scores, old.calibration_.scores)
    assert [step.action for step in found.history_] == ["fit", "threshold"]


def test_a_list_of_good_images(made: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh.txt").write_text(f"{made / 'fresh'}/[0-4].png\n")
    given = (made / "model", tmp_path / "fresh.txt", "--false-alarm-rate", 0.2)
    assert call_json("calibrate", *given, "--out", tmp_path / "m")["images"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give fresh images of good parts"),
        (("fresh", "--threshold", "nan"), "threshold must be finite"),
        (("fresh", "--threshold", "high"), "--threshold"),
        (("--false-alarm-rate", "0.1", "--threshold", "1"), "goes with images"),
        (("fresh", "--take-proposal"), "take-proposal goes with --defects"),
        (("fresh", "--miss-cost", "2"), "miss-cost goes with --defects"),
        (("fresh", "--defects", "blot", "--miss-cost", "-2"), "miss_cost must be positive"),
        (("fresh", "--defects", "blot", "--take-proposal", "--threshold", "2"), "two thresholds"),
        (("good",), "the detector was fitted on 8 of them"),
        (("fresh", "--defects", "fresh"), "9 of them are among the images of good parts"),
        (("fresh", "--defects", "good"), "holds good parts"),
        (("fresh", "--defects", "nowhere"), "nowhere"),
        (("fresh", "--defects", "."), "holds good"),
        (("--defects", "blot", "--out", "new"), "nothing is changed"),
        (("--defects", "blot", "--html", "blot/t.html"), "lies inside"),
        (("--defects", "blot", "--html", "model/t.html"), "outside of the model"),
        (("marked.json",), "no fair sample"),
    ],
)
def test_refusals(
    made: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(made)
    marks = '{"version": 1, "marks": [{"path": "fresh/0.png", "mark": "false alarm"}]}'
    (made / "marked.json").write_text(marks)
    before = manifest(made / "model")
    outcome = call("calibrate", "model", *arguments)
    assert outcome.exit_code == 2, outcome.stdout
    assert message in " ".join(outcome.stderr.split())
    assert manifest(made / "model") == before
    assert not (made / "new").exists()


def test_a_model_that_was_replaced_meanwhile_is_left_alone(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = ead.load(made / "model")
    detector.save(tmp_path / "m")
    calibrate = ead.PatchCore.calibrate

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        detector.threshold_ = 9.0
        detector.save(tmp_path / "m")
        return calibrate(self, *arguments, **options)

    monkeypatch.setattr(ead.PatchCore, "calibrate", slow)
    outcome = call("calibrate", tmp_path / "m", made / "fresh", "--false-alarm-rate", 0.1)
    assert (outcome.exit_code, "another process has replaced" in outcome.stderr) == (1, True)
    assert ead.load(tmp_path / "m").threshold_ == 9.0


def test_unreadable_images_are_counted_where_they_belong(made: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(made / "blot", bad)
    (bad / "broken.png").write_bytes(b"no image")
    given = ("calibrate", made / "model", made / "fresh", "--false-alarm-rate", 0.2, "--defects", bad)
    outcome = call(*given, "--out", tmp_path / "m")
    assert (outcome.exit_code, "broken.png" in outcome.stderr) == (2, True)
    summary = call_json(*given, "--out", tmp_path / "m", "--skip-unreadable")
    assert (summary["images"], summary["skipped"], summary["trade_off"]["defective"]) == (9, [], 4)
    assert [Path(one["path"]).name for one in summary["trade_off"]["skipped"]] == ["broken.png"]
