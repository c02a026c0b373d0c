"""The teacher: a frozen network that describes images, a patch description network or any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from ensemblead.detectors.efficientad.imitators import upsampled
from ensemblead.detectors.parts import Run
from ensemblead.detectors.training.data import TrainingData
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.network import require_finite
from ensemblead.networks.pdn import BORDER, CHANNELS, PDN, STRIDE

# Of a deviation over the root of the mean square: one so small is rounding.
_CONSTANT = 1e-6


def describe(extractor: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
    """Descriptions float32 `[B, C, h, w]` of normalised images `[B, 3, H, W]`, of stride 4.

    The four outermost rows and columns, which a patch description network does not have, are left out of
    those of any other network. It sees the images at twice their size.
    """
    if isinstance(extractor.module, PDN):
        found = extractor(images)[0].float()
    else:
        doubled = upsampled(images, (2 * images.shape[2], 2 * images.shape[3]))
        found = patch_features(extractor, doubled)[:, :, BORDER:-BORDER, BORDER:-BORDER]
    require_finite(found, extractor)
    return found


def patch_features(
    extractor: FeatureExtractor, images: torch.Tensor, pretrain_dim: int | Literal["auto"] = "auto"
) -> torch.Tensor:
    """Features float32 `[B, C, h, w]` as PatchCore makes them, of stride 8.

    They have 384 channels; under `pretrain_dim="auto"` fewer where the layers have.
    """
    maps = extractor(images)
    wanted = tuple(-(-side // (2 * STRIDE)) for side in images.shape[2:])
    if tuple(maps[0].shape[2:]) != wanted:
        rows, columns = maps[0].shape[2:]
        raise ValueError(
            f"layers: the first must have stride {2 * STRIDE}, but {extractor.layers[0]} has a grid of "
            f"{rows} x {columns} for images of {images.shape[2]} x {images.shape[3]} pixels"
        )
    features: torch.Tensor = aggregate_patches(maps, pretrain_dim=pretrain_dim, target_dim=CHANNELS)
    return features.permute(0, 3, 1, 2)


def all_pixels(data: TrainingData, run: Run) -> Iterator[torch.Tensor]:
    """The images that are trained on, uint8 `[B, 3, H, W]` in batches, in their order."""
    for start in range(0, len(data), data.batch_size):
        items = range(start, min(start + data.batch_size, len(data)))
        yield data.pixels(items)
        run.progress("embed", items.stop, len(data))


def channel_statistics(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, float32 `[C]`, of the channels of descriptions `[B, C, h, w]`; those of a constant
    channel have the deviation 1.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        values = batch.double()
        count += values[:, 0].numel()
        total = total.to(values.device) + values.sum((0, 2, 3))
        squares = squares.to(values.device) + values.square().sum((0, 2, 3))
    mean, square = total / count, squares / count
    std = (square - mean.square()).clamp_min(0.0).sqrt()
    std = torch.where(std > _CONSTANT * square.sqrt(), std, 1.0)
    return mean.float(), std.float()


def standardised(descriptions: torch.Tensor, statistics: Sequence[torch.Tensor]) -> torch.Tensor:
    """Less the channels' means, over their deviations."""
    mean, std = (values[:, None, None] for values in statistics)
    return (descriptions - mean) / std
