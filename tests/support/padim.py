"""Small PaDiM detectors, and images with defects for them."""

from __future__ import annotations

from typing import Any

from support.networks import NATIVE, TinyNet
from support.textures import SIDE, normal_images, with_defects

import ensemblead as ead

GRID = (SIDE // 4, SIDE // 4)  # of the Gabor bank's layer1

BAD, MASKS = with_defects(normal_images(6, seed=5))


def gabor(**options: Any) -> ead.PaDiM:
    defaults = {**NATIVE, "num_dimensions": 30, "batch_size": 4, "device": "cpu"}
    return ead.PaDiM("gabor", **(defaults | options))


def tiny(**options: Any) -> ead.PaDiM:
    defaults = {**NATIVE, "num_dimensions": 9, "device": "cpu"}
    return ead.PaDiM(TinyNet(), ("first", "second"), **(defaults | options))
