"""The one way in which folders are searched for images."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.images.decode import IMAGE_SUFFIXES

# Folders that systems make: thumbnails, waste, rescued files.
_SYSTEM_FOLDERS = frozenset({"@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", "__MACOSX"})
_HEIC = frozenset({".heic", ".heif"})
_HEIC_HINT = 'HEIC needs pillow-heif: pip install "ensemblead[heic]"'
# Pictures that are not read, although their owner expects it.
_UNREAD_SUFFIXES = (
    frozenset(
        {
            *_HEIC,
            ".avif",
            ".jxl",
            ".dng",
            ".cr2",
            ".cr3",
            ".nef",
            ".arw",
            ".raf",
            ".orf",
            ".rw2",
            ".psd",
            ".exr",
        }
    )
    - IMAGE_SUFFIXES
)
_GOOD = frozenset({"good", "ok", "normal"})
_BAD = frozenset(
    {"abnormal", "anomalies", "anomalous", "anomaly", "bad", "defect", "defective", "defects", "faulty"}
    | {"ng", "nok", "not_good", "reject", "rejects"}
)


# Folders of pictures that `predict`, `watch` and `evaluate` write, and patterns of the table beside them.
_RESULTS = (
    (re.compile(r"scores(\.partial)?(\.part-\d+-of-\d+)?\.csv"), ("heat_maps", "masks", "maps")),
    (re.compile(r"results\.sqlite"), ("heat_maps",)),
    (re.compile(r"results\.csv"), ("figures", "contact_sheets")),
)
# Folders that are left out beside certain others, or tables.
_MAY_BE_LEFT_OUT = frozenset({"ground_truth", "masks", *(one for _, made in _RESULTS for one in made)})


@dataclass(frozen=True)
class FolderScan:
    """The files of a folder and of all folders below it.

    Attributes:
        images: Paths of images, in the natural order of their place in the folder (`2.png` before `10.png`).
        ignored: Paths of all other files: hidden, masks, of other types, or no ordinary files.
        folders: The real paths of all folders in which images were looked for.
    """

    images: tuple[str, ...]
    ignored: tuple[str, ...]
    folders: frozenset[str]


def scan_folder(root: StrPath, exclude: Collection[StrPath] = ()) -> FolderScan:
    """Search a folder and all folders below it for images.

    Images are files with one of `IMAGE_SUFFIXES`, in upper or lower case, and links to such files; a link to
    nothing counts, so that reading it is an error. Hidden files and folders and those that systems make
    (`.ipynb_checkpoints`, `@eaDir`) are left out, and so are folders of masks: `ground_truth`, `Masks`
    beside `Images` or beside a folder of good or bad images, those in `exclude`, and pictures that `predict`,
    `watch` and `evaluate` have written (known by the table beside them). Links to folders are
    followed, each real folder is searched once, and a link back to a folder that contains `root` is not
    followed.

    Raises:
        PermissionError: A folder cannot be listed.
    """
    base = os.fspath(root)
    excluded = {os.path.realpath(path) for path in exclude}
    images: list[str] = []
    ignored: list[str] = []
    folders: set[str] = set()
    for folder, names, left_out in _walk(base, excluded):
        if not left_out:
            folders.add(os.path.realpath(os.path.join(base, folder)))
        for name in names:
            place = os.path.join(folder, name)
            keep = not left_out and not name.startswith(".") and is_image(os.path.join(base, place))
            (images if keep else ignored).append(place)
    images.sort(key=_natural)
    ignored.sort(key=_natural)
    return FolderScan(
        tuple(os.path.join(base, place) for place in images),
        tuple(os.path.join(base, place) for place in ignored),
        frozenset(folders),
    )


def _walk(base: str, excluded: set[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Every folder below `base`, relative to it, the files in it, and whether it is left out."""
    above = os.path.realpath(base) + os.sep
    seen: set[str] = set()
    # Real folders come before links to them, whose names then do not count.
    folders, links = deque([("", False)]), deque[tuple[str, bool]]()
    while folders or links:
        folder, left_out = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(os.path.join(base, folder))
        left_out = left_out or real in excluded
        if not left_out:
            if real in seen or (folder and above.startswith(real.rstrip(os.sep) + os.sep)):
                continue
            seen.add(real)
        try:
            below, names, linked = _list(os.path.join(base, folder), left_out)
        except (FileNotFoundError, NotADirectoryError):
            if not folder:
                raise
            continue  # it has gone since its name was listed
        masks = {name for name in below if _holds_masks(name, below)}
        results = _results_beside(names)
        for name in below:
            out = left_out or _hidden(name) or name in masks or name in results
            if name not in linked:
                folders.append((os.path.join(folder, name), out))
            elif not out:
                links.append((os.path.join(folder, name), False))
        yield folder, names, left_out


