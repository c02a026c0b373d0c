"""Patch features of real images, for the benchmarks of memory banks and their search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.images import Geometry, iterate_batches, open_images

LAYERS = ("layer2", "layer3")


def bottle_features(
    data: Path, weights: Path, size: int, *, every_test: int = 1
) -> tuple[Any, Any, list[bool]]:
    """ResNet18's patches of the bottles at `size` x `size` pixels: rows `[N, 384]` of the training images,
    `[images, patches, 384]` of every so-manieth test image, and which of these are defective.
    """
    category = MVTecAD(data / "mvtec_bottle").categories[0]
    extractor = ead.FeatureExtractor("resnet18", LAYERS, weights=weights / "resnet18.safetensors")
    extractor.to("cpu", channels_last=True)
    test = category.test[::every_test]
    train = torch.cat(list(_embed(extractor, category.train, size))).flatten(0, 1)
    queries = torch.cat(list(_embed(extractor, [sample.path for sample in test], size)))
    return train, queries, [sample.label for sample in test]


def _embed(extractor: ead.FeatureExtractor, paths: Sequence[str], size: int) -> Iterator[Any]:
    geometry = Geometry((size, size), None)
    with iterate_batches(open_images(list(paths)), [geometry], 16) as batches:
        for batch in batches:
            maps = extractor(extractor.normalize(batch.images[geometry]))
            yield ead.aggregate_patches(maps, pretrain_dim="auto").flatten(1, 2)
