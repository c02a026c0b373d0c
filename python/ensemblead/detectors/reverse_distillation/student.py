"""The student: it fuses a teacher's feature maps into a small embedding, and restores them from it.

`c1, c2, c3` are the channels of the teacher's three feature maps, each with half the grid of the one before.

    fusion     f1: c1 -> c2 -> c3 and f2: c2 -> c3, by strided convolutions; with f3 they are 3 c3 channels
    embedding  residual blocks, 3 c3 -> 2 c3, half the grid of f3
    decoder    three stages of residual blocks, which double the grid: 2 c3 -> c3 -> c2 -> c1
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ensemblead.common.validation import whole_number
from ensemblead.detectors.training.convolution import SameConv2d
from ensemblead.networks.engines.folded import fused
from ensemblead.networks.modes import own_generator

Maps = Sequence[torch.Tensor]
Resampling = Literal["down", "up"] | None
# Of what it restores: the least norm that a cosine divides by, and vectors so short that they are alike.
EPS, NOTHING = 1e-8, 1e-6
_PLAIN_BLOCKS = (2, 2, 2, 2)  # as ResNet18 has them


@dataclass(frozen=True)
class Plan:
    """What a student's architecture follows from.

    Attributes:
        channels: of the teacher's three feature maps.
        depths: blocks of the embedding, and of the decoder's stages from the smallest grid on.
        bottleneck: width of a bottleneck block's middle, as a share of its output; 0: basic blocks.
        embedding: that share of the embedding's blocks; 0: the same. Anomalib's WideResNet50 has another.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    bottleneck: float
    embedding: float = 0.0

    def __post_init__(self) -> None:
        for name, values, count in (("channels", self.channels, 3), ("depths", self.depths, 4)):
            if len([whole_number(name, value, 1) for value in values]) != count:
                raise ValueError(f"{name} must be {count} numbers, got {values}")
        for name, share in (("bottleneck", self.bottleneck), ("embedding", self.embedding)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {share}")

    @classmethod
    def of(cls, channels: Sequence[int], network: nn.Module, layers: Sequence[str]) -> Plan:
        """Blocks like those of a ResNet, as many as its stages have; else basic blocks, two each.

        The decoder's stages are not mirrored: that of the largest grid has as many as the ResNet's third.
        """
        parts = dict(network.named_modules())
        stages: list[Any] = [parts.get(layer) for layer in layers]
        blocks: list[list[Any]] = [list(stage) for stage in stages if isinstance(stage, nn.Sequential)]
        kinds = {type(block).__name__ for stage in blocks for block in stage}
        if len(blocks) < len(layers) or kinds not in ({"BasicBlock"}, {"Bottleneck"}):
            return cls(tuple(channels), _PLAIN_BLOCKS, 0.0)
        depths = tuple(len(stage) for stage in blocks)
        # ResNet18 has two blocks in its last stage, all others three.
        embedding = 2 if kinds == {"BasicBlock"} and depths == _PLAIN_BLOCKS[1:] else 3
        middle = blocks[0][0].conv2.out_channels / channels[0] if kinds == {"Bottleneck"} else 0.0
        return cls(tuple(channels), (embedding, *depths), middle)


class Student(nn.Module):
    """See above. Without `norms` its convolutions have the batch norms folded into them."""

    def __init__(self, plan: Plan, *, norms: bool = True) -> None:
        super().__init__()
        self.plan = plan
        c1, c2, c3 = plan.channels
        embedding, *depths = plan.depths

        def stage(
            count: int, source: int, target: int, resampling: Resampling, share: float = plan.bottleneck
        ) -> nn.Sequential:
            middle = round(target * share)
            first = Block(source, target, middle, resampling, norms)
            return nn.Sequential(
                first, *(Block(target, target, middle, None, norms) for _ in range(count - 1))
            )

        def fusion(source: int, target: int) -> nn.Sequential:
            return nn.Sequential(Convolution(source, target, 3, "down", norms), nn.ReLU(inplace=True))

        self.fuse1 = nn.Sequential(fusion(c1, c2), fusion(c2, c3))
        self.fuse2 = fusion(c2, c3)
        self.embed = stage(embedding, 3 * c3, 2 * c3, "down", plan.embedding or plan.bottleneck)
        self.decode = nn.ModuleList(
            stage(depth, source, target, "up")
            for depth, (source, target) in zip(depths, itertools.pairwise((2 * c3, c3, c2, c1)), strict=True)
        )

    def forward(self, maps: Maps) -> list[torch.Tensor]:
        """The teacher's feature maps `[B, C, H, W]` as the student restores them, in their order."""
        values = self.embed(torch.cat([self.fuse1(maps[0]), self.fuse2(maps[1]), maps[2]], 1))
        restored = []
        for stage in self.decode:
            values = stage(values)
            restored.append(values)
        return restored[::-1]

    def folded(self) -> Student:
        """A student without batch norms that computes the same as this one in eval mode."""
        twin = empty_student(self.plan)
        tensors = {}
        for name, part in self.named_modules():
            if isinstance(part, Convolution):
                convolution: Any
                norm: Any
                convolution, norm = part
                for kind, tensor in fused(convolution, norm).named_parameters():
                    tensors[f"{name}.0.{kind}"] = tensor.detach()
        twin.load_state_dict(tensors, assign=True)
        return twin.eval().requires_grad_(False)


class Block(nn.Module):
    """A residual block: basic, or with a `middle` width a bottleneck. Grids stay, are halved or doubled."""

    def __init__(self, source: int, target: int, middle: int, resampling: Resampling, norms: bool) -> None:
        super().__init__()
        if middle:
            self.body = nn.Sequential(
                Convolution(source, middle, 1, None, norms),
                nn.ReLU(inplace=True),
                Convolution(middle, middle, 3, resampling, norms),
                nn.ReLU(inplace=True),
                Convolution(middle, target, 1, None, norms),
            )
        else:
            self.body = nn.Sequential(
                Convolution(source, target, 3, resampling, norms),
                nn.ReLU(inplace=True),
                Convolution(target, target, 3, None, norms),
            )
        self.skip = None if resampling is None else Convolution(source, target, 1, resampling, norms)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        skipped = values if self.skip is None else self.skip(values)
        return torch.relu_(self.body(values) + skipped)


class Convolution(nn.Sequential):
    """A convolution and its batch norm; one that doubles the grid is transposed, with a kernel of 2."""

    def __init__(self, source: int, target: int, kernel: int, resampling: Resampling, norms: bool) -> None:
        convolution: nn.Conv2d | nn.ConvTranspose2d
        if resampling == "up":
            convolution = nn.ConvTranspose2d(source, target, 2, 2, bias=not norms)
        elif resampling == "down":
            convolution = nn.Conv2d(source, target, kernel, 2, kernel // 2, bias=not norms)
        else:
            convolution = SameConv2d(source, target, kernel, bias=not norms)
        super().__init__(convolution, *([nn.BatchNorm2d(target)] if norms else []))


def new_student(plan: Plan, seed: int) -> Student:
    """An untrained student: Kaiming normal by fan-out for convolutions, torch's own for transposed ones."""
    with own_generator(seed):
        student = Student(plan)
        for part in student.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return student


def empty_student(plan: Plan) -> Student:
    """A folded student without values, to be given some."""
    with torch.device("meta"):
        return Student(plan, norms=False)
