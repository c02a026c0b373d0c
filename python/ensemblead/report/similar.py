"""The images of an index that are most similar to the findings of a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblead.common.warnings import warn
from ensemblead.report.pictures import common_folder
from ensemblead.retrieval.queries import search_images

if TYPE_CHECKING:
    from ensemblead.retrieval.hits import Hit
    from ensemblead.retrieval.index import ImageIndex

MOST = 3


@dataclass(frozen=True)
class Neighbours:
    """The `MOST` images of an index that are most similar to each of several, by path, but for itself."""

    index: ImageIndex
    hits: dict[str, list[Hit]]

    @classmethod
    def of(cls, index: ImageIndex, paths: Sequence[str]) -> Neighbours:
        """Of images at `paths`; those that cannot be read have none."""
        if not paths:
            return cls(index, {})
        found = search_images(index, paths, MOST + 1, on_error=lambda position, error: None)
        others = {
            path: [hit for hit in hits if not _is_same(hit.path, path)][:MOST]
            for path, hits in zip(found.queries, found, strict=True)
        }
        return cls(index, others)

    def warn_of_defective(self, paths: Iterable[str]) -> None:
        """Warn where images that the report knows to be defective are among those named."""
        defective = set(map(os.path.realpath, paths))
        named = {hit.path for hits in self.hits.values() for hit in hits}
        found = sorted(path for path in named if os.path.realpath(path) in defective)
        if found:
            warn(
                f"similar: {self.index.path} has defective images of these data, {len(found)} of them are "
                f"named as similar, such as {found[0]}; build the index of normal images alone"
            )

    @property
    def folder(self) -> str:
        """The folder that all of them lie below; "" if there are none."""
        paths = [hit.path for hits in self.hits.values() for hit in hits]
        return common_folder(paths) if paths else ""

    def described(self, path: str) -> dict[str, Any]:
        """Those of an image, named as they lie below `folder`, as the page's script reads them."""
        if not self.hits.get(path):
            return {}
        names = [Path(os.path.relpath(hit.path, self.folder)).as_posix() for hit in self.hits[path]]
        pairs = zip(names, self.hits[path], strict=True)
        return {"similar": [[round(min(hit.similarity, 1.0), 4), name] for name, hit in pairs]}

    def note(self) -> str:
        """What they are, as a term of the page's notes."""
        below = f"; they lie below <code>{escape(self.folder)}</code>" if self.folder else ""
        return (
            f"<dt>Most similar images</dt><dd>of the {len(self.index):,} images of the index "
            f"<code>{escape(str(self.index.path))}</code>, by the cosine similarity of their embeddings, "
            f"at most 1{below}.</dd>"
        )


def _is_same(path: str, other: str) -> bool:
    """Whether two paths name one file, links followed."""
    return os.path.realpath(path) == os.path.realpath(other)
