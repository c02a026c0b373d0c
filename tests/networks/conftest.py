"""Images for networks that are run by several engines."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def images() -> Any:
    """Normal images, uint8 `[8, H, W, 3]`."""
    from support.textures import normal_images

    return normal_images(8)


@pytest.fixture(scope="module")
def probe() -> Any:
    """Four others, the last one with a defect."""
    from support.textures import normal_images

    made = normal_images(4, 1)
    made[3, 10:30, 10:30] = 255
    return made
