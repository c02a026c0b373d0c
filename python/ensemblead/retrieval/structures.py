"""Search structures of an image index: derived from its vectors, kept in a file, and built anew if need be.

A file begins with a line of JSON: the kind, how many rows it holds, how many it was trained for, and the
checksum of what follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.extras import require
from ensemblead.common.files import write_atomically
from ensemblead.search.cosine import Numbers, Rows
from ensemblead.search.faiss import FaissCandidates
from ensemblead.search.usearch import UsearchCandidates

KINDS = ("flat", "ivf", "hnsw", "pq", "usearch")
# Below so many rows every kind searches exactly: it takes no longer.
SMALLEST = 1024
# How many candidates per hit are compared exactly: codes of a product quantiser order rows roughly.
OVERFETCH = {"pq": 10}
# A structure is trained anew when there are so many times the rows that it was trained for.
_OUTGROWN = 4
_STEP_BYTES = 64 << 20  # of rows in float32, when they are added
_NAMES = {"pq": "ivfpq"}

Progress = Callable[[int, int], object]


def check_kind(kind: str) -> None:
    """Raise MissingExtraError where the library of a kind is missing, before there is any work."""
    if kind != "flat":
        require("usearch" if kind == "usearch" else "faiss", f'an image index of kind "{kind}"')


class _Engine(Protocol):
    @property
    def count(self) -> int:
        """How many rows it holds, from row 0 on."""

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """More rows."""

    def search(
        self, queries: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None
    ) -> Numbers:
        """Up to `count` rows per query that are allowed, -1 where no more are found."""

    def write(self, take: Callable[[bytes], object]) -> None:
        """Give what the engine reads again to `take`, part by part."""


@dataclass
class Structure:
    """An engine, the rows it holds (from row 0 on), how many it was trained for, and how many its file
    has.
    """

    kind: str
    engine: _Engine
    trained: int
    written: int = 0

    @classmethod
    def build(
        cls, kind: str, rows: Rows, seed: int, progress: Progress = lambda done, total: None
    ) -> Structure:
        """Over all rows; the same for the same rows and seed, but for the graphs that several threads
        build.
        """
        if kind == "usearch":
            engine: _Engine = UsearchCandidates.empty(rows.shape[1])
        else:
            # 64 rows for each of the 4 sqrt(rows) lists.
            size = min(len(rows), max(SMALLEST, int(256 * len(rows) ** 0.5)))
            chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
            sample = rows[chosen].astype(np.float32)
            engine = FaissCandidates.trained(_NAMES.get(kind, kind), sample, len(rows), seed)
        structure = cls(kind, engine, len(rows))
        structure.top_up(rows, progress)
        return structure

    def top_up(self, rows: Rows, progress: Progress = lambda done, total: None) -> None:
        """Add the rows that it lacks of all `rows`."""
        step = max(1, _STEP_BYTES // (4 * rows.shape[1]))
        while (a := self.engine.count) < len(rows):
            self.engine.add(np.ascontiguousarray(rows[a : a + step], dtype=np.float32))
            progress(self.engine.count, len(rows))

    def is_outgrown(self, rows: int) -> bool:
        """Whether there are so many rows that it should be built anew."""
        return self.kind != "usearch" and rows > _OUTGROWN * self.trained

    def write(self, path: Path) -> None:
        """Beside, and renamed."""
        header = {"kind": self.kind, "rows": self.engine.count, "trained": self.trained}
        digest = hashlib.sha256(json.dumps(header).encode())
        self.engine.write(digest.update)
        line = json.dumps({**header, "sha256": digest.hexdigest()}).encode() + b"\n"

        def write(file: BinaryIO) -> None:
            file.write(line)
            self.engine.write(file.write)

        write_atomically(path, write, sync=True)
        self.written = self.engine.count

    @classmethod
    def read(cls, path: Path, kind: str, dims: int, most: int) -> Structure:
        """What `write` wrote, of at most so many rows; DamagedModelError for anything else."""
        with open(path, "rb") as file:
            line, data = file.readline(4096), file.read()
        try:
            header = json.loads(line)
            expected = header.pop("sha256")
            rows, trained = header["rows"], header["trained"]
            sound = type(rows) is int and type(trained) is int and 0 <= rows <= most and trained > 0
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedModelError(f"{path} is no search structure") from error
        digest = hashlib.sha256(json.dumps(header).encode())
        digest.update(data)
        if not sound or header.get("kind") != kind or digest.hexdigest() != expected:
            raise DamagedModelError(f"{path} is damaged: its checksum or its header does not fit")
        engine: _Engine
        if kind == "usearch":
            engine = UsearchCandidates.read((rows, dims), data)
        else:
            engine = FaissCandidates.read(_NAMES.get(kind, kind), (rows, dims), data)
        return cls(kind, engine, trained, rows)