def _list(folder: str, left_out: bool) -> tuple[list[str], list[str], set[str]]:
    """The names of the folders and of the files in a folder, and which of the folders are links."""
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except PermissionError:
        if left_out:
            return [], [], set()
        raise
    below = [entry.name for entry in entries if os.path.isdir(entry.path)]
    linked = {entry.name for entry in entries if entry.is_symlink()}
    known = set(below)
    return below, [entry.name for entry in entries if entry.name not in known], linked & known


def _hidden(path: str) -> bool:
    name = os.path.basename(path)
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _results_beside(names: Sequence[str]) -> set[str]:
    """The folders of results beside these files."""
    return {one for table, made in _RESULTS if any(map(table.fullmatch, names)) for one in made}


def _holds_masks(name: str, siblings: Sequence[str]) -> bool:
    lower = name.lower()
    photographs = {"images", *_GOOD, *_BAD}
    return lower == "ground_truth" or (
        lower == "masks" and not photographs.isdisjoint(map(str.lower, siblings))
    )


def is_image(path: StrPath) -> bool:
    """Whether a file is an image by its name: no hidden one, no named pipe and no device."""
    text = os.fspath(path)
    if _suffix(text) not in IMAGE_SUFFIXES or os.path.basename(text).startswith("."):
        return False
    return os.path.isfile(text) or (os.path.islink(text) and not os.path.exists(text))


