"""Presets: descriptions of detectors that are known to be good, by name.

A preset is plain data. `{"preset": NAME}` stands for it wherever a description does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ensemblead.common.validation import one_of

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

# A patch is one token, as it is.
_TOKENS: Mapping[str, Any] = {"type": "PatchCore", "patch_size": 1, "aggregation": "concat"}
# Bytes of each layer's bank. The default budget would refuse the patches of more than 272 images of "rad",
# and the 100,000 rows of 1,280 values of "superadd".
_LARGE_BUDGET = 4_000_000_000

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
    # Damm et al., WACV 2025, arXiv 2405.14529, and the defaults of the authors' code, dammsi/AnomalyDINO.
    "anomaly_dino": {
        **_TOKENS,
        "backbone": "vit_small_patch14_dinov2",
        "layers": ["norm"],
        "resize": [448, 448],
        "metric": "cosine",
        "coreset_fraction": 1.0,
        "augment": "rotations",
        "score": "topk",
    },
    # Zhang et al., ICML 2026, arXiv 2601.22763, and the authors' command for MVTec AD, longkukuhi/RAD.
    "rad": {
        **_TOKENS,
        "backbone": "vit_base_patch16_dinov3",
        "layers": [f"blocks.{block}:normed" for block in (3, 6, 9, 11)],
        "resize": [512, 512],
        "image_size": 448,
        "banks": "per_layer",
        "metric": "cosine",
        "coreset_fraction": 1.0,
        "memory_budget": _LARGE_BUDGET,
        "position_radius": 1,
        "score": "topk",
    },
    # Roming et al., CVPR 2026 (VAND 4.0), arXiv 2605.14808, and the authors' config.json, LukasRoom/SuperADD.
    "superadd": {
        "type": "TiledEnsemble",
        "tile_size": 640,
        "stride": 384,
        "image_size": None,
        "scales": [0.625],
        "shared": True,
        "score": "max",
        "seam_smoothing": False,
        # A third of it holds tiles that give the threshold: those of an image of 12 tiles take 0.4 GB.
        "memory_budget": 2 * _LARGE_BUDGET,
        "member": {
            **_TOKENS,
            "backbone": "vit_huge_plus_patch16_dinov3",
            "layers": [f"blocks.{block}" for block in (7, 15, 23, 31)],
            "banks": "per_layer",
            "coreset_size": 100_000,
            "memory_budget": _LARGE_BUDGET,
            "augment": "brightness",
        },
    },
}

_DINOV3 = "The weights are under the DINOv3 License, which is Meta's own: read it before you use them."

# What a preset needs, and what of the published method it lacks.
PRESET_NOTES: Mapping[str, str] = {
    "patchcore-large": "ImageNet weights of WideResNet101-2, ResNeXt101-32x8d and DenseNet201.",
    "anomaly_dino": "DINOv2 weights of ViT-S/14 (timm's vit_small_patch14_dinov2, Apache 2.0). Without: "
    "the foreground mask by principal components. Of rotated images the mirrored corners are not learned, "
    "which the authors keep. Images are squashed to a square, where the authors keep the aspect ratio; "
    "resize=[672, 672] is their other size.",
    "rad": f"DINOv3 weights of ViT-B/16 (timm's vit_base_patch16_dinov3). {_DINOV3} Without: the choice of "
    "the 150 images most similar to the one inspected. The layers' distances are divided by their usual ones "
    "before the mean, and maps are blurred more.",
    "superadd": f"DINOv3 weights of ViT-H+/16 (timm's vit_huge_plus_patch16_dinov3). {_DINOV3} Without: "
    "the closing of maps and their threshold. Images are learned as they are and at 0.8 and 1.2 of their "
    "brightness, where the authors draw one factor for each. They are resized to 0.625 of their size "
    "bilinearly, not bicubically; bank rows are a k-center coreset, not a random thinning; squared "
    "distances are divided by their usual ones, not by the number of dimensions; where tiles overlap, maps "
    "are averaged.",
}

_FORMER_NAMES = {"mission": "patchcore-large"}


def preset_description(name: object) -> dict[str, Any]:
    """A new copy of the description that a preset stands for.

    Raises ValueError for an unknown name.
    """
    return copy.deepcopy(dict(PRESETS[_known(name)]))


def preset_notes(name: object) -> str:
    """Which weights a preset needs, under which terms, and what it lacks of the published method.

    Raises ValueError for an unknown name.
    """
    return PRESET_NOTES[_known(name)]


def _known(name: object) -> str:
    known = _FORMER_NAMES.get(name, name) if isinstance(name, str) else name
    return one_of("preset", known, PRESETS)
