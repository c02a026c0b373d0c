"""A teacher from images of one's own: a patch description network that learns a large network's features."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ensemblead.common.extras import require
from ensemblead.common.files import write_atomically
from ensemblead.common.validation import one_of, positive_number, whole_number
from ensemblead.detectors.efficientad.imitators import LEAST_SIDE
from ensemblead.detectors.efficientad.penalty import Planes, grey, procedural, recoloured, window
from ensemblead.detectors.efficientad.teacher import (
    channel_statistics,
    patch_features,
    standardised,
)
from ensemblead.detectors.frozen import FrozenNetwork
from ensemblead.detectors.parts import Progress, Run, no_note
from ensemblead.detectors.running import report_skipped
from ensemblead.detectors.training.checkpoint import opened
from ensemblead.detectors.training.data import TrainingData
from ensemblead.detectors.training.loop import Recipe, Tensors, train
from ensemblead.images import Geometry, Images, open_images
from ensemblead.networks.modes import default_modes, own_generator
from ensemblead.networks.pdn import PDN, SIZES

# Of the paper, but for the procedural images, and the windows: it has ImageNet.
STEPS = 60_000
_PRETRAIN_DIM = 1024  # of a layer
_STATISTICS = 10_000  # images
_GREY, _PROCEDURAL, _WINDOWED = 0.1, 0.25, 0.5
_WINDOWS = (0.375, 0.5)  # shares of the sides


def distil_teacher(
    images: Any,
    path: str | os.PathLike[str],
    *,
    size: Literal["small", "medium"] = "small",
    backbone: str | nn.Module = "wide_resnet101_2",
    layers: Sequence[str] | Literal["auto"] = "auto",
    weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
    image_size: int = 256,
    steps: int = STEPS,
    learning_rate: float = 1e-4,
    device: str | torch.device = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    errors: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Path:
    """Train a patch description network to describe patches as a large network does, for `EfficientAD`.

    An image is shown whole or as a window of 3/8 to 1/2 of its sides, flipped, recoloured, at times grey; a
    quarter of what is shown is procedural. The paper distils from ImageNet: the more varied the images, the
    better a teacher describes what they do not show.

    Args:
        images: any form that `fit` takes; all kinds, normal or not.
        path: the file to write, which ends in .safetensors.
        size: "small" or "medium".
        backbone, layers, weights: the large network, as `EfficientAD` takes them. It sees images at twice
            `image_size`.
        image_size: side of the square that the patch description network sees.
        steps, learning_rate, batch_size: of the training, by Adam.
        device, precision, seed: as `EfficientAD` takes them.
        errors, progress, checkpoint: as `fit` takes them.

    Returns:
        The path: `EfficientAD("small", "pdn_small", weights=path)`.

    Example:
        >>> import numpy as np, tempfile
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ead.distil_teacher(
        ...         images,
        ...         f"{folder}/teacher.safetensors",
        ...         backbone="gabor",
        ...         image_size=64,
        ...         steps=1,
        ...         batch_size=2,
        ...         device="cpu",
        ...     )
        ...     ead.FeatureExtractor("pdn_small", ("conv4",), weights=path).name
        'pdn_small'
    """
    _check_target(path, checkpoint)
    require("safetensors", "a teacher's file")
    recipe = Distilling(
        size=one_of("size", size, SIZES),
        side=2 * whole_number("image_size", image_size, LEAST_SIDE),
        steps=whole_number("steps", steps, 1),
        learning_rate=positive_number("learning_rate", learning_rate),
        batch_size=whole_number("batch_size", batch_size, 1),
        seed=whole_number("seed", seed, 0),
        teacher=FrozenNetwork(
            backbone, layers, weights=weights, device=device, precision=precision, compile=False, seed=seed
        ),
    )
    source = open_images(images)
    with opened(checkpoint) as kept:
        report, note = progress or (lambda stage, done, total: None), getattr(progress, "note", no_note)
        run = Run(report, len(source), frozenset(), checkpoint=kept, note=note)
        with Images(source, [recipe.geometry], errors=errors) as read, default_modes(), torch.enable_grad():
            recipe.begin(TrainingData(recipe, read, run, seed))
            train(recipe, recipe.data, run, "teacher")
            report_skipped(source, read.skipped)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in recipe.module.state_dict().items()}
        written = write_atomically(path, importlib.import_module("safetensors.torch").save(tensors))
        if kept is not None:
            kept.remove()
    return written


def _check_target(path: Any, checkpoint: Any) -> None:
    """Raise TypeError or ValueError for a path where no file can be written, or none that could be read,
    which would show at the end.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a file to write, got {path!r}")
    target = Path(path).absolute()
    above = next(folder for folder in target.parents if folder.exists())
    if not os.fspath(path) or target.is_dir() or not above.is_dir():
        raise ValueError(f"path must be a file to write, got {os.fspath(path)!r}")
    if isinstance(checkpoint, (str, os.PathLike)):
        kept = Path(checkpoint).absolute()
        if kept in (target, *target.parents) or target in kept.parents:
            raise ValueError(f"checkpoint must be a folder of its own, got {os.fspath(checkpoint)!r}")
    if target.suffix != ".safetensors":  # by which files of weights are told apart when they are read
        raise ValueError(f"path must end in .safetensors, got {os.fspath(path)!r}")


