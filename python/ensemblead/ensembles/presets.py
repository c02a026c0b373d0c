"""Ensembles that are known to be good, as plain values: the names are those of `PatchCore`'s arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What each member of an ensemble is reduced to where nothing else is said; one detector alone keeps 1024.
ENSEMBLE_TARGET_DIM = 384


@dataclass(frozen=True)
class Preset:
    """Backbones, their layers, and what all members have in common."""

    backbones: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    common: Mapping[str, Any]


# The best ensemble of the PatchCore paper (Roth et al., CVPR 2022, its section on high resolution).
MISSION = Preset(
    backbones=("wide_resnet101_2", "resnext101_32x8d", "densenet201"),
    layers=(
        ("layer2", "layer3"),
        ("layer2", "layer3"),
        ("features.denseblock2", "features.denseblock3"),
    ),
    common={
        "resize": 366,
        "image_size": 320,
        "target_dim": ENSEMBLE_TARGET_DIM,
        "coreset_fraction": 0.01,
    },
)
PRESETS: Mapping[str, Preset] = {"mission": MISSION}
