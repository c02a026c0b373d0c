"""What a search finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath, csv_line, write_atomically


class Hit(NamedTuple):
    """One image found: its number in the index, its path, the cosine similarity (-1..1), and its label."""

    id: int
    path: str
    similarity: float
    label: str | None


@dataclass(frozen=True)
class Hits:
    """The images found for Q queries, n for each, the most similar first; of equal ones the lower id.

    `hits[q]` is the list of `Hit` of query q, and iterating gives these lists. `print(hits)` shows a table.

    Attributes:
        queries: the query's path, or its number, `[Q]`.
        ids: int64 `[Q, n]`.
        similarities: cosine similarities float32 `[Q, n]`, -1..1.
        paths: `[Q][n]`.
        labels: `[Q][n]`; None for an image without a label.
    """

    queries: list[str]
    ids: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]
    paths: list[list[str]]
    labels: list[list[str | None]]

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, query: int) -> list[Hit]:
        parts = self.ids[query].tolist(), self.paths[query], self.similarities[query].tolist()
        return [Hit(*values) for values in zip(*parts, self.labels[query], strict=True)]

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[query] for query in range(len(self)))

    def __repr__(self) -> str:
        return f"Hits({len(self)} quer{'y' if len(self) == 1 else 'ies'}, {self.ids.shape[1]} images each)"

    def __str__(self) -> str:
        lines = []
        for query, hits in zip(self.queries, self, strict=True):
            lines.append(f"{query}: {len(hits)} image{'' if len(hits) == 1 else 's'}")
            lines += [f"  {hit.similarity:.4f}  {hit.path}" + f"  {hit.label or ''}".rstrip() for hit in hits]
        return "\n".join(lines)

    def to_csv(self, path: StrPath) -> Path:
        """A file with a line per hit: query, rank (from 1), id, path, similarity, label."""
        lines = [csv_line(("query", "rank", *Hit._fields))]
        for query, hits in zip(self.queries, self, strict=True):
            for rank, hit in enumerate(hits, start=1):
                lines.append(csv_line((query, rank, hit.id, hit.path, hit.similarity, hit.label or "")))
        return write_atomically(path, "".join(lines))

    def to_json(self) -> str:
        """A list of `{"query": ..., "hits": [{"id", "path", "similarity", "label"}, ...]}`."""
        found = zip(self.queries, self, strict=True)
        return json.dumps(
            [{"query": query, "hits": [hit._asdict() for hit in hits]} for query, hits in found]
        )
