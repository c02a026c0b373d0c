"""The images of an index that are most similar to the findings of a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblead.common.warnings import warn
from ensemblead.images import read_image
from ensemblead.report.pictures import common_folder, photo_url
from ensemblead.retrieval.queries import search_images

if TYPE_CHECKING:
    from ensemblead.retrieval.hits import Hit
    from ensemblead.retrieval.index import ImageIndex

MOST = 3
_SIDE = 192  # the longer side of a picture, twice as large as it is shown


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
        """Similarity and place in `photos` of those of an image, as the page's script reads them."""
        found = self.hits.get(path)
        if not found:
            return {}
        return {"similar": [[round(min(hit.similarity, 1.0), 4), self._places[hit.path]] for hit in found]}

    def photos(self, missing: list[str]) -> Iterator[dict[str, Any]]:
        """Each of them once, read one at a time: named as it lies below `folder`, with its picture and file.

        Files that cannot be read are appended to `missing`, and have no picture.
        """
        folder = self.folder
        for path in self._places:
            name = Path(os.path.relpath(path, folder)).as_posix()
            try:
                photo = {"src": photo_url(read_image(path), _SIDE)}
            except (OSError, ValueError, MemoryError):
                missing.append(path)
                photo = {}
            yield {"name": name, "href": Path(os.path.abspath(path)).as_uri(), **photo}

    @cached_property
    def _places(self) -> dict[str, int]:
        paths = dict.fromkeys(hit.path for hits in self.hits.values() for hit in hits)
        return {path: place for place, path in enumerate(paths)}

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