class Distilling(Recipe):
    """How a patch description network is trained; for `TrainingData` it is the method as well.

    Args:
        side: of the images, as the large network sees them.
    """

    module: PDN
    data: TrainingData
    weight_decay = 1e-5

    def __init__(
        self,
        size: str,
        side: int,
        steps: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        teacher: FrozenNetwork,
    ) -> None:
        self.geometry, self.batch_size = Geometry((side, side), None), batch_size
        self.steps, self.learning_rate = steps, learning_rate
        self._size, self._seed, self._frozen = size, seed, teacher

    def parameters(self) -> dict[str, Any]:
        """What training depends on, besides the images and the network."""
        names = ("steps", "learning_rate", "batch_size", "_size", "_seed", "geometry")
        return {name.strip("_"): getattr(self, name) for name in names} | {
            "precision": self._frozen.precision
        }

    def _networks(self) -> list[FrozenNetwork]:
        return [self._frozen]

    def _own_networks(self) -> list[FrozenNetwork]:
        return []

    def begin(self, data: TrainingData) -> None:
        """Measure what the large network puts out, and make the network."""
        self.data, network = data, self._frozen.network
        self._teacher, self.precision = network.extractor, network.dtype
        steps = min(self.steps, max(1, _STATISTICS // self.batch_size))
        self._statistics = channel_statistics(self._features(self._images(step)) for step in range(steps))
        with own_generator(self._seed):
            self.module = PDN(self._size, is_padded=True)
        self.module.to(network.device)

    def batch(self, step: int) -> Tensors:
        """What the network sees, and what it is to put out."""
        images = self._images(step)
        return functional.avg_pool2d(images, 2), standardised(self._features(images), self._statistics)

    def forward(self, batch: Tensors) -> Tensors:
        images, wanted = batch
        return wanted, self.module(images)

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        wanted, found = outputs
        return {"square": (wanted - found).square().mean()}

    def _images(self, step: int) -> torch.Tensor:
        drawn = self.data.pixels(self.data.drawn(step)).numpy()
        shown = [varied(image, own) for image, own in zip(drawn, self.data.generators(step), strict=True)]
        return self._teacher.normalize(torch.from_numpy(np.stack(shown)))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return patch_features(self._teacher, images, _PRETRAIN_DIM)


def varied(image: Planes, generator: np.random.Generator) -> Planes:
    """An image as it is shown once: uint8 `[3, h, w]`, of the same size."""
    if generator.random() < _PROCEDURAL:
        return procedural(image, generator)
    if generator.random() < _WINDOWED:
        image = window(image, generator.uniform(*_WINDOWS), image.shape[1:], generator)
    for axis in (1, 2):
        if generator.random() < 0.5:
            image = np.flip(image, axis)
    image = recoloured(image, generator)
    return grey(image) if generator.random() < _GREY else image
