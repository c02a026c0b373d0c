"""Where a detector comes from: what was done to it, when, with which images, versions and parent model."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from ensemblead.kernels.build import __version__
from ensemblead.store import FolderReader

Action = Literal[
    "fit", "load_weights", "convert", "extend", "learn_defects", "calibrate", "quantize", "threshold"
]
# Those that begin a history: what was learned before no longer counts.
FIRST_ACTIONS = ("fit", "load_weights", "convert")
# What decides, beside our own version, how scores come out.
_PACKAGES = ("numpy", "torch", "timm")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Step:
    """One thing that was done to a detector.

    Attributes:
        action: "fit", "load_weights", "extend", "learn_defects", "calibrate" and "quantize" as the methods;
            "threshold": one was set; "convert": it was made of another tool's model.
        date: UTC, as `2026-11-30T08:15:00Z`; that of SOURCE_DATE_EPOCH where this is set in the environment.
        images: how many it has read; 0 where it takes none.
        images_sha256: identifies these images and their order; "" where there are none.
        arguments: what else it was given.
        versions: of this library, Python, and the packages that scores depend on.
        parent: the checksum of the saved model that the detector was loaded from before; None if from none.
    """

    action: Action
    date: str
    images: int = 0
    images_sha256: str = ""
    arguments: Mapping[str, float | int | None] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None

    def __repr__(self) -> str:
        images = f", {self.images} images" if self.images else ""
        given = "".join(f", {name} {value}" for name, value in self.arguments.items())
        return f"Step({self.action} on {self.date}{images}{given})"

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"action must be one of {', '.join(get_args(Action))}, got {self.action!r}")
        if not (isinstance(self.date, str) and _DATE.fullmatch(self.date)):
            raise ValueError(f"date must be as 2026-11-30T08:15:00Z, got {self.date!r}")
        if type(self.images) is not int or self.images < 0:
            raise ValueError(f"images must be a count, got {self.images!r}")
        if not isinstance(self.images_sha256, str):
            raise TypeError(f"images_sha256 must be a str, got {self.images_sha256!r}")
        for name, kinds in (("arguments", (int, float, type(None))), ("versions", (str,))):
            known = getattr(self, name)
            items = known.items() if isinstance(known, Mapping) else [(None, None)]
            if not all(isinstance(key, str) and isinstance(value, kinds) for key, value in items):
                raise TypeError(f"{name} must be a mapping of names to plain values, got {known!r}")
        parent = self.parent
        if parent is not None and not (isinstance(parent, str) and _CHECKSUM.fullmatch(parent)):
            raise ValueError(f"parent must be a SHA-256 or None, got {parent!r}")


class Traced:
    """What keeps its history. Saved models have it; those saved before there was one have none."""

    _history: tuple[Step, ...] = ()
    # The checksum of the saved model that it was loaded from.
    _loaded: str | None = None

    @property
    def history_(self) -> tuple[Step, ...]:
        """What was done to it, the earliest first: a `Step` for its fit, and for every `extend`,
        `learn_defects`, `calibrate`, `quantize` and threshold that was set since. Empty where it is not
        known, as of an ensemble's members.
        """
        return self._history


def record(
    detector: Any, action: Action, images: int = 0, images_sha256: str = "", **arguments: float | int | None
) -> None:
    """Add a step to a detector's history; what it learned before a `fit` is no longer part of it."""
    if action in FIRST_ACTIONS:
        _forget(detector)
    step = Step(action, now(), images, images_sha256, arguments, versions(), detector._loaded)
    detector._history = (*detector._history, step)


def record_calibration(detector: Any, rate: float) -> None:
    """`record` of the images that a detector's statistics are of now."""
    known = detector.calibration_
    record(detector, "calibrate", len(known.scores), known.images_sha256, false_alarm_rate=rate)


def history_document(detector: Any) -> dict[str, Any]:
    """For a folder's state, in JSON's types; nothing where there is no history."""
    return {"history": [asdict(step) for step in detector._history]} if detector._history else {}


def read_history(detector: Any, reader: FolderReader) -> None:
    """Give a detector the history that its folder has, and the folder's checksum."""
    with reader.as_damage():
        detector._history = steps_of(reader.state)
    detector._loaded = reader.checksum


def steps_of(state: Mapping[str, Any]) -> tuple[Step, ...]:
    """The history in a folder's state. Raises TypeError or ValueError for what `history_document` never
    gives.
    """
    stored = state.get("history", [])
    if not isinstance(stored, list) or not all(isinstance(one, dict) for one in stored):
        raise TypeError(f"history must be a list of steps, got {stored!r}")
    return tuple(Step(**one) for one in stored)


def loaded_model(detector: Any) -> str | None:
    """The checksum of the saved model that a detector was loaded from; None if from none, or if something was
    done since to it or to a member of it.
    """
    return str(detector._loaded) if _is_as_loaded(detector) else None


def _is_as_loaded(detector: Any) -> bool:
    if detector._loaded is None or any(step.parent == detector._loaded for step in detector._history):
        return False
    return all(map(_is_as_loaded, getattr(detector, "members", ())))


def _forget(detector: Any) -> None:
    detector._history, detector._loaded = (), None
    members: Sequence[Any] = getattr(detector, "members", ())
    for member in members:
        _forget(member)


def now() -> str:
    """The time as `Step.date` has it."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = (
        datetime.fromtimestamp(int(fixed), timezone.utc) if fixed.isdecimal() else datetime.now(timezone.utc)
    )
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Those of this library, Python, and the packages that scores depend on."""
    found = {"ensemblead": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
