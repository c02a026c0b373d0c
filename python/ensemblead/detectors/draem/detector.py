"""DRAEM: one network restores the normal image, a second one tells by the difference where the defect is.

Zavrtanik, Kristan and Skočaj, "DRAEM - A discriminatively trained reconstruction embedding for surface
anomaly detection", ICCV 2021.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional

from ensemblead.common.validation import positive_number, whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.draem.defects import Example, example
from ensemblead.detectors.draem.losses import dissimilarity, focal_loss
from ensemblead.detectors.draem.networks import Networks, empty_networks, new_networks
from ensemblead.detectors.draem.published import published_networks
from ensemblead.detectors.draem.textures import Folder
from ensemblead.detectors.holdout import HOLDOUT
from ensemblead.detectors.method import Run, Scores, Seen, TrainingData
from ensemblead.detectors.training.loop import Recipe, Tensors, check_losses, train
from ensemblead.detectors.training.method import TrainedMethod, checked_steps, no_losses
from ensemblead.detectors.training.published import WeightFile
from ensemblead.images import RegionLike
from ensemblead.networks.engines import run_by
from ensemblead.networks.modes import default_modes
from ensemblead.networks.network import check_engine, resolve_device, resolve_engine

# The learning rate falls by it at 80 % and at 90 % of the steps.
_FALL = 0.2
# The side of the square that a map is averaged over for the image's score.
_AVERAGED = 21
# Threads that make the next step's examples during a step.
_THREADS = 4


@dataclass(frozen=True)
class Trained:
    """What is learned.

    Attributes:
        width: of the networks.
        weights: the folded networks', in the order of their state dict.
        losses: float32 `[steps]`, the loss of every step.
    """

    width: int
    weights: tuple[torch.Tensor, ...]
    losses: torch.Tensor

    def __post_init__(self) -> None:
        check_width(self.width)
        check_losses(self.losses)
        first = self.weights[0].shape if self.weights else ()
        shapes = None
        if first == (self.width, 3, 3, 3):  # before networks of any width are built
            shapes = [tensor.shape for tensor in empty_networks(self.width).state_dict().values()]
        if shapes != [tensor.shape for tensor in self.weights]:
            raise ValueError("weights must have the shapes of networks of the width")

    def networks(self) -> Networks:
        """The networks; they share the weights."""
        networks = empty_networks(self.width)
        networks.load_state_dict(dict(zip(networks.state_dict(), self.weights, strict=True)), assign=True)
        return networks.eval().requires_grad_(False)


@register("DRAEM")
class DRAEM(TrainedMethod):
    """A reconstruction and a discrimination, both trained on synthetic defects.

    Normal images get defects: textures, blended in where Perlin noise is high. One network learns to restore
    the normal image, the other to find the defect's pixels from the restored image and the one given. The map
    is the probability of a defect for each pixel, not blurred. The image's score is the maximum of the map
    averaged over 21 x 21 pixels. No frozen network is needed, and no weights from elsewhere.

    Architecture, defects, losses and score are those of the authors' code. Half of the images of an update
    get a defect; some of these come to nothing, since the noise is high nowhere.

    The paper's width of 128 has 97.4 million values, 390 MB, three times that in training, and takes 1.2
    TFLOP per image and update: a GPU's work. Values go with the square of the width, so 32 has 6.1 million,
    24 MB: take that in ensembles, whose tiles each have networks of their own, and on a CPU.

    A fit holds a tenth of the images out, for the threshold. It comes to the same bits on one machine with
    one version of torch and one number of threads, interrupted or not; with others it differs as after
    another seed.

    Args:
        width: channels of the reconstruction's first block, an even number; the discrimination has half.
        textures: a folder of images to take textures from, as the paper does from the Describable Textures
            Dataset (DTD). None: colour noise, stripes, checks, Voronoi cells, and shuffled blocks of the
            training images. It is read in `fit` alone, and before training with a checkpoint all of it is.
        rotate: the probability that a normal image is rotated, by up to 90 degrees either way, before it gets
            a defect, with black corners. 0 for products whose orientation matters: else a rotated one is
            learned as normal.
        steps: updates; "paper": 700 epochs, of `ceil(images / batch_size)` updates each.
        learning_rate: of Adam; a fifth of it from 80 % of the steps on, a fifth of that from 90 % on.
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: `(h, w)` = exact, int = shorter side, None = native, "auto" as `PatchCore` has it. Sides
            of what the networks see must be multiples of 32.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the networks see them, in training too:
            nothing outside is learned. Losses count filled pixels as all others; statistics and scores are
            of what lies inside, and the map is zero outside. docs/design/regions.md has the rules.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the networks: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU. What is trained is kept in float32, and losses and probabilities are computed in it.
        batch_size: images per update, and per forward pass.
        holdout: the share of the images that is held out: at least one, 400 at most. With 0 all are trained
            on, and the threshold is too low until `calibrate` is called; `fit` warns of it.
        seed: of everything random.
        engine: of the networks in `predict`: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph"
            (on GPUs), or "auto": OpenVINO on a CPU where it is installed. Training is torch's. There is no
            int8.

    Attributes after `fit`: `losses_`, `calibration_`, `threshold_`.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (21, 32, 32, 3), dtype=np.uint8)
        >>> images[20, 8:24, 8:24] = 200
        >>> detector = ead.DRAEM(4, steps=5, batch_size=4, resize=None, device="cpu")
        >>> detector.fit(images[:20]).predict(images[20:]).anomaly_map.shape
        (1, 32, 32)
    """

    State = Trained
    epochs = 700
    map_sigma = 0.0
    side_multiple = 32

    def __init__(
        self,
        width: int = 128,
        *,
        textures: str | os.PathLike[str] | None = None,
        rotate: float = 0.3,
        steps: int | Literal["paper"] = "paper",
        learning_rate: float = 0.0001,
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = (256, 256),
        region: RegionLike = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 8,
        holdout: float = HOLDOUT,
        seed: int = 0,
        engine: str = "torch",
    ) -> None:
        super().__init__(locals())
        self.width = check_width(width)
        folder = os.fspath(textures) if isinstance(textures, os.PathLike) else textures
        if folder is not None and not isinstance(folder, str):
            raise TypeError(f"textures must be a folder or None, got {textures!r}")
        if folder == "":  # else it would be the working directory
            raise ValueError("textures must be a folder or None, got ''")
        self.textures = folder
        if isinstance(rotate, bool) or not isinstance(rotate, (int, float)):
            raise TypeError(f"rotate must be a number, got {rotate!r}")
        if not 0 <= rotate <= 1:
            raise ValueError(f"rotate must be a probability, between 0 and 1, got {rotate}")
        self.rotate = float(rotate)
        self.steps = checked_steps(steps)
        self.learning_rate = positive_number("learning_rate", learning_rate)
        self._engine = check_engine(engine, self.device, compile=False)

    # The method

    def train(self, data: TrainingData, run: Run) -> Trained:
        self._resolved_engine()  # before the training
        size = data.batch([0]).size
        if data.batch_size == 1 and max(size) == self.side_multiple:
            raise ValueError("batch_size must be at least 2 for images so small: the last grid has one place")
        steps = self._updates(self.steps, data)
        networks = new_networks(self.width, self.seed).to(resolve_device(self.device))
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ensemblead-defects")
        try:
            recipe = Discrimination(networks, data, steps, self, threads)
            if run.checkpoint is not None:
                recipe.compare_textures()
            losses = train(recipe, data, run)
        finally:
            # On Ctrl-C and on errors nothing waits for examples that nobody will see.
            threads.shutdown(cancel_futures=True)
        return Trained(self.width, tuple(networks.folded().state_dict().values()), losses)

    def _published(self, file: WeightFile, size: tuple[int, int]) -> Trained:
        networks = published_networks(file, self.width).folded()
        return Trained(self.width, self._placed(networks), no_losses())

    def scores(self, state: Trained, seen: Seen) -> Scores:
        with default_modes():
            compare = self._network_of(state, lambda: self._comparing(state), self.engine)
            logits = compare(scaled(seen.pixels, self._dtype))
            maps = logits.float().softmax(1)[:, 1]
            inside = self.inside(seen)
            return Scores(maps, image_scores(maps if inside is None else inside.blank(maps)))

    def _comparing(self, state: Trained) -> Callable[[torch.Tensor], torch.Tensor]:
        """Images -> the logits of the discrimination."""
        networks = state.networks().to(self._dtype)
        engine = self._resolved_engine()
        if engine == "torch":
            return lambda images: networks(images)[1]
        run = run_by(engine, networks, ("discriminate.restore",), "DRAEM's networks")
        return lambda images: run(images)[0]

    def _resolved_engine(self) -> str:
        return resolve_engine(self.engine, self.precision, resolve_device(self.device), compile=False)


class Discrimination(Recipe):
    """How both networks are trained, on images of which half have a synthetic defect.

    The examples of the next step are made by `threads` meanwhile. Each follows from its own generator.
    """

    def __init__(
        self,
        networks: Networks,
        data: TrainingData,
        steps: int,
        method: DRAEM,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.module, self.steps, self.learning_rate = networks, steps, method.learning_rate
        self.precision = method._dtype
        self._data, self._rotate, self._threads = data, method.rotate, threads
        self._device = next(networks.parameters()).device
        self._textures = None if method.textures is None else Folder(method.textures)
        self._coming: dict[int, list[Future[Example]]] = {}

    def compare_textures(self) -> None:
        """Make the pixels of all textures a part of what a checkpoint compares; reads all of them."""
        if self._textures is not None:
            self.identity = {"contents of textures": self._textures.digest(self._threads)}

    def schedule(self, step: int) -> float:
        return _FALL ** ((10 * step >= 8 * self.steps) + (10 * step >= 9 * self.steps))

    def batch(self, step: int) -> Tensors:
        """Normal images, the same with defects, and the masks of these."""
        made = self._coming.pop(step, None) or self._make(step)
        if step + 1 < self.steps:
            self._coming = {step + 1: self._make(step + 1)}
        columns = zip(*(own.result() for own in made), strict=True)
        normal, defective, masks = (torch.stack(own).to(self._device) for own in columns)
        return normal, defective.contiguous(memory_format=torch.channels_last), masks

    def _make(self, step: int) -> list[Future[Example]]:
        data, items, generators = self._data, self._data.drawn(step), self._data.generators(step)
        pixels = others = data.pixels(items)
        if self._textures is None and len(data) > 1:
            apart = (int(own.integers(1, len(data))) for own in generators)
            others = data.pixels([(item + by) % len(data) for item, by in zip(items, apart, strict=True)])
        return [
            self._threads.submit(example, *own, self._rotate, self._textures)
            for own in zip(pixels, others, generators, strict=True)
        ]

    def forward(self, batch: Tensors) -> Tensors:
        normal, defective, masks = batch
        return (normal, masks, *self.module(defective))

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        normal, masks, restored, logits = outputs
        return {
            "square": functional.mse_loss(restored, normal),
            "dissimilarity": dissimilarity(restored, normal),
            "focal": focal_loss(logits, masks),
        }


def scaled(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels as the networks see them: 0..1, channels last."""
    return (pixels.float() / 255.0).to(dtype, memory_format=torch.channels_last)


def image_scores(maps: torch.Tensor) -> torch.Tensor:
    """The maximum of maps `[B, H, W]` averaged over a square, with zeros outside of the image."""
    averaged = functional.avg_pool2d(maps[:, None], _AVERAGED, 1, _AVERAGED // 2)
    return averaged.flatten(1).amax(1)


def check_width(width: Any) -> int:
    """Raise TypeError or ValueError for a width that networks cannot have."""
    number = whole_number("width", width, 2)
    if number % 2:
        raise ValueError(f"width must be even, got {number}")
    return number