def belongs(root: StrPath, place: str) -> bool:
    """Whether `scan_folder(root)` would list the file at `place`, a path relative to `root`.

    Links to folders are taken for folders.
    """
    folder, above = os.fspath(root), Path(place).parts[:-1]
    if any(map(_hidden, above)):
        return False
    try:
        for part in above:
            if part.lower() in _MAY_BE_LEFT_OUT:
                below, names, _ = _list(folder, False)
                if part in _results_beside(names) or _holds_masks(part, below):
                    return False
            folder = os.path.join(folder, part)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return is_image(os.path.join(root, place))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those of masks; links to folders count."""
    found = _below(folder)
    return [path for path in found if not _holds_masks(path.name, [one.name for one in found])]


def mask_folders(folder: Path) -> list[Path]:
    """The folders in a folder that hold masks by their names, sorted."""
    found = _below(folder)
    return [path for path in found if _holds_masks(path.name, [one.name for one in found])]


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def describe_ignored(ignored: Sequence[str]) -> str:
    """A sentence on ignored files for people: how many, which, and the types that are read; empty if there
    are none.
    """
    if not ignored:
        return ""
    types = " ".join(sorted(IMAGE_SUFFIXES))
    names = some_of([_ignored_name(path) for path in ignored], 3)
    hint = _HEIC_HINT if _wants_heic(ignored) else ""
    files = "file" if len(ignored) == 1 else "files"
    return f"{len(ignored)} other {files} ignored ({names}); images are {types}{hint and '; ' + hint}"


def _ignored_name(path: str) -> str:
    """A file's name, after its folder's where that is hidden: an image is ignored there for its place."""
    folder, name = os.path.split(path)
    parent = os.path.basename(folder)
    return os.path.join(parent, name) if _hidden(parent) else name


def describe_unread(ignored: Sequence[str]) -> str:
    """A sentence on those of the ignored files that are pictures of types that are not read; may be empty."""
    pictures = [path for path in ignored if _suffix(path) in _UNREAD_SUFFIXES and not _hidden(path)]
    if not pictures:
        return ""
    hint = _HEIC_HINT if _wants_heic(pictures) else "save them as PNG or JPEG"
    count = "1 picture is" if len(pictures) == 1 else f"{len(pictures)} pictures are"
    return f"{count} of a type that is not read ({some_of(pictures)}); {hint}"


def _wants_heic(paths: Sequence[str]) -> bool:
    return any(_suffix(path) in _HEIC - IMAGE_SUFFIXES for path in paths)


def check_normal_folder(folder: StrPath, command: str = "ensemblead") -> None:
    """Raise ValueError for a folder whose layout says that not all of its images are normal ones of one
    category; the message has the folder, or the command, that is right.
    """
    base = Path(folder)
    if not base.is_dir():
        return
    evaluate = f"`{command} evaluate --config FILE {base}`"
    if _is_category(base):
        normal = next(
            place for place in ("train/good", "Data/Images/Normal", "train") if (base / place).is_dir()
        )
        raise ValueError(
            f"{base} holds test images beside the normal ones: fit on {base / normal}, or run {evaluate}"
        )
    names = [path.name for path in subfolders(base)]
    categories = [name for name in names if _is_category(base / name)]
    if categories:
        first = base / categories[0]
        normal = "train/good" if (first / "train").is_dir() else "Data/Images/Normal"
        raise ValueError(
            f"{base} holds {len(categories)} categories ({some_of(categories)}), and a detector learns one: "
            f"`{command} fit {first / normal} --model MODEL`, or all of them with {evaluate}"
        )
    good = [name for name in names if name.lower() in _GOOD]
    others = [name for name in names if name not in good]
    bad = others if base.name in ("train", "test") else [one for one in others if one.lower() in _BAD]
    if good and bad:
        raise ValueError(f"{base} holds {some_of(bad)} beside {good[0]}: fit on {base / good[0]}")


def check_defect_folder(folder: StrPath) -> None:
    """Raise ValueError for a folder whose layout says that not all of its images show defects."""
    base = Path(folder)
    if not base.is_dir():
        return
    names = [path.name for path in subfolders(base)]
    good = [name for name in names if name.lower() in _GOOD]
    if _is_category(base) or good or base.name.lower() in _GOOD:
        inside = "training and test images" if _is_category(base) else good[0] if good else "good parts"
        others = [name for name in names if name not in good and not _is_category(base)]
        hint = f", such as {base / others[0]}" if others else ""
        raise ValueError(f"defects: {base} holds {inside}: give the folders of defects alone{hint}")


def _is_category(folder: Path) -> bool:
    """Whether a folder is one category of MVTec AD or of VisA, with its test images."""
    tested = any((folder / name).is_dir() for name in ("test", "ground_truth"))
    return ((folder / "train").is_dir() and tested) or (folder / "Data/Images/Normal").is_dir()


def check_output_outside(out: StrPath, folders: Collection[str]) -> None:
    """Raise ValueError if `out` lies in one of the folders in which images are looked for: results written
    there would be taken for images the next time. `folders` are real paths, as `ImageSource.folders`.
    """
    target = Path(os.path.realpath(out))
    for folder in (target, *target.parents):
        if str(folder) in folders:
            raise ValueError(
                f"out {os.fspath(out)} lies inside the folder of images {folder}: the next run would take "
                "results for images; choose a folder outside of it"
            )


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    # Digits compare as numbers; the name itself breaks ties such as 1.png and 01.png.
    parts = re.split(r"([0-9]+)", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts if part], name
