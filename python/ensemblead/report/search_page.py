"""What a search found as one file that loads nothing and needs no script: queries and hits, with pictures.

Text from file names is escaped, and the page's policy allows no style but its own, by its hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from re import sub

from ensemblead.common.files import StrPath, write_atomically
from ensemblead.common.validation import whole_number
from ensemblead.common.warnings import warn
from ensemblead.images import read_image
from ensemblead.report.pictures import common_folder, photo_url
from ensemblead.report.template import filled, stamp, write_pieces
from ensemblead.retrieval.hits import Hit, Hits

# The longer side of a query and of a hit on the page, twice as large as it is shown.
_QUERY_SIDE, _HIT_SIDE = 448, 336
_KEPT = 256  # pictures that are not read again when another query finds them


def write_search_page(
    hits: Hits, path: StrPath, *, title: str = "Similar images", note: str = "", max_queries: int = 200
) -> Path:
    """Write a page of the queries of a search, and the images found for each, the most similar first.

    Images are read from their paths, one at a time. A picture takes 5 to 20 KB, and is a link to its file.
    One that is gone or cannot be read is left out; the page says so where it would be, and a warning counts
    them.

    Args:
        note: what a reader must know beside: which images were searched, and by what conditions.
        max_queries: how many queries to show, the first ones; with 20 hits each, 200 take some 35 MB. The
            page says how many there were.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> import ensemblead as ead
        >>> embedder = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i, level in enumerate((40, 80, 200)):
        ...         pixels = np.random.default_rng(i).integers(0, level, (48, 48, 3), dtype=np.uint8)
        ...         Image.fromarray(pixels).save(f"{folder}/{i}.png")
        ...     with ead.ImageIndex.build(folder, embedder, f"{folder}/index") as index:
        ...         hits = index.search(f"{folder}/0.png", top=2)
        ...     page = write_search_page(hits, f"{folder}/results.html").read_text()
        >>> page.count("<img"), "0.png" in page
        (3, True)
    """
    missing: list[str] = []
    pictures = _Pictures(missing)
    number, count = len(hits), sum(map(len, hits.paths))
    queries = hits.queries[: whole_number("max_queries", max_queries, 1)]
    base, shown = _names({path for found in hits.paths[: len(queries)] for path in found})
    _, asked = _names(queries)
    if len(queries) < number:
        note = f"Only the first {_counted(len(queries), 'query is', 'queries are')} shown. {note}".strip()
    below = f" Their paths are below {base}." if base else ""
    parts = {
        "title": escape(title),
        "lead": escape(
            f"{_counted(count, 'hit', 'hits')} for {_counted(number, 'query', 'queries')}, "
            f"the most similar first, by cosine similarity (at most 1).{below}{f' {note}' if note else ''}"
        ),
        "queries": _list_of_queries([asked[query] for query in queries]),
        "sections": (
            _section(place, (query, asked[query]), found, pictures, shown)
            for place, (query, found) in enumerate(zip(queries, hits, strict=False))
        ),
        "footer": escape(stamp()),
    }
    pieces = filled("search.html", parts, styles=("page.css", "search.css"))
    target = write_atomically(path, lambda file: write_pieces(pieces, file))
    if missing:
        warn(f"{len(missing)} image(s) could not be read for {target.name}, the first is {missing[0]}")
    return target


class _Pictures:
    """Pictures as HTML; those that cannot be read are listed in `missing`."""

    def __init__(self, missing: list[str]) -> None:
        self._missing = missing
        self._url: Callable[[str, int], str | None] = lru_cache(_KEPT)(self._read)

    def _read(self, path: str, side: int) -> str | None:
        try:
            return photo_url(read_image(path), side)
        except (OSError, ValueError, MemoryError):
            self._missing.append(path)
            return None

    def linked(self, path: str, side: int, name: str) -> str:
        """The picture of a file, as a link to it."""
        url = self._url(path, side)
        if url is None:
            return '<span class="picture stage"><span class="gone">The image could not be read.</span></span>'
        place = escape(Path(os.path.abspath(path)).as_uri())
        # Without a description: the name stands beside it.
        image = f'<span class="stage"><img src="{url}" alt=""></span>'
        return f'<a class="picture" href="{place}" aria-label="{escape(f"Open {name}")}">{image}</a>'


def _names(paths: Collection[str]) -> tuple[str, dict[str, str]]:
    """The folder that all files lie below ("" where a path is relative), and their names there."""
    if not paths or not all(map(os.path.isabs, paths)):
        return "", {path: path for path in paths}
    base = common_folder(paths)
    return base, {path: Path(os.path.relpath(path, base)).as_posix() for path in paths}


def _list_of_queries(names: Sequence[str]) -> str:
    """Links to several queries."""
    if len(names) < 2:
        return ""
    links = (f'<li><a href="#query-{place}">{_breakable(name)}</a></li>' for place, name in enumerate(names))
    return f'<nav class="queries" aria-label="Queries"><ol>{"".join(links)}</ol></nav>'


def _section(
    place: int, asked: tuple[str, str], found: list[Hit], pictures: _Pictures, shown: dict[str, str]
) -> str:
    query, name = asked
    picture = pictures.linked(query, _QUERY_SIDE, name)
    where = f'<p class="muted">{_breakable(query)}</p>' if query != name else ""
    cards = "".join(_hit(hit, pictures, shown[hit.path], query) for hit in found)
    none = '<p class="muted">No image of the index matches.</p>'
    return (
        f'<section class="result" id="query-{place}" aria-labelledby="name-{place}">'
        f'<div class="asked">{picture}'
        f'<div><h2 id="name-{place}">{_breakable(name)}</h2>{where}</div></div>'
        f"{f'<ol class=hits>{cards}</ol>' if found else none}</section>\n"
    )


def _hit(hit: Hit, pictures: _Pictures, name: str, query: str) -> str:
    is_own = os.path.abspath(query) == hit.path
    kind = " · ".join(part for part in (hit.label, "the query itself" if is_own else None) if part)
    return (
        f'<li{" class=own" * is_own}>{pictures.linked(hit.path, _HIT_SIDE, name)}<div class="caption">'
        f'<span class="score">{min(hit.similarity, 1.0):.4f}</span>'
        f'<span class="kind">{_breakable(kind)}</span>'
        f'<span class="name">{_breakable(name)}</span></div></li>'
    )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _breakable(text: str) -> str:
    """Escaped, and with places where it may be broken after slashes and underscores."""
    return sub(r"(?<=[/_])", "<wbr>", escape(text))
