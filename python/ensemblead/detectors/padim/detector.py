"""PaDiM: how far every patch lies from the Gaussian of normal patches at its position.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", ICPR
2021.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ensemblead.calibration import Origin
from ensemblead.common.validation import one_of, whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.method import Accumulator, Fitted, Method, NormalSample, Run, Scores, Seen
from ensemblead.detectors.padim.gaussians import REGULARIZATION, Gaussians, LeftOut, Moments, block_spans
from ensemblead.detectors.padim.graph import GaussiansGraph
from ensemblead.detectors.regions import inside_of
from ensemblead.images import RegionLike
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import MAP_KINDS, MapKind
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.networks.noise import moved_distance, relative_noise
from ensemblead.store import FolderReader

_INTERPOLATIONS = ("bilinear", "nearest")
# Maps rendered at once.
_RENDERED = 16


@dataclass(frozen=True)
class Positions:
    """What a fit has learned: the Gaussians, and the grid `(h, w)` of positions. With a region it has more
    positions than there are Gaussians, which are those of its patches.
    """

    gaussians: Gaussians
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        height, width = (whole_number("grid", side, 1) for side in self.grid)
        if height * width < self.gaussians.num_positions:
            raise ValueError(f"grid {self.grid} must have {self.gaussians.num_positions} positions")


@dataclass(frozen=True)
class PackedPositions:
    """`Positions` as they are saved: of every block row of `Gaussians.whitening`, float32 `[P, values]`, what
    lies on and below the diagonal, row by row.
    """

    count: int
    grid: tuple[int, int]
    mean: torch.Tensor
    whitening: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, known: Positions) -> PackedPositions:
        gaussians = known.gaussians
        spans = block_spans(gaussians.num_dimensions)
        pairs = zip(gaussians.whitening, spans, strict=True)
        packed = [block[:, _lower(*span).to(block.device)] for block, span in pairs]
        return cls(gaussians.count, known.grid, gaussians.mean, tuple(packed))

    def unpacked(self) -> Positions:
        if self.mean.ndim != 2:
            raise ValueError(f"mean must be [P, D], got shape {tuple(self.mean.shape)}")
        spans = block_spans(self.mean.shape[1])
        if len(self.whitening) != len(spans):
            raise ValueError(f"whitening must have {len(spans)} blocks, got {len(self.whitening)}")
        blocks = []
        for i, (packed, (start, end)) in enumerate(zip(self.whitening, spans, strict=True)):
            values = (end * (end + 1) - start * (start + 1)) // 2
            # Memory goes to blocks whose values are there only.
            if packed.shape != (len(self.mean), values):
                raise ValueError(
                    f"whitening{i} must be {(len(self.mean), values)}, got shape {tuple(packed.shape)}"
                )
            block = packed.new_zeros(len(self.mean), end - start, end)
            block[:, _lower(start, end).to(packed.device)] = packed
            blocks.append(block)
        return Positions(Gaussians(self.count, self.mean, tuple(blocks)), self.grid)


def _lower(start: int, end: int) -> torch.Tensor:
    """Which values of block row `start .. end` lie on or below the diagonal."""
    return torch.ones(end - start, end, dtype=torch.bool).tril(start)


@register("PaDiM")
class PaDiM(Method):
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
    While it is fitted, the embeddings of at most 400 training images, and beyond 100 of no more than 1 GiB
    holds, are kept too, to be scored without themselves: 640 MB, or 1.1 GB.

    Args:
        backbone: a network's name (`FeatureExtractor` says which), "gabor", or a `torch.nn.Module`, which is
            never changed.
        layers: the names of its layers; the first sets the grid. "auto": the last ones of strides 4, 8 and
            16 (of a ResNet layer1, layer2 and layer3), of a transformer blocks at 1/4, 1/2 and 3/4 of its
            depth. `ensemblead layers NAME` lists them. A module has no "auto".
        num_dimensions: channels to keep of all layers together (the paper: 100 for ResNet18, 550 for
            WideResNet50); None keeps all. A sequence: the numbers of those to keep, counted from 0 over all
            layers.
        interpolation: how the grids of later layers come to the first one's: "bilinear" or "nearest"
            (anomalib).
        map_kind: "bilinear", or as anomalib makes maps "reflect": the blur reflects about the edge pixels
            without repeating them.
        weights: "default" (published), a path, a state dict, or None (random, from the seed).
        image_size: centre crop after the resize; int = square, `(h, w)`, or None for no crop.
        resize: "auto": the whole image at 256 x 256 pixels, or, where the training images' median aspect
            ratio is beyond 1.5, about as many pixels in that ratio; settled by `fit` and saved. int = shorter
            side, `(h, w)` = exact, None = native.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the network sees them, positions
            outside have no Gaussian, and the map is zero there. docs/design/regions.md has the rules.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the network: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU (bfloat16 where its tensor cores have it, else float16). Embeddings and all that is done with
            them are float32 or float64.
        batch_size: images per forward pass.
        seed: of everything random.
        compile: run the network through `torch.compile`, which gains little on a CPU. The first batch then
            takes long; where it cannot be done, a CompilationError at that batch says why.
        engine: of the network: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph" (on GPUs), or
            "auto": OpenVINO on a CPU where it is installed. docs/design/engines.md has their speed. For
            precision "int8" fit in float32 and call `quantize`.

    Attributes: `gaussians_`, `calibration_`, `threshold_` after `fit`; `network_`, the extractor, once it is
    needed.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (31, 64, 64, 3), dtype=np.uint8)
        >>> images[30, 20:40, 20:40] = 200
        >>> detector = ead.PaDiM(
        ...     "gabor", num_dimensions=20, resize=None, image_size=None, device="cpu"
        ... )
        >>> detector.fit(images[:30]).predict(images[30:]).is_anomalous
        array([ True])
    """

    State = PackedPositions
    auto_strides = (4, 8, 16)

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        num_dimensions: int | Sequence[int] | None = 100,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        map_kind: MapKind = "bilinear",
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = "auto",
        region: RegionLike = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
    ) -> None:
        super().__init__(locals())
        self.num_dimensions = _check_dimensions(num_dimensions)
        one_of("interpolation", interpolation, _INTERPOLATIONS)
        one_of("map_kind", map_kind, MAP_KINDS)
        self.interpolation, self.map_kind = interpolation, map_kind
        self._subset: tuple[tuple[Any, ...], list[torch.Tensor]] | None = None

    @property
    def gaussians_(self) -> Gaussians:
        """The fitted Gaussians, one per position of the grid, row by row."""
        gaussians: Gaussians = self.state_.gaussians
        return gaussians

    @property
    def learned_(self) -> dict[str, int]:
        known = self.gaussians_
        return {"gaussians": known.num_positions, "dimensions": known.num_dimensions}

    # The method

    def embed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
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
        if self.interpolation == "nearest":
            grid = kept[0].shape[2:]
            kept = [kept[0], *(nn.functional.interpolate(own, grid, mode="nearest") for own in kept[1:])]
        embedded: torch.Tensor = aggregate_patches(kept, patch_size=1, mode="concat")
        if not sets_grid:
            embedded = embedded[..., 1:].contiguous()
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

    def start(self, state: Positions | None = None) -> Accumulator:
        return MomentsAccumulator(self, state)

    def scores(self, state: Positions, seen: Seen) -> Scores:
        check_grid(seen.embeddings, seen.size, state.grid)
        inside = self.inside(seen)
        rows = _positions(seen.embeddings, inside)
        if rows.shape[1] != state.gaussians.num_positions:
            raise ValueError(
                f"region has {rows.shape[1]} positions of the grid {state.grid}, but there are Gaussians of "
                f"{state.gaussians.num_positions}"
            )
        return Scores(_on_grid(state.gaussians.squared_distances(rows).sqrt_(), state.grid, inside))

    def graph(self, state: Positions, size: tuple[int, int]) -> nn.Module:
        check_grid(torch.empty(0, *self.network_.grid(size)), size, state.grid)
        picks = choose_dimensions(self.network_.channels(size), self.num_dimensions, self.seed)
        return GaussiansGraph(
            [torch.from_numpy(own) for own in picks],
            state.gaussians,
            state.grid,
            self.interpolation,
            inside_of(self.geometry),
        )

    def _state_to_save(self) -> PackedPositions:
        return PackedPositions.of(self.state_)

    def _state_from_saved(self, saved: PackedPositions) -> Positions:
        positions = saved.unpacked()
        if self.region is None and positions.gaussians.num_positions != math.prod(positions.grid):
            raise ValueError(f"grid {positions.grid} must have {positions.gaussians.num_positions} positions")
        dims, wanted = positions.gaussians.num_dimensions, self.num_dimensions
        wanted = len(wanted) if isinstance(wanted, tuple) else wanted
        if wanted not in (None, dims):
            raise ValueError(f"mean must have {wanted} dimensions, got {dims}")
        return positions

    @classmethod
    def _state_from_format1(cls, reader: FolderReader) -> PackedPositions:
        known = reader.state["gaussians"]
        mean = reader.tensors("gaussians.mean.safetensors")["mean"]
        names = [f"whitening{i}" for i in range(len(block_spans(mean.shape[-1])))]
        packed = tuple(reader.tensors(f"gaussians.{name}.safetensors")[name] for name in names)
        return PackedPositions(known["count"], tuple(known["grid"]), mean, packed)


