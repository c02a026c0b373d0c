"""Executors for tests, images in files, and a method that is struck while it learns."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.methods import Colours, MeanColours
from support.textures import normal_images

import ensemblead as ead
from ensemblead.config.registry import register
from ensemblead.detectors import Accumulator, Fitted, Run, Seen

SIZES: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}


def draw_images(folder: Path, count: int = 12, side: int = 32, seed: int = 0) -> list[str]:
    """Normal images in files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, pixels in zip(paths, normal_images(count, seed, side), strict=True):
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


class Inline(Executor):
    """Works at once, in the caller's process, on what would have travelled: a function's name and JSON.

    `before(number)` is called before every task, with the number of those that were given before it.
    """

    def __init__(self, before: Callable[[int], None] = lambda number: None, workers: int = 1) -> None:
        self.before, self.given, self._max_workers = before, 0, workers

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert getattr(import_module(function.__module__), function.__name__) is function
        assert not kwargs
        travelled = json.loads(json.dumps(args))
        assert travelled == list(args)
        future: Future[Any] = Future()
        self.given += 1
        try:
            self.before(self.given - 1)
            future.set_result(function(*travelled))
        except BaseException as error:
            future.set_exception(error)
        return future


@register("test-trapped")
class Trapped(Colours):
    """`Colours`, in a process that is struck at the second batch while there is a file `trap`; the file goes.

    `log` gets a line per fit, "begun" and "ended". `blow`: "kill", or "error".
    """

    def __init__(
        self,
        *,
        trap: str,
        log: str,
        blow: str = "kill",
        patch: int = 8,
        resize: int | tuple[int, int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        own = {"patch": patch, "resize": resize, "image_size": image_size}
        super().__init__(**own, batch_size=batch_size, seed=seed, device=device)  # type: ignore[arg-type]
        self.trap, self.log, self.blow = trap, log, blow

    def start(self, state: MeanColours | None = None) -> Accumulator:
        return _Trap(self, super().start(state))

    def note(self, word: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{self.seed} {word}\n")


class _Trap:
    def __init__(self, method: Trapped, inner: Accumulator) -> None:
        self._method, self._inner, self._batches = method, inner, 0
        method.note("begun")

    def add(self, seen: Seen) -> None:
        self._batches += 1
        trap = Path(self._method.trap)
        if self._batches == 2 and trap.exists():
            trap.unlink()
            if self._method.blow == "error":
                raise RuntimeError("struck")
            os.kill(os.getpid(), signal.SIGKILL)
        self._inner.add(seen)

    def finish(self, run: Run) -> Fitted:
        self._method.note("ended")
        return self._inner.finish(run)


def trapped(folder: Path, blow: str = "kill") -> ead.BackboneEnsemble:
    """Two members with their traps `folder/trap0` and `trap1`, and one log."""
    members = [
        Trapped(trap=str(folder / f"trap{seed}"), log=str(folder / "log"), blow=blow, seed=seed)
        for seed in range(2)
    ]
    return ead.BackboneEnsemble(members)


def logged(folder: Path) -> list[str]:
    """What the members of `trapped` have noted."""
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def assert_same(one: ead.Detector, other: ead.Detector, images: Any) -> None:
    """Statistics and predictions are equal to the last bit."""
    for field in fields(one.calibration_):
        mine, theirs = (getattr(each.calibration_, field.name) for each in (one, other))
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
    mine, theirs = one.predict(images), other.predict(images)
    np.testing.assert_array_equal(mine.anomaly_score, theirs.anomaly_score)
    np.testing.assert_array_equal(mine.anomaly_map, theirs.anomaly_map)
    np.testing.assert_array_equal(one._fingerprints, other._fingerprints)
    assert one.geometry == other.geometry
    mine, theirs = ([(step.action, step.images_sha256) for step in each.history_] for each in (one, other))
    assert mine == theirs
    assert [skipped.index for skipped in one.skipped_] == [skipped.index for skipped in other.skipped_]
