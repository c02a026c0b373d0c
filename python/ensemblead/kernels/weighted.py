"""The largest weighted sums of blocks of similarities: one pass over the blocks for many combinations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemblead import _core
from ensemblead.kernels.arrays import Array, Framework, framework_of, work_arguments


def weighted_top_k(
    blocks: Sequence[Array],
    weights: Any,
    k: int,
    *,
    exclude: Array | None = None,
    scales: Array | None = None,
) -> tuple[Array, Array]:
    """The k columns with the largest weighted sum of blocks, for every query and combination of weights.

    The similarity of query `q` and column `n` under combination `w` is
    `sum_b weights[w, b] * blocks[b][q, n]`, times `scales[w, n]` if given. With the similarities of several
    networks as blocks, and squared weights, it orders the columns as the weighted, concatenated embeddings
    do. The blocks are read once for all combinations. Sums are float32 in the order of the blocks, fused with
    products where the processor can. The result is the same for any number of threads.

    Args:
        blocks: K arrays float32 `[Q, N]`, contiguous, of one framework and device; 1 to 64.
        weights: `[W, K]`: an array of the framework of the blocks, float32, or anything that NumPy reads.
        k: 1 to N.
        exclude: what is left out of the results: int64 `[Q]`, one column for every query (below 0: none), or
            bool `[Q, N]`, true for what is left out.
        scales: float32 `[W, N]`, a factor for every column.

    Returns:
        Similarities float32 `[W, Q, k]`, the largest first, and their columns int64 `[W, Q, k]`, the lower
        first among equals. Similarities of NaN or minus infinity are not retrieved, and -0 counts as 0.
        Where fewer than k columns are left, minus infinity and -1 follow.

    Raises:
        TypeError: another dtype, an array of no framework or of another one, `k` no int.
        ValueError: no block, another shape, layout or device, k out of range, or weights that are not finite
            (of those that NumPy reads).

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> colour = np.array([[0.9, 0.1, 0.5]], np.float32)
        >>> shape = np.array([[0.1, 0.8, 0.6]], np.float32)
        >>> similarities, columns = ead.weighted_top_k([colour, shape], [[1, 0], [1, 1]], 2)
        >>> columns.tolist()  # by colour alone, and by both
        [[[0, 2]], [[2, 0]]]
    """
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise ValueError(f"blocks must be a list of arrays [Q, N], got {_told(blocks)}")
    first = blocks[0]
    framework = framework_of(first, "blocks[0]")
    for index, block in enumerate(blocks):
        _check_framework(block, f"blocks[{index}]", framework)
        if block.ndim != 2 or 0 in block.shape:
            raise ValueError(f"blocks[{index}] must be 2-D [Q, N], not empty, got shape {tuple(block.shape)}")
    queries, columns = (int(extent) for extent in first.shape)
    count = _count(k, columns)
    with framework.on_device(first):
        placed = _weights(weights, len(blocks), framework, first)
        column, mask = _excluded(exclude, (queries, columns), framework)
        if scales is not None:
            _check_framework(scales, "scales", framework)
        combinations = int(placed.shape[0])
        shape = (combinations, queries, count)
        values = framework.empty(shape, "float32", first)
        indices = framework.empty(shape, "int64", first)

        def scratch_bytes() -> int:
            return _core.weighted_top_k_scratch(*shape)

        _core.weighted_top_k(
            blocks,
            placed,
            values,
            indices,
            scales=scales,
            left_out_column=column,
            left_out=mask,
            **work_arguments(framework, first, scratch_bytes),
        )
    return values, indices


def _told(blocks: object) -> str:
    return "none" if isinstance(blocks, (list, tuple)) else type(blocks).__name__


def _check_framework(array: Array, argument: str, framework: Framework) -> None:
    name = framework_of(array, argument).name
    if name != framework.name:
        raise TypeError(f"{argument} is of {name} but blocks[0] is of {framework.name}")


def _count(k: object, columns: int) -> int:
    if isinstance(k, (bool, np.bool_)) or not hasattr(k, "__index__"):
        raise TypeError(f"k must be an int, got {k!r}")
    count = operator.index(k)
    if not 1 <= count <= columns:
        raise ValueError(f"k must be between 1 and the {columns} columns, got {count}")
    return count


def _weights(weights: Any, blocks: int, framework: Framework, like: Array) -> Array:
    """`weights` as an array of the framework, on the device of the blocks."""
    own = hasattr(weights, "__dlpack__") and not isinstance(weights, np.ndarray)
    if own:
        _check_framework(weights, "weights", framework)
        host = weights
    else:
        try:
            host = np.ascontiguousarray(weights, np.float32)
        except (TypeError, ValueError):
            raise TypeError(f"weights must be numbers [W, K], got {weights!r}") from None
    if host.ndim != 2 or host.shape[1] != blocks or 0 in host.shape:
        raise ValueError(
            f"weights must be [W, {blocks}], one for each of the {blocks} blocks, got shape "
            f"{tuple(host.shape)}"
        )
    if own:
        return host
    if not np.isfinite(host).all():
        raise ValueError(f"weights must be finite, got {host[~np.isfinite(host)][0]}")
    return framework.asarray(host, like)


def _excluded(
    exclude: Array | None, shape: tuple[int, int], framework: Framework
) -> tuple[Array | None, Array | None]:
    """The column of every query, or the mask as uint8."""
    if exclude is None:
        return None, None
    _check_framework(exclude, "exclude", framework)
    dtype = framework.dtype(exclude)
    if dtype not in ("bool", "int64"):
        raise TypeError(f"exclude must be int64 [Q] or bool [Q, N], got {dtype}")
    wanted = shape if dtype == "bool" else shape[:1]
    if tuple(exclude.shape) != wanted:
        raise ValueError(f"exclude must have shape {wanted} for {dtype}, got {tuple(exclude.shape)}")
    return (exclude, None) if dtype == "int64" else (None, framework.as_bytes(exclude))