class MomentsAccumulator:
    """Gathers the moments of embeddings at every position, and the embeddings of the sampled images."""

    def __init__(self, detector: PaDiM, state: Positions | None) -> None:
        if state is not None and state.gaussians.count == 0:
            raise ValueError(
                "extend: it is not known of how many images these Gaussians are (they come from another "
                "tool); fit a PaDiM on all images"
            )
        self._detector = detector
        self._moments = Moments() if state is None else state.gaussians.moments()
        self._grid = None if state is None else state.grid
        self._size = (0, 0)
        self._inside: Inside | None = None
        self._counts: Counter[int] = Counter()
        self._held: list[tuple[int, torch.Tensor]] = []  # number and embedding [P, D] of sampled images

    def add(self, seen: Seen) -> None:
        patches, self._size = seen.embeddings, seen.size
        if self._grid is None:
            self._grid = (patches.shape[1], patches.shape[2])
        check_grid(patches, seen.size, self._grid)
        self._inside = self._detector.inside(seen)
        rows = _positions(patches, self._inside)
        pairs = zip(seen.numbers, rows, seen.sampled, strict=True)
        # Copies, so that the rest of the batch can go.
        self._held += [(number, own.clone()) for number, own, chosen in pairs if chosen]
        self._counts.update(seen.numbers)
        self._moments.add(rows)

    def finish(self, run: Run) -> Fitted:
        count, mean, scatter = self._moments.finish()
        assert self._grid is not None
        others = LeftOut(self._held, self._counts, count, len(mean), run.progress)
        warnings = {}
        if count == 2 and others.fair:
            warnings["two"] = (
                "two training images are each scored against the other alone, so that their scores are equal "
                "and, with the threshold, say nothing of how much normal images differ; give more images, or "
                "call calibrate"
            )
        if others.fair:
            gaussians = Gaussians.from_moments(count, mean, scatter, others, len(self._held))
            squared = others.squared
        else:
            warnings["one"] = (
                "a single training image, or copies of one, cannot be scored without itself, and leaves "
                "every covariance at 0.01 I: its score, and with it the threshold, are 0; give more images, "
                "or call calibrate"
            )
            gaussians = Gaussians.from_moments(count, mean, scatter)
            squared = gaussians.squared_distances(torch.stack([rows for _, rows in self._held]))
        sample = NormalSample(inside=self._inside)
        distances = _on_grid(squared.sqrt_(), self._grid, self._inside)
        for some in torch.split(distances, _RENDERED) if len(distances) else ():
            sample.add_grids(
                None, some, self._size, sigma=self._detector.map_sigma, kind=self._detector.map_kind
            )
        sample.rounding = self._rounding(sample)
        self._held = []
        origin: Origin = "leave_one_out" if others.fair else "trained_on"
        return Fitted(Positions(gaussians, self._grid), sample, origin, warnings)

    def _rounding(self, sample: NormalSample) -> float:
        """How far rounding moves a distance: what it moves an embedding by, over the least deviation."""
        # A GPU is read once.
        norms = [rows.double().square().sum(1).mean() for _, rows in self._held]
        norm = float(torch.stack(norms).mean()) ** 0.5 if norms else 0.0
        network = self._detector.network_
        floor = relative_noise(network.dtype, network.precision) * norm
        floor = 2.0 * floor / REGULARIZATION**0.5
        dims = self._held[0][1].shape[1] if self._held else 1
        return moved_distance(floor, sample.largest_score(), dims)


