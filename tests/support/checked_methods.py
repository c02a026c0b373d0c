"""Two small methods without a network: one learns in one pass, the other is trained. Tests register them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ensemblead import BackboneEnsemble, TiledEnsemble
from ensemblead.detectors import Detector, Fitted, Method, NormalSample, Run, Scores, Seen, TrainingData
from ensemblead.images import Region

# Pixels are pooled to cells of this side.
CELL = 4
NATIVE: dict[str, Any] = {"resize": 32, "image_size": None, "device": "cpu", "batch_size": 4}


def cells(seen: Seen) -> torch.Tensor:
    """Mean and deviation of the brightness in every cell: float32 `[B, 2, h, w]` in 0..1."""
    grey = seen.pixels.float().mean(1, keepdim=True) / 255.0
    mean = functional.avg_pool2d(grey, CELL)
    square = functional.avg_pool2d(grey * grey, CELL)
    return torch.cat([mean, (square - mean * mean).clamp_min(0.0).sqrt()], 1)


@dataclass(frozen=True)
class Means:
    """Of cells, over all images and places."""

    count: int
    total: torch.Tensor


class CellMeans(Method):
    """How far the cells of an image lie from the mean of all cells of normal images."""

    State = Means

    def __init__(
        self,
        *,
        gain: float = 1.0,
        resize: int | None = 32,
        image_size: int | None = None,
        device: str = "auto",
        batch_size: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(locals())
        self.gain = gain

    def start(self, state: Means | None = None) -> Any:
        return MeansAccumulator(self, state)

    def scores(self, state: Means, seen: Seen) -> Scores:
        mean = (state.total / state.count).float()[:, None, None]
        return Scores(self.gain * (cells(seen) - mean).square().sum(1).sqrt())


class BlindToItsRegion(CellMeans):
    """It takes a region and inspects all."""

    def __init__(self, *, gain: float = 1.0, region: Any = None, device: str = "cpu") -> None:
        super().__init__(gain=gain, device=device)
        self._take_region(Region.of(region))

    def inside(self, seen: Any) -> None:
        return None


class MeansAccumulator:
    """Sums up cells in float64, in which their order does not matter; keeps those of sampled images."""

    def __init__(self, method: CellMeans, state: Means | None) -> None:
        self.method = method
        self.count = 0 if state is None else state.count
        self.total = torch.zeros(2, dtype=torch.float64) if state is None else state.total
        self.sampled: list[tuple[int, Seen]] = []
        self.parts: dict[int, tuple[int, torch.Tensor]] = {}

    def add(self, seen: Seen) -> None:
        for i, (number, sampled) in enumerate(zip(seen.numbers, seen.sampled, strict=True)):
            row = seen.rows(slice(i, i + 1))
            flat = cells(row)[0].flatten(1).double()
            self.count, self.total = self.count + flat.shape[1], self.total + flat.sum(1)
            count, total = self.parts.get(number, (0, torch.zeros(2, dtype=torch.float64)))
            self.parts[number] = count + flat.shape[1], total + flat.sum(1)
            if sampled:
                self.sampled.append((number, row))

    def finish(self, run: Run) -> Fitted:
        sample = NormalSample(rounding=1e-6)
        for done, (number, row) in enumerate(self.sampled, 1):
            count, total = self.parts[number]
            others = Means(self.count - count, self.total - total)
            found = self.method.scores(others if others.count else Means(self.count, self.total), row)
            sample.add_grids(found.images, found.grids, row.size)
            run.progress("calibrate", done, len(self.sampled))
        alone = {"one": "a single image leaves nothing to compare it with"} if len(self.parts) == 1 else {}
        return Fitted(Means(self.count, self.total), sample, warnings=alone)


@dataclass(frozen=True)
class Weights:
    """Of a linear autoencoder."""

    encoder: torch.Tensor
    decoder: torch.Tensor
    mean: torch.Tensor


class LinearAutoencoder(Method):
    """How badly a linear autoencoder, trained on normal images, puts together the pixels of a cell."""

    State = Weights

    def __init__(
        self,
        *,
        epochs: int = 2,
        hidden: int = 3,
        resize: int | None = 32,
        image_size: int | None = None,
        device: str = "auto",
        batch_size: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(locals())
        self.epochs, self.hidden = epochs, hidden

    def train(self, data: TrainingData, run: Run) -> Weights:
        generator = torch.Generator().manual_seed(self.seed)
        values = CELL * CELL
        encoder = torch.randn(values, self.hidden, generator=generator) / values
        decoder = torch.randn(self.hidden, values, generator=generator) / values
        mean, count = torch.zeros(values), 0
        for epoch in range(self.epochs):
            for seen in data.epoch(epoch):
                pixels = patches(seen).flatten(0, 1)
                count += 1
                mean = mean + (pixels.mean(0) - mean) / count
                centred = pixels - mean
                hidden = centred @ encoder
                wrong = (hidden @ decoder - centred) / len(centred)
                steps = centred.T @ (wrong @ decoder.T), hidden.T @ wrong
                encoder, decoder = encoder - steps[0], decoder - steps[1]
            run.progress("train", epoch + 1, self.epochs)
        return Weights(encoder, decoder, mean)

    def scores(self, state: Weights, seen: Seen) -> Scores:
        centred = patches(seen) - state.mean
        wrong = (centred @ state.encoder @ state.decoder - centred).square().mean(2).sqrt()
        return Scores(wrong.view(len(seen), seen.size[0] // CELL, seen.size[1] // CELL))


def patches(seen: Seen) -> torch.Tensor:
    """The grey pixels of every cell: float32 `[B, cells, pixels]` in 0..1."""
    grey = seen.pixels.float().mean(1, keepdim=True) / 255.0
    return functional.unfold(grey, CELL, stride=CELL).transpose(1, 2)


# These say nothing of ensembles and of what is trained.
OF_ONE_PASS = {
    "statistics_leave_one_out",
    "statistics_leave_copies_out",
    "extending_leaves_the_state",
    "extending_forgets_nothing",
}


def inapplicable(detector: Detector) -> set[str]:
    """Checks that say nothing of a detector."""
    one_pass = isinstance(detector, Method) and detector.passes != "held_out"
    return (set() if one_pass else OF_ONE_PASS) | (
        set() if takes_region(detector) else {"inspects_its_region"}
    )


def takes_region(detector: Detector) -> bool:
    """The methods here take none, and a detector that all tiles share cannot have one."""
    if getattr(detector, "shared", False):
        return False
    if isinstance(detector, BackboneEnsemble):
        return all(map(takes_region, detector.members))
    inner = detector.member if isinstance(detector, TiledEnsemble) else detector
    return not isinstance(inner, (CellMeans, LinearAutoencoder))
