"""Wheels in a folder: which of them a machine without a network needs, and which are missing.

A machine is known by its Python and its platform, as wheels name them. Of wheels only the metadata is read;
nothing is installed or imported.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import require
from ensemblead.common.files import StrPath, sha256_of
from ensemblead.common.validation import one_of

OWN = "ensemblead"
# Where torch has wheels without CUDA, for Linux and Windows.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_OF_TORCH = ("torch", "torchvision")
# Versions of glibc that wheels name begin here; older wheels name three of them otherwise.
_FIRST_GLIBC, _LEGACY = 5, {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_PLATFORM = re.compile(
    r"(manylinux_2_(?P<glibc>\d+)|macosx_(?P<major>\d+)_(?P<minor>\d+)|win)_(?P<machine>\w+)"
)
_PURPOSE = "a bundle"


class MissingWheelsError(EnsembleADError):
    """Wheels that a folder lacks.

    Attributes:
        commands: lines for a shell on a machine with a network, which fetch them.
    """

    def __init__(self, message: str, commands: Sequence[str]) -> None:
        super().__init__(message)
        self.commands = tuple(commands)


@dataclass(frozen=True)
class Target:
    """A machine: its Python, `(3, 12)`, and its platform as wheels name it: "manylinux_2_28_x86_64",
    "win_amd64" or "macosx_12_0_arm64".

    Raises ValueError for a platform of another kind.
    """

    python: tuple[int, int]
    platform: str

    def __post_init__(self) -> None:
        if _PLATFORM.fullmatch(self.platform) is None:
            raise ValueError(
                "platform must be as manylinux_2_28_x86_64, win_amd64 or macosx_12_0_arm64, got "
                f"{self.platform!r}"
            )

    @classmethod
    def here(cls) -> Target:
        """This machine."""
        require("packaging", _PURPOSE)
        from packaging.tags import platform_tags

        first, *others = platform_tags()
        # On Linux the name of this system comes before those that say with which glibc it goes.
        platform = next((one for one in others if first.startswith("linux_")), first)
        return cls((sys.version_info[0], sys.version_info[1]), platform)

    def platforms(self) -> list[str]:
        """All platforms whose wheels it takes, the best first."""
        from packaging.tags import mac_platforms

        known = _PLATFORM.fullmatch(self.platform)
        assert known is not None
        machine = known["machine"]
        if known["major"]:
            return list(mac_platforms((int(known["major"]), int(known["minor"])), machine))
        found = [self.platform]
        for glibc in range(int(known["glibc"] or 0), _FIRST_GLIBC - 1, -1):
            found += [f"manylinux_2_{glibc}_{machine}"]
            found += [f"{_LEGACY[glibc]}_{machine}"] if glibc in _LEGACY else []
        # A wheel that was built on a machine like it.
        return [*dict.fromkeys(found), *([f"linux_{machine}"] if known["glibc"] else [])]

    def tags(self) -> dict[Any, int]:
        """The tags of all wheels that it takes, with their places: the best has 0."""
        from packaging.tags import compatible_tags, cpython_tags

        version, platforms = self.python, self.platforms()
        interpreter = f"cp{version[0]}{version[1]}"
        found = (
            *cpython_tags(version, platforms=platforms),
            *compatible_tags(version, interpreter, platforms),
        )
        return {tag: place for place, tag in enumerate(dict.fromkeys(found))}

    def environment(self) -> dict[str, str]:
        """What conditions of requirements ask for."""
        known = _PLATFORM.fullmatch(self.platform)
        assert known is not None
        system, os_name, name = ("linux", "posix", "Linux")
        if known["major"]:
            system, os_name, name = ("darwin", "posix", "Darwin")
        elif known["glibc"] is None:
            system, os_name, name = ("win32", "nt", "Windows")
        machine = known["machine"].upper() if system == "win32" else known["machine"]
        python = f"{self.python[0]}.{self.python[1]}"
        return {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_version": "",
            "sys_platform": system,
            "os_name": os_name,
            "platform_system": name,
            "platform_machine": machine,
        }


@dataclass(frozen=True)
class Wheel:
    """A wheel: its file, its project's normalised name, its version and its tags."""

    path: Path
    name: str
    version: Any
    tags: frozenset[Any] = field(repr=False)

    def requirements(self) -> list[Any]:
        """What it states that it requires. Raises ValueError for a file that is no wheel."""
        from packaging.requirements import Requirement

        return [Requirement(line) for line in self._metadata().get_all("Requires-Dist", [])]

    def extras(self) -> list[str]:
        """The names of its extras, normalised. Raises ValueError for a file that is no wheel."""
        return sorted(_normal(name) for name in self._metadata().get_all("Provides-Extra", []))

    def _metadata(self) -> Message:
        try:
            with zipfile.ZipFile(self.path) as archive:
                # Some carry the metadata of others, further down.
                names = [one for one in archive.namelist() if one.count("/") == 1]
                (name,) = (one for one in names if one.endswith(".dist-info/METADATA"))
                return Parser().parsestr(archive.read(name).decode())
        except (ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"wheels: {self.path} is damaged: {error}") from error

    def pinned(self) -> str:
        """A line of a requirements file with version and hash."""
        return f"{self.name}=={self.version} --hash=sha256:{sha256_of(self.path)}\n"


