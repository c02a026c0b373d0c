"""EfficientAD: a student imitates a teacher's descriptions of patches, and an autoencoder's of whole images.

Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ensemblead.common.validation import one_of, positive_number, whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.efficientad.graph import ImitationGraph
from ensemblead.detectors.efficientad.imitators import (
    HALVED,
    LEAST_SIDE,
    Imitators,
    Plan,
    by_engine,
    empty_imitators,
    grid_side,
    new_imitators,
)
from ensemblead.detectors.efficientad.penalty import PROCEDURAL, PenaltyImages, recoloured
from ensemblead.detectors.efficientad.published import published_imitators
from ensemblead.detectors.efficientad.teacher import all_pixels, channel_statistics, describe, standardised
from ensemblead.detectors.holdout import HOLDOUT
from ensemblead.detectors.method import Run, Scores, Seen, TrainingData
from ensemblead.detectors.training.loop import Recipe, Tensors, check_losses, train
from ensemblead.detectors.training.method import TrainedMethod, no_losses
from ensemblead.detectors.training.published import WeightFile
from ensemblead.images import RegionLike
from ensemblead.networks.modes import default_modes
from ensemblead.networks.pdn import BORDER, NAMES, SIZES, STRIDE

# Of the paper.
STEPS = 70_000
HARD = 999  # thousandths of the squared distances that are not learned from
QUANTILES = (0.9, 0.995)  # of a map's values over normal images, which become 0 and 0.1
_LAST_SHARE, _LAST_RATE = 0.95, 0.1  # the rate falls when so much of the steps is done
_FLAT = 1e-6  # of the upper quantile: two that are so close are equal

# See `Imitators.forward`.
Described = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Imitation:
    """What is learned.

    Attributes:
        plan: of the networks.
        weights: of student and autoencoder, in the order of their state dict.
        statistics: mean and deviation of the teacher's channels, float32 `[C]` each.
        quantiles: of the values of the student's map over held-out images two, then two of the autoencoder's.
        losses: float32 `[steps]`, the loss of every step.
    """

    plan: Plan
    weights: tuple[torch.Tensor, ...]
    statistics: tuple[torch.Tensor, ...]
    quantiles: tuple[float, ...]
    losses: torch.Tensor

    def __post_init__(self) -> None:
        check_losses(self.losses)
        expected = [(one.shape, one.dtype) for one in empty_imitators(self.plan).state_dict().values()]
        if expected != [(one.shape, one.dtype) for one in self.weights]:
            raise ValueError("weights must have the shapes and dtypes of the plan's networks")
        form = torch.Size((self.plan.channels,)), torch.float32
        if [(one.shape, one.dtype) for one in self.statistics] != [form, form]:
            raise ValueError("statistics must be a mean and a deviation for each of the plan's channels")
        if not bool((self.statistics[1] > 0.0).all()):
            raise ValueError("statistics: deviations must be positive")
        if len(self.quantiles) != 4 or not all(map(math.isfinite, self.quantiles)):
            raise ValueError(f"quantiles must be four finite numbers, got {self.quantiles}")

    def imitators(self) -> Imitators:
        """The networks; they share the weights."""
        networks = empty_imitators(self.plan)
        networks.load_state_dict(dict(zip(networks.state_dict(), self.weights, strict=True)), assign=True)
        return networks.eval().requires_grad_(False)


@register("EfficientAD")
class EfficientAD(TrainedMethod):
    """EfficientAD.

    A frozen network, the teacher, describes every patch of an image. A student, which sees patches of 33 x 33
    pixels, is trained to give the same descriptions of normal images, by the largest of its errors. Penalty
    images keep it from describing anything else. An autoencoder, which sees the whole image, is trained to
    give the same descriptions too, and the student to give the autoencoder's. Where a patch is not normal,
    the student differs from the teacher; where patches do not go together, from the autoencoder. The maps of
    both squared distances are scaled by their quantiles over held-out images, and averaged. The map's maximum
    is the image's score.

    The published teacher is a patch description network (`backbone="pdn_small"` or "pdn_medium"), distilled
    from a large network on ImageNet. A file of its weights is read by the names of anomalib ("conv1.weight")
    and by those of the usual code ("0.weight"). `ead.distil_teacher` makes such weights from your images.
    Any other network can be the teacher itself, which is the default. It sees images at twice their size, and
    gives PatchCore's features of two layers on the same grid, averaged to 384 channels. It sees more than 33
    pixels, so that a part of its descriptions cannot be imitated; the quantiles take that out on average.

    On a CPU it is slow: one update of the small student at 256 x 256 is 349 GFLOP. A model has 5.4
    million values of its own for "small", 12.7 million for "medium".

    A fit holds a tenth of the images out, for the quantiles and the threshold. It comes to the same bits on
    one machine with one version of torch and one number of threads, interrupted or not; with others it
    differs as after another seed.

    Args:
        size: of the student, "small" or "medium".
        backbone: the teacher: "pdn_small", "pdn_medium", another network's name (`FeatureExtractor` says
            which), "gabor", or a `torch.nn.Module`, which is never changed.
        layers: of a teacher that is no patch description network; the first must have stride 8. "auto": the
            last ones of strides 8 and 16 (of a ResNet layer2 and layer3).
        weights: of the teacher: "default" (published; not to be had for "pdn_small" and "pdn_medium"), a
            path, a state dict, or None (random, from the seed).
        penalty_images: "procedural" (colour noise, and training images in disordered pieces), a folder of
            photographs of anything else (the paper: ImageNet), or None for none.
        steps: updates. The learning rate falls to a tenth when 95 % are done.
        learning_rate: of Adam.
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: `(h, w)` = exact, int = shorter side, None = native, "auto" as `PatchCore` has it. Sides must
            be at least 64. Below 256, the paper's, the autoencoder has a smaller kernel.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the networks see them, in training too:
            nothing outside is learned. Losses count filled pixels as all others; statistics and scores are
            of what lies inside, and the map is zero outside. docs/design/regions.md has the rules.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the networks: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU. What is trained is kept in float32, and losses and distances are computed in it.
        batch_size: images per update, and per forward pass. The largest errors are those of a whole batch.
        holdout: the share of the images that is held out: at least one, 400 at most. With 0 all are trained
            on, and quantiles and threshold are too low; `fit` warns of it. `calibrate` mends the threshold.
        seed: of everything random.
        compile: run the teacher through `torch.compile`, which gains little on a CPU.
        engine: of all networks in `predict`: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph"
            (on GPUs), or "auto": OpenVINO on a CPU where it is installed. Training is torch's.
            docs/design/engines.md has their speed. For a teacher in "int8" fit in float32 and call
            `quantize`.

    Attributes after `fit`: `losses_`, `calibration_`, `threshold_`; `network_`, the teacher, once it is
    needed.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (11, 64, 64, 3), dtype=np.uint8)
        >>> images[10, 24:40, 24:40] = 200
        >>> detector = ead.EfficientAD("small", "gabor", steps=2, resize=None, device="cpu")
        >>> detector.fit(images[:10]).predict(images[10:]).anomaly_map.shape
        (1, 64, 64)
    """

    State = Imitation
    map_sigma = 0.0
    sees_pixels = True
    frozen_prefix = "teacher."

    def __init__(
        self,
        size: Literal["small", "medium"] = "small",
        backbone: str | nn.Module = "resnet18",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        penalty_images: str | os.PathLike[str] | None = PROCEDURAL,
        steps: int = STEPS,
        learning_rate: float = 1e-4,
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = (256, 256),
        region: RegionLike = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 1,
        holdout: float = HOLDOUT,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
    ) -> None:
        super().__init__(locals())
        self.size = one_of("size", size, SIZES)
        if not isinstance(penalty_images, (str, os.PathLike, type(None))):
            raise TypeError(
                f'penalty_images must be "{PROCEDURAL}", a folder or None, got {penalty_images!r}'
            )
        if penalty_images is not None and not os.fspath(penalty_images):
            raise ValueError("penalty_images must not be empty")
        described = NAMES.get(backbone) if isinstance(backbone, str) else None
        if described is not None and self.layers != (described,):
            raise ValueError(
                f"layers: the descriptions of {backbone} are what its layer {described} puts out; got "
                f"{', '.join(self.layers)}"
            )
        self.penalty_images = None if penalty_images is None else os.fspath(penalty_images)
        self.steps = whole_number("steps", steps, 1)
        self.learning_rate = positive_number("learning_rate", learning_rate)

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        if min(size) < LEAST_SIDE:
            raise ValueError(
                f"{argument}: EfficientAD needs sides of at least {LEAST_SIDE} pixels, got {size[0]} x "
                f"{size[1]}"
            )
        super().check_size(size, argument)

    # The method

    def train(self, data: TrainingData, run: Run) -> Imitation:
        # Before all images are read: sizes that differ, a region of which nothing can be scored, a folder
        # that is not there.
        data.require_one_size()
        first = data.batch([0])
        blank = torch.zeros(1, *map(grid_side, first.size))
        self._inspected((blank, blank), first)
        penalties = None
        if self.penalty_images is not None:
            penalties = PenaltyImages(self.penalty_images, data)
        teacher = self.network_
        known = (describe(teacher, teacher.normalize(pixels)) for pixels in all_pixels(data, run))
        statistics = channel_statistics(known)
        plan = Plan.of(self.size, len(statistics[0]), first.size)
        networks = new_imitators(plan, self.seed).to(statistics[0].device)
        losses = train(Imitating(networks, statistics, data, penalties, self), data, run)
        weights = tuple(tensor.detach() for tensor in networks.state_dict().values())
        state = Imitation(plan, weights, statistics, (0.0, 1.0, 0.0, 1.0), losses)
        return replace(state, quantiles=self._quantiles(state, data))

    def _published(self, file: WeightFile, size: tuple[int, int]) -> Imitation:
        teacher = self.network_
        blank = torch.zeros(1, 3, LEAST_SIDE, LEAST_SIDE, dtype=torch.uint8)
        plan = Plan.of(self.size, describe(teacher, teacher.normalize(blank)).shape[1], size)
        networks, statistics, quantiles = published_imitators(file, plan)
        device = teacher.device
        placed = tuple(one.to(device) for one in statistics)
        return Imitation(plan, self._placed(networks), placed, quantiles, no_losses())

    def scores(self, state: Imitation, seen: Seen) -> Scores:
        return Scores(anomaly_grids(*self._maps(state, seen), state.quantiles))

    def _maps(self, state: Imitation, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Of both distances, float32 `[B, h, w]`."""
        for side, kernel in zip(seen.size, state.plan.kernel, strict=True):
            if side // HALVED < kernel:
                raise ValueError(
                    f"images: the autoencoder was trained on larger ones, and needs sides of at least "
                    f"{HALVED * kernel} pixels here, got {side}"
                )
        with default_modes():
            images = self.network_.normalize(seen.pixels)
            teacher = standardised(describe(self.network_, images), state.statistics)
            engine = self._frozen.network.engine if self._frozen is not None else "torch"
            networks = self._network_of(state, lambda: imitating(state, images.dtype, engine), engine)
            return distance_maps(networks, images, teacher)

    def _inspected(self, maps: Sequence[torch.Tensor], seen: Seen) -> list[torch.Tensor]:
        """The values of maps of a batch that lie inside of the region."""
        inside = self.inside(seen)
        if inside is None:
            return list(maps)
        # The region is one of whole grids, with a border that no description belongs to.
        whole = (inside.take(functional.pad(own, (BORDER,) * 4, value=math.nan)) for own in maps)
        found = [own[own.isfinite()] for own in whole]
        if not len(found[0]):
            raise ValueError(
                f"region: all of it lies within the border of {BORDER * STRIDE} pixels, of which EfficientAD "
                "has no description"
            )
        return found

    def graph(self, state: Imitation, size: tuple[int, int]) -> nn.Module:
        networks, quantiles = state.imitators().float().cpu(), state.quantiles
        return ImitationGraph(
            self.network_,
            size,
            networks,
            state.statistics,
            distance_maps,
            lambda first, second: anomaly_grids(first, second, quantiles),
        )

    def _quantiles(self, state: Imitation, data: TrainingData) -> tuple[float, ...]:
        """See `Imitation.quantiles`."""
        found = (self._inspected(self._maps(state, seen), seen) for seen in data.held_out())
        maps = zip(*found, strict=True)
        values = [np.concatenate([own.flatten().cpu().numpy() for own in kind]) for kind in maps]
        return tuple(float(q) for own in values for q in np.quantile(own.astype(np.float64), QUANTILES))


