"""DRAEM's two networks: one restores the normal image, the other compares that with what it was given.

`w` is the width, `v` half of it. A block is two convolutions of 3 x 3, each with batch norm and ReLU.

    reconstruction   encoder 3 -> w -> 2w -> 4w -> 8w -> 8w, decoder 8w -> 4w -> 2w -> w -> w -> 3
    discrimination   encoder 6 -> v -> 2v -> 4v -> 8v -> 8v -> 8v, decoder 8v -> 8v -> 4v -> 2v -> v -> v
                     -> 2, whose blocks see the encoder's of the same grid as well
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ensemblead.detectors.training.convolution import SameConv2d
from ensemblead.networks.engines.folded import fused
from ensemblead.networks.modes import own_generator

_DEVIATION = 0.02  # of initial weights


class Networks(nn.Module):
    """Both. Without `norms` their convolutions have the batch norms folded into them."""

    def __init__(self, width: int, *, norms: bool = True) -> None:
        super().__init__()
        self.width, half = width, width // 2
        self.reconstruct = Hourglass(
            (3, *(times * width for times in (1, 2, 4, 8, 8))),
            [(times * width, target * width) for times, target in ((8, 4), (4, 2), (2, 1), (1, 1))],
            3,
            skips=False,
            norms=norms,
        )
        self.discriminate = Hourglass(
            (6, *(times * half for times in (1, 2, 4, 8, 8, 8))),
            [(times * half, times * half) for times in (8, 4, 2, 1, 1)],
            2,
            skips=True,
            norms=norms,
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[B, 3, H, W]` in 0..1 -> as they would be without defects, and logits `[B, 2, H, W]` of
        the pixels, the second for a defect.
        """
        restored = self.reconstruct(images)
        return restored, self.discriminate(torch.cat([restored, images], 1))

    def folded(self) -> Networks:
        """Networks without batch norms that compute the same as these in eval mode."""
        twin = empty_networks(self.width)
        tensors = {}
        for name, part in self.named_modules():
            if isinstance(part, Convolution):
                assert part.norm is not None
                name, part = f"{name}.convolution", fused(part.convolution, part.norm)
            elif not name.endswith(".restore"):
                continue
            for kind, tensor in part.named_parameters():
                tensors[f"{name}.{kind}"] = tensor.detach()
        twin.load_state_dict(tensors, assign=True)
        return twin.eval().requires_grad_(False)


class Hourglass(nn.Module):
    """Blocks with the grid halved between them, then blocks with the grid doubled before each.

    Args:
        encoder: channels of the input, and behind every block of the encoder.
        decoder: for every block of the decoder, channels behind the doubling and behind the block.
        target: channels of the output.
        skips: whether a block of the decoder sees the encoder's block of the same grid as well.
    """

    def __init__(
        self,
        encoder: Sequence[int],
        decoder: Sequence[tuple[int, int]],
        target: int,
        *,
        skips: bool,
        norms: bool,
    ) -> None:
        super().__init__()
        self._skips = skips
        self.encode = nn.ModuleList(
            nn.Sequential(Convolution(before, after, norms), Convolution(after, after, norms))
            for before, after in itertools.pairwise(encoder)
        )
        self.grow, self.decode = nn.ModuleList(), nn.ModuleList()
        before = encoder[-1]
        for skipped, (middle, after) in zip(encoder[-2:0:-1], decoder, strict=True):
            self.grow.append(Convolution(before, middle, norms))
            seen = middle + skipped if skips else middle
            self.decode.append(
                nn.Sequential(Convolution(seen, middle, norms), Convolution(middle, after, norms))
            )
            before = after
        self.restore = SameConv2d(before, target, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        passed = []
        for number, block in enumerate(self.encode):
            values = block(functional.max_pool2d(values, 2) if number else values)
            passed.append(values)
        for convolution, block, skipped in zip(self.grow, self.decode, passed[-2::-1], strict=True):
            values = convolution(doubled(values))
            values = block(torch.cat([values, skipped], 1) if self._skips else values)
        restored: torch.Tensor = self.restore(values)
        return restored


class Convolution(nn.Module):
    """A convolution of 3 x 3, its batch norm, and a ReLU."""

    def __init__(self, source: int, target: int, norms: bool) -> None:
        super().__init__()
        self.convolution = SameConv2d(source, target, 3)
        self.norm = nn.BatchNorm2d(target) if norms else None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.convolution(values)
        return torch.relu_(values if self.norm is None else self.norm(values))


def doubled(values: torch.Tensor) -> torch.Tensor:
    """Grids of twice the size, bilinear with corners aligned: `[B, C, h, w]` -> `[B, C, 2h, 2w]`.

    Torch's own has a backward pass on GPUs that adds in any order; two matrix products give the same bits
    every time. Channels come last in the result.
    """
    height, width = (int(side) for side in values.shape[2:])  # tensors, where torch traces
    rows, columns = (_doubling(side, values.dtype, values.device) for side in (height, width))
    last = values.permute(0, 2, 3, 1)
    taller = torch.matmul(rows, last.flatten(2)).view(-1, 2 * height, *last.shape[2:])
    return torch.matmul(columns, taller).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _doubling(side: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`[2 * side, side]`: the weights of the old places in the new ones."""
    places = np.arange(2 * side) * ((side - 1) / (2 * side - 1))
    weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(side)[None]))
    with torch.inference_mode(False):  # it is kept, and training cannot use a tensor of inference mode
        return torch.from_numpy(weights).to(device, dtype)


def new_networks(width: int, seed: int) -> Networks:
    """Untrained networks, with the authors' initial weights; biases of convolutions are torch's own."""
    with own_generator(seed):
        networks = Networks(width)
        for part in networks.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, _DEVIATION)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, _DEVIATION)
    return networks.to(memory_format=torch.channels_last)


def empty_networks(width: int) -> Networks:
    """Folded networks without values, to be given some."""
    with torch.device("meta"):
        return Networks(width, norms=False)
