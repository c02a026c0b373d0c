"""A detector in one page: a patch scores by how far its mean colour is from that of good parts.

    python examples/mean_colour.py [FOLDER]

fits on a folder of good images, or on drawn ones, saves the model, and lets `ead.check_detector` test it.
CONTRIBUTING.md explains it part by part.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

import ensemblead as ead
from ensemblead.common.validation import whole_number
from ensemblead.detectors.method import Accumulator, Fitted, Method, NormalSample, Run, Scores, Seen

# The largest error that float32 can make in a distance between colours of 0 to 255. A score this close to the
# threshold is not anomalous.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Colours:
    """What is learned: the sum of the mean colours of `count` images, float64 `[3]`."""

    count: int
    total: torch.Tensor


@ead.register("MeanColour")
class MeanColour(Method):
    """A patch scores the L2 distance of its mean colour from the mean colour of the training images.

    Args:
        patch_size: side of a patch in pixels.
        resize, image_size, device, batch_size, seed: as `PatchCore` has them.
    """

    State = Colours

    def __init__(
        self,
        patch_size: int = 16,
        *,
        resize: int | tuple[int, int] | None = 256,
        image_size: int | tuple[int, int] | None = None,
        device: str = "auto",
        batch_size: int = 16,
        seed: int = 0,  # nothing is random here, but every member of an ensemble can then be given one
    ) -> None:
        super().__init__(locals())  # checks and keeps the parameters that all methods share
        self.patch_size = whole_number("patch_size", patch_size, 1)

    def start(self, state: Colours | None = None) -> Accumulator:
        return ColourSums(self, state)

    def scores(self, state: Colours, seen: Seen) -> Scores:
        return Scores(distances(self.patches(seen), state.total / state.count))

    def patches(self, seen: Seen) -> torch.Tensor:
        """Mean colours of the patches of images: float32 `[B, 3, h, w]`."""
        return torch.nn.functional.avg_pool2d(seen.pixels.float(), self.patch_size, ceil_mode=True)


class ColourSums:
    """Learning in one pass: sums of colours, and the patches of the images that give the statistics."""

    def __init__(self, method: MeanColour, state: Colours | None) -> None:
        self._method = method
        self._known = state or Colours(0, torch.zeros(3, dtype=torch.float64))
        self._counts: Counter[int] = Counter()
        self._sums: dict[int, torch.Tensor] = {}
        self._sampled: list[tuple[int, torch.Tensor, tuple[int, int]]] = []

    def add(self, seen: Seen) -> None:
        patches = self._method.patches(seen)
        colours = patches.double().mean((2, 3))
        for i, number in enumerate(seen.numbers):
            self._counts[number] += 1  # images that are equal have one number
            self._sums[number] = colours[i] + self._sums.get(number, 0.0)
            if seen.sampled[i]:
                self._sampled.append((number, patches[i : i + 1].clone(), seen.size))

    def finish(self, run: Run) -> Fitted:
        total = torch.stack(list(self._sums.values())).sum(0)
        state = Colours(self._known.count + self._counts.total(), self._known.total.to(total) + total)
        alone = state.count == max(self._counts.values())  # all images are equal: none can be left out
        sample = NormalSample(ROUNDING)
        for number, patches, size in self._sampled:
            count, total = state.count, state.total
            if not alone:  # leave-one-out: without this image and all that equal it
                count, total = count - self._counts[number], total - self._sums[number]
            grids = distances(patches, total / count)
            sample.add_grids(None, grids, size, sigma=self._method.map_sigma)
        warnings = {"one": "a single image says nothing of how much normal images differ"} if alone else {}
        return Fitted(state, sample, warnings=warnings)


def distances(patches: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """L2 distances of mean colours `[B, 3, h, w]` from one colour: float32 `[B, h, w]`."""
    return torch.linalg.vector_norm(patches - colour.float()[:, None, None], dim=1)


def draw_parts(count: int, seed: int = 0) -> np.ndarray:
    """Grey parts with some noise, uint8 `[count, 128, 128, 3]`."""
    return np.random.default_rng(seed).integers(90, 110, (count, 128, 128, 3), dtype=np.uint8)


def main(folder: str | None = None) -> None:
    good = draw_parts(40) if folder is None else folder
    detector = MeanColour(device="cpu").fit(good)
    if folder is None:
        parts = draw_parts(4, seed=1)
        parts[0, 32:64, 64:96] = (200, 90, 90)
        found = detector.predict(parts)
        print("scores", found.anomaly_score.round(1), "anomalous", found.is_anomalous)
    with tempfile.TemporaryDirectory() as where:
        detector.save(f"{where}/model")
        print("threshold", round(ead.load(f"{where}/model").threshold_, 2), "after saving and loading")
    ead.check_detector(MeanColour(device="cpu"))
    print("check_detector has nothing to object to")


if __name__ == "__main__":
    main(*sys.argv[1:2])
