"""Saved models on the command line: loading them, and describing what they have learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblead.cli.options import weights_per_member
from ensemblead.common.files import sha256_of

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

# Names of counts in `learned_` that are written otherwise.
_WORDS = {"gaussians": "Gaussians"}
# A false-alarm rate by the origin of the threshold.
RATE_IS = {
    "calibrated": "guaranteed",
    "leave_one_out": "estimated, leaving one image out",
    "held_out": "estimated, by images held out of the training",
    "given": "not known",
    "trained_on": "too low, by images that were trained on",
    "user": "estimated, at a threshold set by the user",
}
# The number of values that describe a patch: not counted together over tiles.
_DIMENSIONS = "dimensions"


def check_outside_model(out: Path, model: Path) -> None:
    """Raise ValueError if `out` lies in the folder of a model, which could then not be saved anew."""
    if out.resolve().is_relative_to(model.resolve()):
        raise ValueError(f"out {out} lies inside the model {model}; choose a folder outside of it")


def load_model(
    path: Path,
    weights: Sequence[str] = (),
    device: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
) -> Detector:
    """`load_detector` with weights given as `[I.]PATH`."""
    from ensemblead.ensembles.loading import load_detector

    return load_detector(
        path, weights=moved_weights(weights), device=device, engine=engine, precision=precision
    )


def load_identified(
    path: Path,
    weights: Sequence[str] = (),
    device: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
) -> tuple[Detector, str]:
    """`load_model`, and the SHA-256 of the model's manifest, which changes with every save.

    Both are of one model, also where another takes its place meanwhile.
    """
    from ensemblead.store import MANIFEST

    while True:
        before = _digest(path / MANIFEST)
        detector = load_model(path, weights, device, engine, precision)
        if before is not None and _digest(path / MANIFEST) == before:
            return detector, before


def _digest(manifest: Path) -> str | None:
    """None while there is none, as between two models."""
    try:
        return sha256_of(manifest)
    except FileNotFoundError:
        return None


def moved_weights(given: Sequence[str]) -> str | dict[int, str | None] | None:
    """`weights` of `ead.load` from `[I.]PATH`."""
    if not given:
        return None
    indexed = any(text.split(".", 1)[0].isdecimal() and not Path(text).exists() for text in given)
    if len(given) == 1 and not indexed:
        return weights_per_member(given, 1)[0]
    # The number of members is not known here; the model refuses a number that it does not have.
    return weights_per_member(given, 1 << 16)


def describe_model(detector: Detector) -> dict[str, Any]:
    """A fitted detector in JSON's types."""
    calibration = detector.calibration_
    return {
        "detector": type(detector).__name__,
        "fusion": getattr(detector, "fusion", None),
        "members": list(_members(detector)),
        "region": None if detector.region is None else str(detector.geometry.region),
        "threshold": calibration.threshold,
        "threshold_origin": calibration.threshold_origin,
        "threshold_images": len(calibration.scores),
        "false_alarm_rate": calibration.false_alarm_rate,
        "false_alarm_rate_is": RATE_IS[calibration.threshold_origin],
        "rate_in_words": calibration.describe_rate(),
    }


def reads_weights_elsewhere(detector: Detector) -> bool:
    """Whether a network's weights are published ones or in a file, which a saved model only names."""
    sources = [member["weights"] for member in _members(detector)]
    return any(source is not None and source.get("kind") in ("zoo", "file") for source in sources)


def _members(detector: Any) -> Iterator[dict[str, Any]]:
    """A description of every fitted detector at the ends of the tree."""
    if hasattr(detector, "tile_grid_"):
        yield from _tiled_members(detector)
    elif hasattr(detector, "members"):
        for member in detector.members:
            yield from _members(member)
    else:
        yield {**_describe_leaf(detector), "tiles": None}


# The region is told for the whole detector.
_NOT_OF_TILES = ("type", "member", "region")


def _tiled_members(ensemble: Any) -> Iterator[dict[str, Any]]:
    from ensemblead.config.registry import describe

    parameters = {name: value for name, value in describe(ensemble).items() if name not in _NOT_OF_TILES}
    grids = [list(grid) for grid in ensemble.tile_grids_]
    tiles = {"grid": grids[0], "grids": grids, **parameters}
    described = [list(_members(member)) for member in ensemble.members_]
    # The same detector at every location: counts are summed over them.
    for same in zip(*described, strict=True):
        counts = [name for name in same[0]["learned"] if name != _DIMENSIONS]
        summed = {name: sum(one["learned"][name] for one in same) for name in counts}
        # "auto" chooses at each.
        changes = [one["augment"] for one in same]
        yield {
            **same[0],
            "augment": max(changes, key=len),
            "augmented_tiles": [sum(map(bool, changes)), len(changes)],
            "resize": None,
            "image_size": parameters["image_size"],
            **summed,
            **_worst_bank(same),
            "learned": {**same[0]["learned"], **summed},
            "tiles": tiles,
        }


def _worst_bank(members: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the same member at all locations: the largest radius and factor, None where one is not known."""
    worst: dict[str, float | None] = {}
    for name in ("covering_radius", "certified_factor"):
        values = [member[name] for member in members]
        worst[name] = None if None in values else max(values)
    return worst


def _describe_leaf(leaf: Any) -> dict[str, Any]:
    network = getattr(leaf, "network_", None)  # a method may do without one
    learned: dict[str, int] = dict(getattr(leaf, "learned_", {}))
    bank = getattr(leaf, "memory_bank_", None)
    return {
        "method": type(leaf).__name__,
        "backbone": None if network is None else network.name,
        "layers": [] if network is None else list(network.layers),
        "weights": None if network is None else network.source,
        "resize": getattr(leaf, "resize", None),
        "image_size": getattr(leaf, "image_size", None),
        "pad_to_grid": getattr(leaf, "pad_to_grid", False),
        "augment": list(getattr(leaf, "augment_", ())),
        **learned,
        "learned": learned,
        "covering_radius": None if bank is None else bank.radius_,
        "certified_factor": None if bank is None else bank.certificate_,
        "device": str(getattr(leaf, "device", "cpu") if network is None else network.device),
    }


def describe_learned(member: Mapping[str, Any]) -> str:
    """How much a member of `describe_model` has learned, in words."""
    counts = {name: count for name, count in member["learned"].items() if name != _DIMENSIONS}
    return ", ".join(f"{count} {_WORDS.get(name, name.replace('_', ' '))}" for name, count in counts.items())
