"""Approximate greedy coreset: k-center greedy selection of rows, and the linear map that precedes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ensemblead import _core
from ensemblead.kernels.arrays import Array, framework_of, work_arguments


def select_coreset(
    features: Array,
    fraction: float | None = 0.01,
    *,
    size: int | None = None,
    radius: float | None = None,
    projection_dim: int | None = 128,
    start: str = "mean",
    num_starts: int = 10,
    seed: int = 0,
    bank: Array | None = None,
    projection: Array | None = None,
    start_indices: Array | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Array:
    """Pick rows that cover all rows: farthest-point selection, exact and in the order of the picks.

    Again and again the row with the largest value is picked, ties to the lowest index, and every row's value
    becomes the minimum of itself and its Euclidean distance to the new pick. The picks are those of the
    plain sequential loop for any number of threads; when all values are 0 (nothing but duplicates is left)
    row 0 repeats. A GPU adds up in another order than a CPU: where two rows' values agree in all but the last
    bits of float32, the two may pick differently.

    Args:
        features: rows ``[N, D]``, float32, contiguous, finite.
        fraction: how many rows to pick, as a share of N in (0, 1]: ``max(1, int(N * fraction))``. None,
            allowed together with `radius`, sets no limit.
        size: how many rows to pick, instead of `fraction`.
        radius: stop as soon as no row's value exceeds this Euclidean distance (not squared, and in the
            projected space where rows are projected). The result may then be shorter, with `bank` even empty.
        projection_dim: distances are taken after a random linear map to this many dimensions, with weights
            uniform in ``+-1/sqrt(D)``; None, or a value of D or more, takes them between the rows themselves.
        start: a row's value before the first pick. ``"mean"``: the mean distance to `num_starts` random
            rows, which are not themselves picked. ``"row"``: infinity, and one random row is the first pick.
        num_starts: how many start rows ``start="mean"`` takes (N, if N is smaller).
        seed: of the random map and the random start rows.
        bank: ``[K, D]`` float32 rows that are covered already, projected by the same map. Values start as
            the distance to the nearest of them, `start` is not used, and `fraction` and `size` count new
            rows only.
        projection: the linear map to use, ``[P, D]`` (or ``[D, P]`` where that cannot be mistaken), instead
            of a random one.
        start_indices: the start rows to use, int64 ``[S]``, instead of random ones; exactly one for
            ``start="row"``.
        progress: called as ``progress(done, size)`` between blocks of picks. An exception in it, or Ctrl-C,
            ends the selection.

    Returns:
        Indices of the picked rows, int64 ``[M]``, in the order of the picks; an array of the same framework
        and device as `features`. CUDA arrays are worked on by the current stream, which the call waits for.

    Raises:
        ValueError: a wrong value or shape, or features that are not finite.
        TypeError: a wrong kind of array or dtype.

    References:
        Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985; Roth et al., *Towards
        Total Recall in Industrial Anomaly Detection*, CVPR 2022, whose reference implementation sets the
        defaults.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> rows = np.array([[0, 0], [1, 0], [9, 0], [9, 9]], dtype=np.float32)
        >>> ead.select_coreset(rows, size=2, start="row", start_indices=np.array([0]))
        array([0, 3])
    """
    framework = framework_of(features, "features")
    rows, dims = _matrix_shape(features, "features", "[N, D]")
    limit = _number_of_picks(rows, fraction, size, radius)
    if start not in ("mean", "row"):
        raise ValueError(f'start must be "mean" or "row", got {start!r}')
    if bank is not None:
        _same_framework(bank, "bank", framework.name)
        if _matrix_shape(bank, "bank", "[K, D]")[1] != dims:
            raise ValueError(f"bank must have {dims} columns like features, got shape {tuple(bank.shape)}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got {type(progress).__name__}")
    starts = _start_rows(rows, start, num_starts, start_indices, seed)
    weights = _projection_weights(dims, projection_dim, projection, seed)
    if weights is not None:
        features = project(features, weights)
        bank = None if bank is None else _project(bank, weights, "bank")
    with framework.on_device(features):
        picks = framework.empty((limit,), "int64", features)
        dims = int(features.shape[1])  # after the projection
        work = work_arguments(framework, features, lambda: _core.select_coreset_scratch(rows, dims))
        count, _ = _core.select_coreset(
            features,
            picks,
            start=start,
            start_rows=starts,
            bank=bank,
            radius=-1.0 if radius is None else float(radius),
            plain=False,
            progress=progress,
            **work,
        )
    return picks[:count]


def project(features: Array, projection: Array) -> Array:
    """Map rows linearly: ``features @ projection.T``.

    Every row's result depends on that row alone, bit for bit, so rows may come in batches of any size. Sums
    are in float32 on every device, never in a shorter format.

    Args:
        features: rows ``[N, D]``, float32, contiguous, finite.
        projection: ``[P, D]`` float32, as the weight of a linear layer without bias.

    Returns:
        ``[N, P]`` float32, of the same framework and device as `features`.
    """
    return _project(features, projection, "features")


def _project(features: Array, projection: Array, argument: str) -> Array:
    """`argument` is the name that errors use for `features`."""
    framework = framework_of(features, argument)
    rows, dims = _matrix_shape(features, argument, "[N, D]")
    out_dims, columns = _matrix_shape(projection, "projection", "[P, D]")
    if columns != dims:
        raise ValueError(
            f"projection must have {dims} columns like {argument}, got shape {tuple(projection.shape)}"
        )
    if isinstance(projection, np.ndarray) and framework.name != "numpy":
        projection = framework.asarray(projection, features)
    if framework.device(features) != "cpu":
        # Another framework may still be computing it, on a stream of its own that nothing here waits for.
        _same_framework(projection, "projection", framework.name)
    with framework.on_device(features):
        projected = framework.empty((rows, out_dims), "float32", features)
        work = work_arguments(framework, features, _core.project_rows_scratch)
        _core.project_rows(features, projection, projected, argument=argument, **work)
    return projected


def random_projection(dims: int, projection_dim: int, seed: int) -> np.ndarray[Any, Any]:
    """The linear map that `select_coreset` draws for `seed`: ``[projection_dim, dims]`` float32.

    Weights are uniform in ``+-1/sqrt(dims)``.
    """
    weights = _generator(seed, _PROJECTION).uniform(-1.0, 1.0, (projection_dim, dims)) / np.sqrt(dims)
    return np.ascontiguousarray(weights, dtype=np.float32)


# Streams of one seed, so that neither draw depends on the other.
_PROJECTION, _STARTS = 0, 1


def _generator(seed: int, stream: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return np.random.default_rng([int(seed), stream])


def _matrix_shape(array: Array, argument: str, layout: str) -> tuple[int, int]:
    framework_of(array, argument)
    shape = tuple(int(extent) for extent in array.shape)
    if len(shape) != 2:
        raise ValueError(f"{argument} must be 2-D {layout}, got shape {shape}")
    if 0 in shape:
        raise ValueError(f"{argument} is empty, got shape {shape}")
    return shape[0], shape[1]


def _same_framework(array: Array, argument: str, name: str) -> None:
    seen = framework_of(array, argument).name
    if seen != name:
        raise TypeError(f"{argument} must be a {name} array like features, got a {seen} array")


def _number_of_picks(rows: int, fraction: float | None, size: int | None, radius: float | None) -> int:
    if radius is not None:
        if isinstance(radius, bool) or not isinstance(radius, (int, float, np.number)):
            raise TypeError(f"radius must be a number, got {type(radius).__name__}")
        if not 0.0 <= radius < np.inf:
            raise ValueError(f"radius must be a finite distance of 0 or more, got {radius}")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise TypeError(f"size must be an integer, got {type(size).__name__}")
        if not 1 <= size <= rows:
            raise ValueError(f"size must lie in [1, {rows}] for {rows} rows of features, got {size}")
        return int(size)
    if fraction is None:
        if radius is None:
            raise ValueError("fraction may be None only together with radius; give fraction, size or radius")
        return rows
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.number)):
        raise TypeError(f"fraction must be a number, got {type(fraction).__name__}")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    return max(1, int(rows * fraction))


def _start_rows(
    rows: int, start: str, num_starts: int, start_indices: Array | None, seed: int
) -> np.ndarray[Any, Any]:
    if start_indices is None:
        if isinstance(num_starts, bool) or not isinstance(num_starts, (int, np.integer)):
            raise TypeError(f"num_starts must be an integer, got {type(num_starts).__name__}")
        if num_starts < 1:
            raise ValueError(f"num_starts must be at least 1, got {num_starts}")
        wanted = min(int(num_starts), rows) if start == "mean" else 1
        return _generator(seed, _STARTS).choice(rows, wanted, replace=False).astype(np.int64)
    if hasattr(start_indices, "cpu"):  # a torch tensor
        start_indices = start_indices.cpu()
    elif hasattr(start_indices, "get"):  # a CuPy array
        start_indices = start_indices.get()
    indices = np.asarray(start_indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"start_indices must be integers, got {indices.dtype}")
    if indices.ndim != 1 or indices.size == 0:
        raise ValueError(f"start_indices must be 1-D [S] and not empty, got shape {indices.shape}")
    if start == "row" and indices.size != 1:
        raise ValueError(f'start_indices must hold exactly one row for start="row", got {indices.size}')
    if indices.min() < 0 or indices.max() >= rows:
        raise ValueError(f"start_indices must lie in [0, {rows}), got {indices.min()} to {indices.max()}")
    return np.ascontiguousarray(indices, dtype=np.int64)


def _projection_weights(
    dims: int, projection_dim: int | None, projection: Array | None, seed: int
) -> Array | None:
    if projection is not None:
        shape = _matrix_shape(projection, "projection", "[P, D]")
        if shape[1] == dims:
            return projection
        if shape[0] == dims:
            framework = framework_of(projection, "projection")
            if framework.name == "torch":
                return projection.T.contiguous()
            with framework.on_device(projection):  # CuPy copies to the current device, whatever the array's
                return projection.T.copy()  # in row order, NumPy and CuPy
        raise ValueError(
            f"projection must be [P, {dims}] for features with {dims} columns, got shape {shape}"
        )
    if projection_dim is None:
        return None
    if isinstance(projection_dim, bool) or not isinstance(projection_dim, (int, np.integer)):
        raise TypeError(f"projection_dim must be an integer or None, got {type(projection_dim).__name__}")
    if projection_dim < 1:
        raise ValueError(f"projection_dim must be at least 1, got {projection_dim}")
    if projection_dim >= dims:
        return None
    return random_projection(dims, int(projection_dim), seed)
