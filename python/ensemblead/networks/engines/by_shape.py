"""Engines that are made anew for each shape of batches."""

from __future__ import annotations

import math
import operator
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ensemblead.common.errors import EngineError
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Outputs, Part

# What is kept of one engine: for full batches and for last ones, of two sizes of images.
_MOST_KEPT = 4
_version = operator.attrgetter("_version")


class ByShape(ABC):
    """A network as far as some of its layers, made for one shape of images; at most four of them are kept.

    Batches are padded to the next size of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: a network does not compute an
    image by what came before it, and last batches do not make many sizes. Each is compared with eager torch
    on the batch that it was made for. Where weights have changed all are made anew.
    """

    title: ClassVar[str]  # for errors
    tolerances: ClassVar[Mapping[str, float]]  # precision -> the largest `deviation` from eager torch

    def __init__(self, part: Part) -> None:
        self._part, self._eager = part, EagerEngine(part)
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock, self._weights = threading.Lock(), Weights(part.module)

    @abstractmethod
    def _made(self, images: Tensor) -> Any:
        """What runs images of this shape."""

    @abstractmethod
    def _run(self, made: Any, images: Tensor, count: int) -> Mapping[str, Tensor]:
        """The layers' outputs for the first `count` of the images, which nothing changes later."""

    def _key(self, images: Tensor) -> tuple[int, ...]:
        """Equal for batches that one of those made runs."""
        return tuple(images.shape)

    def _probe(self, images: Tensor) -> Tensor:
        """What to compare on: images of this shape."""
        return images

    def run(self, images: Tensor) -> Outputs:
        """See `Engine.run`.

        Raises EngineError where the network cannot be run so, or computes something else when it is, and
        where weights have changed that it cannot be made from.
        """
        count, padded = len(images), padded_batch(images)
        key = self._key(padded)
        with self._lock:
            if self._weights.have_changed():
                self._forget()
            made = self._kept.get(key)
            if made is None:
                # Tracing runs the network, which may write into its input.
                made = self._made(padded.clone())
                self._compare(made, self._probe(padded))
                self._kept[key] = made
                if len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._run(made, padded, count)

    def _forget(self) -> None:
        """Called where weights have changed."""
        self._kept.clear()
        self._weights = Weights(self._part.module)

    def _compare(self, made: Any, images: Tensor) -> None:
        part, allowed = self._part, self.tolerances[self._part.precision]
        outputs = self._run(made, images, len(images))
        # A network may write into its input.
        for layer, expected in self._eager.run(images.clone()).items():
            found = outputs[layer]
            size = " x ".join(map(str, images.shape))
            if found.shape != expected.shape:
                raise EngineError(
                    f"{self.title} puts out {tuple(found.shape)} for layer {layer!r} of {part.name} where "
                    f"torch has {tuple(expected.shape)}, for images of {size}; use engine='torch'"
                )
            error = deviation(found, expected, part.precision)
            if not error <= allowed:
                off = "NaN" if math.isnan(error) else f"off by {error:.2g} of them"
                advice = "precision='float32'" if part.precision == "int8" else "engine='torch'"
                raise EngineError(
                    f"{self.title} computes other features than torch for layer {layer!r} of {part.name}: "
                    f"{off} in {part.precision}, where {allowed:g} is allowed, for images of {size}; "
                    f"use {advice}"
                )


class Weights:
    """Which parts and tensors a module has, where their values lie, and how often each tensor was written
    into, as far as torch counts that. They are looked through for every batch, so without a step of Python
    for each of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._places: list[dict[str, Any]] = [
            own for one in module.modules() for own in (one._modules, one._parameters, one._buffers)
        ]
        self._sizes = list(map(len, self._places))
        self._filled = [own for own in self._places if own]
        self._names = [*chain.from_iterable(self._filled)]
        self._parts = [*chain.from_iterable(map(dict.values, self._filled))]
        tensors = [*module.parameters(), *module.buffers()]
        self._counted = [one for one in tensors if not one.is_inference()]
        self._dense = [one for one in tensors if one.layout == torch.strided]
        self._known = self._now()

    def have_changed(self) -> bool:
        return (
            self._now() != self._known
            or list(map(len, self._places)) != self._sizes
            or [*chain.from_iterable(self._filled)] != self._names
            or not all(map(operator.is_, chain.from_iterable(map(dict.values, self._filled)), self._parts))
        )

    def _now(self) -> tuple[list[int], list[int]]:
        # `tensor.data = other` does not count as writing.
        return list(map(_version, self._counted)), list(map(Tensor.data_ptr, self._dense))


def deviation(found: Tensor, expected: Tensor, precision: str) -> float:
    """How far features are from those of torch: the largest error, relative to the largest absolute value; in
    int8, where single values may be far off, the norm of the error, relative to the norm.

    Zero where torch's are not finite: `require_finite` speaks of it.
    """
    wanted = expected.detach().double()
    error = found.detach().double() - wanted
    order = 2.0 if precision == "int8" else float("inf")
    scale = float(torch.linalg.vector_norm(wanted, order))
    return float(torch.linalg.vector_norm(error, order)) / max(scale, 1e-30) if scale < float("inf") else 0.0


def padded_batch(images: Tensor) -> Tensor:
    """Images `[B, ...]` with the last one repeated, up to the next size of 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    count, size = len(images), 1
    while size < count:
        is_power = size & (size - 1) == 0
        size = 2 if size == 1 else size * 3 // 2 if is_power else size * 4 // 3
    if size == count:
        return images
    return torch.cat([images, images[-1:].expand(size - count, *images.shape[1:])])


def first_line(error: Exception) -> str:
    """What an error of another library says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