def read_wheels(folder: StrPath) -> list[Wheel]:
    """All wheels of a folder, by their file names.

    Raises FileNotFoundError for no folder, ValueError for a file that is named as no wheel is.
    """
    require("packaging", _PURPOSE)
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"wheels: no such folder: {folder}")
    found = []
    for path in sorted(Path(folder).glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename as error:
            raise ValueError(f"wheels: {path} is not named as a wheel is: {error}") from error
        found.append(Wheel(path, name, version, tags))
    return found


def needed_wheels(folder: StrPath, wanted: Iterable[str], target: Target) -> list[Wheel]:
    """The wheels of a folder that a machine needs, sorted by name.

    Args:
        wanted: requirements as pip takes them: `["ensemblead[predict]"]`. What they require comes with them.
        target: the machine.

    Raises MissingWheelsError, naming all that is missing, ValueError for an extra in `wanted` that is none of
    its wheel's, and as `read_wheels`.
    """
    wheels = read_wheels(folder)
    choice = _Choice(wheels, target)
    choice.add(wanted)
    if choice.missing:
        lines = "; ".join(choice.missing.values())
        commands = _commands(folder, choice.missing, target)
        raise MissingWheelsError(
            f"wheels: {folder} lacks {len(choice.missing)} for Python {target.python[0]}.{target.python[1]} "
            f"on {target.platform}: {lines}",
            commands,
        )
    return sorted(choice.chosen.values(), key=lambda wheel: wheel.name)


class _Choice:
    """The newest wheel of every project that all requirements of it take; of two, that with the best tag."""

    def __init__(self, wheels: Sequence[Wheel], target: Target) -> None:
        self.chosen: dict[str, Wheel] = {}
        self.missing: dict[str, str] = {}  # by a requirement as pip takes it
        self._wheels, self._tags, self._environment = wheels, target.tags(), target.environment()
        self._specifiers: dict[str, Any] = {}
        self._extras: dict[str, set[str]] = {}

    def add(self, wanted: Iterable[str]) -> None:
        """Choose wheels for requirements, and for all that these require."""
        from packaging.requirements import Requirement

        queue = deque((Requirement(text), "") for text in wanted)
        while queue:
            requirement, asker = queue.popleft()
            name = _normal(requirement.name)
            known = self._specifiers.get(name)
            self._specifiers[name] = requirement.specifier if known is None else known & requirement.specifier
            extras = self._extras.setdefault(name, {""})
            new = requirement.extras - extras
            extras |= new
            best = self._best(name)
            if best is None:
                self._note(name, requirement, asker)
            elif best != self.chosen.get(name) or new:
                for extra in () if asker else new:
                    one_of(f"extra of {name}", _normal(extra), best.extras())
                self.chosen[name] = best
                queue += [(one, name) for one in best.requirements() if self._holds(one, extras)]

    def _holds(self, requirement: Any, extras: set[str]) -> bool:
        marker = requirement.marker
        return marker is None or any(
            marker.evaluate({**self._environment, "extra": extra}) for extra in extras
        )

    def _best(self, name: str) -> Wheel | None:
        allowed = self._specifiers[name]
        fitting = [
            (one.version, -min(places), number)
            for number, one in enumerate(self._wheels)
            if one.name == name
            and (places := [self._tags[tag] for tag in one.tags & self._tags.keys()])
            and allowed.contains(one.version, prereleases=True)
        ]
        return self._wheels[max(fitting)[2]] if fitting else None

    def _note(self, name: str, requirement: Any, asker: str) -> None:
        own = [one for one in self._wheels if one.name == name]
        fitting = [one for one in own if one.tags & self._tags.keys()]
        needed = f"{name}{self._specifiers[name]}"
        by = f" (for {asker})" if asker else ""
        if fitting:
            why = f"there is version {max(one.version for one in fitting)}"
        elif own:
            why = f"{own[0].path.name} is for other machines"
        else:
            why = "there is none"
        self.missing.setdefault(needed, f"{needed}{by}: {why}")


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _commands(folder: StrPath, missing: Mapping[str, str], target: Target) -> list[str]:
    """What fetches the missing wheels. The own one is built, or comes with a release."""
    place = os.fspath(folder)
    options = ["--only-binary", ":all:", "--python-version", f"{target.python[0]}.{target.python[1]}"]
    for platform in target.platforms():
        if not platform.startswith("linux_"):
            options += ["--platform", platform]
    found = []
    names = list(missing)
    own = [name for name in names if re.split(r"[<>=!~;]", name)[0] == OWN]
    torch = [name for name in names if re.split(r"[<>=!~;]", name)[0] in _OF_TORCH]
    others = [name for name in names if name not in own and name not in torch]
    if own:
        build = shlex.join(["python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", place, "."])
        found.append(f"{build}  # on {target.platform} with Python {target.python[0]}.{target.python[1]}")
    for group, index in ((torch, ["--index-url", TORCH_INDEX]), (others, [])):
        if group:
            command = ["python", "-m", "pip", "download", "--dest", place, *options, *index, *group]
            found.append(shlex.join(command))
    return found
