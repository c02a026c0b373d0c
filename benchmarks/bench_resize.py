"""Resizing a photograph to a network's input, beside Pillow, whose result it is, and torch's antialiased
`interpolate` of uint8.

One thread each. Photographs are noise: no side's time depends on what they show. torch has them channels
last, its fastest way for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from common import interleaved, ratio
from PIL import Image
from record import FiguresOf

from ensemblead.kernels.resize import resized

torch = pytest.importorskip("torch")

# (H, W), (h, w): the sizes of MVTec AD, of a camera of twelve million pixels, and an enlargement.
SIZES = [
    ((512, 512), (256, 256)),
    ((900, 900), (256, 256)),
    ((1024, 1024), (512, 512)),
    ((3000, 4000), (256, 256)),
    ((3000, 4000), (1024, 1024)),
    ((256, 256), (512, 512)),
]
TARGET = 4.0  # times as fast as Pillow


@pytest.mark.parametrize(("native", "size"), SIZES)
def test_resize(figures: FiguresOf, native: tuple[int, int], size: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    image = np.random.default_rng(0).integers(0, 256, (*native, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # in channels_last

    def by_pillow() -> Any:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))

    def by_torch() -> Any:
        options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
        return torch.nn.functional.interpolate(planes, size, **options)

    assert np.abs(resized(image, size).astype(int) - by_pillow()).max() <= 1
    calls = {"ours": lambda: resized(image, size), "Pillow": by_pillow, "torch": by_torch}
    timings = interleaved(calls)
    columns = {
        "ms": timings["ours"].median * 1e3,
        "Pillow, ms": timings["Pillow"].median * 1e3,
        "torch / ours": ratio(timings["torch"], timings["ours"]),
    }
    what = f"{native[0]} x {native[1]} to {size[0]} x {size[1]}"
    value = ratio(timings["Pillow"], timings["ours"])
    figures.add(what, value, "x Pillow", at_least=TARGET, timings=timings, columns=columns)
