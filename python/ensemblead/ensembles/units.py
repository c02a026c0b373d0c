"""Fits on executors: what all units of work of a fit have in common, on both sides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemblead.common.files import StrPath
from ensemblead.common.validation import whole_number
from ensemblead.config.registry import describe
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.learning import opened_source
from ensemblead.detectors.parts import Progress
from ensemblead.distributed.executors import check_executor, num_workers, sharing_cores
from ensemblead.distributed.files import ImageList, with_absolute_paths
from ensemblead.distributed.units import Task, Unit, clean, collected, standing
from ensemblead.distributed.working import Work, at_work, modules_of, no_progress, repeat_warnings
from ensemblead.images import ImageSource, SkippedImage
from ensemblead.store import FolderReader, FolderWriter

_READ = "images.safetensors"


class Job:
    """A fit on an executor, as its caller sees it: what it is told, and after `open` its images."""

    source: ImageSource
    listed: ImageList

    def __init__(
        self,
        images: Any,
        errors: Any,
        progress: Progress | None,
        executor: Any,
        workdir: StrPath | None,
        retries: int,
    ) -> None:
        check_executor(executor)
        if workdir is None:
            raise ValueError("executor= needs workdir=, a folder on a path that every worker shares")
        self._images, self.errors, self.progress = images, errors, progress or no_progress
        self._executor, self.workdir = executor, Path(os.path.abspath(workdir))
        if self.workdir.exists() and not self.workdir.is_dir():
            raise NotADirectoryError(f"workdir must be a folder, got the file {self.workdir}")
        self._retries = whole_number("retries", retries, 0)

    def open(self) -> None:
        """Open the images and list them. Raises ValueError for images that are no files."""
        self.source = opened_source(self._images, self.errors)
        self.listed = ImageList.write(self.workdir, self.source, self.errors)

    def common(self, description: Mapping[str, Any]) -> Task:
        """What every task is told that fits a detector, or a part of it."""
        return {
            "detector": dict(description),
            "images": [self.listed.path, self.listed.sha256],
            "bits": self.source.bits,
            "max_pixels": self.source.max_pixels,
            "errors": self.errors,
            "sharing": sharing_cores(self._executor),
            "modules": modules_of(description),
        }

    def identity(self) -> dict[str, Any]:
        """Of the images, for the keys of units."""
        source = self.source
        return {"images": self.listed.sha256, "read": [source.bits, source.max_pixels, self.errors]}

    def run(self, function: Callable[[Task], None], units: Sequence[Unit], tasks: Sequence[Task]) -> None:
        """Do the tasks, until all units are there. Raises as `collected`, and what a worker raised."""

        def look() -> None:
            self.progress("units", sum(os.path.isdir(unit.folder) for unit in units), len(units))

        look()
        for _ in collected(self._executor, function, tasks, self._retries, lambda: standing(units), look):
            look()
        clean(units)

    def divided(self, units: Sequence[Unit]) -> list[list[int]]:
        """The places of units that are missing, in as many ranges as there are workers."""
        missing = [place for place, unit in enumerate(units) if unit.read() is None]
        count = min(len(missing), num_workers(self._executor))
        return [part.tolist() for part in np.array_split(missing, count)] if missing else []


def job_of(
    images: Any,
    errors: Any,
    progress: Progress | None,
    checkpoint: Any,
    executor: Any,
    workdir: StrPath | None,
    retries: int,
) -> Job | None:
    """The arguments of a fit as a job; None without an executor.

    Raises ValueError or TypeError for arguments that do not go together.
    """
    if executor is None:
        if workdir is not None:
            raise ValueError(f"workdir goes with executor=, got {os.fspath(workdir)!r} without one")
        return None
    if checkpoint is not None:
        raise ValueError(
            "checkpoint goes with a fit in this process; an executor keeps the units that are done"
        )
    return Job(images, errors, progress, executor, workdir, retries)


def plain_description(detector: Detector, argument: str) -> dict[str, Any]:
    """The detector in plain values, which travel. Raises TypeError for one that has no such form."""
    try:
        described: dict[str, Any] = with_absolute_paths(describe(detector))
    except ValueError as error:
        raise TypeError(
            f"{argument}: executor= needs detectors in plain values, which travel to workers: {error}; give "
            "names of networks, and paths of weights"
        ) from error
    return described


# On a worker


@contextmanager
def given_images(task: Task) -> Iterator[tuple[Work, ImageList, ImageSource]]:
    """Around a task: its images, after a check that they are the caller's."""
    with at_work(task["sharing"], task["modules"]) as work:
        listed = ImageList.read(*task["images"])
        listed.check("was changed since the caller looked at it, or is another file")
        yield work, listed, listed.open(task["bits"], task["max_pixels"])


def write_images(writer: FolderWriter, identities: Sequence[tuple[int, tuple[int, int], int]]) -> None:
    """Positions, sizes and fingerprints of the images that were read."""
    positions, sizes, looks = zip(*identities, strict=True)
    fingerprints = np.array(looks, dtype=np.uint64).view(np.int64)
    writer.tensors(
        _READ,
        {
            "positions": torch.tensor(positions),
            "sizes": torch.tensor(sizes),
            "fingerprints": torch.from_numpy(fingerprints),
        },
    )


def skipped_document(skipped: Sequence[SkippedImage]) -> list[Any]:
    return [[one.index, one.reason] for one in skipped]


# At the caller


@dataclass(frozen=True)
class ImagesRead:
    """Which images a unit has read."""

    identities: list[tuple[int, tuple[int, int], int]]
    skipped: list[SkippedImage]


def read_images(readers: Sequence[FolderReader], source: ImageSource) -> ImagesRead:
    """Of all units the same, or ValueError: then a file was changed without a new time."""
    found = []
    for reader in readers:
        tensors = reader.tensors(_READ)
        looks = tensors["fingerprints"].numpy().view(np.uint64).tolist()
        sizes = [(height, width) for height, width in tensors["sizes"].tolist()]
        identities = list(zip(tensors["positions"].tolist(), sizes, looks, strict=True))
        skipped = [SkippedImage(i, source.paths[i], reason) for i, reason in reader.state["skipped"]]
        found.append(ImagesRead(identities, skipped))
    if any(one.identities != found[0].identities for one in found):
        raise ValueError("images: workers have read different images under the same paths; fit again")
    return found[0]


def readers_of(units: Sequence[Unit]) -> list[FolderReader]:
    """The results of units that are done. Their warnings are issued, as the fit here would."""
    readers = [reader for unit in units if (reader := unit.read()) is not None]
    if len(readers) < len(units):
        lost = standing(units)[1][0]
        raise FileNotFoundError(f"workdir: {lost} was removed or altered meanwhile; call fit again")
    repeat_warnings([reader.state for reader in readers])
    return readers
