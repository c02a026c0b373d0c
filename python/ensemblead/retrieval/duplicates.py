"""Pairs of images in an index that nearly repeat one another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ensemblead.retrieval.folder import IndexFolder
from ensemblead.search.cosine import similar_pairs

_PAIRS = 2_000_000  # at most; what more pairs say is of no use, but fills memory


def near_duplicates(
    folder: IndexFolder, threshold: float, report: Callable[[int, int], object]
) -> dict[str, list[str]]:
    """For `ImageIndex.duplicates`."""
    with folder.snapshot() as view:
        numbers = np.arange(len(view.rows)) if view.present is None else view.present
        parts, count = [np.empty((2, 0), dtype=np.int64)], 0
        for pair in similar_pairs(view.rows, numbers, threshold, report):
            parts.append(np.stack(pair))
            count += len(pair[0])
            if count > _PAIRS:
                raise ValueError(
                    f"threshold {threshold:g}: more than {_PAIRS:,} pairs of the {view.count:,} images are "
                    "that similar; raise it"
                )
        pairs = np.concatenate(parts, axis=1)
        pairs = pairs[:, np.lexsort(pairs[::-1])]
        rows = np.unique(pairs)
        entries = folder.entries(rows[None])[0]
    paths = {row: entry.path for row, entry in zip(rows.tolist(), entries, strict=True)}
    found: dict[str, list[str]] = {}
    for first, second in pairs.T.tolist():
        found.setdefault(paths[first], []).append(paths[second])
    return found
