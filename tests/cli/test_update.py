"""`calibrate` and `extend`: a saved model and more good images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from PIL import Image
from support.commands import call, call_json

import ensemblead as ead


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
    for arguments, message in (
        ((model, good), "learned already" if command == "extend" else "fitted on"),
        ((tmp_path / "none", other), "none"),
        ((model, tmp_path / "nowhere"), "nowhere"),
        ((model, tmp_path / "product"), "train"),
        ((model, other, "--out", model), "a model in"),
        ((model, other, "--out", other / "model"), "lies inside"),
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
    refused = call("extend", model, new)
    assert refused.exit_code == 2
    assert "broken.png" in refused.stderr
    assert files(model) == before
    summary = call_json("extend", model, new, "--skip-unreadable")
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
    call_json("extend", tmp_path / "model", draw(tmp_path / "new", 9))
    assert ead.load(tmp_path / "model").predict(tmp_path / "new").anomaly_score.shape == (1,)


def test_a_bank_stays_at_a_size(tmp_path: Path, model: Path) -> None:
    rows = ead.load(model).memory_bank_.rows_
    new = draw(tmp_path / "new", 50, 51)
    (member,) = call_json("extend", model, new, "--max-rows", len(rows) - 3)["members"]
    assert member["bank_rows"] == len(ead.load(model).memory_bank_) == len(rows) - 3
    outcome = call("extend", model, new, "--max-rows", 0)
    assert (outcome.exit_code, "max_rows must be at least 1" in outcome.stderr) == (2, True)
