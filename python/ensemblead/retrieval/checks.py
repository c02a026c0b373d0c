"""Embeddings and labels as arguments: checked, and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.validation import some_of
from ensemblead.metrics.inputs import as_numpy

Matrix = npt.NDArray[np.floating[Any]]
Label = str | int


def are_embeddings(given: Any) -> bool:
    """Whether an argument is a list of arrays, one per network, and no images."""
    return isinstance(given, (list, tuple)) and bool(given) and all(hasattr(one, "ndim") for one in given)


def check_embeddings(given: Any, members: int, *, zeros: bool = False) -> list[Matrix]:
    """One floating array `[N, D_k]` per member, all of one length.

    Args:
        zeros: whether vectors of zeros may stand among them.

    Raises ValueError naming the array, and the positions in it, for lengths that differ, values that are not
    finite, and vectors of zeros; TypeError for anything but arrays of numbers.
    """
    if not are_embeddings(given):
        raise TypeError(f"embeddings must be a list of arrays [N, D], one per member, got {_kind(given)}")
    if len(given) != members:
        raise ValueError(f"embeddings must be one array per member ({members}), got {len(given)}")
    checked: list[Matrix] = []
    for k, one in enumerate(given):
        array = as_numpy(one, f"embeddings[{k}]")
        if array.dtype.kind not in "fiu":
            raise TypeError(f"embeddings[{k}] must be numbers, got {array.dtype}")
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"embeddings[{k}] must be [N, D], got shape {array.shape}")
        if checked and len(array) != len(checked[0]):
            raise ValueError(
                f"embeddings must have one length, but embeddings[0] has {len(checked[0])} vectors and "
                f"embeddings[{k}] has {len(array)}"
            )
        floats = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
        check_finite(f"embeddings[{k}]", floats)
        if not zeros:
            check_nonzero(f"embeddings[{k}]", floats)
        checked.append(floats)
    return checked


def check_finite(what: str, vectors: Matrix) -> None:
    """Raise ValueError naming vectors that have NaN or infinity."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise ValueError(f"{what} must be finite, but has NaN or infinity at {positions(wrong)}")


def check_nonzero(what: str, vectors: Matrix, start: int = 0) -> None:
    """Raise ValueError naming vectors of zeros; positions count from `start`."""
    wrong = np.flatnonzero(~vectors.any(axis=1)) + start
    if len(wrong):
        raise zero_vectors(what, wrong)


def zero_vectors(what: str, wrong: Iterable[Any]) -> ValueError:
    """The error for vectors of zeros at some positions."""
    return ValueError(f"{what} has zero vectors, which have no direction, at {positions(wrong)}")


def positions(places: Iterable[Any]) -> str:
    """Positions as messages name them."""
    named = [str(int(place)) for place in places]
    return f"position{'s' * (len(named) > 1)} {some_of(named)}"


def check_labels(given: Any, count: int) -> tuple[tuple[Label, ...], npt.NDArray[np.int64]]:
    """The distinct labels, sorted, and the number among them of each of `count` images.

    Raises TypeError for labels that are neither all strings nor all whole numbers, ValueError for a length
    other than `count`, and for a single class.
    """
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
        raise TypeError(f"labels must be a sequence of strings or whole numbers, got {_kind(given)}")
    labels = [one.item() if hasattr(one, "item") else one for one in given]
    if len(labels) != count:
        raise ValueError(f"labels must be one per image ({count}), got {len(labels)}")
    kinds = {type(one) for one in labels}
    if kinds not in ({str}, {int}):
        wrong = next(one for one in labels if type(one) not in (str, int) or type(one) is not type(labels[0]))
        raise TypeError(f"labels must be all strings or all whole numbers, got {wrong!r}")
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"labels must be of two classes at least, got {classes[0]!r} alone")
    number = {label: i for i, label in enumerate(classes)}
    return tuple(classes), np.array([number[label] for label in labels], dtype=np.int64)


def _kind(given: Any) -> str:
    if not isinstance(given, (list, tuple)):
        return type(given).__name__
    items = sorted({type(one).__name__ for one in given})
    return f"a {type(given).__name__} of {', '.join(items) or 'nothing'}"
