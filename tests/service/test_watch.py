"""A folder under watch: every version of every image has one result, whatever happens to the files."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")
pytest.importorskip("watchfiles")

from PIL import Image
from support.serving import Gate, wait_for
from support.watching import paths, rows, watching

from ensemblead.images import read_image
from ensemblead.service import watching as room
from ensemblead.service.results import LINES, Results
from ensemblead.service.watching import Watch, WatchSettings

Files = list[tuple[str, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds the batches of a watch."""
    gate = Gate(room.score_each)
    monkeypatch.setattr(room, "score_each", lambda detector, images: gate(detector, list(map(Path, images))))
    yield gate
    gate.open.set()


def test_files_that_come_in_every_way(
    detector: Any, files: Files, pixels: np.ndarray, folder: Path, out: Path, tmp_path: Path
) -> None:
    for number, (_, data) in enumerate(files[:2]):
        (folder / f"there-{number}.png").write_bytes(data)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "moved").mkdir(parents=True)
    (elsewhere / "moved/inside.png").write_bytes(files[2][1])
    (elsewhere / "alone.png").write_bytes(files[3][1])
    with watching(detector, folder, out):
        wait_for(lambda: len(rows(out)) == 2)
        (folder / "written.png").write_bytes(files[2][1])
        os.replace(elsewhere / "alone.png", folder / "alone.png")
        os.replace(elsewhere / "moved", folder / "moved")
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/one.png").write_bytes(files[0][1])
        for name in (".hidden.png", "notes.txt"):
            (folder / name).write_bytes(files[0][1])
        os.mkfifo(folder / "pipe.png")
        wait_for(lambda: len(rows(out)) == 6)
    expected = [
        "alone.png",
        "deep/er/one.png",
        "moved/inside.png",
        "there-0.png",
        "there-1.png",
        "written.png",
    ]
    assert paths(out) == expected
    scores = {row["path"]: (row["anomaly_score"], row["is_anomalous"]) for row in rows(out)}
    exact = detector.predict(pixels).anomaly_score
    for path, place in (("there-0.png", 0), ("moved/inside.png", 2), ("alone.png", 3)):
        assert scores[path] == (pytest.approx(exact[place], rel=1e-4), place >= 2)


