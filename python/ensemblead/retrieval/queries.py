"""Searching for many images by their paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblead.common.files import StrPath
from ensemblead.retrieval.catalogue import checked_conditions
from ensemblead.retrieval.hits import Hits

if TYPE_CHECKING:
    from ensemblead.retrieval.index import ImageIndex


def search_images(
    index: ImageIndex,
    images: Sequence[StrPath],
    top: int = 20,
    *,
    where: Mapping[str, Any] | None = None,
    on_error: Callable[[int, Exception], object] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Hits:
    """`index.search` for many paths, of which some may be unreadable.

    Args:
        on_error: called with the position of an image that cannot be read, or whose vector is zero, and the
            error; the image is then left out of the result. None: the error is raised.
        progress: called as `progress("embed", done, total)`.

    Raises as `ImageIndex.search`.
    """
    if where is not None:
        checked_conditions(where)  # before many images are embedded
    paths = [os.fspath(path) for path in images]
    kept: list[int] = []
    vectors: list[Any] = []
    for positions, batch in index.embedder.embed_batches(paths, on_error=on_error):
        for position, vector in zip(positions.tolist(), batch, strict=True):
            if vector.any():
                kept.append(position)
                vectors.append(vector)
                continue
            error = ValueError(f"{paths[position]}: its vector is zero, so that nothing is similar to it")
            if on_error is None:
                raise error
            on_error(position, error)
        if progress is not None:
            progress("embed", int(positions[-1]) + 1, len(paths))
    if progress is not None:
        progress("embed", len(paths), len(paths))  # the last ones may be among those left out
    if not kept:
        return Hits([], np.empty((0, 0), np.int64), np.empty((0, 0), np.float32), [], [])
    found = index.search(np.stack(vectors), top, where=where)
    return replace(found, queries=[paths[position] for position in kept])
