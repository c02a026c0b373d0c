"""Saved models on the command line: reading them, and saying what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblead.cli.options import weights_per_member

if TYPE_CHECKING:
    from ensemblead.detectors import Detector


def load_model(path: Path, weights: Sequence[str] = (), device: str | None = None) -> Detector:
    """`ead.load` with weights given as `[I.]PATH`."""
    from ensemblead.ensembles.loading import load

    if not weights:
        return load(path, device=device)
    indexed = any(text.split(".", 1)[0].isdecimal() and not Path(text).exists() for text in weights)
    if len(weights) == 1 and not indexed:
        return load(path, weights=weights_per_member(weights, 1)[0], device=device)
    # How many members there are is for the model to say; it refuses a number that it does not have.
    numbered = weights_per_member(weights, 1 << 16)
    return load(path, weights=numbered, device=device)


def describe_model(detector: Detector) -> dict[str, Any]:
    """What a fitted detector is, in JSON's types."""
    calibration = detector.calibration_
    return {
        "detector": type(detector).__name__,
        "fusion": getattr(detector, "fusion", None),
        "members": [told for leaf in detector._parts() for told in _describe(leaf)],
        "threshold": calibration.threshold,
        "false_alarm_rate": calibration.false_alarm_rate,
        "false_alarm_rate_is": "guaranteed"
        if calibration.is_guaranteed
        else "estimated, leaving one image out",
    }


def _describe(leaf: Any) -> list[dict[str, Any]]:
    from ensemblead.ensembles import TiledEnsemble

    if not isinstance(leaf, TiledEnsemble):
        return [{**_describe_leaf(leaf), "tiles": None}]
    tiles = {"grid": list(leaf.tile_grid_), **leaf.parameters()}
    told = [[_describe_leaf(one) for one in member._parts()] for member in leaf.members_]
    # The same detector in all locations: what they learned is counted together; geometries they have none.
    return [
        {
            **same[0],
            "resize": None,
            "image_size": leaf.image_size,
            **{name: sum(one[name] for one in same) for name in _LEARNED if name in same[0]},
            "tiles": tiles,
        }
        for same in zip(*told, strict=True)
    ]


def _describe_leaf(leaf: Any) -> dict[str, Any]:
    extractor = leaf.network_
    return {
        "backbone": extractor.name,
        "layers": list(extractor.layers),
        "weights": extractor.source,
        "resize": leaf.resize,
        "image_size": leaf.image_size,
        **_learned(leaf),
        "device": str(leaf._network().device),
    }


# What a method's model has many of, and what to call it.
_LEARNED = {"bank_rows": "bank rows", "gaussians": "Gaussians"}


def _learned(leaf: Any) -> dict[str, Any]:
    from ensemblead.detectors import PaDiM

    if isinstance(leaf, PaDiM):
        known = leaf.gaussians_
        return {"gaussians": known.num_positions, "dimensions": known.num_dimensions}
    bank = leaf.memory_bank_
    return {"bank_rows": len(bank), "dimensions": int(bank.rows_.shape[1])}


def describe_learned(member: Mapping[str, Any]) -> str:
    """How much a member of `describe_model` has learned, in words."""
    return ", ".join(f"{member[name]} {words}" for name, words in _LEARNED.items() if name in member)
