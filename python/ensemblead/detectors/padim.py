"""PaDiM: how far every patch lies from the Gaussian of normal patches at its position.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR
2021.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ensemblead.calibration.statistics import MAX_IMAGES, NormalSample
from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.base import Embedded, Fitting, Progress
from ensemblead.detectors.gaussians import GROUP, Gaussians, LeftOut, Moments, block_spans
from ensemblead.detectors.leaf import NetworkDetector
from ensemblead.kernels.maps import render_maps
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.networks.network import require_finite
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

_FILE = "gaussians.{}.safetensors"
# The regularisation divides what embeddings of equal images differ by, so that distances come to some 1e-5. A
# single grey level in one pixel makes 1e-2.
_ROUNDING = 1e-4


@register("PaDiM")
class PaDiM(NetworkDetector):
    """Patch distribution modelling.

    A frozen network turns every image into a grid of embeddings: the channels of all layers at one position,
    of which a random subset, drawn from the seed, is kept. Every position has a Gaussian of its own: the mean
    and the covariance (divisor N - 1, plus 0.01 I) of the training images' embeddings there. A position of a
    new image scores its Mahalanobis distance (the root, not the squared one); the grid of them, upsampled and
    blurred, is the anomaly map, and the map's maximum the image's score.

    Positions must mean the same in all images: parts lie alike, and all images give one grid (an exact
    `resize`, or a crop).

    Training images go into running means and covariances, batch by batch. A model has `D + D * (D + 1) / 2`
    values per position: 84 MB for resnet18 at 256 pixels (64 x 64 positions, D = 100), 2.5 GB for
    wide_resnet50_2 with `num_dimensions=550`; in memory, where triangles are kept in blocks, 107 MB and
    2.8 GB.
    While it is fitted, the embeddings of at most 100 training images, however many there are, are kept too,
    to be scored without themselves: 160 MB, or 900 MB.

    Args:
        backbone: a network's name (`FeatureExtractor` says which), "gabor", or a `torch.nn.Module`, which is
            never changed.
        layers: the names of its layers; the first sets the grid.
        num_dimensions: channels to keep of all layers together (the paper: 100 for ResNet18, 550 for
            WideResNet50); None keeps all.
        weights: "default" (published), a path, a state dict, or None (random, from the seed).
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: int = shorter side, `(h, w)` = exact, None = native.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the network: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU (bfloat16 where its tensor cores have it, else float16). Embeddings and all that is done with
            them are float32 or float64.
        batch_size: images per forward pass.
        seed: of everything random.
        compile: run the network through `torch.compile`. The first batch then takes long; where it cannot be
            done, a CompilationError at that batch says why.

    Attributes: `gaussians_`, `calibration_`, `threshold_` after `fit`; `network_`, the extractor, once it is
    needed.
    """

    _own_parameters = ("num_dimensions",)

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        layers: Sequence[str] = ("layer1", "layer2", "layer3"),
        *,
        num_dimensions: int | None = 100,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        image_size: int | tuple[int, int] | None = 224,
        resize: int | tuple[int, int] | None = 256,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            layers,
            weights=weights,
            image_size=image_size,
            resize=resize,
            device=device,
            precision=precision,
            batch_size=batch_size,
            seed=seed,
            compile=compile,
        )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if num_dimensions is not None:
            num_dimensions = whole_number("num_dimensions", num_dimensions, 1)
        self.num_dimensions = num_dimensions
        self._subset: tuple[tuple[Any, ...], list[torch.Tensor]] | None = None
        self._model: Model | None = None

    @property
    def is_fitted(self) -> bool:
        return self._model is not None and self._calibration is not None

    @property
    def gaussians_(self) -> Gaussians:
        """The fitted Gaussians, one per position of the grid, row by row."""
        return self._fitted().gaussians

    @property
    def learned_(self) -> dict[str, int]:
        """How much was learned, by name."""
        known = self.gaussians_
        return {"gaussians": known.num_positions, "dimensions": known.num_dimensions}

    def _fitted(self) -> Model:
        if self._model is None:
            raise NotFittedError("this PaDiM is not fitted; call fit first")
        return self._model

    # The protocol of detectors

    def _embed_features(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        chosen = self._chosen(feature_maps)
        # Channels are dropped first: nothing else is resized or stored.
        kept = [
            feature_map.permute(0, 2, 3, 1).index_select(3, channels).permute(0, 3, 1, 2)
            for feature_map, channels in zip(feature_maps, chosen, strict=True)
            if len(channels)
        ]
        sets_grid = len(chosen[0]) > 0
        if not sets_grid:  # no channel of the first layer is kept, but its grid is the result's
            kept.insert(0, feature_maps[0][:, :1].contiguous())
        embedded: torch.Tensor = aggregate_patches(kept, patch_size=1, mode="concat")
        if not sets_grid:
            embedded = embedded[..., 1:].contiguous()
        require_finite(embedded, self.network_)
        return embedded

    def _chosen(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """For every layer the channels to keep, ascending. They depend on the seed and the channel counts."""
        channels = tuple(feature_map.shape[1] for feature_map in feature_maps)
        drawn = (channels, self.num_dimensions, self.seed)
        if self._subset is None or self._subset[0] != drawn:
            device = feature_maps[0].device
            picks = choose_dimensions(*drawn)
            self._subset = drawn, [torch.from_numpy(own).to(device) for own in picks]
        return self._subset[1]

    @property
    def _rounding(self) -> float:
        return _ROUNDING

    def _extending_lowers_scores(self) -> bool:
        return False  # images like each other shrink the covariances

    def _begin_fit(self) -> Fitting:
        return _PaDiMFitting(self, Moments(), None)

    def _begin_extension(self) -> Fitting:
        model = self._fitted()
        return _PaDiMFitting(self, model.gaussians.moments(), model.grid)

    def _score(self, embedded: Embedded) -> tuple[torch.Tensor, torch.Tensor]:
        (patches,), (size,) = embedded.parts, embedded.sizes
        model = self._fitted()
        check_grid(patches, size, model.grid)
        distances = model.gaussians.squared_distances(patches.flatten(1, 2)).sqrt_()
        return score_maps(distances.view(len(patches), *model.grid), size)

    # Saving

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`."""
        model = self._fitted()
        for name, array in model.gaussians.state():
            writer.tensors(_FILE.format(name), {name: array})
        known = {"count": model.gaussians.count, "grid": list(model.grid)}
        return {**self._common_state(writer), "gaussians": known}

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`."""
        detector = cls._from_common_state(reader)
        known = reader.state["gaussians"]
        with reader.as_damage():
            height, width = (whole_number("grid", side, 1) for side in known["grid"])
            gaussians = Gaussians.from_state(
                known["count"],
                height * width,
                detector.num_dimensions,
                lambda name: reader.tensors(_FILE.format(name))[name],
            )
        detector._model = Model(gaussians.to(detector._network().device), (height, width))
        return detector


@dataclass(frozen=True)
class Model:
    """What a fit has learned: the Gaussians, and the rows and columns that their positions make up."""

    gaussians: Gaussians
    grid: tuple[int, int]


def choose_dimensions(
    channels: Sequence[int], num_dimensions: int | None, seed: int
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """For every layer, of so many `channels`, the numbers of those to keep, ascending: a random subset of all
    layers' channels together.
    """
    total = sum(channels)
    wanted = total if num_dimensions is None else num_dimensions
    if wanted > total:
        raise ValueError(
            f"num_dimensions is {wanted}, but the layers have only {total} channels together "
            f"({' + '.join(map(str, channels))}); None keeps them all"
        )
    picks = np.sort(np.random.default_rng(seed).permutation(total)[:wanted])
    edges = np.cumsum([0, *channels])
    return [picks[(picks >= a) & (picks < b)] - a for a, b in itertools.pairwise(edges)]


def check_grid(patches: torch.Tensor, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Raise ValueError for a batch of another grid than the one that has Gaussians."""
    own = (patches.shape[1], patches.shape[2])
    if own != grid:
        raise ValueError(
            f"images must all give one grid, since PaDiM has a Gaussian for every position: it is {grid}, "
            f"but images of {size[0]} x {size[1]} pixels give {own}; set resize=(h, w), or an image_size"
        )


def score_maps(distances: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores `[B]` and maps `[B, H, W]` of Mahalanobis distances `[B, h, w]`."""
    maps = render_maps(distances, size)
    return maps.flatten(1).amax(1), maps


# Maps rendered at once.
_RENDERED = 16


class _PaDiMFitting(Fitting):
    def __init__(self, detector: PaDiM, moments: Moments, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self._detector = detector
        self._moments = moments
        self._grid = grid
        self._size = (0, 0)
        self._held: list[tuple[int, torch.Tensor]] = []  # number and embedding [P, D] of sampled images
        self._model: Model | None = None

    def observe(self, embedded: Embedded, numbers: Sequence[int], sampled: Sequence[bool]) -> None:
        (patches,), (self._size,) = embedded.parts, embedded.sizes
        if self._grid is None:
            self._grid = (patches.shape[1], patches.shape[2])
        check_grid(patches, self._size, self._grid)
        rows = patches.flatten(1, 2)
        # Copies, so that the rest of the batch can go.
        self._held += [
            (n, own.clone()) for n, own, chosen in zip(numbers, rows, sampled, strict=True) if chosen
        ]
        self._moments.add(rows)

    def footprint(self, embedded: Embedded, num_images: int) -> int:
        """About how many bytes it will hold after so many images like those in `embedded`."""
        _, height, width, dims = embedded.parts[0].shape
        matrices = sum((end - start) * end for start, end in block_spans(dims))
        held = min(num_images, MAX_IMAGES) + min(num_images, GROUP)
        return 4 * height * width * (matrices + 2 * dims + held * dims)

    def finish(self, progress: Progress | None) -> list[NormalSample]:
        count, mean, scatter = self._moments.finish()
        assert self._grid is not None
        others = LeftOut(self._held, count, len(mean), progress)
        if count == 2 and others.fair:
            self.doubts["two"] = (
                "two training images are each scored against the other alone, so that their scores are equal "
                "and, with the threshold, say nothing of how much normal images differ; give more images, or "
                "call calibrate"
            )
        if others.fair:
            gaussians = Gaussians.from_moments(count, mean, scatter, others, len(self._held))
            squared = others.squared
        else:
            self.doubts["one"] = (
                "a single training image cannot be scored without itself, and leaves every covariance at "
                "0.01 I: its score, and with it the threshold, are 0; give more images, or call calibrate"
            )
            gaussians = Gaussians.from_moments(count, mean, scatter)
            squared = gaussians.squared_distances(torch.stack([rows for _, rows in self._held]))
        self._model = Model(gaussians, self._grid)
        self._held = []
        sample = NormalSample(_ROUNDING)
        distances = squared.sqrt_().view(len(squared), *self._grid)
        for some in torch.split(distances, _RENDERED) if len(distances) else ():
            scores, _ = score_maps(some, self._size)
            sample.add_grids(scores, some, self._size)
        return [sample]

    def commit(self) -> None:
        self._detector._model = self._model
