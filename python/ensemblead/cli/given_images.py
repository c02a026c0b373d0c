"""The images that a command line names, and what files of results are named after them."""

from __future__ import annotations

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ensemblead.common.files import NAME_BYTES, as_file_name, file_names

if TYPE_CHECKING:
    from ensemblead.images import ImageSource


def chosen_images(given: Sequence[Path]) -> tuple[ImageSource, Path]:
    """The images that paths and patterns name, and the folder that they are named below.

    Raises FileNotFoundError for a path that does not exist, and for a pattern without a match.
    """
    from ensemblead.images import open_images

    paths: list[Path] = []
    for path in given:
        found = [path] if path.exists() or not glob.has_magic(str(path)) else _matches(path)
        paths += found
    if len(paths) == 1:
        return open_images(paths[0]), paths[0]
    sources = [open_images(path) for path in paths]
    files = list(dict.fromkeys(str(file) for one in sources for file in one.paths))
    source = open_images(files)
    source.folders = frozenset().union(*(one.folders for one in sources))
    source.ignored_files = tuple(file for one in sources for file in one.ignored_files)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return source, Path(root)


def _matches(pattern: Path) -> list[Path]:
    found = sorted(glob.glob(str(pattern), recursive=True))
    if not found:
        raise FileNotFoundError(f"images: nothing matches {pattern}")
    return [Path(path) for path in found]


def picture_names(source: ImageSource, root: Path) -> list[Path]:
    """For every image its place below `root`, without the suffix; with it where two would collide.

    No two are the same, also where a name had to be cut or changed to be the name of a file.
    """
    base = root if root.is_dir() else root.parent
    whole = [Path(os.path.relpath(str(path), base)) for path in source.paths]
    places = [place.with_suffix("") for place in whole]
    while True:
        used = Counter(places)
        collide = [i for i, place in enumerate(places) if used[place] > 1 and place != whole[i]]
        if not collide:
            break
        for i in collide:
            places[i] = whole[i]
    by_folder: dict[Path, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        by_folder[Path(*map(as_file_name, place.parent.parts))].append(i)
    # A picture and a folder of others may not have one name.
    folders = {above.as_posix() for folder in by_folder for above in (folder, *folder.parents)}
    limit = NAME_BYTES - len(".tiff")
    for folder, own in by_folder.items():
        inside = [Path(one).name for one in folders if Path(one).parent == folder]
        taken = [name.removesuffix(suffix) for name in inside for suffix in (".png", ".tiff")]
        names = file_names([places[i].name for i in own], limit=limit, taken=taken)
        for i, name in zip(own, names, strict=True):
            places[i] = folder / name
    return places