class Imitating(Recipe):
    """How student and autoencoder are trained."""

    module: Imitators
    weight_decay = 1e-5

    def __init__(
        self,
        networks: Imitators,
        statistics: Sequence[torch.Tensor],
        data: TrainingData,
        penalties: PenaltyImages | None,
        method: EfficientAD,
    ) -> None:
        self.module, self.steps, self.learning_rate = networks, method.steps, method.learning_rate
        self.precision = method.network_.dtype
        self._teacher, self._statistics, self._data = method.network_, statistics, data
        self._penalties = penalties
        if penalties is not None:
            self.identity = penalties.identity()

    def batch(self, step: int) -> Tensors:
        """Recoloured images, the images, penalty images; the teacher's descriptions of the first two; and the
        seed of what is dropped.
        """
        drawn = self._data.pixels(self._data.drawn(step))
        generators = self._data.generators(step)
        size = (drawn.shape[2], drawn.shape[3])
        images = [recoloured(one, own) for one, own in zip(drawn.numpy(), generators, strict=True)]
        images += list(drawn.numpy())
        if self._penalties is not None:
            images += [self._penalties.draw(size, own) for own in generators]
        seed = torch.tensor(int(generators[0].integers(1 << 62)))
        pixels = self._teacher.normalize(torch.from_numpy(np.stack(images)))
        known = describe(self._teacher, pixels[: 2 * len(drawn)])
        return pixels, standardised(known, self._statistics), seed

    def forward(self, batch: Tensors) -> Tensors:
        images, known, seed = batch
        count = len(known) // 2
        generator = torch.Generator(images.device).manual_seed(int(seed))
        student = self.module.student
        # The first layers see all images at once, the last ones what each is for.
        values = student.body(images)
        restored = self.module.autoencoder(images[:count], generator)
        return known, student.as_teacher(values[count:]), student.as_autoencoder(values[:count]), restored

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        known, imitated, followed, restored = outputs
        count = len(followed)
        parts = {"student": hard_loss((known[count:] - imitated[:count]).square())}
        if len(imitated) > count:
            parts["penalty"] = imitated[count:].square().mean()
        parts["autoencoder"] = (known[:count] - restored).square().mean()
        parts["agreement"] = (restored - followed).square().mean()
        return parts

    def schedule(self, step: int) -> float:
        return _LAST_RATE if step >= int(_LAST_SHARE * self.steps) else 1.0


