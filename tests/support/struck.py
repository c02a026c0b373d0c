"""A process that is struck while it fits, saves, extends, runs a suite or changes an image index, again and
again: killed, at any time or at any line of an image index's code, or with a full disk. What is there is
looked at after every blow.

    python struck.py KIND BLOW FOLDER TRIALS SEED

prints what came of it, as JSON. Every trial is a process of its own, forked from this one.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.brightness import draw_two_categories
from support.mean_colours import MeanColours, draw_image, register_mean_colours
from support.suites import two_by_two
from support.textures import normal_images

import ensemblead as ead
import ensemblead.cli.app
import ensemblead.suites.running
from ensemblead import store
from ensemblead.config.registry import register
from ensemblead.evaluation import run
from ensemblead.retrieval import adding, folder, structures, view

SIDE = 48
ENDS = {0: "finished", 3: "error", -signal.SIGKILL: "killed"}


def _detector(seed: int) -> ead.Detector:
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu", "batch_size": 4}
    core = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.3, seed=seed, **sizes)
    return ead.BackboneEnsemble([core, ead.PaDiM("gabor", ("layer1",), num_dimensions=4, **sizes)])


class Models:
    """A model at `model`, which fits, saves and extensions replace."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._model, self._kind, self._folder = folder / "model", kind, folder
        self._images, self._more = normal_images(10, side=SIDE), normal_images(4, seed=1, side=SIDE)

    def prepare(self) -> None:
        for seed in (0, 1):
            _detector(seed).fit(self._images).save(self._folder / f"known{seed}")
        self._thresholds = [ead.load(self._folder / f"known{seed}").threshold_ for seed in (0, 1)]
        ead.load(self._folder / "known0").save(self._model)

    def work(self, trial: int) -> None:
        seed = (trial + 1) % 2
        if self._kind == "fit":
            _detector(seed).fit(self._images).save(self._model)
        elif self._kind == "save":
            ead.load(self._folder / f"known{seed}").save(self._model)
        else:
            detector = ead.load(self._folder / f"known{seed}")
            detector.extend(self._more)
            detector.save(self._model)

    def look(self) -> str:
        """Which model is there: whole, or this raises."""
        found = ead.load(self._model)
        assert np.isfinite(found.predict(self._more).anomaly_score).all()
        if len(found.calibration_.scores) > len(self._images):
            assert self._kind == "extend"
            return "extended"
        return f"known{self._thresholds.index(found.threshold_)}"


@register("struck-rows")
class Rows:
    """Rows that are all the same number, whole or in half precision."""

    def __init__(self, number: int, half: bool) -> None:
        self._rows, self._half = torch.full((1 << 20, 4), float(number)), half

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        writer.tensors("rows.safetensors", {"rows": self._rows}, half=["rows"] * self._half)
        return {"number": float(self._rows[0, 0])}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> float:
        rows, number = reader.tensors("rows.safetensors")["rows"], reader.state["number"]
        assert bool((rows == number).all())
        assert len(rows) == 1 << 20
        return float(number)


class Streams:
    """A file of 8 or 16 MB, written in pieces."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._model = folder / "model"

    def prepare(self) -> None:
        self.work(0)

    def work(self, trial: int) -> None:
        store.save(Rows(trial, half=trial % 2 == 0), self._model)

    def look(self) -> str:
        return "odd" if store.load(self._model) % 2 else "even"


class Suites:
    """A suite that goes on where the last blow left it; whole, it begins anew."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder

    def _config(self) -> dict[str, Any]:
        return two_by_two(self._folder / "data")

    def prepare(self) -> None:
        draw_two_categories(self._folder / "data")
        run(self._config(), self._folder / "whole")

    def work(self, trial: int) -> None:
        results = run(self._config(), self._folder / f"out{self._round()}")
        assert results.is_complete, [str(cell) for cell in results.failures]
        (self._folder / f"done{self._round()}").touch()

    def _round(self) -> int:
        return len(list(self._folder.glob("done*")))

    def look(self) -> str:
        out = self._folder / f"out{self._round()}"
        cells = sorted((out / "cells").glob("*.json"))
        for path in [*cells, *out.glob("results.json")]:
            json.loads(path.read_text())
        last = self._folder / f"out{self._round() - 1}"
        if last.is_dir():
            same = (last / "types.csv").read_text() == (self._folder / "whole/types.csv").read_text()
            assert same, "a run in pieces measured something else"
        return f"{len(cells)} cells" if out.exists() else "whole"


