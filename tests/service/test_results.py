"""The results of a watch: the database, and the lines that follow it."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ensemblead.common.errors import EnsembleADError
from ensemblead.service.results import DATABASE, LINES, FileVersion, Finding, Results


def version(number: int) -> FileVersion:
    return FileVersion(f"{number}.png", 10, number)


def fill(out: Path, *numbers: int) -> None:
    with Results(out, "/images") as results:
        if results.is_new:
            results.begin()
        results.add([(version(number), finding(number)) for number in numbers])


def finding(number: int) -> Finding:
    if number % 4 == 3:
        return Finding("failed", "m", "now", error="it is empty")
    return Finding("scored", "m", "now", 0.5 + number, 1.5, number > 1)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LINES).read_text().splitlines()]


def test_rows_and_lines(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    fill(tmp_path, 3)
    first, second, third = lines(tmp_path)
    assert first == {
        "id": 1,
        "path": "1.png",
        "size": 10,
        "mtime_ns": 1,
        "status": "scored",
        "anomaly_score": 1.5,
        "threshold": 1.5,
        "is_anomalous": False,
        "error": None,
        "heat_map": None,
        "model": "m",
        "finished": "now",
    }
    assert second["is_anomalous"] is True
    assert (third["status"], third["error"], third["anomaly_score"]) == ("failed", "it is empty", None)
    with Results(tmp_path, "/images") as results:
        assert results.counts() == {"images": 2, "anomalous": 1, "failed": 1}
        assert results.knows(version(3))
        assert not results.knows(FileVersion("3.png", 10, 4))
        assert not results.knows(FileVersion("3.png", 11, 3))


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(sqlite3.IntegrityError):
        fill(tmp_path, 2, 1)
    assert [row["path"] for row in lines(tmp_path)] == ["1.png"]
    fill(tmp_path, 2)
    assert [row["id"] for row in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("cut", [1, 30, 400, 10_000])
def test_torn_lines_are_mended(tmp_path: Path, cut: int) -> None:
    """Whatever a kill, or a loss of power, leaves of them."""
    fill(tmp_path, *range(1, 5))
    path = tmp_path / LINES
    whole = path.read_bytes()
    os.truncate(path, max(0, len(whole) - cut))
    fill(tmp_path)
    assert path.read_bytes() == whole
    path.write_bytes(whole[: len(whole) // 2] + bytes(cut))
    fill(tmp_path)
    assert path.read_bytes() == whole
    path.unlink()
    fill(tmp_path)
    assert path.read_bytes() == whole


def test_lines_of_something_else_are_written_anew_and_said(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    whole = (tmp_path / LINES).read_bytes()
    (tmp_path / LINES).write_text('{"id": 1}\nwords\n')
    with pytest.warns(UserWarning, match=r"results\.jsonl was not what results\.sqlite says"):
        fill(tmp_path)
    assert (tmp_path / LINES).read_bytes() == whole


def test_whole_lines_that_are_cut_off_are_said(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    whole = (tmp_path / LINES).read_bytes()
    (tmp_path / LINES).write_bytes(whole + b"looked at by Sato\n{torn")
    with pytest.warns(UserWarning, match=r"results\.sqlite says, at its end, which is written anew"):
        fill(tmp_path, 3)
    assert [row["id"] for row in lines(tmp_path)] == [1, 2, 3]


def test_what_sqlite_says_names_the_file(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    for error in (sqlite3.OperationalError("disk is full"), sqlite3.DatabaseError("malformed")):
        said = rf"out: .*results\.sqlite: {error}"
        with pytest.raises(EnsembleADError, match=said), Results(tmp_path, "/images"):
            raise error
    with sqlite3.connect(tmp_path / DATABASE) as database:
        database.execute("DROP TABLE results")
    database.close()
    with pytest.raises(EnsembleADError, match=r"results\.sqlite: no such table: results"):
        Results(tmp_path, "/images")


def test_more_lines_than_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblead.service.results._TAIL_BYTES", 500)
    fill(tmp_path, *range(40))
    whole = (tmp_path / LINES).read_bytes()
    os.truncate(tmp_path / LINES, len(whole) - 100)
    fill(tmp_path)
    assert (tmp_path / LINES).read_bytes() == whole


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    with pytest.raises(EnsembleADError, match="it has results of the folder /images, not of /others"):
        Results(tmp_path / "a", "/others")
    with (
        Results(tmp_path / "a", "/images"),
        pytest.raises(EnsembleADError, match="another process writes its results"),
    ):
        Results(tmp_path / "a", "/images")
    (tmp_path / "a" / DATABASE).unlink()
    with pytest.raises(EnsembleADError, match=r"results\.jsonl is there without its results\.sqlite"):
        Results(tmp_path / "a", "/images")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / DATABASE).write_bytes(b"words" * 1000)
    with pytest.raises(EnsembleADError, match=r"results\.sqlite cannot be read"):
        Results(tmp_path / "b", "/images")
    fill(tmp_path / "c", 1)
    with sqlite3.connect(tmp_path / "c" / DATABASE) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(EnsembleADError, match="has version 2, this release reads 1"):
        Results(tmp_path / "c", "/images")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = FileVersion(os.fsdecode(b"\xfc.png"), 1, 1)
    with Results(tmp_path, "/images") as results:
        results.begin([odd])
        assert results.knows(odd)
        results.add([(FileVersion(os.fsdecode(b"\xfd.png"), 1, 1), finding(1))])
    assert lines(tmp_path)[0]["path"] == "\\xfd.png"


def test_a_reader_does_not_hold_up_the_writer(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    reader = sqlite3.connect(tmp_path / DATABASE)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM results").fetchone() == (1,)
    fill(tmp_path, 2)
    reader.execute("COMMIT")
    assert reader.execute("SELECT COUNT(*) FROM results").fetchone() == (2,)
    reader.close()
