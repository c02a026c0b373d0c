"""What a method trains on: its images, in an order that follows from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ensemblead.calibration import Originals, set_digest
from ensemblead.detectors.parts import Run, Seen
from ensemblead.detectors.running import open_pool
from ensemblead.images import ImageSet
from ensemblead.kernels.build import __version__

# Told apart from the numbers of epochs, which come second in a seed too.
_DRAWS = 1 << 62


class TrainingData:
    """The images that a method trains on, and those that it holds out.

    Images are held out whole, with all that equal them, of which the first counts, and all tiles of an
    image together. Of a single image, and under `holdout=0`, nothing is: all images are trained on, and the
    statistics are those of images that are known.

    Everything random follows from the seed and a number, so that training can stop and go on anywhere.

    Args:
        part: the method.
    """

    def __init__(self, part: Any, images: ImageSet, run: Run, seed: int) -> None:
        self._part, self._images, self._seed, self._describe = part, images, seed, run.describe
        self._pool = open_pool([part], images)
        held, kept, originals = list[int](), list[int](), Originals()
        for item, identity in enumerate(images.identities()):
            number = originals.of(*identity)
            if number not in run.sampled:
                kept.append(item)
            elif number == identity[0]:
                held.append(item)
        self.holds_out = bool(held and kept and part.holdout)
        self._kept = kept if self.holds_out else list(range(len(images)))
        self._held = held or kept

    def __len__(self) -> int:
        """Images to train on."""
        return len(self._kept)

    @property
    def batch_size(self) -> int:
        """The method's."""
        return int(self._part.batch_size)

    def require_one_size(self) -> None:
        """Raise ValueError where images come out in several sizes, those held out too. Tiles have one."""
        if self._images.view:
            return
        frame = self._images.frame(self._part.geometry)
        sizes = {position: frame.output_size(*size) for position, size, _ in self._images.identities()}
        first = next(iter(sizes))
        for other, size in sizes.items():
            if size != sizes[first]:
                raise ValueError(
                    f"images must all have one size to be trained on, but {self._describe(first)} comes out "
                    f"as {sizes[first]} and {self._describe(other)} as {size}; give an exact resize (h, w), "
                    "or a crop"
                )

    # What is drawn

    def epoch(self, number: int) -> Iterator[Seen]:
        """All images once, shuffled by the seed and the number, in batches of the method's `batch_size`."""
        order = self._order(number)
        for start in range(0, len(order), self.batch_size):
            yield self.batch(order[start : start + self.batch_size])

    def drawn(self, step: int) -> list[int]:
        """The images of an update, `batch_size` of them, by their number among those to train on.

        Updates take the epochs one behind the other: none is short, and none leaves images out.
        """
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = {number: self._order(number) for number in {place // len(self) for place in places}}
        return [epochs[place // len(self)][place % len(self)] for place in places]

    def generators(self, step: int) -> list[np.random.Generator]:
        """For every image of an update a generator of its own, to augment it."""
        first = step * self.batch_size
        return [np.random.default_rng([self._seed, _DRAWS, first + i]) for i in range(self.batch_size)]

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()
        return order

    # Images

    def batch(self, items: Sequence[int]) -> Seen:
        """Some of the images to train on, by their number among them."""
        return self._see([self._kept[item] for item in items])

    def pixels(self, items: Sequence[int]) -> torch.Tensor:
        """The same as they go into a network before normalisation: uint8 `[B, 3, H, W]`, on the CPU."""
        frame = self._images.frame(self._part.geometry)
        pixels, _ = self._images.read(frame, [self._kept[item] for item in items])
        return pixels

    def held_out(self) -> Iterator[Seen]:
        """The images not trained on, or where there are none those that stand for all, in batches."""
        for start in range(0, len(self._held), self.batch_size):
            yield self._see(self._held[start : start + self.batch_size])

    def held_out_positions(self) -> tuple[int, ...]:
        """Where the images of `held_out` stand among those given."""
        positions = self._images.positions()
        return tuple(positions[item] for item in self._held)

    @torch.no_grad()
    def _see(self, items: Sequence[int]) -> Seen:
        frame = self._images.frame(self._part.geometry)
        pixels, numbers = self._images.read(frame, items)
        with self._pool.batch({frame: pixels}) as features:
            seen: Seen = self._part._seen(pixels, frame, features)
            return replace(seen, numbers=tuple(numbers))

    def identity(self) -> dict[str, Any]:
        """What training depends on, by name, in JSON's types: equal where it would come to the same."""
        networks = [network.network for network in self._part._networks()]
        return {
            "method": type(self._part).__name__,
            **self._part.parameters(),
            "images": set_digest(*zip(*self._images.identities(), strict=True)),
            "tiles": self._images.view,
            "networks": [_digest(network.extractor) for network in networks],
            # What "auto" came to; networks that are trained are torch's meanwhile.
            "engine": [network.engine for network in networks],
            "version of ensemblead": __version__,
            "version of torch": torch.__version__,
        }


def _digest(extractor: Any) -> str:
    """SHA-256 of the weights that lead to the layers, and of all else that a network's output depends on."""
    digest = hashlib.sha256(repr((extractor.layers, extractor.mean, extractor.std)).encode())
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
