"""Which index finds the nearest rows, and FAISS's. Distances are squared L2.

`search_plan` says what is used where. On a CPU the exact index is the core's (or torch's, see `exact.py`),
the others are FAISS's. A bank on a GPU is searched there: exactly, by FAISS if its GPU build is installed,
else by torch; "ivf" by FAISS's GPU build. What FAISS has for the CPU alone is searched there, with a copy of
the queries for every batch, and a warning says so when such an index is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.extras import require
from ensemblead.common.warnings import warn
from ensemblead.search.exact import ExactIndex, Excluded, sort_by_distance

INDEX_NAMES = ("flat", "ivf", "ivfpq", "hnsw", "sq16")

# FAISS's own scratch on a GPU (it would take a share of the card otherwise), and the most neighbours it gives
# there.
_GPU_SCRATCH, _GPU_MOST_NEIGHBORS = 64 << 20, 1024


@dataclass(frozen=True)
class SearchPlan:
    """How a bank is searched: what compares, where, and whether queries are copied to the host for it."""

    engine: Literal["core", "torch", "faiss-cpu", "faiss-gpu"]
    place: str  # "cpu" or "cuda:0"
    copies: bool = False

    def __str__(self) -> str:
        name = {
            "core": "ensemblead's core or torch",
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
        count_faiss_gpus() if faiss_gpus is None else faiss_gpus
    )
    if on_gpu:
        return SearchPlan("faiss-gpu", str(place))
    return SearchPlan("torch", str(place)) if name == "flat" else SearchPlan("faiss-cpu", "cpu", copies=True)


def count_faiss_gpus() -> int:
    """GPUs that the installed FAISS can use: 0 without FAISS, and with its CPU build."""
    if importlib.util.find_spec("faiss") is None:
        return 0
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


class Index(Protocol):
    """Finds neighbours; does not own the rows."""

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`; see
        `MemoryBank.search`.
        """


class GpuFlatIndex(ExactIndex):
    """Every row compared by FAISS, on the GPU where the rows are, in float32.

    FAISS has no way to leave rows out there: such queries are left to torch.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__(rows)
        faiss = _faiss()
        self._gpu = _GpuResources(faiss, rows.device)
        config = faiss.GpuIndexFlatConfig()
        config.device = self._gpu.number
        self._index = faiss.GpuIndexFlatL2(self._gpu.resources, rows.shape[1], config)
        # Less their mean, as in ExactIndex: FAISS expands the square, too.
        centred = (rows - self._mean).contiguous()
        with self._gpu.current_stream():
            self._index.add_c(len(centred), _floats(faiss, centred))

    def _nearest(self, queries: torch.Tensor, k: int, excluded: Excluded | None) -> torch.Tensor:
        if excluded is not None or k > _GPU_MOST_NEIGHBORS:
            return super()._nearest(queries, k, excluded)
        return self._gpu.search(self._index, (queries - self._mean).contiguous(), k)


class _GpuResources:
    """FAISS on one GPU, in the order of torch's work there."""

    def __init__(self, faiss: Any, device: torch.device) -> None:
        self._faiss = faiss
        self._device = device
        self.number = device.index or 0
        self.resources = faiss.StandardGpuResources()
        self.resources.setTempMemory(_GPU_SCRATCH)

    @contextmanager
    def current_stream(self) -> Iterator[None]:
        """Inside, FAISS queues its work behind torch's, so neither waits for the other."""
        stream = _cuda_stream(self._device)
        self.resources.setDefaultStream(self.number, self._faiss.cast_integer_to_cudastream_t(stream))
        try:
            yield
        finally:
            # The stream is the caller's, and may be gone by the next call.
            self.resources.revertDefaultStream(self.number)

    def search(self, index: Any, queries: torch.Tensor, k: int, parameters: Any = None) -> torch.Tensor:
        """Row numbers int64 `[Q, k]`; -1 where an index finds none."""
        distances = torch.empty((len(queries), k), dtype=torch.float32, device=queries.device)
        found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        with self.current_stream():
            index.search_c(
                len(queries),
                _floats(self._faiss, queries),
                k,
                _floats(self._faiss, distances),
                self._faiss.cast_integer_to_idx_t_ptr(found.data_ptr()),
                parameters,
            )
        return found


