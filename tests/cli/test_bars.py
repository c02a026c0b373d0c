"""Progress on a terminal: what is shown while it goes on, and what is left."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("typer")

from rich.progress import Progress
from rich.text import Text

from ensemblead.cli import bars as bars_of_the_command
from ensemblead.cli.bars import Bars

LINES, COLUMNS = 14, 100


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", str(LINES))


def shown(bars: Bars) -> list[str]:
    progress: Progress = bars._progress
    return [task.description for task in progress.tasks if task.visible]


@pytest.mark.usefixtures("terminal")
def test_one_bar_per_stage_under_way() -> None:
    with Bars("starting") as bars:
        assert shown(bars) == ["starting"]
        bars("embed", 0, 4)
        assert shown(bars) == ["reading images"]
        bars("embed", 4, 4)
        # A finished bar has gone, and the line that moves says what was done last.
        assert shown(bars) == ["reading images"]
        bars("select", 1, 2)
        bars("calibrate", 1, 2)
        assert shown(bars) == ["selecting the coreset", "leave-one-out scores"]
        bars("select", 2, 2)
        assert shown(bars) == ["leave-one-out scores"]
        # A stage that starts over is the next member's.
        bars("calibrate", 0, 2)
        assert shown(bars) == ["leave-one-out scores"]
        bars.step("saving")
        assert shown(bars) == ["saving"]


@pytest.mark.usefixtures("terminal")
def test_a_note_stands_beside_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.note("cosine 0.31, 6 s a step", False)
        bars("train", 1, 4)
        assert shown(bars) == ["training: cosine 0.31, 6 s a step"]
        bars("calibrate", 1, 4)
        assert shown(bars) == ["training: cosine 0.31, 6 s a step", "leave-one-out scores"]
        bars("train", 2, 4)
        assert shown(bars) == ["training", "leave-one-out scores"]
        bars.note("training takes about 20 min [more]", True)
    assert "ensemblead: training takes about 20 min [more]" in capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_long_note_leaves_room_for_the_numbers(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with Bars() as bars:
        bars.note("student 0.123, autoencoder 0.456, student of the autoencoder 0.0123, 1.2 s a step", False)
        bars("train", 3, 20)
        bars._progress.refresh()
        found = Text.from_ansi(capsys.readouterr().err).plain
    assert re.search(r"tra.*… [━╸╺]+ 3/20 +0:00:00 -:--:--", found)


def test_without_a_terminal_notes_stand_in_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars_of_the_command, "_SECONDS_BETWEEN_LINES", 0.0)
    now = 0.0
    with Bars() as bars:
        monkeypatch.setattr(bars._progress, "get_time", lambda: now)
        bars.note("training takes about 20 min more", True)
        bars.note("cosine 0.31", False)
        for done in range(1, 4):
            bars("train", done, 20)
            now += 40.0
        bars("train", 19, 20)
    assert capsys.readouterr().err.splitlines() == [
        "ensemblead: training takes about 20 min more",
        "ensemblead: training: 1 of 20, cosine 0.31",
        # A step takes 40 s.
        "ensemblead: training: 2 of 20, 12 min left",
        "ensemblead: training: 3 of 20, 11 min left",
        "ensemblead: training: 19 of 20",
    ]


@pytest.mark.usefixtures("terminal")
def test_many_stages_never_fill_the_terminal() -> None:
    with Bars() as bars:
        for cell in range(40):
            bars.prefix(f"cell {cell}:")
            bars.overall("all cells", cell, 40)
            for stage in ("embed", "select", "calibrate", "evaluate"):
                bars(stage, 1, 3)
                assert len(shown(bars)) <= 6
                bars(stage, 3, 3)
            assert shown(bars) == [f"cell {cell}: evaluating", "all cells"]


@pytest.mark.usefixtures("terminal")
def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.prefix("[/one] on parts:")
        bars("embed", 1, 2)
    assert "[/one] on parts: reading images" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars("embed", 1, 2)
        bars.step("saving")
    assert capsys.readouterr() == ("", "")


def on_a_terminal(arguments: list[str], folder: Path) -> tuple[str, list[float]]:
    """What a command writes to a terminal of 14 lines, and the seconds at which it wrote."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "LINES": str(LINES), "COLUMNS": str(COLUMNS), "TERM": "xterm"}
    code = "from ensemblead.cli import main; main()"
    start, times, text = time.monotonic(), [], b""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    ) as process:
        os.close(terminal)
        while True:
            try:
                ready, _, _ = select.select([controller], [], [], 60)
                part = os.read(controller, 1 << 16) if ready else b""
            except OSError:  # the other side has closed it
                break
            if not part:
                break
            times.append(time.monotonic() - start)
            text += part
    os.close(controller)
    assert process.returncode == 0, text.decode()
    return text.decode(), times


@pytest.mark.slow
def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("scipy")
    numbers = ["--train", "3", "--fresh", "2", "--good", "2", "--per-defect", "1", "--size", "64"]
    text, times = on_a_terminal(["demo", "--out", "d", *numbers], tmp_path)
    for words in ("starting", "drawing", "selecting the coreset", "calibrating", "writing results"):
        assert words in text
    assert text.index("starting") < text.index("drawing")
    assert len(times) > 10
    # Whatever is drawn is at most a few lines high, and taken away again.
    ups = [int(part.split("A")[0] or 1) for part in text.split("\x1b[")[1:] if part.split("A")[0].isdecimal()]
    assert max(ups, default=0) < LINES - 2
