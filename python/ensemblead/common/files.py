"""Files: written whole or not at all, their checksums, and names from data sets as names of files."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

NAME_BYTES = 255  # what the usual file systems take for one name

# Separators of paths, and characters that neither a terminal nor every file system takes.
_UNSAFE = re.compile("[/\\\\\x00-\x1f\x7f\x80-\x9f\u2028\u2029\ud800-\udfff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_atomically(
    path: StrPath, content: bytes | str | Callable[[BinaryIO], object], *, sync: bool = False
) -> Path:
    """Write a file whole or not at all: under a temporary name in its folder, which is then renamed.

    Folders that are missing are made. After an error or an interrupt an earlier file is as it was, and no
    temporary file is left.

    Args:
        content: Bytes; a text, which is written as UTF-8 (see `valid_text`); or a function that is given the
            open file and writes it.
        sync: Wait until the bytes are on the disk before the file is renamed, for what must outlast a loss of
            power.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A short name of its own: `target`'s may be as long as the file system takes.
    temporary = target.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content if isinstance(content, bytes) else valid_text(content).encode())
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def sync_folder(folder: StrPath) -> None:
    """Wait until the names in a folder are on the disk, for renames that must outlast a loss of power.

    Windows opens no folders, and its file system keeps a journal of names: there it does nothing.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: StrPath) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def valid_text(text: str) -> str:
    r"""`text` as UTF-8 can write it: bytes of a file's name that are not UTF-8 become `\xfc`."""

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _SURROGATE.sub(escaped, text)


def as_file_name(text: str, *, limit: int = 200, plain: bool = False) -> str:
    """A name from outside (a csv, a configuration, a folder) as the name of one file, without its suffix.

    Names that are no danger stay as they are. Separators of paths and unprintable characters become hyphens,
    leading dots go, and what is too long is cut. Two names may come to the same: see `file_names`.

    Args:
        limit: Bytes of UTF-8, of which a letter may have four.
        plain: Leave letters, digits, dots and hyphens alone, for names that are typed and linked to.
    """
    name = re.sub(r"[^\w.-]+", "-", text) if plain else text
    return _cut(_UNSAFE.sub("-", name).lstrip("."), limit) or "unnamed"


def file_names(
    names: Sequence[str], *, limit: int = 200, plain: bool = False, taken: Iterable[str] = ()
) -> list[str]:
    """A name of a file for each of several names from outside (see `as_file_name`), all different.

    Where several come to the same, those that are a file's name already keep it, and the others have a number
    behind them: `x`, `x-2`, `x-3`.

    Args:
        taken: Names that are not to be given.
    """
    cleaned = [as_file_name(name, limit=limit, plain=plain) for name in names]
    reserved, given, last = {*cleaned, *taken}, set(taken), dict.fromkeys(cleaned, 1)
    found = list(cleaned)
    for i in sorted(range(len(names)), key=lambda i: cleaned[i] != names[i]):
        while found[i] in given or (found[i] != cleaned[i] and found[i] in reserved):
            last[cleaned[i]] += 1
            ending = f"-{last[cleaned[i]]}"
            found[i] = _cut(cleaned[i], limit - len(ending)) + ending
        given.add(found[i])
    return found


def _cut(text: str, limit: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= limit else encoded[:limit].decode(errors="ignore")


def csv_line(cells: Iterable[object]) -> str:
    """One line of a csv file. Unlike Python's `csv`, a carriage return is quoted, whatever ends the lines."""
    texts = (str(cell) for cell in cells)
    quoted = ('"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text for text in texts)
    return ",".join(quoted) + "\n"
