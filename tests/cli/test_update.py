"""`calibrate`, `extend`, and `fit --exclude`: which images a model learns, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from PIL import Image
from support.commands import call, call_json

import ensemblead as ead
from ensemblead.common.warnings import ThresholdWarning


def draw(folder: Path, *seeds: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(80, 120, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    detector = ead.PatchCore("gabor", resize=None, device="cpu", coreset_fraction=0.5, batch_size=2)
    detector.fit(draw(tmp_path / "good", *range(6))).save(tmp_path / "model")
    return tmp_path / "model"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_calibrate_is_what_python_does(tmp_path: Path, model: Path) -> None:
    fresh = draw(tmp_path / "fresh", *range(100, 112))
    expected = ead.load(model).calibrate(fresh, 0.1)
    summary = call_json("calibrate", model, fresh, "--false-alarm-rate", 0.1)
    found = ead.load(model)
    assert found.threshold_ == expected.threshold_ == summary["threshold"] != summary["threshold_before"]
    assert found.calibration_.origin == "calibrated"
    assert summary["images"] == summary["threshold_images"] == 12
    assert summary["false_alarm_rate_is"] == "guaranteed"
    text = call("calibrate", model, fresh, "--false-alarm-rate", "0.1").stdout
    assert "12 images in" in text
    assert str(model) in text


def test_extend_is_what_python_does(tmp_path: Path, model: Path) -> None:
    new = draw(tmp_path / "new", 50, 51)
    before = files(model)
    expected = ead.load(model).extend(new)
    summary = call_json("extend", model, new, "--out", tmp_path / "larger")
    assert files(model) == before
    found: Any = ead.load(tmp_path / "larger")
    assert found.threshold_ == expected.threshold_ == summary["threshold"]
    np.testing.assert_array_equal(found.memory_bank_.rows_, expected.memory_bank_.rows_)
    assert summary["threshold_images"] == 8
    assert summary["model"] == str(tmp_path / "larger")


def test_a_threshold_of_the_users_is_said_and_replaced(tmp_path: Path, model: Path) -> None:
    detector = ead.load(model)
    detector.threshold_ = 7.25
    detector.save(model)
    out = ("--out", tmp_path / "larger")
    text = call("extend", model, draw(tmp_path / "new", 50, 51), *out).stdout
    assert "threshold 7.25 set by the user, before 7.25; false alarms " in text
    assert "(estimated, at a threshold set by the user)" in text
    assert ead.load(tmp_path / "larger").threshold_ == 7.25
    summary = call_json("calibrate", model, draw(tmp_path / "fresh", *range(100, 112)))
    assert (summary["threshold_origin"], summary["threshold_before"]) == ("calibrated", 7.25)


@pytest.mark.parametrize("command", ["calibrate", "extend"])
def test_refusals_leave_the_model(tmp_path: Path, model: Path, command: str) -> None:
    before = files(model)
    good, other = tmp_path / "good", draw(tmp_path / "other", 70)
    draw(tmp_path / "product/train/good", 71)
    draw(tmp_path / "product/test/scratch", 72)
    place = ("--in-place",) if command == "extend" else ()
    for arguments, message in (
        ((model, good, *place), "learned already" if command == "extend" else "fitted on"),
        ((tmp_path / "none", other, *place), "none"),
        ((model, tmp_path / "nowhere", *place), "nowhere"),
        ((model, tmp_path / "product", *place), "train"),
        ((model, other, "--out", model), "a model in"),
        ((model, other, "--out", other / "model"), "lies inside"),
        ((model, other, "--out", model / "later"), "lies inside the model"),
    ):
        outcome = call(command, *arguments)
        assert outcome.exit_code == 2, (arguments, outcome.stderr)
        assert message in outcome.stderr.replace("\n", " "), outcome.stderr
    assert call("calibrate", model, other, "--false-alarm-rate", "2").exit_code == 2
    assert files(model) == before


def test_unreadable_images_are_left_out_if_asked(tmp_path: Path, model: Path) -> None:
    new = draw(tmp_path / "new", 50, 51)
    (new / "broken.png").write_bytes(b"no image")
    before = files(model)
    refused = call("extend", model, new, "--in-place")
    assert refused.exit_code == 2
    assert "broken.png" in refused.stderr
    assert files(model) == before
    summary = call_json("extend", model, new, "--skip-unreadable", "--in-place")
    assert summary["images"] == 2
    assert [Path(one["path"]).name for one in summary["skipped"]] == ["broken.png"]


def test_weights_inside_a_model_stay_inside(tmp_path: Path) -> None:
    """A model that was stored with its weights is whole after an update where nothing else has them."""
    import torch
    from safetensors.torch import save_file

    from ensemblead.networks import FeatureExtractor

    torch.manual_seed(0)
    state = FeatureExtractor("resnet18", ["layer1"], weights=None).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    detector = ead.PatchCore(
        "resnet18", ["layer1"], weights=str(tmp_path / "weights.safetensors"), resize=None, device="cpu"
    )
    detector.fit(draw(tmp_path / "good", *range(4))).save(tmp_path / "model", include_backbone=True)
    (tmp_path / "weights.safetensors").unlink()
    call_json("extend", tmp_path / "model", draw(tmp_path / "new", 9), "--in-place")
    assert ead.load(tmp_path / "model").predict(tmp_path / "new").anomaly_score.shape == (1,)


def test_a_bank_stays_at_a_size(tmp_path: Path, model: Path) -> None:
    rows = ead.load(model).memory_bank_.rows_
    new = draw(tmp_path / "new", 50, 51)
    (member,) = call_json("extend", model, new, "--max-rows", len(rows) - 3, "--in-place")["members"]
    assert member["bank_rows"] == len(ead.load(model).memory_bank_) == len(rows) - 3
    outcome = call("extend", model, new, "--max-rows", 0, "--in-place")
    assert (outcome.exit_code, "max_rows must be at least 1" in outcome.stderr) == (2, True)


def test_extend_never_replaces_a_model_unasked(tmp_path: Path, model: Path) -> None:
    before = files(model)
    new = draw(tmp_path / "new", 50)
    for place in ((), ("--in-place", "--out", tmp_path / "larger")):
        outcome = call("extend", model, new, *place)
        assert (outcome.exit_code, "--in-place replaces MODEL" in outcome.stderr) == (2, True)
    assert files(model) == before


def test_marks_are_learned_but_for_missed_defects(tmp_path: Path, model: Path) -> None:
    new = draw(tmp_path / "new", 50, 51, 52)
    pairs = [
        ("new/50.png", "false alarm"),
        (str(new / "51.png"), "false alarm"),
        ("gone.png", "missed defect"),
    ]
    marks = [{"path": path, "mark": mark} for path, mark in pairs]
    marked = tmp_path / "marked.json"
    marked.write_text(json.dumps({"version": 1, "marks": marks}))
    expected = ead.load(model).extend([new / "50.png", new / "51.png"])
    outcome = call("extend", model, marked, "--out", tmp_path / "larger")
    assert outcome.exit_code == 0, outcome.stderr
    assert "1 missed defects were left out" in outcome.stdout
    found: Any = ead.load(tmp_path / "larger")
    assert found.threshold_ == expected.threshold_
    assert [(step.action, step.images) for step in found.history_] == [("fit", 6), ("extend", 2)]
    document = call_json("extend", model, marked, "--out", tmp_path / "again")
    assert document["missed_defects"] == ["gone.png"]
    for text, message in (
        (json.dumps({"version": 1, "marks": marks[2:]}), "1 missed defects, no false alarm"),
        (json.dumps({"version": 1, "marks": [{**marks[0], "path": "none.png"}]}), "none.png"),
        ("{", "is no JSON"),
    ):
        marked.write_text(text)
        outcome = call("extend", model, marked, "--out", tmp_path / "third")
        assert (outcome.exit_code, message in outcome.stderr) == (2, True), outcome.stderr
    assert not (tmp_path / "third").exists()


def test_missed_defects_are_learned_as_known_ones(tmp_path: Path, model: Path) -> None:
    bad = draw(tmp_path / "bad", 60, 61)
    for path in bad.iterdir():
        pixels = np.asarray(Image.open(path)).copy()
        pixels[16:32, 16:32] = 250
        Image.fromarray(pixels).save(path)
    draw(tmp_path / "new", 50)
    marks = [{"path": "new/50.png", "mark": "false alarm"}, {"path": "bad/60.png", "mark": "missed defect"}]
    marked = tmp_path / "marked.json"
    expected: Any = ead.load(model).extend(tmp_path / "new")
    with pytest.warns(ThresholdWarning):
        expected.learn_defects([bad / "60.png"])
    for which, steps in ((marks, ["fit", "extend", "learn_defects"]), (marks[1:], ["fit", "learn_defects"])):
        marked.write_text(json.dumps({"version": 1, "marks": which}))
        out = tmp_path / f"model{len(which)}"
        outcome = call("extend", model, marked, "--defects", "--out", out)
        assert outcome.exit_code == 0, outcome.stderr
        assert "1 missed defects were learned as known defects" in outcome.stdout
        assert "call calibrate" in outcome.stderr
        found: Any = ead.load(out)
        assert [step.action for step in found.history_] == steps
        before, after = (one.predict(bad / "61.png").anomaly_score for one in (ead.load(model), found))
        assert after > 1.2 * before
    found = ead.load(tmp_path / "model2")
    np.testing.assert_array_equal(found.memory_bank_.defects_.rows, expected.memory_bank_.defects_.rows)
    summary = call_json("extend", model, marked, "--defects", "--out", tmp_path / "json")
    assert (summary["images"], summary["missed_defects"]) == (0, ["bad/60.png"])
    assert summary["missed_defects_learned"] is True


def test_missed_defects_that_cannot_be_learned(tmp_path: Path, model: Path) -> None:
    new = draw(tmp_path / "new", 50)
    marked = tmp_path / "marked.json"
    for place, message in (
        ("none.png", "names 1 images that are not there"),
        ("good/1.png", "as normal images"),
    ):
        mark = {"path": place, "mark": "missed defect"}
        marked.write_text(json.dumps({"version": 1, "marks": [mark]}))
        outcome = call("extend", model, new, marked, "--defects", "--out", tmp_path / "out")
        assert (outcome.exit_code, message in outcome.stderr) == (2, True), outcome.stderr
    outcome = call("extend", model, new, "--defects", "--out", tmp_path / "out")
    assert (outcome.exit_code, "no missed defects are marked" in outcome.stderr) == (2, True)
    ead.PaDiM("gabor", resize=None, num_dimensions=5, device="cpu").fit(tmp_path / "good").save(
        tmp_path / "p"
    )
    marked.write_text(json.dumps({"version": 1, "marks": [{"path": "new/50.png", "mark": "missed defect"}]}))
    outcome = call("extend", tmp_path / "p", marked, "--defects", "--out", tmp_path / "out")
    assert (outcome.exit_code, "a PaDiM learns no known defects" in outcome.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_fit_takes_known_defects(tmp_path: Path) -> None:
    good, bad = draw(tmp_path / "good", *range(6)), draw(tmp_path / "bad", 60)
    where = ("--set", "resize=null", "--set", f"defects={bad}", "--device", "cpu")
    call_json("fit", good, "--model", tmp_path / "model", "-b", "gabor", *where)
    found: Any = ead.load(tmp_path / "model")
    assert found.defects == str(bad)
    assert found.learned_["defect_rows"] == len(found.memory_bank_.defects_) >= 1


def test_info_says_where_a_model_comes_from(tmp_path: Path, model: Path) -> None:
    call_json("extend", model, draw(tmp_path / "new", 50), "--out", tmp_path / "larger")
    old, found = call_json("info", model), call_json("info", tmp_path / "larger")
    assert (found["class"], found["learned_images"]) == ("PatchCore", 7)
    assert (found["parent"], old["parent"]) == (old["checksum"], None)
    assert [step["action"] for step in found["history"]] == ["fit", "extend"]
    assert found["threshold"] == ead.load(tmp_path / "larger").threshold_
    assert found["parameters"]["coreset_fraction"] == 0.5
    text = call("info", tmp_path / "larger").stdout
    assert f"made from     {old['checksum']}" in text
    assert "extend, 1 images" in text
    assert "with ensemblead" in text
    ensemble = ead.BackboneEnsemble([ead.load(model), ead.load(tmp_path / "larger")])
    ensemble.save(tmp_path / "ensemble")
    found = call_json("info", tmp_path / "ensemble")
    assert (found["history"], found["parameters"]["fusion"]) == (None, "calibrated")
    assert f"{tmp_path / 'ensemble'}/member0" in call("info", tmp_path / "ensemble").stdout
    assert found["threshold"] == ensemble.threshold_
    old_format = Path(__file__).resolve().parents[1] / "saved_models/format1/patchcore"
    text = call("info", old_format).stdout
    assert text.count("unknown") >= 3
    # What it learned before is not known, so that the images of now are not all.
    call_json("extend", old_format, tmp_path / "good", "--out", tmp_path / "later")
    assert call_json("info", tmp_path / "later")["learned_images"] is None
    text = call("info", tmp_path / "later").stdout
    assert "history       earlier steps unknown" in text
    assert "extend, 6 images" in text
    outcome = call("info", tmp_path / "new")
    assert (outcome.exit_code, "is no saved model" in outcome.stderr) == (1, True)
    assert call("info", tmp_path / "nowhere").exit_code == 2


def test_fit_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    good = draw(tmp_path / "good", *range(6))
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"0.png\n{good / '1.png'}\n[2]*.png\n")
    options = ("-b", "gabor", "--resize", "none", "-p", "0.5", "--device", "cpu")
    given = ("fit", good, *options, "--exclude", listed)
    outcome = call(*given, "--model", tmp_path / "one")
    assert outcome.exit_code == 0, outcome.stderr
    assert "3 images excluded (0.png, 1.png, 2.png)" in outcome.stdout
    document = call_json(*given, "--model", tmp_path / "two")
    assert (document["learned"], [Path(path).name for path in document["excluded"]]) == (
        3,
        ["0.png", "1.png", "2.png"],
    )
    assert len(ead.load(tmp_path / "one")._fingerprints) == 3
    marks = [{"path": "5.png", "mark": "missed defect"}, {"path": "4.png", "mark": "false alarm"}]
    (tmp_path / "marked.json").write_text(json.dumps({"version": 1, "marks": marks}))
    marked = ("fit", good, *options, "--exclude", tmp_path / "marked.json", "--model", tmp_path / "three")
    assert [Path(path).name for path in call_json(*marked)["excluded"]] == ["5.png"]
    listed.write_text("0.png\n9.png\n")
    outcome = call(*given, "--model", tmp_path / "four")
    assert (outcome.exit_code, "9.png is none of the 6 images" in outcome.stderr) == (2, True)
    assert not (tmp_path / "four").exists()