def hard_loss(squares: torch.Tensor) -> torch.Tensor:
    """The mean of the values from the 0.999 quantile of all on."""
    total = squares.numel()
    below = -(-HARD * (total - 1) // 1000)
    return squares.flatten().topk(total - below, sorted=False).values.mean()


def imitating(state: Imitation, dtype: torch.dtype, engine: str) -> Described:
    """Student and autoencoder, run as the teacher is; in float32 where that is in int8."""
    networks = state.imitators().to(dtype)
    return networks if engine == "torch" else by_engine(engine, networks)


def distance_maps(
    networks: Described, images: torch.Tensor, teacher: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances of the student from the teacher, and from the autoencoder: float32 `[B, h, w]`, means
    over channels. `networks` are `Imitators`, or what gives the same.
    """
    imitated, followed, restored = (own.float() for own in networks(images))
    return (teacher - imitated).square().mean(1), (restored - followed).square().mean(1)


def anomaly_grids(first: torch.Tensor, second: torch.Tensor, quantiles: Sequence[float]) -> torch.Tensor:
    """The mean of two maps, scaled so that their two quantiles become 0 and 0.1. At its borders, which no
    description belongs to, it has its least value.
    """
    scaled = []
    for own, lower, upper in zip((first, second), quantiles[::2], quantiles[1::2], strict=True):
        spread = upper - lower
        scaled.append(0.1 * (own - lower) / (spread if spread > _FLAT * abs(upper) else 1.0))
    grids = (scaled[0] + scaled[1]) / 2.0
    least = grids.amin((1, 2), keepdim=True)
    return functional.pad(grids - least, (BORDER,) * 4) + least