def _floats(faiss: Any, tensor: torch.Tensor) -> Any:
    """FAISS's pointer to a contiguous float32 tensor, on any device."""
    return faiss.cast_integer_to_float_ptr(tensor.data_ptr())


def _cuda_stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


class FaissIndex:
    """An approximate index of FAISS over `rows`, where `search_plan` puts it; what is saved is on the CPU.

    "ivf": inverted lists, 1 list in 8 visited (at least 8). "ivfpq": the same with product-quantised rows.
    "hnsw": a navigable graph. "sq16": every row compared, in half precision. A query for which the index
    finds fewer than k rows is searched exactly, so k is always what was asked for.
    """

    def __init__(self, name: str, rows: torch.Tensor, index: Any) -> None:
        self.name = name
        self._rows = rows
        self._exact = ExactIndex(rows)  # for the queries that FAISS finds too little for
        self.faiss_index = index
        self.plan = search_plan(name, rows.device)
        self._gpu: _GpuResources | None = None
        self._gpu_index: Any = None
        if self.plan.engine == "faiss-gpu":
            faiss = _faiss()
            self._gpu = _GpuResources(faiss, rows.device)
            self._gpu_index = faiss.index_cpu_to_gpu(self._gpu.resources, self._gpu.number, index)
            self._gpu_index.nprobe = self._probes()
        elif self.plan.copies:
            warn(
                f'index="{name}" is searched on the CPU: the queries of every batch are copied from '
                f'{rows.device} and back; index="flat" stays there'
            )

    @classmethod
    def build(cls, name: str, rows: torch.Tensor, seed: int) -> FaissIndex:
        """Train an index on the rows and fill it.

        Raises:
            ValueError: "ivfpq" has fewer than the 256 rows that its codebooks need.
        """
        faiss = _faiss()
        index = _empty_index(faiss, name, len(rows), rows.shape[1], seed)
        host = _host(rows)
        index.train(host)
        index.add(host)
        return cls(name, rows, index)

    @classmethod
    def from_bytes(cls, name: str, rows: torch.Tensor, data: bytes, seed: int) -> FaissIndex:
        """The index that `to_bytes` gave for these rows.

        Inverted lists that claim to lie in another file (FAISS's mark for them is "ilod") are not read, since
        FAISS would open whatever file they name: the index is built anew from the rows.

        Raises:
            DamagedModelError: it is none, or one of another kind or size.
        """
        faiss = _faiss()
        if b"ilod" in data:
            return cls.build(name, rows, seed)
        try:
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except RuntimeError as error:
            raise DamagedModelError("the FAISS index of the memory bank cannot be read") from error
        expected = type(_empty_index(faiss, name, max(len(rows), 256), rows.shape[1], 0))
        if type(index) is not expected or (index.ntotal, index.d) != tuple(rows.shape):
            raise DamagedModelError(
                f"the FAISS index of the memory bank is a {type(index).__name__} of {index.ntotal} rows of "
                f'{index.d} dimensions; "{name}" over {tuple(rows.shape)} was expected'
            )
        return cls(name, rows, index)

    def to_bytes(self) -> bytes:
        return bytes(_faiss().serialize_index(self.faiss_index))

    def with_rows(self, rows: torch.Tensor) -> FaissIndex:
        """An index over `rows`, which begin with the rows of this one; this one stays as it is."""
        index = _faiss().clone_index(self.faiss_index)
        index.add(_host(rows[len(self._rows) :]))
        return FaissIndex(self.name, rows, index)

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Index.search`."""
        if self._gpu is None:
            indices = torch.from_numpy(self._on_host(_host(queries), k, excluded)).to(queries.device)
        elif excluded is None and k <= _GPU_MOST_NEIGHBORS:
            indices = self._gpu.search(self._gpu_index, queries, k)
        else:
            return self._exact.search(queries, k, excluded)
        # A look at the result, for which a GPU is waited for once.
        missing = (indices < 0).any(1).nonzero()[:, 0]
        if len(missing):
            rest = None if excluded is None else excluded.part(missing.cpu().numpy())
            _, indices[missing] = self._exact.search(queries[missing], k, rest)
        return sort_by_distance(queries, self._rows, indices)

    def _on_host(
        self, queries: npt.NDArray[np.float32], k: int, excluded: Excluded | None
    ) -> npt.NDArray[np.int64]:
        faiss = _faiss()
        if excluded is None:
            found: npt.NDArray[np.int64] = self.faiss_index.search(
                queries, k, params=self._parameters(faiss, k)
            )[1]
            return found
        # FAISS leaves out one set of rows per call.
        found = np.empty((len(queries), k), dtype=np.int64)
        rows, owners = excluded.rows.cpu().numpy(), np.broadcast_to(excluded.host, len(queries))
        for image in np.unique(owners):
            which = np.flatnonzero(owners == image)
            bits = np.packbits(rows != image, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)  # points to the bits, as the parameters do to it
            parameters = self._parameters(faiss, k, sel=selector)
            found[which] = self.faiss_index.search(queries[which], k, params=parameters)[1]
        return found

    def _probes(self) -> int:
        return int(min(self.faiss_index.nlist, max(8, self.faiss_index.nlist // 8)))

    def _parameters(self, faiss: Any, k: int, **options: Any) -> Any:
        """FAISS's search parameters."""
        if self.name in ("ivf", "ivfpq"):
            kind = faiss.SearchParametersIVF if self.name == "ivf" else faiss.IVFPQSearchParameters
            return kind(nprobe=self._probes(), **options)
        if self.name == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(64, 4 * k), **options)
        return faiss.SearchParameters(**options)


def make_index(name: str, rows: torch.Tensor, seed: int) -> ExactIndex | FaissIndex:
    """The index of that name over `rows` float32 `[M, D]`, as `search_plan` has it."""
    return flat_index(rows) if name == "flat" else FaissIndex.build(name, rows, seed)


def flat_index(rows: torch.Tensor) -> ExactIndex:
    """The exact index over `rows`, on their device."""
    on_gpu = search_plan("flat", rows.device).engine == "faiss-gpu"
    return GpuFlatIndex(rows) if on_gpu else ExactIndex(rows)


def _faiss() -> Any:
    faiss: Any = require("faiss", "an index other than 'flat'")
    # FAISS brings an OpenMP runtime of its own; what torch was told holds for it, too.
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def _host(rows: torch.Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = np.ascontiguousarray(rows.detach().cpu().numpy(), dtype=np.float32)
    return array


def _empty_index(faiss: Any, name: str, rows: int, dims: int, seed: int) -> Any:
    if name == "sq16":
        return faiss.IndexScalarQuantizer(dims, faiss.ScalarQuantizer.QT_fp16)
    if name == "hnsw":
        graph = faiss.IndexHNSWFlat(dims, 32)
        graph.hnsw.efConstruction = 80
        return graph
    # FAISS asks for 39 training rows per list; fewer make poor centroids.
    lists = max(1, min(int(4 * rows**0.5), rows // 39))
    quantizer = faiss.IndexFlatL2(dims)
    if name == "ivf":
        index = faiss.IndexIVFFlat(quantizer, dims, lists)
    else:
        if rows < 256:
            raise ValueError(
                f'index="ivfpq" needs a memory bank of at least 256 rows, got {rows}; use index="flat"'
            )
        parts = max(m for m in range(1, min(dims, 64) + 1) if dims % m == 0)
        index = faiss.IndexIVFPQ(quantizer, dims, lists, parts, 8)
        index.pq.cp.seed = seed
        # A coreset has few rows by design; FAISS would print a warning at every codebook.
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = seed
    # Python's garbage collector must not take the quantizer before the index.
    quantizer.this.disown()
    index.own_fields = True
    return index
