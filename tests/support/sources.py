"""Datasets that count how often they are read, or are cut off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


class Listed:
    """A Dataset of images of any sizes."""

    def __init__(self, images: Sequence[Images]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Images:
        return self.images[index]


class Counted:
    """A Dataset that counts how often it is read."""

    def __init__(self, images: Images) -> None:
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Images:
        self.reads += 1
        return np.asarray(self.images[index])


class Interrupting:
    """A Dataset that is cut off after some items."""

    def __init__(self, images: Images, after: int) -> None:
        self._images, self._left = images, after

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Images:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return np.asarray(self._images[index])
