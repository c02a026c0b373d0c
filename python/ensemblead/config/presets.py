"""Presets: descriptions of detectors that are known to be good, by name.

A preset is plain data. `{"preset": NAME}` stands for it wherever a description does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Defaults of an ensemble's members on the command line; one detector alone keeps its own.
MEMBER_DEFAULTS: Mapping[str, Any] = {"target_dim": 384}

_LARGE_MEMBER: Mapping[str, Any] = {
    "type": "PatchCore",
    "resize": 366,
    "image_size": 320,
    "coreset_fraction": 0.01,
    "score": "max",
    **MEMBER_DEFAULTS,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The best ensemble of the PatchCore paper (Roth et al., CVPR 2022, its section on high resolution).
    "patchcore-large": {
        "type": "BackboneEnsemble",
        "members": [
            {**_LARGE_MEMBER, "backbone": "wide_resnet101_2", "layers": ["layer2", "layer3"]},
            {**_LARGE_MEMBER, "backbone": "resnext101_32x8d", "layers": ["layer2", "layer3"]},
            {
                **_LARGE_MEMBER,
                "backbone": "densenet201",
                "layers": ["features.denseblock2", "features.denseblock3"],
            },
        ],
    },
}

_FORMER_NAMES = {"mission": "patchcore-large"}


def preset_description(name: object) -> dict[str, Any]:
    """A new copy of the description that a preset stands for.

    Raises ValueError for an unknown name.
    """
    known = _FORMER_NAMES.get(name, name) if isinstance(name, str) else name
    if not isinstance(known, str) or known not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return copy.deepcopy(dict(PRESETS[known]))