def test_a_new_folder_is_searched_alone(
    detector: Any, files: Files, folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every part has a folder, a look at all of them would take longer with every part."""
    monkeypatch.setattr(room, "_AGAIN", 1e9)
    scans, scan = list[int](), Watch._scan
    monkeypatch.setattr(Watch, "_scan", lambda self: scans.append(1) or scan(self))
    part = tmp_path / "part"
    for name in ("deep", ".hidden", "ground_truth"):
        (part / name).mkdir(parents=True)
        (part / name / "a.png").write_bytes(files[0][1])
    (folder / "ground_truth").mkdir()
    with watching(detector, folder, out) as watch:
        wait_for(lambda: watch._next_scan)
        wait_for(lambda: not watch._pending)
        first = len(scans)
        shutil.copytree(part, folder / "ground_truth/part")
        os.replace(part, folder / "part")
        wait_for(lambda: rows(out))
        wait_for(lambda: not watch._pending)
        assert len(scans) == first
    assert paths(out) == ["part/deep/a.png"]


def test_a_file_that_is_written_slowly_is_waited_for(
    detector: Any, files: Files, folder: Path, out: Path
) -> None:
    data = files[0][1]
    with watching(detector, folder, out) as watch:
        for end in (10, 2000, 4000, len(data)):
            with (folder / "slow.png").open("ab") as file:
                file.write(data[file.tell() : end])
            if end < len(data):
                wait_for(lambda: watch._pending and watch._pending["slow.png"].tries)
            assert rows(out) == []
        wait_for(lambda: rows(out))
    (row,) = rows(out)
    assert (row["status"], row["size"]) == ("scored", len(data))


def test_a_rewritten_or_renamed_file_is_a_new_image(
    detector: Any, files: Files, folder: Path, out: Path
) -> None:
    path = folder / "camera.png"
    with watching(detector, folder, out):
        for number in range(3):
            path.write_bytes(files[number][1])
            wait_for(lambda number=number: len(rows(out)) == number + 1)
        os.rename(path, folder / "kept.png")
        wait_for(lambda: len(rows(out)) == 4)
    assert [row["path"] for row in rows(out)] == ["camera.png"] * 3 + ["kept.png"]
    assert [row["is_anomalous"] for row in rows(out)] == [False, False, True, True]


def test_a_file_that_cannot_be_read_is_recorded_once(
    detector: Any, files: Files, folder: Path, out: Path
) -> None:
    (folder / "bad.png").write_bytes(b"none")
    (folder / "good.png").write_bytes(files[0][1])
    with watching(detector, folder, out, give_up=0.2) as watch:
        wait_for(lambda: len(rows(out)) == 2)
        wait_for(lambda: not watch._pending)
        (folder / "bad.png").write_bytes(files[1][1])
        wait_for(lambda: len(rows(out)) == 3)
    found = [(row["path"], row["status"], row["error"]) for row in rows(out)]
    error = f"cannot read image {folder / 'bad.png'}: it is no image of a known format"
    assert [row[1:] for row in found if row[0] == "bad.png"] == [("failed", error), ("scored", None)]
    assert [row for row in found if row[0] != "bad.png"] == [("good.png", "scored", None)]
    assert (watch.counts["images"], watch.counts["failed"]) == (2, 1)


def test_files_that_vanish_or_change_while_they_are_scored(
    detector: Any, files: Files, folder: Path, out: Path, gate: Gate
) -> None:
    for name in ("changes.png", "goes.png", "stays.png"):
        (folder / name).write_bytes(files[0][1])
    with watching(detector, folder, out):
        assert gate.entered.wait(30)
        (folder / "goes.png").unlink()
        (folder / "changes.png").write_bytes(files[2][1])
        gate.open.set()
        wait_for(lambda: len(rows(out)) == 2)
    found = {row["path"]: (row["size"], row["is_anomalous"]) for row in rows(out)}
    assert found == {"stays.png": (len(files[0][1]), False), "changes.png": (len(files[2][1]), True)}


def test_a_file_that_is_deleted_before_it_is_read(
    detector: Any, files: Files, folder: Path, out: Path
) -> None:
    with watching(detector, folder, out, settle=0.4) as watch:
        (folder / "goes.png").write_bytes(files[0][1])
        wait_for(lambda: "goes.png" in watch._pending)
        (folder / "goes.png").unlink()
        wait_for(lambda: not watch._pending)
    assert rows(out) == []


def test_a_restart_repeats_nothing(detector: Any, files: Files, folder: Path, out: Path) -> None:
    for name, data in files:
        (folder / name).write_bytes(data)
    for _ in range(2):
        with watching(detector, folder, out, once=True):
            pass
        assert paths(out) == [name for name, _ in files]
    (folder / "late.png").write_bytes(files[0][1])
    with watching(detector, folder, out, once=True) as watch:
        pass
    assert len(rows(out)) == 5
    assert watch.counts == {"images": 5, "anomalous": 2, "failed": 0, "waiting": 0}


def test_new_files_only(detector: Any, files: Files, folder: Path, out: Path) -> None:
    """What was there at the first start is passed over, what came while no watch ran is not."""
    (folder / "old.png").write_bytes(files[0][1])
    with watching(detector, folder, out, once=True, new_only=True):
        pass
    assert rows(out) == []
    (folder / "new.png").write_bytes(files[1][1])
    with watching(detector, folder, out, once=True, new_only=True):
        pass
    assert paths(out) == ["new.png"]
    (folder / "old.png").write_bytes(files[2][1])
    with watching(detector, folder, out, once=True):
        pass
    assert paths(out) == ["new.png", "old.png"]


def test_a_linked_folder_is_no_second_one(detector: Any, files: Files, folder: Path, out: Path) -> None:
    (folder / "real").mkdir()
    (folder / "a-link").symlink_to(folder / "real")
    (folder / "back").symlink_to(folder)
    with watching(detector, folder, out) as watch:
        for number in range(2):
            (folder / f"real/{number}.png").write_bytes(files[number][1])
            wait_for(lambda number=number: len(rows(out)) == number + 1)
        (folder / "a-link/2.png").write_bytes(files[2][1])
        wait_for(lambda: len(rows(out)) == 3)
        wait_for(lambda: not watch._pending)
    assert paths(out) == ["real/0.png", "real/1.png", "real/2.png"]


def test_polling(
    detector: Any, files: Files, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "require", lambda *_: pytest.fail("no events are needed"))
    with watching(detector, folder, out, poll=0.05):
        (folder / "sub").mkdir()
        (folder / "sub/a.png").write_bytes(files[0][1])
        wait_for(lambda: rows(out))
    assert paths(out) == ["sub/a.png"]


def test_a_stop_finishes_the_batch(detector: Any, files: Files, folder: Path, out: Path, gate: Gate) -> None:
    for number in range(6):
        (folder / f"{number}.png").write_bytes(files[0][1])
    with watching(detector, folder, out):
        assert gate.entered.wait(30)
        threading.Timer(0.1, gate.open.set).start()
    assert len(rows(out)) == detector.batch_size == 4
    with watching(detector, folder, out, once=True):
        pass
    assert Counter(paths(out)) == Counter(f"{number}.png" for number in range(6))


def test_errors_that_no_image_causes_end_the_watch(
    detector: Any, files: Files, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.png").write_bytes(files[0][1])
    with monkeypatch.context() as patch:
        patch.setattr(room, "score_each", lambda *_: [RuntimeError("no kernel image")])
        with pytest.raises(RuntimeError, match="no kernel image"), watching(detector, folder, out, once=True):
            pass
    assert rows(out) == []
    with watching(detector, folder, out, once=True):
        pass
    assert paths(out) == ["a.png"]
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError), watching(detector, folder, out, once=True):
        pass


def test_files_that_nothing_can_be_read_of(detector: Any, files: Files, folder: Path, out: Path) -> None:
    """A link that leads back to itself, and a time that no SQLite integer holds."""
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "a.png").write_bytes(files[0][1])
    os.utime(folder / "a.png", ns=(2**63 + 5, 2**63 + 5))
    for _ in range(2):
        with watching(detector, folder, out, once=True):
            pass
    (row,) = rows(out)
    assert (row["path"], row["mtime_ns"]) == ("a.png", 5 - 2**63)


def test_a_file_that_goes_before_its_heat_map_is_drawn(
    detector: Any, files: Files, folder: Path, out: Path
) -> None:
    for name in ("goes.png", "stays.png"):
        (folder / name).write_bytes(files[0][1])

    def draw(path: str, place: str, scored: Any) -> str:
        if place == "goes.png":
            os.unlink(path)
        read_image(path)
        return "drawn"

    with Results(out, str(folder)) as results:
        settings = WatchSettings(settle=0.03, once=True)
        Watch(detector, folder, results, settings, model="m", draw=draw).run(threading.Event())
    assert [(row["path"], row["heat_map"]) for row in rows(out)] == [("stays.png", "drawn")]


def test_another_folder_of_the_name_is_watched(
    detector: Any, files: Files, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_RESCAN", 1e9)
    with watching(detector, folder, out) as watch:
        wait_for(lambda: watch._next_scan > 1e8)
        first = watch._next_scan
        os.rename(folder, folder.with_name("aside"))
        folder.mkdir()
        wait_for(lambda: watch._next_scan not in (0.0, first))
        (folder / "a.png").write_bytes(files[0][1])
        wait_for(lambda: rows(out))
    assert paths(out) == ["a.png"]


def test_a_folder_that_goes_ends_the_watch(
    detector: Any, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not with the next look at all of it."""
    monkeypatch.setattr(room, "_RESCAN", 1e9)

    def watched() -> None:
        with watching(detector, folder, out) as watch:
            wait_for(lambda: watch._next_scan > 1e8)
            shutil.rmtree(folder)
            wait_for(lambda: threading.active_count() == threads)

    threads = threading.active_count()
    with pytest.raises(FileNotFoundError):
        watched()


def test_names_that_are_no_text_while_it_runs(detector: Any, files: Files, folder: Path, out: Path) -> None:
    with watching(detector, folder, out):
        wait_for((out / LINES).exists)
        for name in (b"/\xfc.png", b"/a.png", b"/\xfd.png"):
            with open(os.fsencode(folder) + name, "wb") as file:
                file.write(files[2][1])
        wait_for(lambda: len(rows(out)) == 3)
    assert paths(out) == ["\\xfc.png", "\\xfd.png", "a.png"]


def test_names_that_are_no_text(detector: Any, files: Files, folder: Path, out: Path) -> None:
    with open(os.fsencode(folder) + b"/\xfc.png", "wb") as file:
        file.write(files[2][1])
    for _ in range(2):
        with watching(detector, folder, out, once=True):
            pass
    assert paths(out) == ["\\xfc.png"]


def test_images_of_several_sizes(detector: Any, folder: Path, out: Path) -> None:
    """Images of several sizes have results, though no batch holds them together."""
    rng = np.random.default_rng(0)
    for side in (48, 64, 80):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(folder / f"{side}.png")
    with watching(detector, folder, out, once=True):
        pass
    assert [row["status"] for row in rows(out)] == ["scored"] * 3


@pytest.mark.parametrize("name", ["settle", "give_up", "poll"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
        WatchSettings(**{name: 0.0})
