"""Small images of three classes, and the network that tests of image search see them by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ensemblead.common.files import write_atomically

# As options of the commands.
NETWORK = ["-b", "gabor", "--resize", "none", "--image-size", "none", "--device", "cpu"]
_LEVELS = {"dark": (0, 60), "middle": (90, 150), "light": (200, 255)}


def draw_classes(folder: Path, each: int) -> Path:
    """`each` images in each of the folders dark, middle and light."""
    from PIL import Image

    for name, levels in _LEVELS.items():
        for number in range(each):
            rng = np.random.default_rng([list(_LEVELS).index(name), number])
            pixels = rng.integers(*levels, (32, 32, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            write_atomically(
                folder / name / f"{number}.png", lambda file, image=image: image.save(file, "PNG")
            )
    return folder
