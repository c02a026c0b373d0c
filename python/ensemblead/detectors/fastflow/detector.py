"""FastFlow: normalizing flows give every position of a network's feature maps a likelihood.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows", 2021.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ensemblead.common.validation import positive_number, whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.fastflow.flow import Flows, Maps, Plan, empty_flows, new_flows
from ensemblead.detectors.fastflow.graph import FlowsGraph
from ensemblead.detectors.fastflow.published import published_flows
from ensemblead.detectors.holdout import HOLDOUT
from ensemblead.detectors.method import Run, Scores, Seen, TrainingData
from ensemblead.detectors.training.features import FeatureCache
from ensemblead.detectors.training.loop import Recipe, Tensors, check_losses, train
from ensemblead.detectors.training.method import TrainedMethod, checked_steps, no_losses
from ensemblead.detectors.training.published import WeightFile
from ensemblead.images import RegionLike
from ensemblead.kernels.maps import resize_maps
from ensemblead.networks.modes import default_modes


@dataclass(frozen=True)
class TrainedFlows:
    """What is learned.

    Attributes:
        plan: of the flows.
        weights: theirs, in the order of their state dict; the permutations among them are int64.
        losses: float32 `[steps]`, the loss of every step.
    """

    plan: Plan
    weights: tuple[torch.Tensor, ...]
    losses: torch.Tensor

    def __post_init__(self) -> None:
        check_losses(self.losses)
        # Before networks are built of so many steps.
        expected = None
        if self.plan.steps < len(self.weights):
            expected = [(one.shape, one.dtype) for one in empty_flows(self.plan).state_dict().values()]
        if expected != [(one.shape, one.dtype) for one in self.weights]:
            raise ValueError("weights must have the shapes and dtypes of the plan's flows")
        for one in self.weights:
            if not one.is_floating_point() and sorted(one.tolist()) != list(range(len(one))):
                raise ValueError("weights: permutations must have every channel once")

    def flows(self) -> Flows:
        """The network; it shares the weights."""
        flows = empty_flows(self.plan)
        flows.load_state_dict(dict(zip(flows.state_dict(), self.weights, strict=True)), assign=True)
        return flows.eval().requires_grad_(False)


@register("FastFlow")
class FastFlow(TrainedMethod):
    """FastFlow.

    A frozen network turns an image into feature maps of several layers. For each, a normalizing flow, an
    invertible network, is trained to turn the maps of normal images into standard normal noise: it minimises
    their negative log-likelihood. A position of a layer scores `-exp(-m / 2)`, where m is the mean square of
    the noise there. The layers' maps are resized to the image (bilinear) and averaged. They lie between -1
    and 0, and are not blurred. The map's maximum is the image's score.

    A flow belongs to the size of its feature map, so all images must have one size.

    The feature maps are computed once: 1.8 MB an image of 256 x 256 pixels for resnet18 in float32, 7.3 MB
    for wide_resnet50_2; in memory up to 1 GiB, of more all in a temporary file. At that size a model has 5.6
    million values for resnet18, 45.0 million for wide_resnet50_2.

    A fit holds a tenth of the images out, for the threshold. It comes to the same bits on one machine with
    one version of torch and one number of threads, interrupted or not; with others it differs as after
    another seed.

    Args:
        backbone: a convolutional network's name (`FeatureExtractor` says which), "gabor", or a
            `torch.nn.Module`, which is never changed. Transformers, whose layers have one grid, are refused.
        layers: the names of two or more layers, each with a smaller grid than the one before. "auto": the
            last ones of strides 4, 8 and 16 (of a ResNet layer1, layer2 and layer3).
        weights: "default" (published), a path, a state dict, or None (random, from the seed).
        steps: updates; "paper": 500 epochs, of `ceil(images / batch_size)` updates each.
        learning_rate: of Adam, with a weight decay of 1e-5.
        flow_steps: steps of every flow, each of which changes half of the channels by the other half.
        conv3x3_only: True: all convolutions are 3x3; False: those of every second step are 1x1; "auto": True
            for ResNet18 and others of basic blocks, else False, as the paper has it.
        norm_affine: whether the normalisation of a feature map, which comes first, has a trained weight and
            bias for every value.
        hidden_ratio: channels between the two convolutions of a step, as a share of half the layer's.
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: `(h, w)` = exact, int = shorter side, None = native, "auto" as `PatchCore` has it.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the networks see them, in training too:
            nothing outside is learned. Losses count filled pixels as all others; statistics and scores are
            of what lies inside, and the map is zero outside. docs/design/regions.md has the rules.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the networks: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU. It is that of convolutions; what is trained, and all else, is float32.
        batch_size: images per update, and per forward pass.
        holdout: the share of the images that is held out: at least one, 400 at most. With 0 all are trained
            on, and the threshold is too low until `calibrate` is called; `fit` warns of it.
        seed: of everything random.
        compile: run the frozen network through `torch.compile`, which gains little on a CPU.
        engine: of the frozen network: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph" (on
            GPUs), or "auto": OpenVINO on a CPU where it is installed. docs/design/engines.md has their speed.
            For precision "int8" fit in float32 and call `quantize`.

    Attributes after `fit`: `losses_`, `calibration_`, `threshold_`; `network_`, the frozen network, once it
    is needed.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (21, 32, 32, 3), dtype=np.uint8)
        >>> images[20, 8:24, 8:24] = 200
        >>> detector = ead.FastFlow("gabor", steps=5, batch_size=4, resize=None, device="cpu")
        >>> detector.fit(images[:20]).predict(images[20:]).anomaly_map.shape
        (1, 32, 32)
    """

    State = TrainedFlows
    epochs = 500
    _moved_by_noise = 0.5
    auto_strides = (4, 8, 16)
    map_sigma = 0.0
    frozen_prefix = "feature_extractor."

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        steps: int | Literal["paper"] = "paper",
        learning_rate: float = 0.001,
        flow_steps: int = 8,
        conv3x3_only: bool | Literal["auto"] = "auto",
        norm_affine: bool = True,
        hidden_ratio: float = 1.0,
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = (256, 256),
        region: RegionLike = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        holdout: float = HOLDOUT,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
    ) -> None:
        super().__init__(locals())
        self.steps = checked_steps(steps)
        self.learning_rate = positive_number("learning_rate", learning_rate)
        self.flow_steps = whole_number("flow_steps", flow_steps, 1)
        if not isinstance(conv3x3_only, bool) and conv3x3_only != "auto":
            raise TypeError(f'conv3x3_only must be a bool or "auto", got {conv3x3_only!r}')
        self.conv3x3_only = conv3x3_only
        if not isinstance(norm_affine, bool):
            raise TypeError(f"norm_affine must be a bool, got {norm_affine!r}")
        self.norm_affine = norm_affine
        self.hidden_ratio = positive_number("hidden_ratio", hidden_ratio)

    # The method

    def train(self, data: TrainingData, run: Run) -> TrainedFlows:
        maps = data.batch([0]).feature_maps
        plan = self._plan(maps)
        steps = self._updates(self.steps, data)
        flows = new_flows(plan, self.seed).to(maps[0].device)
        with FeatureCache(data, run) as features:
            recipe = Likelihood(flows, features, data, steps, self)
            recipe.precision = maps[0].dtype
            losses = train(recipe, data, run)
        return TrainedFlows(plan, tuple(flows.state_dict().values()), losses)

    def _published(self, file: WeightFile, size: tuple[int, int]) -> TrainedFlows:
        plan = self._plan(self._blank_maps(size))
        return TrainedFlows(plan, self._placed(published_flows(file, plan)), no_losses())

    def scores(self, state: TrainedFlows, seen: Seen) -> Scores:
        maps = seen.feature_maps
        if tuple((own.shape[2], own.shape[3]) for own in maps) != state.plan.grids:
            height, width = seen.size
            raise ValueError(
                "images must all have one size, since a flow belongs to the grid of its layer: the grids are "
                f"{shown(self.layers, state.plan.grids)}, but images of {height} x {width} pixels give "
                f"others; set resize=(h, w), or an image_size"
            )
        device, dtype = maps[0].device.type, maps[0].dtype
        is_half = dtype != torch.float32
        with default_modes(), torch.autocast(device, dtype if is_half else None, enabled=is_half):
            latents = self._network_of(state, state.flows)(maps)[: len(maps)]
        return Scores(anomaly_grids(latents, seen.size))

    def graph(self, state: TrainedFlows, size: tuple[int, int]) -> nn.Module:
        return FlowsGraph(state.flows().float().cpu(), size, anomaly_grids)

    def _plan(self, maps: Maps) -> Plan:
        """The flows for feature maps. Raises ValueError for layers of which flows cannot be made."""
        grids = [(own.shape[2], own.shape[3]) for own in maps]
        falling = all(max(small) < max(large) for large, small in itertools.pairwise(grids))
        if len(grids) < 2 or not falling:
            raise ValueError(
                "layers must be two or more of a convolutional network, each with a smaller grid than the "
                f"one before, got {shown(self.layers, grids)}; transformers, whose layers have one grid, "
                "are not supported"
            )
        conv3x3_only = self.conv3x3_only
        if isinstance(conv3x3_only, str):
            conv3x3_only = has_basic_blocks(self.network_.module)
        rows, columns = zip(*grids, strict=True)
        channels = tuple(own.shape[1] for own in maps)
        return Plan(
            channels, rows, columns, self.flow_steps, self.hidden_ratio, conv3x3_only, self.norm_affine
        )


class Likelihood(Recipe):
    """How flows are trained on feature maps."""

    weight_decay = 1e-5
    # The loss is a sum over all positions: with maps of ResNet18's shapes at 256 x 256 gradients overflow
    # from 64 on, and with larger ones earlier.
    loss_scale = 4.0

    def __init__(
        self, flows: Flows, features: FeatureCache, data: TrainingData, steps: int, method: FastFlow
    ) -> None:
        self.module, self.steps, self.learning_rate = flows, steps, method.learning_rate
        self._features, self._data, self._layers = features, data, method.layers

    def batch(self, step: int) -> Tensors:
        return self._features.batch(self._data.drawn(step))

    def forward(self, batch: Tensors) -> Tensors:
        outputs: Tensors = self.module(batch)
        return outputs

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        return dict(zip(self._layers, negative_log_likelihoods(outputs), strict=True))


def negative_log_likelihoods(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of every layer, by what `Flows` put out: the mean over images, without the constant."""
    layers = len(outputs) // 2
    return [
        (0.5 * latent.square().sum((1, 2, 3)) - determinants).mean()
        for latent, determinants in zip(outputs[:layers], outputs[layers:], strict=True)
    ]


def anomaly_grids(latents: Maps, size: tuple[int, int]) -> torch.Tensor:
    """Maps float32 `[B, H, W]` in -1..0: the mean over layers of minus the likelihood, up to a factor."""
    grids = [-torch.exp(-0.5 * latent.square().mean(1)) for latent in latents]
    return torch.stack([resize_maps(grid, size) for grid in grids]).mean(0)


def has_basic_blocks(network: nn.Module) -> bool:
    """Whether it is a ResNet18 or 34, or built like them."""
    return any(type(part).__name__ == "BasicBlock" for part in network.modules())


def shown(layers: Sequence[str], grids: Sequence[tuple[int, int]]) -> str:
    """Layers and their grids, for messages."""
    return ", ".join(f"{name} {h} x {w}" for name, (h, w) in zip(layers, grids, strict=True))