class Indexes:
    """An image index: built, then images are removed, the index compacted, and changed images added."""

    COUNT = 24

    def __init__(self, path: Path, kind: str) -> None:
        self._images, self._index, self._folder = path / "images", path / "index", path
        register_mean_colours()
        # Small images and batches: all that happens with many happens with few.
        adding._BATCH = 5
        for module in (structures, view, folder):
            module.SMALLEST = 8  # type: ignore[attr-defined]
        folder._LACKING = 0.0  # type: ignore[attr-defined]

    def prepare(self) -> None:
        for i in range(self.COUNT):
            draw_image(self._images / f"{i:02}.png", i)

    def work(self, trial: int) -> None:
        if trial % 4 == 0:
            shutil.rmtree(self._index, ignore_errors=True)
        paths = sorted(self._images.glob("*.png"))
        with ead.ImageIndex.build(paths, MeanColours(), self._index, kind="hnsw") as index:
            index.remove(paths[trial % 6 :: 6])
            index.compact()
            # Every second image has two looks, which follow from the number of the trial.
            draw_image(paths[trial % 12 * 2], trial % 12 * 2 + 100 * (trial // 12 % 2))
            index.add(paths)
            index.remove(paths[trial % 3 :: 3])  # more than a quarter: compacted by itself
            assert len(index) == self.COUNT - self.COUNT // 3

    def look(self) -> str:
        """How many images are there: whole, or this raises."""
        if not (self._index / "index.json").exists():
            return "none"
        embedder = MeanColours()
        with ead.ImageIndex.open(self._index) as index:
            index.verify()
            query = np.linspace(1.0, 2.0, embedder.dim)
            hits = index.search(query, top=100)
            assert hits.ids.shape == (1, len(index))
            assert len(set(hits.paths[0])) == len(index)
            for hit in hits[0]:
                looks = [int(Path(hit.path).stem) + add for add in (0, 100)]
                known = [embedder.embed([draw_image(self._folder / "look.png", seed)])[0] for seed in looks]
                cosines = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in known]
                assert min(abs(hit.similarity - cosine) for cosine in cosines) < 2e-3, hit
        return f"{len(hits.ids[0])} images"


# What writes, in an image index's code.
WRITERS = {"append", "change", "commit", "compact", "create", "finish", "replace", "write", "writing"}
WRITERS |= {"_clean", "write_atomically"}
Step = tuple[str, int]  # a line of code


def _trace_steps(seen: Callable[[Step], object]) -> Callable[[], object]:
    """Let `seen` be called at every line of `WRITERS` that this process comes to run."""
    package = Path(adding.__file__).parents[1]
    places = (str(package / "retrieval"), str(package / "common/files.py"))

    def trace(frame: Any, event: str, argument: object) -> Any:
        code = frame.f_code
        if code.co_name not in WRITERS or not code.co_filename.startswith(places):
            return None
        if event == "line":
            seen((code.co_filename, frame.f_lineno))
        return trace

    return lambda: sys.settrace(trace)


def _steps(job: Indexes, rng: np.random.Generator) -> list[tuple[Step, int]]:
    """The steps of one work in random order, each with the time at which it is to be the last."""
    counts = Counter[Step]()
    _trace_steps(lambda step: counts.update([step]))()
    job.work(4)  # from nothing
    sys.settrace(None)
    steps = [sorted(counts)[i] for i in rng.permutation(len(counts))]
    return [(step, int(rng.integers(min(3, counts[step]))) + 1) for step in steps]


def _kill_at(step: Step, time: int) -> Callable[[], object]:
    left = [time]

    def seen(now: Step) -> None:
        left[0] -= now == step
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return _trace_steps(seen)


def _in_child(function: Callable[[], object], before: Callable[[], object] = lambda: None) -> int:
    """The process in which it runs: it exits with 0, or with 3 after an error."""
    process = os.fork()
    if process:
        return process
    status = 3
    try:
        before()
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _blow(blow: str, rng: np.random.Generator) -> Callable[[], object]:
    """What strikes a process from inside, before it begins."""
    if blow == "disk":
        limit = int(np.exp(rng.uniform(np.log(1_000), np.log(300_000))))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return lambda: None


def main(kind: str, blow: str, place: Path, trials: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    job = {"suite": Suites, "stream": Streams, "index": Indexes}.get(kind, Models)(place, kind)
    job.prepare()
    job.work(0)
    start = time.monotonic()
    assert _end_of(_in_child(lambda: job.work(1))) == 0
    whole = time.monotonic() - start
    rng, counts = np.random.default_rng(seed), Counter[str]()
    steps = _steps(job, rng) if blow == "line" and isinstance(job, Indexes) else []
    for trial in range(2, trials + 2):
        before = _kill_at(*steps[trial % len(steps)]) if steps else _blow(blow, rng)
        process = _in_child(lambda trial=trial: job.work(trial), before)
        if blow == "kill":
            time.sleep(rng.uniform(0, whole))
            os.kill(process, signal.SIGKILL)
        ended = _end_of(process)
        counts[ENDS.get(ended, f"ended with {ended}")] += 1
        said = place / "said.txt"

        def look(said: Path = said) -> None:
            said.write_text(job.look())

        assert _end_of(_in_child(look)) == 0, f"trial {trial} left something that is not whole"
        counts[said.read_text()] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
