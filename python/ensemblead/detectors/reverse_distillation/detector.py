"""Reverse Distillation: a student restores a teacher's feature maps from a small embedding of them, and fails
where they are not normal.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ensemblead.common.validation import positive_number
from ensemblead.config.registry import register
from ensemblead.detectors.holdout import HOLDOUT
from ensemblead.detectors.method import Run, Scores, Seen, TrainingData
from ensemblead.detectors.reverse_distillation.graph import StudentGraph
from ensemblead.detectors.reverse_distillation.published import published_student
from ensemblead.detectors.reverse_distillation.student import (
    EPS,
    NOTHING,
    Maps,
    Plan,
    Student,
    empty_student,
    new_student,
)
from ensemblead.detectors.training.features import FeatureCache
from ensemblead.detectors.training.loop import Recipe, Tensors, check_losses, train
from ensemblead.detectors.training.method import TrainedMethod, checked_steps, no_losses
from ensemblead.detectors.training.published import WeightFile
from ensemblead.images import RegionLike
from ensemblead.networks.modes import default_modes

LOSSES = ("global", "local")
_NUM_LAYERS = 3


@dataclass(frozen=True)
class Distilled:
    """What is learned.

    Attributes:
        plan: of the student.
        weights: the folded student's, in the order of its state dict.
        losses: float32 `[steps]`, the loss of every step.
    """

    plan: Plan
    weights: tuple[torch.Tensor, ...]
    losses: torch.Tensor

    def __post_init__(self) -> None:
        check_losses(self.losses)
        # Before a network is built of so many blocks.
        shapes = None
        if sum(self.plan.depths) < len(self.weights):
            shapes = [tensor.shape for tensor in empty_student(self.plan).state_dict().values()]
        if shapes != [tensor.shape for tensor in self.weights]:
            raise ValueError("weights must have the shapes of the plan's student")

    def student(self) -> Student:
        """The network; it shares the weights."""
        student = empty_student(self.plan)
        student.load_state_dict(dict(zip(student.state_dict(), self.weights, strict=True)), assign=True)
        return student.eval().requires_grad_(False)


@register("ReverseDistillation")
class ReverseDistillation(TrainedMethod):
    """Reverse distillation.

    A frozen network, the teacher, turns an image into feature maps of three layers. A student fuses them into
    one embedding of half the smallest grid, and restores all three from it. It is trained on normal images,
    by the cosine between what it restores and what it was given, and has never learned to restore defects. A
    position of a layer scores one minus the cosine there. The maps of the layers are resized to the image
    (bilinear, corners aligned), summed and blurred; the map's maximum is the image's score.

    The student follows from the network: blocks like a ResNet's, as many and as wide; of other networks basic
    blocks, two per stage. Architecture and constants are those of the authors' code: the decoder of the
    largest grid has the most blocks, and a student of WideResNet50 has blocks of width 1024 in its embedding,
    where anomalib has 512.

    The teacher's feature maps are computed once: 1.8 MB an image of 256 x 256 pixels for resnet18 in float32,
    7.3 MB for wide_resnet50_2; in memory up to 1 GiB, of more all in a temporary file. A model has 15.4
    million values for resnet18, 83.8 million for wide_resnet50_2.

    A fit holds a tenth of the images out, for the threshold. It comes to the same bits on one machine with
    one version of torch and one number of threads, interrupted or not; with others it differs as after
    another seed.

    Args:
        backbone: a network's name (`FeatureExtractor` says which), "gabor", or a `torch.nn.Module`, which is
            never changed.
        layers: the names of three layers, each with half the grid of the one before. "auto": the last ones of
            strides 4, 8 and 16 (of a ResNet layer1, layer2 and layer3).
        weights: "default" (published), a path, a state dict, or None (random, from the seed).
        steps: updates; "paper": 200 epochs, of `ceil(images / batch_size)` updates each.
        learning_rate: of Adam, with betas 0.5 and 0.999.
        loss: "global" takes the cosine of whole feature maps, as the authors' code does; "local" the mean of
            the cosines of their positions.
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: `(h, w)` = exact, int = shorter side, None = native, "auto" as `PatchCore` has it. Sides
            of what the network sees must be multiples of 32.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the networks see them, in training too:
            nothing outside is learned. Losses count filled pixels as all others; statistics and scores are
            of what lies inside, and the map is zero outside. docs/design/regions.md has the rules.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the networks: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU. What is trained is kept in float32, and losses and cosines are computed in it.
        batch_size: images per update, and per forward pass.
        holdout: the share of the images that is held out: at least one, 400 at most. With 0 all are trained
            on, and the threshold is too low until `calibrate` is called; `fit` warns of it.
        seed: of everything random.
        compile: run the teacher through `torch.compile`, which gains little on a CPU.
        engine: of the teacher: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph" (on GPUs), or
            "auto": OpenVINO on a CPU where it is installed. docs/design/engines.md has their speed. For
            precision "int8" fit in float32 and call `quantize`.

    Attributes after `fit`: `losses_`, `calibration_`, `threshold_`; `network_`, the teacher, once it is
    needed.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (21, 32, 32, 3), dtype=np.uint8)
        >>> images[20, 8:24, 8:24] = 200
        >>> detector = ead.ReverseDistillation(
        ...     "gabor", steps=5, batch_size=4, resize=None, device="cpu"
        ... )
        >>> detector.fit(images[:20]).predict(images[20:]).anomaly_map.shape
        (1, 32, 32)
    """

    State = Distilled
    epochs = 200
    # Measured, as FastFlow's: docs/design/noise.md. Student and teacher see the same noise.
    _moved_by_noise = 0.25
    auto_strides = (4, 8, 16)
    side_multiple = 32
    frozen_prefix = "encoder.feature_extractor."

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        steps: int | Literal["paper"] = "paper",
        learning_rate: float = 0.005,
        loss: Literal["global", "local"] = "global",
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = (256, 256),
        region: RegionLike = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        holdout: float = HOLDOUT,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
    ) -> None:
        super().__init__(locals())
        if len(self.layers) != _NUM_LAYERS:
            raise ValueError(f"layers must be {_NUM_LAYERS}, got {', '.join(self.layers)}")
        self.steps = checked_steps(steps)
        self.learning_rate = positive_number("learning_rate", learning_rate)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.loss = loss

    # The method

    def train(self, data: TrainingData, run: Run) -> Distilled:
        maps = data.batch([0]).feature_maps
        check_grids(self.layers, maps)
        if data.batch_size == 1 and maps[-1].shape[2:] == (2, 2):
            raise ValueError(
                "batch_size must be at least 2 for images so small: the embedding has one position"
            )
        plan = Plan.of([own.shape[1] for own in maps], self.network_.module, self.layers)
        steps = self._updates(self.steps, data)
        student = new_student(plan, self.seed).to(maps[0].device)
        with FeatureCache(data, run) as features:
            recipe = Distillation(student, features, data, steps, self)
            recipe.precision = maps[0].dtype
            losses = train(recipe, data, run)
        weights = student.folded().state_dict().values()
        return Distilled(plan, tuple(weights), losses)

    def _published(self, file: WeightFile, size: tuple[int, int]) -> Distilled:
        maps = self._blank_maps(size)
        check_grids(self.layers, maps)
        channels = [own.shape[1] for own in maps]
        student = published_student(file, channels, self.network_.module, self.layers)
        return Distilled(student.plan, self._placed(student.folded()), no_losses())

    def scores(self, state: Distilled, seen: Seen) -> Scores:
        teacher = seen.feature_maps
        check_grids(self.layers, teacher)
        with default_modes():
            student = self._network_of(state, lambda: state.student().to(teacher[0].dtype))
            return Scores(anomaly_grids(teacher, student(teacher), seen.size))

    def graph(self, state: Distilled, size: tuple[int, int]) -> nn.Module:
        return StudentGraph(state.student().float().cpu(), size)


class Distillation(Recipe):
    """How a student is trained on feature maps."""

    betas = (0.5, 0.999)

    def __init__(
        self,
        student: Student,
        features: FeatureCache,
        data: TrainingData,
        steps: int,
        method: ReverseDistillation,
    ) -> None:
        self.module, self.steps, self.learning_rate = student, steps, method.learning_rate
        self._features, self._data, self._form = features, data, method.loss

    def batch(self, step: int) -> Tensors:
        return self._features.batch(self._data.drawn(step))

    def forward(self, batch: Tensors) -> Tensors:
        return (*batch, *self.module(batch))

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        return {"cosine": cosine_loss(outputs[:_NUM_LAYERS], outputs[_NUM_LAYERS:], self._form)}


def cosine_loss(teacher: Maps, student: Maps, form: str = "global") -> torch.Tensor:
    """The sum over layers of the mean of one minus the cosine, of whole maps or of their positions."""
    losses = []
    for own, restored in zip(teacher, student, strict=True):
        if form == "global":
            cosine = _cosine_of_maps(own, restored)
        else:
            cosine = functional.cosine_similarity(own, restored, dim=1, eps=EPS)
        losses.append(1.0 - cosine.mean())
    return torch.stack(losses).sum()


def _cosine_of_maps(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`[B]` of maps `[B, C, H, W]` as whole vectors, by products that take no memory for each value."""
    # In the order in which channels-last maps lie, so that nothing is copied.
    a, b = (one.permute(0, 2, 3, 1).flatten(1)[:, None] for one in (first, second))
    products, squares_a, squares_b = (
        torch.bmm(x, y.transpose(1, 2)).flatten() for x, y in ((a, b), (a, a), (b, b))
    )
    # Clamped before the root, whose slope at zero is infinite.
    length_a, length_b = (squares.clamp_min(EPS**2).sqrt() for squares in (squares_a, squares_b))
    return products / (length_a * length_b)


