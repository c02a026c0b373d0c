"""The networks that are trained: an autoencoder, and a student of the teacher and of the autoencoder.

Both put out descriptions `[B, C, h, w]` of stride 4, with the grid of a patch description network without
padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ensemblead.common.validation import one_of, whole_number
from ensemblead.kernels.maps import resize_maps
from ensemblead.networks.engines import run_by
from ensemblead.networks.modes import own_generator
from ensemblead.networks.pdn import BORDER, PDN, SIZES, STRIDE

# The autoencoder halves the grid five times, and then covers it by a kernel of so many positions at most.
HALVED, KERNEL = 32, 8
# The least side of an image: of a smaller one the decoder would have grids of nothing.
LEAST_SIDE = 64
_WIDTH = 64
_DROPPED = 0.2
# The modules whose outputs `Imitators.forward` gives.
_OUTPUTS = ("student.as_teacher", "student.as_autoencoder", "autoencoder.describe")


@dataclass(frozen=True)
class Plan:
    """What the networks' architecture follows from.

    Attributes:
        size: of the student, "small" or "medium".
        channels: of the teacher's descriptions.
        kernel: rows and columns of the autoencoder's last convolution before its decoder.
    """

    size: str
    channels: int
    kernel: tuple[int, int]

    def __post_init__(self) -> None:
        one_of("size", self.size, SIZES)
        whole_number("channels", self.channels, 1)
        if len(self.kernel) != 2 or not all(1 <= whole_number("kernel", k) <= KERNEL for k in self.kernel):
            raise ValueError(f"kernel must be two numbers of 1 to {KERNEL}, got {self.kernel}")

    @classmethod
    def of(cls, size: str, channels: int, image: tuple[int, int]) -> Plan:
        """For images of that height and width: below 256 pixels the kernel covers what there is."""
        height, width = (min(KERNEL, side // HALVED) for side in image)
        return cls(size, channels, (height, width))


class Student(nn.Module):
    """A patch description network with two last convolutions: one imitates the teacher, one the autoencoder.

    It computes what one of twice the channels does, and the half that is not wanted can be left out.
    """

    def __init__(self, size: str, channels: int) -> None:
        super().__init__()
        *body, (_, last) = PDN(size, 2 * channels).named_children()
        assert isinstance(last, nn.Conv2d)
        self.body = nn.Sequential()
        for name, part in body:
            self.body.add_module(name, part)
        self.as_teacher = nn.Conv2d(last.in_channels, channels, last.kernel_size)  # type: ignore[arg-type]
        self.as_autoencoder = nn.Conv2d(last.in_channels, channels, last.kernel_size)  # type: ignore[arg-type]


class Autoencoder(nn.Module):
    """It sees a whole image through `_WIDTH` numbers, and so learns what goes with what."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        widths = (3, 32, 32, _WIDTH, _WIDTH, _WIDTH)
        encoder: list[nn.Module] = []
        for source, target in itertools.pairwise(widths):
            encoder += [nn.Conv2d(source, target, 4, 2, 1), nn.ReLU(inplace=True)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(_WIDTH, _WIDTH, kernel))
        self.decoder = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 4, padding=2) for _ in range(6))
        self.smooth = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.describe = nn.Conv2d(_WIDTH, channels, 3, padding=1)

    def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Descriptions of images `[B, 3, H, W]`. With a generator, of their device, values are dropped."""
        sides = (int(images.shape[2]), int(images.shape[3]))
        values = self.encoder(images)
        for convolution, size in zip(
            self.decoder, zip(*map(_decoder_sides, sides), strict=True), strict=True
        ):
            values = torch.relu_(convolution(upsampled(values, size)))
            if generator is not None:
                drawn = torch.rand(values.shape, generator=generator, device=values.device)
                values = values * (drawn >= _DROPPED) / (1.0 - _DROPPED)
        height, width = map(grid_side, sides)
        values = torch.relu_(self.smooth(upsampled(values, (height, width))))
        descriptions: torch.Tensor = self.describe(values)
        return descriptions


class Imitators(nn.Module):
    """A student and an autoencoder."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.student = Student(plan.size, plan.channels)
        self.autoencoder = Autoencoder(plan.channels, plan.kernel)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of normalised images: the student's descriptions, as the teacher's and as the autoencoder's, and
        the autoencoder's.
        """
        values = self.student.body(images)
        return self.student.as_teacher(values), self.student.as_autoencoder(values), self.autoencoder(images)


def by_engine(engine: str, networks: Imitators) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """What the networks' `forward` gives, by an engine that is not torch, in the dtype that they have."""
    return run_by(engine, networks, _OUTPUTS, "the student and the autoencoder of EfficientAD")


def new_imitators(plan: Plan, seed: int) -> Imitators:
    """Untrained networks, by torch's own initialisers."""
    with own_generator(seed):
        return Imitators(plan)


def empty_imitators(plan: Plan) -> Imitators:
    """Networks without values, to be given some."""
    with torch.device("meta"):
        return Imitators(plan)


def grid_side(side: int) -> int:
    """Descriptions along a side of so many pixels."""
    return -(-side // STRIDE) - 2 * BORDER


def _decoder_sides(side: int) -> tuple[int, ...]:
    """Of the decoder's grids, the smallest first."""
    return max(1, side // 64 - 1), side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1


def upsampled(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resizing of `[B, C, h, w]` by matrix products, of which gradients have equal bits."""
    batch, channels = values.shape[:2]
    with torch.autocast(values.device.type, enabled=False):
        resized = resize_maps(values.flatten(0, 1), size)
    return resized.view(batch, channels, *size).to(values.dtype)
