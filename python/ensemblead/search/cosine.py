"""Exact search by cosine similarity: the largest inner products of rows of length 1, in bounded memory.

Rows may lie in a memory-mapped file, in float16 or float32. They are read a chunk at a time. Products in
float32 say which rows may be among the nearest, and products in float64 settle it, so that the result does
not depend on chunks, threads or the order of a sum. docs/design/index.md has the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.precision import exact_products

Rows = npt.NDArray[np.float16] | npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# A chunk of rows in float32, which a core's cache holds, and a block of products.
CHUNK_BYTES, _BLOCK_BYTES = 4 << 20, 32 << 20
_QUERIES = 256  # in one block of products
_UNSURE = 32  # queries for which all rows are looked at again together
_SPARE = 32  # rows kept beyond those asked for, among which float64 decides
_GATHERED = 1 << 22  # values of rows that are gathered at a time


def most_similar(
    queries: Floats, rows: Rows, k: int, numbers: Numbers | None = None
) -> tuple[Floats, Numbers]:
    """The k rows with the largest inner products: float32 `[Q, k]`, descending, and row numbers `[Q, k]`.

    Products are summed in float64 and rounded to float32; among equals the lower row comes first.

    Args:
        queries: `[Q, D]`, of length 1.
        rows: `[N, D]`, of length 1 up to rounding.
        k: at most as many as there are rows to search.
        numbers: the rows to search, ascending; None: all.
    """
    total = len(rows) if numbers is None else len(numbers)
    kept = min(total, k + _SPARE)
    values, found = _candidates(queries, rows, kept, numbers)
    similarities, found = ordered_by_similarity(queries, rows, found)
    if kept < total:
        # A row that was not kept has a product of at most the last one kept, and so a similarity of at most
        # that and the error.
        last, error = similarities[:, k - 1], _error(rows.shape[1])
        unsure = np.flatnonzero(values[:, -1] + error >= last)
        for some in (unsure[a : a + _UNSURE] for a in range(0, len(unsure), _UNSURE)):
            similarities[some, :k], found[some, :k] = _settled(
                queries[some], rows, k, last[some] - error, numbers
            )
    return similarities[:, :k], found[:, :k]


def _settled(
    queries: Floats, rows: Rows, k: int, limits: Floats, numbers: Numbers | None
) -> tuple[Floats, Numbers]:
    """The k most similar rows of every query, of those whose float32 product is at least its limit `[Q]`.

    The best so far are kept, not all of those: where rows are equal, every one reaches the limit.
    """
    similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    for places, some in _at_least(queries, rows, limits, numbers):
        for q in np.unique(places):
            values, own = ordered_by_similarity(queries[q : q + 1], rows, some[None, places == q])
            values, own = np.append(similarities[q], values), np.append(found[q], own)
            best = np.argsort(-values, kind="stable")[:k]  # rows of later chunks are higher
            similarities[q], found[q] = values[best], own[best]
    return similarities, found


def ordered_by_similarity(queries: Floats, rows: Rows, found: Numbers) -> tuple[Floats, Numbers]:
    """Similarities of query q to the rows `found[q]`, and these, the most similar first; -1 stays last, with
    a similarity of -inf.
    """
    similarities = np.full(found.shape, -np.inf, dtype=np.float32)
    step = max(1, _GATHERED // rows.shape[1])
    for q, query in enumerate(queries.astype(np.float64)):
        places = np.flatnonzero(found[q] >= 0)
        for part in np.array_split(places, -(-len(places) // step) or 1):
            similarities[q, part] = (rows[found[q, part]] * query).sum(1)
    # NumPy sorts by the last key first; a row that is missing is no row below the others.
    order = np.lexsort((np.where(found < 0, np.iinfo(np.int64).max, found), -similarities), axis=1)
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(found, order, 1)


def similar_pairs(
    rows: Rows,
    numbers: Numbers,
    threshold: float,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[Numbers, Numbers]]:
    """Every pair of rows (the lower one first) whose cosine is at least `threshold`, in parts: the lower rows
    and the others. A part is of a chunk of rows, and so bounded, however many pairs there are.

    All pairs are compared. Cosines are computed in float64 and divided by the lengths, which rounding to
    float16 changes by up to 2^-11, so that equal rows have 1. They are rounded to float32, as the threshold
    is.
    """
    lengths = 1.1 * float(np.finfo(rows.dtype).eps)  # of two rows, each rounded by half of it
    limit = np.float32(threshold - _error(rows.shape[1]) - lengths)
    for a in range(0, len(numbers), _QUERIES):
        block = numbers[a : a + _QUERIES]
        some = np.asarray(rows[block], dtype=np.float32)
        for first, second in _at_least(some, rows, np.full(len(some), limit), numbers[a:]):
            later = second > block[first]
            first, second = first[later], second[later]
            near = _cosines(some, rows, first, second) >= np.float32(threshold)
            yield block[first[near]], second[near]
        progress(min(a + _QUERIES, len(numbers)), len(numbers))


def _cosines(some: Floats, rows: Rows, first: Numbers, second: Numbers) -> Floats:
    """Of `some[first]` and `rows[second]`, summed in float64 and rounded to float32."""
    found = np.empty(len(first), dtype=np.float32)
    step = max(1, _GATHERED // rows.shape[1])
    for a in range(0, len(first), step):
        part = slice(a, a + step)
        one, other = some[first[part]].astype(np.float64), rows[second[part]].astype(np.float64)
        found[part] = (one * other).sum(1) / np.sqrt((one * one).sum(1) * (other * other).sum(1))
    return found


def _error(dims: int) -> float:
    """How far a product in float32 may be from the similarity, for lengths of up to 1.01."""
    # D roundings of a sum whose terms' magnitudes sum to at most |x| |p| (Higham, Accuracy and Stability of
    # Numerical Algorithms, section 3.1), one of the query, and one of the similarity to float32.
    return 1.03 * (dims + 8) * 2.0**-24


def _chunks(rows: Rows, numbers: Numbers | None) -> Iterator[tuple[Any, torch.Tensor]]:
    """Row numbers and the rows in float32, so many that they fill `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    total = len(rows) if numbers is None else len(numbers)
    buffer = torch.empty((min(step, total), rows.shape[1]))
    for a in range(0, total, step):
        b = min(a + step, total)
        part = np.arange(a, b) if numbers is None else numbers[a:b]
        contiguous = part[-1] - part[0] == len(part) - 1
        chunk = rows[part[0] : part[-1] + 1] if contiguous else rows[part]
        if chunk.dtype == np.float32:
            yield part, torch.from_numpy(chunk)
        else:  # into one buffer: fresh memory costs more than the conversion
            yield part, buffer[: len(part)].copy_(torch.from_numpy(chunk))


def _blocks(queries: Floats, chunk: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Products of a block of queries with a chunk of rows, `[q, r]`."""
    step = max(1, min(_QUERIES, _BLOCK_BYTES // (4 * len(chunk))))
    for a in range(0, len(queries), step):
        with exact_products():
            products = torch.from_numpy(queries[a : a + step]) @ chunk.T
        yield slice(a, a + step), products


def _candidates(queries: Floats, rows: Rows, count: int, numbers: Numbers | None) -> tuple[Floats, Numbers]:
    """The rows with the `count` largest float32 products, and these products, descending: `[Q, count]`."""
    best = torch.full((len(queries), count), -torch.inf)
    found = torch.full((len(queries), count), -1, dtype=torch.int64)
    for part, chunk in _chunks(rows, numbers):
        part = torch.from_numpy(part)
        for block, products in _blocks(queries, chunk):
            # Once the best are good, few of a chunk are better: only those are sorted.
            better = products > best[block, -1:]
            most = int(better.sum(1).max())
            if most == 0:
                continue
            values, columns = products.topk(min(most, count), dim=1)
            values, order = torch.cat([best[block], values], 1).topk(count, dim=1)
            best[block] = values
            found[block] = torch.cat([found[block], part[columns]], 1).gather(1, order)
    return best.numpy(), found.numpy()


def _at_least(
    queries: Floats, rows: Rows, limits: Floats, numbers: Numbers | None
) -> Iterator[tuple[Numbers, Numbers]]:
    """Places of queries and numbers of rows whose float32 product is at least the query's limit `[Q]`, block
    by block; of one query ascending.
    """
    least = torch.from_numpy(limits)[:, None]
    for part, chunk in _chunks(rows, numbers):
        for block, products in _blocks(queries, chunk):
            query, column = (products >= least[block]).nonzero(as_tuple=True)
            yield (query + block.start).numpy(), part[column.numpy()]