def _positions(embeddings: torch.Tensor, inside: Inside | None) -> torch.Tensor:
    """Of embeddings `[B, h, w, D]` those at positions with a Gaussian: `[B, P, D]`."""
    return (embeddings if inside is None else inside.take(embeddings)).flatten(1, 2)


def _on_grid(values: torch.Tensor, grid: tuple[int, int], inside: Inside | None) -> torch.Tensor:
    """Values `[B, P]` of positions as grids `[B, h, w]`."""
    return values.view(-1, *grid) if inside is None else inside.put(values, grid)


def choose_dimensions(
    channels: Sequence[int], num_dimensions: int | tuple[int, ...] | None, seed: int
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """For every layer, of so many `channels`, the numbers of those to keep, ascending: a random subset of all
    layers' channels together, or those given.
    """
    total = sum(channels)
    edges = np.cumsum([0, *channels])
    if isinstance(num_dimensions, tuple):
        if num_dimensions[-1] >= total:
            raise ValueError(
                f"num_dimensions names channel {num_dimensions[-1]}, but the layers have {total} channels "
                f"together ({' + '.join(map(str, channels))})"
            )
        return _by_layer(np.array(num_dimensions, dtype=np.int64), edges)
    wanted = total if num_dimensions is None else num_dimensions
    if wanted > total:
        raise ValueError(
            f"num_dimensions is {wanted}, but the layers have only {total} channels together "
            f"({' + '.join(map(str, channels))}); None keeps them all"
        )
    return _by_layer(np.sort(np.random.default_rng(seed).permutation(total)[:wanted]), edges)


def _by_layer(
    picks: np.ndarray[Any, np.dtype[np.int64]], edges: np.ndarray[Any, np.dtype[np.int64]]
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Ascending numbers of channels, counted over all layers, as numbers within each layer."""
    return [picks[(picks >= a) & (picks < b)] - a for a, b in itertools.pairwise(edges)]


def _check_dimensions(given: Any) -> int | tuple[int, ...] | None:
    if given is None or not isinstance(given, Iterable):
        return None if given is None else whole_number("num_dimensions", given, 1)
    numbers = tuple(sorted(whole_number("num_dimensions", one, 0) for one in given))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"num_dimensions must be different channels, one at least, got {given!r}")
    return numbers


def check_grid(patches: torch.Tensor, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Raise ValueError for a batch of another grid than the one that has Gaussians."""
    own = (patches.shape[1], patches.shape[2])
    if own != grid:
        raise ValueError(
            f"images must all give one grid, since PaDiM has a Gaussian for every position: it is {grid}, "
            f"but images of {size[0]} x {size[1]} pixels give {own}; set resize=(h, w), or an image_size"
        )
