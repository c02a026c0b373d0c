"""`watch` killed again and again while images appear; prints as JSON what was found in the end.

    python watched.py FOLDER TRIALS SEED

A process of its own, which forks every watch: a fork costs less than a new process that loads torch.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.service import results as room
from ensemblead.service.results import DATABASE, LINES, FileVersion, Results
from ensemblead.service.watching import Watch, WatchSettings

# Moments at which a watch kills itself; the others are killed from outside, after some time.
MOMENTS = ("before a commit", "after a commit", "within a line", "at the beginning")
PER_TRIAL = 4


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, rng: np.random.Generator) -> None:
    """Have this process kill itself at a moment."""
    append = Results._append

    def killed_append(self: Any, after: int) -> None:
        if moment == "within a line":
            torn = "".join(self._rows(after))
            with self._lines.open("a") as file:
                file.write(torn[: int(rng.integers(0, len(torn) + 1))])
        if self._last() > after:
            kill_oneself()
        append(self, after)

    if moment in ("after a commit", "within a line"):
        Results._append = killed_append  # type: ignore[method-assign]
    elif moment == "before a commit":
        room.asdict = lambda finding: kill_oneself()  # type: ignore[assignment]
    else:
        Results._mend_lines = lambda self: kill_oneself()  # type: ignore[method-assign]


def watch(detector: Any, folder: Path, out: Path) -> None:
    settings = WatchSettings(settle=0.01, give_up=0.1, once=True)
    with Results(out, str(folder)) as results:
        Watch(detector, folder, results, settings, model="m").run(threading.Event())


def in_child(job: Callable[[], object]) -> int:
    process = os.fork()
    if process:
        return process
    status = 3
    try:
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(base: Path, trials: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    folder, out = base / "images", base / "out"
    folder.mkdir()
    rng, counts = np.random.default_rng(seed), Counter[str]()
    options: dict[str, Any] = {"resize": None, "image_size": None, "coreset_fraction": 0.1}
    detector = ead.PatchCore("gabor", device="cpu", batch_size=2, **options).fit(normal_images(6))
    for trial in range(trials):
        spoiled = with_defects(normal_images(PER_TRIAL, seed=seed + trial), seed=trial)[0]
        for number, pixels in enumerate(spoiled):
            Image.fromarray(pixels).save(folder / f"{trial}-{number}.png")
        (folder / f"{trial}-bad.png").write_bytes(b"none")
        moment = (*MOMENTS, "from outside")[trial % (len(MOMENTS) + 1)]

        def job(moment: str = moment) -> None:
            if moment != "from outside":
                arm(moment, rng)
            watch(detector, folder, out)

        process = in_child(job)
        if moment == "from outside":
            time.sleep(float(rng.uniform(0.0, 0.3)))
            os.kill(process, signal.SIGKILL)
        status = end_of(process)
        assert status in (-signal.SIGKILL, 0), status
        counts[f"{moment}: {'killed' if status else 'ended before'}"] += 1
    assert end_of(in_child(lambda: watch(detector, folder, out))) == 0
    print(json.dumps({**check(detector, folder, out), **counts}))


def check(detector: Any, folder: Path, out: Path) -> dict[str, int]:
    """Whether every file has one result, the right one, in both files alike."""
    with sqlite3.connect(out / DATABASE) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM results ORDER BY id")]
    database.close()
    there = sorted(FileVersion.of(folder, name).key for name in os.listdir(folder))  # type: ignore[union-attr]
    assert sorted((row["path"], row["size"], row["mtime_ns"]) for row in rows) == there, "lost, or doubled"
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    assert lines == [
        {**row, "is_anomalous": None if row["error"] else bool(row["is_anomalous"])} for row in rows
    ], "the lines are not what the database says"
    scored = [row for row in rows if row["status"] == "scored"]
    exact = detector.predict([folder / row["path"] for row in scored]).anomaly_score
    np.testing.assert_allclose([row["anomaly_score"] for row in scored], exact, rtol=1e-4)
    return {"scored": len(scored), "failed": len(rows) - len(scored)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
