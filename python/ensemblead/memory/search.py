"""Nearest neighbours in squared L2 distance: exact on any device, or approximate through FAISS.

Distances are always those to the rows found, summed from differences: what an index approximates is which
rows it finds.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.errors import DamagedModelError
from ensemblead.extras import require

INDEX_NAMES = ("flat", "ivf", "ivfpq", "hnsw", "sq16")

# The product of a tile of queries with a tile of rows stays in the last cache on a CPU and feeds a GPU.
_CPU_TILE, _CUDA_TILE = (1024, 4096), (16384, 16384)
# Floats per gathered block when distances are summed from differences.
_GATHER = 1 << 20


class Index(Protocol):
    """Finds neighbours; does not own the rows."""

    def search(
        self, queries: torch.Tensor, k: int, excluded: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`; see
        `MemoryBank.search`.
        """


def true_distances(queries: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Squared L2 distances from query q to the rows `indices[q]`: float32, shape of `indices` `[Q, k]`.

    Summed from differences, so they stay right where the expanded form cancels: for near duplicates, or far
    from the origin.
    """
    out = torch.empty(indices.shape, dtype=torch.float32, device=queries.device)
    step = len(indices) if queries.is_cuda else max(1, _GATHER // (queries.shape[1] * indices.shape[1]))
    for a in range(0, len(indices), max(1, step)):
        for j in range(indices.shape[1]):
            difference = rows.index_select(0, indices[a : a + step, j]).sub_(queries[a : a + step])
            out[a : a + step, j] = difference.square_().sum(1)
    return out


def sort_by_distance(
    queries: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """True distances of the rows found, and the rows, nearest first."""
    distances = true_distances(queries, rows, indices)
    if indices.shape[1] > 1:
        distances, order = distances.sort(dim=1, stable=True)
        indices = indices.gather(1, order)
    return distances, indices


class ExactIndex:
    """Every row is compared: a matrix product by tiles, fused with a running minimum. Any device."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        # |x - p|^2 orders rows p as |p'|^2 + 2 m.p' - 2 x.p' does, with p' = p - m. Taking the mean m off the
        # rows keeps the rounding small where all features share a large offset, and costs no pass over the
        # queries.
        self._mean = rows.double().mean(0).float()
        self._offsets = torch.cat(
            [
                (block.double().square().sum(1) + 2.0 * block.double() @ self._mean.double()).float()
                for block in (rows[a : a + 8192] - self._mean for a in range(0, len(rows), 8192))
            ]
        )

    def search(
        self, queries: torch.Tensor, k: int, excluded: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        query_tile, row_tile = _CUDA_TILE if queries.is_cuda else _CPU_TILE
        best = torch.empty(0, device=queries.device)
        # Rows outside, queries inside: a tile of rows is centred once.
        for r in range(0, len(self._rows), row_tile):
            tile = self._rows[r : r + row_tile] - self._mean
            offsets = self._offsets[r : r + row_tile]
            if excluded is not None:
                offsets = offsets.masked_fill(excluded[r : r + row_tile], torch.inf)
            if r == 0:
                best = torch.full((len(queries), k), torch.inf, device=queries.device)
                found.zero_()
            for q in range(0, len(queries), query_tile):
                part = slice(q, q + query_tile)
                product = torch.addmm(offsets, queries[part], tile.T, alpha=-2.0)
                _merge(best[part], found[part], product, r)
        return sort_by_distance(queries, self._rows, found)


def _merge(best: torch.Tensor, found: torch.Tensor, product: torch.Tensor, first_row: int) -> None:
    """Put the k smallest of `product` `[q, r]` and of what was found so far into `best` and `found` `[q,
    k]`.
    """
    k = best.shape[1]
    if k == 1:
        values, places = product.min(1, keepdim=True)
        nearer = values < best
        torch.where(nearer, values, best, out=best)
        torch.where(nearer, places + first_row, found, out=found)
        return
    values, places = product.topk(min(k, product.shape[1]), dim=1, largest=False)
    values, order = torch.cat([best, values], 1).topk(k, dim=1, largest=False)
    best.copy_(values)
    found.copy_(torch.cat([found, places + first_row], 1).gather(1, order))


def nearest_squared(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance from every query `[Q, D]` to its nearest row `[M, D]`: float32 `[Q]`."""
    distances, _ = ExactIndex(rows).search(queries, 1, None)
    return distances[:, 0]


class FaissIndex:
    """An approximate index of FAISS over `rows`, on the CPU; queries on a GPU are copied over and back.

    "ivf": inverted lists, 1 list in 8 visited (at least 8). "ivfpq": the same with product-quantised rows.
    "hnsw": a navigable graph. "sq16": every row compared, in half precision. A query for which the index
    finds fewer than k rows is searched exactly, so k is always what was asked for.
    """

    def __init__(self, name: str, rows: torch.Tensor, index: Any) -> None:
        self.name = name
        self._rows = rows
        self.faiss_index = index

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
        self, queries: torch.Tensor, k: int, excluded: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        faiss = _faiss()
        parameters, keep_alive = self._parameters(faiss, k, excluded)
        _, found = self.faiss_index.search(_host(queries), k, params=parameters)
        del keep_alive
        indices = torch.from_numpy(found).to(queries.device)
        missing = (indices < 0).any(1).nonzero()[:, 0]
        if len(missing):
            _, indices[missing] = ExactIndex(self._rows).search(queries[missing], k, excluded)
        return sort_by_distance(queries, self._rows, indices)

    def _parameters(self, faiss: Any, k: int, excluded: torch.Tensor | None) -> tuple[Any, Any]:
        """FAISS's search parameters, and what must outlive the search because they only point to it."""
        selector, keep_alive = None, None
        if excluded is not None:
            bits = np.packbits((~excluded).cpu().numpy(), bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            keep_alive = (bits, selector)
        options = {} if selector is None else {"sel": selector}
        if self.name in ("ivf", "ivfpq"):
            options["nprobe"] = min(self.faiss_index.nlist, max(8, self.faiss_index.nlist // 8))
            kind = faiss.SearchParametersIVF if self.name == "ivf" else faiss.IVFPQSearchParameters
            return kind(**options), keep_alive
        if self.name == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(64, 4 * k), **options), keep_alive
        return faiss.SearchParameters(**options), keep_alive


def make_index(name: str, rows: torch.Tensor, seed: int) -> ExactIndex | FaissIndex:
    """The index of that name over `rows` float32 `[M, D]`."""
    return ExactIndex(rows) if name == "flat" else FaissIndex.build(name, rows, seed)


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
