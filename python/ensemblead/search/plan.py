"""The plan of search: which index searches a bank, and on which device.

`search_plan` says it, and all functions that make an index follow it. On a CPU the exact index is the core's
(see `exact.py`), the others are FAISS's. A bank on a GPU is searched there: exactly, by FAISS if
its GPU build is installed, else by torch; "ivf" by FAISS's GPU build. Indexes that FAISS has for the CPU
alone are searched there, with a copy of the queries for every batch, and a warning says so when one is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ensemblead.common.warnings import warn
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import (
    FaissIndex,
    GpuProductSearch,
    build_index,
    count_gpus,
    grown_index,
    read_index,
)

INDEX_NAMES = ("flat", "ivf", "ivfpq", "hnsw", "sq16")


@dataclass(frozen=True)
class SearchPlan:
    """How a bank is searched: by which library, where, and whether queries are copied to the host."""

    engine: Literal["core", "torch", "faiss-cpu", "faiss-gpu"]
    place: str  # "cpu" or "cuda:0"
    copies: bool = False

    def __str__(self) -> str:
        name = {
            "core": "ensemblead's core",
            "torch": "torch",
            "faiss-cpu": "FAISS",
            "faiss-gpu": "FAISS for GPUs",
        }[self.engine]
        return f"{name} on {self.place}" + (", queries copied to the host for every batch" * self.copies)


def search_plan(name: str, device: torch.device | str, *, faiss_gpus: int | None = None) -> SearchPlan:
    """How the index of that name searches a bank on `device`.

    Args:
        faiss_gpus: how many GPUs FAISS sees; None: it is asked.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return SearchPlan("core" if name == "flat" else "faiss-cpu", str(place))
    on_gpu = name in ("flat", "ivf") and (place.index or 0) < (
        count_gpus() if faiss_gpus is None else faiss_gpus
    )
    if on_gpu:
        return SearchPlan("faiss-gpu", str(place))
    return SearchPlan("torch", str(place)) if name == "flat" else SearchPlan("faiss-cpu", "cpu", copies=True)


def make_index(name: str, rows: torch.Tensor, seed: int) -> ExactIndex | FaissIndex:
    """The index of that name over `rows` float32 `[M, D]`, as `search_plan` has it."""
    return flat_index(rows) if name == "flat" else _placed(name, rows, build_index(name, rows, seed))


def flat_index(rows: torch.Tensor) -> ExactIndex:
    """The exact index over `rows`, on their device. FAISS searches float32 alone."""
    on_gpu = rows.dtype == torch.float32 and search_plan("flat", rows.device).engine == "faiss-gpu"
    return ExactIndex(rows, GpuProductSearch(rows) if on_gpu else None)


def index_from_bytes(name: str, rows: torch.Tensor, data: bytes, seed: int) -> FaissIndex:
    """The index over these rows that `FaissIndex.to_bytes` gave; DamagedModelError for anything else."""
    return _placed(name, rows, read_index(name, rows, data, seed))


def moved_index(index: ExactIndex | FaissIndex, rows: torch.Tensor) -> ExactIndex | FaissIndex:
    """The same index over the same rows elsewhere. FAISS's part on the CPU stays there."""
    return _placed(index.name, rows, index.faiss_index) if isinstance(index, FaissIndex) else flat_index(rows)


def extended_index(
    index: ExactIndex | FaissIndex, rows: torch.Tensor, first_new: int
) -> ExactIndex | FaissIndex:
    """An index over `rows`, of which those before `first_new` are the index's; that one stays as it is."""
    if not isinstance(index, FaissIndex):
        return flat_index(rows)
    return _placed(index.name, rows, grown_index(index.faiss_index, rows[first_new:]))


def _placed(name: str, rows: torch.Tensor, index: Any) -> FaissIndex:
    plan = search_plan(name, rows.device)
    if plan.copies:
        warn(
            f'index="{name}" is searched on the CPU: the queries of every batch are copied from '
            f'{rows.device} and back; index="flat" stays there'
        )
    return FaissIndex(name, rows, index, on_gpu=plan.engine == "faiss-gpu")
