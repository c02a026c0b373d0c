"""Patch features of real images, for the benchmarks of memory banks and their search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
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


def patches_of(
    data: Path, weights: Path, network: str, layers: Sequence[str], size: int, *, images: int = 32, **how: Any
) -> tuple[Any, Any]:
    """A network's patches of the bottles `[images, patches, D]`: of all training images, and of so many test
    images. `how`: as `aggregate_patches` has it.
    """
    category = MVTecAD(data / "mvtec_bottle").categories[0]
    extractor = ead.FeatureExtractor(network, layers, weights=weights / f"{network}.safetensors")
    extractor.to("cpu", channels_last=True)
    step = max(1, len(category.test) // images)
    groups = category.train, [sample.path for sample in category.test[::step]][:images]
    train, test = (torch.cat(list(_embed(extractor, paths, size, **how))) for paths in groups)
    return train, test


def category_features(category: Category, weights: Path, size: int, cache: Path) -> tuple[Any, Any]:
    """ResNet18's patches `[images, patches, 384]` of a category's training and test images; they are kept in
    the folder `cache`.
    """
    path = cache / f"{category.name}_{size}.pt"
    if not path.is_file():
        extractor = ead.FeatureExtractor("resnet18", LAYERS, weights=weights / "resnet18.safetensors")
        extractor.to("cpu", channels_last=True)
        groups = category.train, [sample.path for sample in category.test]
        cache.mkdir(parents=True, exist_ok=True)
        torch.save([torch.cat(list(_embed(extractor, paths, size))) for paths in groups], path)
    train, test = torch.load(path, weights_only=True)
    return train, test


def masks_of(category: Category, size: int) -> Any:
    """Where the test images are defective, bool `[images, size, size]`."""
    masks = np.zeros((len(category.test), size, size), dtype=bool)
    for mask, sample in zip(masks, category.test, strict=True):
        if sample.mask_path is not None:
            with Image.open(sample.mask_path) as image:
                mask[:] = np.array(image.convert("L").resize((size, size), Image.Resampling.NEAREST)) > 0
    return masks


def _embed(extractor: ead.FeatureExtractor, paths: Sequence[str], size: int, **how: Any) -> Iterator[Any]:
    geometry = Geometry((size, size), None)
    with iterate_batches(open_images(list(paths)), [geometry], 16) as batches:
        for batch in batches:
            maps = extractor(extractor.normalize(batch.images[geometry]))
            yield ead.aggregate_patches(maps, **{"pretrain_dim": "auto", **how}).flatten(1, 2)
