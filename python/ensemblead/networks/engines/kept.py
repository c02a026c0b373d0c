"""The engines that were made over a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ensemblead.networks.engines import ENGINES
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Engine, Outputs, Part


class KeptEngines:
    """The engines over one network, each made once, whichever thread comes first.

    Attributes: `lock`; `notes`, called with all images that the network is given.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Engine] = {}
        self.lock = threading.RLock()
        self.notes: list[Callable[[Tensor], None]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptEngines, ()  # a copy makes its own

    def clear(self) -> None:
        self._made.clear()

    def run(self, name: str, part: Part, images: Tensor, check: Callable[[Outputs], object]) -> Outputs:
        """The part's outputs by the engine of that name; by eager torch where it does not know the precision
        or device.

        `check` raises for outputs that the layers should not have; it is called before an engine is made.
        """
        eager = EagerEngine(part)
        kind = ENGINES.get(name)
        if kind is None:
            return eager.run(images)
        if part.precision not in kind.precisions or part.device.type not in kind.device_types:
            if kind.strict:
                raise ValueError(f"engine {name!r} has no {part.precision} on {part.device}")
            return eager.run(images)
        key = (kind.name, part.layers, part.precision, part.quantized and part.quantized.identity)
        outputs: Outputs | None = None
        with self.lock:
            if key not in self._made:
                sample = images if kind.whole_batch else images[:1]
                self._made[key], outputs = kind.make(part, sample, eager, check)
            engine = self._made[key]
        # Outputs of the comparison are those of the images where these were the sample.
        return outputs if outputs is not None and len(sample) == len(images) else engine.run(images)
