"""What a fit is: images embedded by the detector's leaves, shown once or several times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ensemblead.calibration.statistics import NormalSample
from ensemblead.common.warnings import ThresholdWarning, warn

# Called with what is being done ("embed", "select", "calibrate", "predict"), how much of it is done, and how
# much there is.
Progress = Callable[[str, int, int], None]
Errors = Literal["raise", "skip"]
# Scores float32 [B] and maps float32 [B, H, W] of a batch.
Result = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Embedded:
    """A batch as a detector's leaves see it: for each leaf what its `_look` returned (of a `LeafDetector`
    float32 `[B, h, w, D]`) and the size of the images it looked at.
    """

    parts: tuple[torch.Tensor, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def images(self, which: slice) -> Embedded:
        """Some of the batch's images."""
        return Embedded(tuple(part[which] for part in self.parts), self.sizes)

    def leaves(self, which: slice) -> Embedded:
        """What some of the leaves see."""
        return Embedded(self.parts[which], self.sizes[which])


class Fitting(ABC):
    """A fit, or an extension, under way. The detector is as it was until `commit`.

    The images are shown by `observe`, batch by batch, and all of them again, in the same order, for as long
    as `passes_left` asks for it, with an `end_pass` in between.
    """

    def __init__(self) -> None:
        # Why the threshold will say little, by the kind of reason: what `finish` found.
        self.doubts: dict[str, str] = {}

    def expect(self, num_images: int) -> None:  # noqa: B027 - most need not know
        """Called first, with the number of images (of which some may turn out unreadable)."""

    @abstractmethod
    def observe(self, embedded: Embedded, numbers: Sequence[int], sampled: Sequence[bool]) -> None:
        """Take in a batch of normal images: their numbers in the training set, and which ones give
        statistics.
        """

    def passes_left(self) -> list[int]:
        """Per leaf: how many more passes over the images it needs. Known from the first `observe` on."""
        return [0]

    def end_pass(self, progress: Progress | None) -> None:  # noqa: B027 - most need one pass
        """All images have been shown, and will be again to the leaves that `passes_left` named."""

    def replay_bytes(self) -> int | None:
        """How many bytes of resized images may be kept between the passes; None: as many as is usual."""
        return None

    def footprint(self, embedded: Embedded, num_images: int) -> int:
        """About how many bytes it will hold after so many images like those in `embedded`, before `finish`
        makes less of them.
        """
        held = sum(part[:1].numel() * part.element_size() for part in embedded.parts)
        return held * num_images

    @abstractmethod
    def finish(self, progress: Progress | None) -> list[NormalSample]:
        """Do what needs all images; returns, per leaf, how the sampled images score without themselves."""

    def warn(self) -> None:
        """Tell the user of the doubts, each once; `finish` only notes them, for it runs once per tile."""
        for doubt in dict.fromkeys(self.doubts.values()):
            warn(doubt, ThresholdWarning)

    @abstractmethod
    def commit(self) -> None:
        """Hand the result to the detector. Only assigns; the statistics follow by `Detector._accept`."""
