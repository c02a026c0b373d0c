"""Small methods, as an author would write them: many epochs on pixels, one pass on pixels, feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ensemblead.config.registry import register
from ensemblead.detectors import Accumulator, Fitted, Method, NormalSample, Run, Scores, Seen, TrainingData


@dataclass(frozen=True)
class MeanImage:
    """The mean of images, float32 `[3, H, W]`, and the epochs that it took."""

    mean: torch.Tensor
    epochs: int

    def __post_init__(self) -> None:
        if self.mean.ndim != 3 or len(self.mean) != 3 or self.mean.dtype != torch.float32:
            raise ValueError(
                f"mean must be float32 [3, H, W], got {self.mean.dtype} {tuple(self.mean.shape)}"
            )


@register("test-epochs")
class Epochs(Method):
    """The mean image, by stochastic gradient descent over epochs."""

    State = MeanImage
    # Of every training the numbers of the images seen, epoch by epoch.
    trainings: ClassVar[list[list[list[int]]]] = []

    def __init__(
        self,
        *,
        epochs: int = 3,
        rate: float = 0.3,
        resize: int | tuple[int, int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        holdout: float = 0.1,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(locals())
        self.epochs, self.rate = epochs, rate

    def train(self, data: TrainingData, run: Run) -> MeanImage:
        shown: list[list[int]] = []
        Epochs.trainings.append(shown)
        mean = torch.full_like(data.batch([0]).pixels[0], 128).float()
        for epoch in range(self.epochs):
            shown.append([])
            for seen in data.epoch(epoch):
                mean = mean + self.rate * (seen.pixels.float().mean(0) - mean)
                shown[-1] += seen.numbers
            run.progress("train", epoch + 1, self.epochs)
        return MeanImage(mean, self.epochs)

    def scores(self, state: MeanImage, seen: Seen) -> Scores:
        distances = (seen.pixels.float() - state.mean).square().mean(1, keepdim=True)
        return Scores(nn.functional.avg_pool2d(distances, 4)[:, 0])


@dataclass(frozen=True)
class MeanColours:
    """The sum of the patches' mean colours over `count` images, float64 `[3, h, w]`."""

    total: torch.Tensor
    count: int

    def __post_init__(self) -> None:
        if self.total.ndim != 3 or len(self.total) != 3 or self.total.dtype != torch.float64:
            raise ValueError(
                f"total must be float64 [3, h, w], got {self.total.dtype} {tuple(self.total.shape)}"
            )
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


@register("test-colours")
class Colours(Method):
    """How far the mean colour of a patch lies from the normal one in its place: one pass, no network."""

    State = MeanColours

    def __init__(
        self,
        *,
        patch: int = 8,
        resize: int | tuple[int, int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(locals())
        self.patch = patch

    def colours(self, seen: Seen) -> torch.Tensor:
        return nn.functional.avg_pool2d(seen.pixels.double(), self.patch)

    def start(self, state: MeanColours | None = None) -> Accumulator:
        return _Colours(self, state)

    def scores(self, state: MeanColours, seen: Seen) -> Scores:
        return Scores(_apart(self.colours(seen), state.total / state.count))


class _Colours:
    def __init__(self, method: Colours, state: MeanColours | None) -> None:
        self._method, self._known, self._size = method, state, (0, 0)
        self._seen: list[tuple[int, bool, torch.Tensor]] = []

    def add(self, seen: Seen) -> None:
        self._size = seen.size
        self._seen += zip(seen.numbers, seen.sampled, self._method.colours(seen), strict=True)

    def finish(self, run: Run) -> Fitted:
        total = sum(colours for _, _, colours in self._seen)
        count = len(self._seen)
        if self._known is not None:
            total, count = total + self._known.total, count + self._known.count
        state, sample = MeanColours(total, count), NormalSample()
        for number, sampled, colours in self._seen:
            own = [other for same, _, other in self._seen if same == number]
            others = state if len(own) == count else MeanColours(total - sum(own), count - len(own))
            if sampled:
                grid = _apart(colours[None], others.total / others.count)
                sample.add_grids(None, grid, self._size)
        return Fitted(state, sample)


def _apart(colours: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return (colours - mean).abs().amax(1).float()


@dataclass(frozen=True)
class MeanFeatures:
    """The mean of every channel of every layer."""

    means: tuple[torch.Tensor, ...]


@register("test-features")
class FeatureMeans(Method):
    """How far features lie from the mean of their channel; the layers keep their own grids."""

    State = MeanFeatures

    def __init__(
        self,
        backbone: str | nn.Module = "gabor",
        layers: Sequence[str] = ("layer1", "layer2"),
        *,
        weights: Any = "default",
        resize: int | tuple[int, int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(locals())

    def train(self, data: TrainingData, run: Run) -> MeanFeatures:
        totals: list[torch.Tensor] = []
        for seen in data.epoch(0):
            own = [maps.double().mean((2, 3)).sum(0) for maps in seen.feature_maps]
            totals = [a + b for a, b in zip(totals, own, strict=True)] if totals else own
        return MeanFeatures(tuple((total / len(data)).float() for total in totals))

    def scores(self, state: MeanFeatures, seen: Seen) -> Scores:
        grids = [
            (maps - mean[None, :, None, None]).abs().mean(1)
            for maps, mean in zip(seen.feature_maps, state.means, strict=True)
        ]
        size = grids[0].shape[1:]
        coarse = [nn.functional.interpolate(grid[:, None], size)[:, 0] for grid in grids]
        return Scores(torch.stack(coarse).sum(0))
