"""The learned modes of embedding ensembles: from vectors and labels to what joins them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.extras import require
from ensemblead.detectors.parts import Progress
from ensemblead.networks.modes import default_modes, own_generator
from ensemblead.networks.network import resolve_device
from ensemblead.retrieval.checks import Label, Matrix, check_labels
from ensemblead.retrieval.closed_forms import discriminants, whitening
from ensemblead.retrieval.joining import Learned, Scaler, standardised
from ensemblead.retrieval.training import Linear, Ratios, Training, check_classes, held_out, train

TRAINED = ("fusion", "project", "ratios")
MODES = (*TRAINED, "whiten", "lda")
# Dimensions where none are given; of "lda" they follow from the labels, of "ratios" from the networks.
DIMS = {"fusion": 512, "project": 512, "whiten": 64}


def check_start(
    mode: str, labels: Any, count: int, settings: Training
) -> tuple[tuple[Label, ...], npt.NDArray[np.int64]]:
    """The classes, and the number of each of `count` images; none without labels.

    Raises ValueError for labels that the mode cannot learn from, and MissingExtraError where the losses are
    not installed.
    """
    if labels is None:
        return (), np.zeros(0, dtype=np.int64)
    classes, numbers = check_labels(labels, count)
    if mode in TRAINED:
        require("pytorch_metric_learning", "training a fusion")
        check_classes(settings, numbers, classes)
        held_out(settings, numbers, 0)
    return classes, numbers


def learn(
    mode: str,
    vectors: list[Matrix],
    labels: Any,
    settings: Training,
    *,
    dim: int | None,
    seed: int,
    device: str,
    progress: Progress | None,
) -> Learned:
    """Learn from vectors `[N, D_k]` of every network and a label per image (None: mode "whiten" alone)."""
    classes, numbers = check_start(mode, labels, len(vectors[0]), settings)
    scalers = [Scaler.of(one) for one in vectors]
    inputs = standardised(scalers, vectors)
    means = tuple(torch.from_numpy(scaler.mean) for scaler in scalers)
    stds = tuple(torch.from_numpy(scaler.std) for scaler in scalers)
    if mode in TRAINED:
        dims = [one.shape[1] for one in vectors]
        width = sum(dims) if mode == "ratios" else dim or DIMS[mode]
        module = _module(mode, dims, width, seed)
        done = train(
            module,
            inputs,
            numbers,
            settings,
            dim=width,
            seed=seed,
            device=resolve_device(device),
            progress=progress,
        )
        told = (done.losses, done.validation_maps, done.best_epoch)
        return Learned(means, stds, done.maps, done.offset, classes, *told)
    matrix, offset = _closed_form(mode, inputs, numbers, dim)
    return Learned(means, stds, (torch.from_numpy(matrix),), torch.from_numpy(offset), classes)


def _module(mode: str, dims: list[int], dim: int, seed: int) -> Linear | Ratios:
    with default_modes(), torch.enable_grad(), own_generator(seed):
        if mode == "ratios":
            return Ratios(dims)
        if mode == "fusion":
            return Linear([sum(dims)], [dim])
        each, rest = divmod(dim, len(dims))
        return Linear(dims, [each + rest, *[each] * (len(dims) - 1)])


def _closed_form(
    mode: str, inputs: npt.NDArray[np.float32], numbers: npt.NDArray[np.int64], dim: int | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if mode == "whiten":
        return whitening(inputs, dim or DIMS[mode])
    return discriminants(inputs, numbers, dim)