def anomaly_grids(teacher: Maps, student: Maps, size: tuple[int, int]) -> torch.Tensor:
    """Maps before the blur, float32 `[B, H, W]`: the sum over layers of one minus the cosine of positions.

    Two vectors that are next to nothing are alike: a cosine would call them orthogonal.
    """
    total = torch.zeros(1, 1, 1, device=teacher[0].device)
    for own, restored in zip(teacher, student, strict=True):
        first, second = own.float(), restored.float()
        apart = 1.0 - functional.cosine_similarity(first, second, dim=1, eps=EPS)
        longer = torch.maximum(*(torch.linalg.vector_norm(one, dim=1) for one in (first, second)))
        apart = apart.masked_fill(longer < NOTHING, 0.0)
        resized = functional.interpolate(apart[:, None], size, mode="bilinear", align_corners=True)
        total = total + resized[:, 0]
    return total


def check_grids(layers: Sequence[str], maps: Maps) -> None:
    """Raise ValueError for layers of which a student cannot be made."""
    grids = [(own.shape[2], own.shape[3]) for own in maps]
    height, width = grids[-1]
    halving = [(height * times, width * times) for times in (4, 2, 1)]
    if grids != halving or height % 2 or width % 2:
        shown = ", ".join(f"{name} {h} x {w}" for name, (h, w) in zip(layers, grids, strict=True))
        raise ValueError(
            f"layers must each have half the grid of the one before, and the last one even sides, got {shown}"
        )
