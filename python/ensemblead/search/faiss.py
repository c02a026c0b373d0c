"""FAISS: approximate indexes, and exact search by its GPU build. The only file that imports it.

Distances are always the true ones to the rows found; what an index approximates is which rows it finds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.extras import require
from ensemblead.search.exact import ExactIndex
from ensemblead.search.neighbors import Excluded, Nearby, sort_by_distance
from ensemblead.search.products import ProductSearch

# FAISS's own scratch on a GPU (it would take a share of the card otherwise), and the most neighbours it gives
# there.
_GPU_SCRATCH, _GPU_MOST_NEIGHBORS = 64 << 20, 1024
# How a serialised flat index of L2 distances begins, and its bytes beside the rows.
_FLAT_L2, _FLAT_HEADER = b"IxF2", 45


def count_gpus() -> int:
    """GPUs that the installed FAISS can use: 0 without FAISS, and with its CPU build."""
    if importlib.util.find_spec("faiss") is None:
        return 0
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


class GpuProductSearch(ProductSearch):
    """Products by FAISS, on the GPU where the rows are, in float32.

    FAISS has no way to leave rows out there: such queries are left to torch.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__(rows)
        faiss = _faiss()
        self._gpu = _GpuResources(faiss, rows.device)
        config = faiss.GpuIndexFlatConfig()
        config.device = self._gpu.number
        self._index = faiss.GpuIndexFlatL2(self._gpu.resources, rows.shape[1], config)
        centred = (rows - self.mean).contiguous()
        with self._gpu.current_stream():
            self._index.add_c(len(centred), _floats(faiss, centred))

    def _ordered(
        self, queries: torch.Tensor, count: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if excluded is not None or count > _GPU_MOST_NEIGHBORS:
            return super()._ordered(queries, count, excluded)
        return self._gpu.search(self._index, (queries - self.mean).contiguous(), count)


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

    def search(
        self, index: Any, queries: torch.Tensor, k: int, parameters: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """FAISS's distances float32 and row numbers int64, `[Q, k]`; -1 where an index finds none."""
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
        return distances, found


def _floats(faiss: Any, tensor: torch.Tensor) -> Any:
    """FAISS's pointer to a contiguous float32 tensor, on any device."""
    return faiss.cast_integer_to_float_ptr(tensor.data_ptr())


def _cuda_stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


class FaissIndex:
    """An approximate index of FAISS over `rows`, on their GPU or on the CPU; what is saved is on the CPU.

    "ivf": inverted lists, 1 list in 8 visited (at least 8). "ivfpq": the same with product-quantised rows.
    "hnsw": a navigable graph. "sq16": every row compared, in half precision. A query for which the index
    finds fewer than k rows is searched exactly, so k is always what was asked for.
    """

    def __init__(self, name: str, rows: torch.Tensor, index: Any, on_gpu: bool = False) -> None:
        self.name = name
        self._rows = rows
        self._exact = ExactIndex(rows)  # for the queries that FAISS finds too little for
        self.faiss_index = index
        self._gpu: _GpuResources | None = None
        self._gpu_index: Any = None
        if on_gpu:
            faiss = _faiss()
            self._gpu = _GpuResources(faiss, rows.device)
            self._gpu_index = faiss.index_cpu_to_gpu(self._gpu.resources, self._gpu.number, index)
            self._gpu_index.nprobe = self._probes()

    def to_bytes(self) -> bytes:
        return bytes(_faiss().serialize_index(self.faiss_index))

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Index.search`."""
        if self._gpu is None:
            indices = torch.from_numpy(self._on_host(_host(queries), k, excluded)).to(queries.device)
        elif excluded is None and k <= _GPU_MOST_NEIGHBORS:
            _, indices = self._gpu.search(self._gpu_index, queries, k)
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


class FaissCandidates:
    """An index of FAISS that says which rows of length 1 may be the most similar ones, and holds no others.

    "ivf", "hnsw" and "ivfpq" as in `FaissIndex`; L2 distances order rows of length 1 as products do. Rows are
    numbered in the order in which they are added.
    """

    def __init__(self, name: str, index: Any) -> None:
        self.name = name
        self.faiss_index = index

    @classmethod
    def trained(cls, name: str, sample: npt.NDArray[np.float32], rows: int, seed: int) -> FaissCandidates:
        """An empty one for about so many rows, trained on some of them, `[S, D]`."""
        index = _empty_index(_faiss(), name, rows, sample.shape[1], seed)
        index.train(sample)
        return cls(name, index)

    @classmethod
    def read(cls, name: str, shape: tuple[int, int], data: bytes) -> FaissCandidates:
        """What `write` gave, over rows of that shape; DamagedModelError for anything else."""
        return cls(name, _checked_index(name, shape, data))

    @property
    def count(self) -> int:
        """How many rows it holds."""
        return int(self.faiss_index.ntotal)

    def write(self, take: Callable[[bytes], object]) -> None:
        """Give the index to `take` as `read` has it, part by part: it is never in memory twice."""
        faiss = _faiss()
        failures: list[Exception] = []

        def part(data: bytes) -> None:
            if not failures:  # FAISS would make an error of its own of an exception
                try:
                    take(data)
                except Exception as error:
                    failures.append(error)

        faiss.write_index(self.faiss_index, faiss.PyCallbackIOWriter(part))
        if failures:
            raise failures[0]

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """More rows `[B, D]`."""
        _faiss()
        self.faiss_index.add(rows)

    def search(
        self, queries: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.int64]:
        """Up to `count` rows per query, `[Q, count]`, -1 where it finds no more.

        Args:
            allowed: which rows may be found, `[N]`; None: all.
        """
        faiss = _faiss()
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)  # points to the bits
        parameters: Any
        if self.name == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(128, 2 * count), sel=selector)
        else:
            kind = faiss.SearchParametersIVF if self.name == "ivf" else faiss.IVFPQSearchParameters
            lists = self.faiss_index.nlist
            parameters = kind(nprobe=min(lists, max(16, lists // 32)), sel=selector)
        found: npt.NDArray[np.int64] = self.faiss_index.search(queries, count, params=parameters)[1]
        return found


def build_index(name: str, rows: torch.Tensor, seed: int) -> Any:
    """FAISS's index of that name, trained on the rows and filled with them.

    Raises ValueError where "ivfpq" has fewer than the 256 rows that its codebooks need.
    """
    index = _empty_index(_faiss(), name, len(rows), rows.shape[1], seed)
    host = _host(rows)
    index.train(host)
    index.add(host)
    return index


def read_index(name: str, rows: torch.Tensor, data: bytes, seed: int) -> Any:
    """FAISS's index that `FaissIndex.to_bytes` gave for these rows.

    Inverted lists that claim to lie in another file (FAISS's mark for them is "ilod") are not read, since
    FAISS would open whatever file they name: the index is built anew from the rows.

    Raises DamagedModelError where it is none, or one of another kind or size, or names rows that there are
    not.
    """
    if b"ilod" in data:
        return build_index(name, rows, seed)
    return _checked_index(name, (len(rows), rows.shape[1]), data)


def _checked_index(name: str, shape: tuple[int, int], data: bytes) -> Any:
    """The index of that name over rows of that shape; DamagedModelError for anything else.

    Inverted lists may lie in a file that the data name. FAISS refuses those by the flag, for which it would
    need the folder that the data are read from. Their mark, "ilod", is no evidence: codes may contain it.
    """
    faiss = _faiss()
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(np.frombuffer(data, dtype=np.uint8), reader.data)
    try:
        index = faiss.read_index(reader, faiss.IO_FLAG_ONDISK_SAME_DIR)
    except (RuntimeError, MemoryError) as error:
        raise DamagedModelError("the FAISS index cannot be read") from error
    expected = _empty_index(faiss, name, max(shape[0], 256), shape[1], 0)
    if type(index) is not type(expected) or (index.ntotal, index.d) != shape:
        raise DamagedModelError(
            f"the FAISS index is a {type(index).__name__} of {index.ntotal} rows of "
            f'{index.d} dimensions; "{name}" over {shape} was expected'
        )
    wrong = _contradiction(faiss, name, index)
    if wrong:
        raise DamagedModelError(f"the FAISS index is damaged: {wrong}")
    return index


def read_flat_rows(data: bytes, what: str) -> npt.NDArray[np.float32]:
    """The rows `[N, D]` of a serialised `IndexFlatL2`, as another tool wrote it.

    Raises ValueError, naming `what`, for any other kind of index and for a file that is not whole.
    """
    faiss = _faiss("reading an index of FAISS")
    # Only this kind is given to FAISS: others may name files that it would open.
    if data[:4] != _FLAT_L2:
        raise ValueError(f"{what} must be a FAISS IndexFlatL2, which begins with 'IxF2', got {data[:4]!r}")
    dims, count = (int.from_bytes(data[start:end], "little", signed=True) for start, end in ((4, 8), (8, 16)))
    expected = _FLAT_HEADER + 4 * dims * count
    if dims < 1 or count < 1 or len(data) != expected:
        raise ValueError(
            f"{what} is damaged: it states {count} rows of {dims} dimensions, and has {len(data)} bytes"
        )
    try:
        index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{what} is damaged: FAISS cannot read it") from error
    if index.metric_type != faiss.METRIC_L2 or (index.ntotal, index.d) != (count, dims):
        raise ValueError(f"{what} is damaged: its header contradicts itself")
    rows: npt.NDArray[np.float32] = index.reconstruct_n(0, count)
    return rows


def grown_index(index: Any, rows: torch.Tensor) -> Any:
    """A copy of FAISS's index with more rows."""
    copy = _faiss().clone_index(index)
    copy.add(_host(rows))
    return copy


def _contradiction(faiss: Any, name: str, index: Any) -> str | None:
    """A fault that FAISS does not notice when it reads an index, and by which it would leave its memory."""
    if index.metric_type != faiss.METRIC_L2 or not index.is_trained:
        return "it is not trained for L2 distances"
    if name in ("ivf", "ivfpq"):
        return _wrong_lists(faiss, name, index)
    if name == "hnsw":
        return _wrong_graph(faiss, index)
    return None if index.codes.size() == index.ntotal * index.code_size else "its codes are not all there"


def _wrong_lists(faiss: Any, name: str, index: Any) -> str | None:
    lists = index.invlists
    quantizer = faiss.downcast_index(index.quantizer)
    if type(quantizer) is not faiss.IndexFlatL2 or (quantizer.ntotal, quantizer.d) != (index.nlist, index.d):
        return "its centroids are not those of its lists"
    if lists.nlist != index.nlist or lists.code_size != index.code_size:
        return "its lists are of another index"
    if name == "ivfpq" and (index.pq.d, index.pq.code_size) != (index.d, index.code_size):
        return "its codebooks are of another index"
    sizes = [lists.list_size(i) for i in range(lists.nlist)]
    ids = [faiss.rev_swig_ptr(lists.get_ids(i), n) for i, n in enumerate(sizes) if n]
    found = np.sort(np.concatenate(ids)) if ids else np.empty(0, dtype=np.int64)
    if not np.array_equal(found, np.arange(index.ntotal)):
        return "its lists do not name every row once"
    return None


def _wrong_graph(faiss: Any, index: Any) -> str | None:
    graph = index.hnsw
    storage = faiss.downcast_index(index.storage)
    if type(storage) is not faiss.IndexFlatL2 or (storage.ntotal, storage.d) != (index.ntotal, index.d):
        return "its points are not those of its graph"
    neighbors = faiss.vector_to_array(graph.neighbors)
    offsets, levels = faiss.vector_to_array(graph.offsets), faiss.vector_to_array(graph.levels)
    steps = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    total = index.ntotal
    if len(levels) != total or len(offsets) != total + 1 or not 0 <= graph.entry_point < total:
        return "its graph has another number of points"
    if len(steps) < 2 or steps[0] != 0 or (np.diff(steps) < 0).any() or levels.min() < 1:
        return "its graph has no levels"
    if levels.max() >= len(steps) or graph.max_level != levels[graph.entry_point] - 1:
        return "its graph has levels beyond the last"
    if offsets[0] != 0 or not np.array_equal(np.diff(offsets.astype(np.int64)), steps[levels]):
        return "the neighbours in its graph are not where its levels say"
    if len(neighbors) != offsets[-1] or ((neighbors < -1) | (neighbors >= total)).any():
        return "its graph names points that there are not"
    return None


def _faiss(purpose: str = "an index other than 'flat'") -> Any:
    faiss: Any = require("faiss", purpose)
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
