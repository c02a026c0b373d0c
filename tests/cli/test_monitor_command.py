"""`monitor`: a folder of state, new images in turns, a page, and an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from PIL import Image
from support.commands import call, call_json
from support.drift import detector, images

import ensemblead as ead


def write(folder: Path, pixels: np.ndarray, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels, start):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, good images, new ones that have not changed, and ones that have."""
    folder = tmp_path_factory.mktemp("line")
    detector().save(folder / "model")
    return {
        "model": folder / "model",
        "good": write(folder / "good", images(50, 1)),
        "new": write(folder / "new", images(20, 2)),
        "changed": write(folder / "changed", images(40, 3) // 2 + 60),
    }


def begun(line: dict[str, Path], state: Path, *options: Any) -> dict[str, Any]:
    return call_json("monitor", line["model"], "--state", state, "--calibrate", line["good"], *options)


def test_it_is_what_python_does(line: dict[str, Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    summary = begun(line, state, "--regions", 2, "--seed", 5)
    assert (summary["images"], summary["calibration_images"], summary["alarm"]) == (0, 50, False)
    calm = call_json("monitor", line["model"], line["new"], "--state", state)
    assert (calm["images"], calm["new_images"], calm["alarm"], calm["advice"]) == (20, 20, False, "none")
    page = tmp_path / "drift.html"
    found = call_json("monitor", line["model"], line["changed"], "--state", state, "--html", page)
    assert (found["images"], found["new_images"], found["alarm"]) == (60, 40, True)
    assert abs(found["since"] - 20) <= 2
    assert Path(found["since_path"]).parent in (line["changed"], line["new"])
    assert "The images have changed" in page.read_text()
    expected = ead.DriftMonitor(ead.load(line["model"]), regions=2, seed=5).calibrate(line["good"])
    expected.observe(line["new"])
    expected.observe(line["changed"])
    kept = ead.load(state)
    np.testing.assert_array_equal(kept.observed_.evidence, expected.observed_.evidence)
    assert kept.regions == 2


def test_an_alarm_has_an_exit_code_if_wanted(line: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("monitor", line["model"], "--state", tmp_path / "state")
    outcome = call(*arguments, line["new"], "--calibrate", line["good"], "--fail-on-alarm")
    assert outcome.exit_code == 0, outcome.stderr
    assert "no alarm: 20 images observed" in outcome.stdout
    outcome = call(*arguments, line["changed"], "--fail-on-alarm")
    assert outcome.exit_code == 3
    assert outcome.stdout.startswith("ALARM: 60 images observed")
    assert "changed since about image" in outcome.stdout
    assert "changed in rows 0 to 8, columns 0 to 8" in outcome.stdout
    assert call(*arguments, line["new"]).exit_code == 0
    reset = call_json(*arguments, "--reset")
    assert (reset["images"], reset["alarm"], reset["calibration_images"]) == (0, False, 50)


def test_a_folder_that_grows_is_given_again(line: dict[str, Path], tmp_path: Path) -> None:
    state, folder = tmp_path / "state", write(tmp_path / "growing", images(20, 2))
    begun(line, state)
    call_json("monitor", line["model"], folder, "--state", state)
    write(folder, images(5, 4), 20)
    found = call_json("monitor", line["model"], folder, "--state", state)
    assert (found["images"], found["new_images"], found["repeated"]) == (25, 5, 20)
    assert found["warnings"] == [
        "20 images were observed before, or learned by the detector: they are left out"
    ]


def test_refusals(line: dict[str, Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    monitor = ("monitor", line["model"])
    begin = (*monitor, "--calibrate", line["good"], "--state", tmp_path / "a")
    begun(line, state)
    few = write(tmp_path / "few", images(39, 8))
    learned = write(tmp_path / "learned", np.concatenate([images(12), images(40, 8)]))
    other = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu")
    other.fit(images(12, 9)).save(tmp_path / "other")
    for arguments, message in (
        ((*monitor, "--state", state), "give new images"),
        ((*monitor, line["new"], "--state", tmp_path / "none"), "no monitor at"),
        ((*monitor, "--calibrate", line["good"], "--state", state), "already"),
        ((*monitor, line["new"], "--state", state, "--seed", 1), "seed is settled by the calibration"),
        ((*monitor, "--calibrate", few, "--state", tmp_path / "a"), "at least 40"),
        ((*monitor, "--calibrate", learned, "--state", tmp_path / "a"), "fitted on"),
        ((*monitor, "--calibrate", line["good"], "--state", line["model"] / "a"), "inside the model"),
        ((*monitor, "--calibrate", line["good"], "--state", line["good"] / "a"), "lies inside"),
        (("monitor", tmp_path / "other", line["new"], "--state", state), "not the model"),
        ((*monitor, line["new"], "--state", line["new"]), "no saved model"),
        ((*monitor, "--state", state, "--html", state / "drift.html"), "lies inside the state"),
        ((*monitor, "--state", state, "--html", line["model"] / "drift.html"), "lies inside the model"),
        ((*monitor, line["new"], "--state", state, "--html", line["new"]), "html must be a file"),
        (
            (*begin, "--mean-run-length", 100, "--false-alarm-probability", 0.1),
            "give one of them",
        ),
    ):
        outcome = call(*arguments)
        assert outcome.exit_code == 2, (arguments, outcome.stderr)
        assert message in outcome.stderr, (arguments, outcome.stderr)
    assert not (tmp_path / "a").exists()
    assert ead.load(state).state_.images == 0


def test_two_processes_do_not_lose_images(
    line: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    begun(line, state)
    observe_batches = ead.DriftMonitor.observe_batches

    def beside(self: ead.DriftMonitor, *given: Any, **options: Any) -> Any:
        for found in observe_batches(self, *given, **options):
            other = ead.load(state, detector=ead.load(line["model"]))
            list(observe_batches(other, images(3, 7)))
            other.save(state)
            yield found

    monkeypatch.setattr(ead.DriftMonitor, "observe_batches", beside)
    outcome = call("monitor", line["model"], line["new"], "--state", state)
    assert outcome.exit_code == 1
    assert "another process has written" in outcome.stderr
    assert ead.load(state).state_.images == 3
