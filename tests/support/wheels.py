"""Wheels that are drawn up in a test, and this library's own from the files that the tests run on."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ensemblead


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    *,
    tag: str = "py3-none-any",
    extras: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    scripts: str = "",
) -> Path:
    """A wheel with these files (a module of the project's name if there are none)."""
    content = dict(files or {f"{name.replace('-', '_')}.py": b""})
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    lines = [f"Provides-Extra: {extra}\n" for extra in extras] + [
        f"Requires-Dist: {one}\n" for one in requires
    ]
    place = f"{name.replace('-', '_')}-{version}.dist-info"
    pure = tag.endswith("-none-any")
    content[f"{place}/METADATA"] = (head + "".join(lines)).encode()
    content[f"{place}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {str(pure).lower()}\nTag: {tag}\n".encode()
    )
    if scripts:
        content[f"{place}/entry_points.txt"] = scripts.encode()
    record = "".join(f"{path},{_digest(data)},{len(data)}\n" for path, data in content.items())
    content[f"{place}/RECORD"] = f"{record}{place}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in content.items():
            archive.writestr(path, data)
    return wheel


def write_own_wheel(folder: Path, requires: Sequence[str], extras: Iterable[str], tag: str) -> Path:
    """A wheel of the package that is imported here, its compiled core with it."""
    root = Path(ensemblead.__file__).parent
    paths = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in paths}
    scripts = "[console_scripts]\nensemblead = ensemblead.cli:main\n"
    return write_wheel(
        folder,
        "ensemblead",
        ensemblead.__version__,
        requires,
        tag=tag,
        extras=list(extras),
        files=files,
        scripts=scripts,
    )


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"
