"""A tiny detector, and images as files would have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.browser import Browser, browser_or_skip

if TYPE_CHECKING:
    from support.serving import Gate


@pytest.fixture(scope="session")
def detector() -> Any:
    """Fitted on whole images of any size."""
    from support.textures import normal_images

    import ensemblead as ead

    options: dict[str, Any] = {"resize": None, "image_size": None, "coreset_fraction": 0.1}
    return ead.PatchCore("gabor", device="cpu", batch_size=4, **options).fit(normal_images(8))


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Two good parts and two bad ones: uint8 `[4, 64, 64, 3]`."""
    from support.textures import normal_images, with_defects

    good, bad = normal_images(2, seed=5), with_defects(normal_images(2, seed=6))[0]
    return np.concatenate([good, bad])


@pytest.fixture(scope="session")
def files(pixels: np.ndarray) -> list[tuple[str, bytes]]:
    from support.serving import encoded

    return [(f"{number}.png", encoded(image)) for number, image in enumerate(pixels)]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Batches of a service wait for it."""
    from support.serving import Gate

    from ensemblead.service import batching

    gate = Gate(batching.score_each)
    monkeypatch.setattr(batching, "score_each", gate)
    yield gate
    gate.open.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browser_or_skip() as started:
        yield started
