"""A twin of a network for tracers and compilers: its outputs are those of the layers."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ensemblead.networks.engines.eager import attach
from ensemblead.networks.engines.engine import Part


class Traced(nn.Module):
    """A twin of the network, of the same tensors, whose hooks stay: a compiler reads them once."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        tensors = [*part.module.parameters(), *part.module.buffers()]
        self.network = copy.deepcopy(part.module, {id(tensor): tensor for tensor in tensors})
        self.network.eval()
        self._found: dict[str, Any] = {}
        attach(self.network, part.layers, self._keep)

    def _keep(self, layer: str, output: Any) -> None:
        if layer not in self._found:
            # Later layers may write into this tensor; where none does, no copy is made.
            self._found[layer] = output.clone() if isinstance(output, Tensor) else output

    def forward(self, images: Tensor) -> dict[str, Any]:
        self._found.clear()
        self.network(images)
        outputs = dict(self._found)
        self._found.clear()
        return outputs
