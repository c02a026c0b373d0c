"""`torch.compile` for networks that are read at their layers and left before their end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.errors import CompilationError


class CompiledPass:
    """A network as far as some of its layers, compiled: images in, what the layers put out by their names.

    An exception, which ends an ordinary pass at the last layer, has no place in a compiled graph. The whole
    network is traced instead, only the layers' outputs are returned, and the compiler drops what does not
    lead to them. So the part behind the layers must be traceable, too.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        try:
            self._call = torch.compile(_Cut(module, layers))
        except Exception as error:  # Python or platform unknown to this torch
            raise _failure(name, error) from error

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """Raises CompilationError where the network cannot be compiled."""
        # One graph for batches of any size but 1, which torch takes apart.
        torch._dynamo.maybe_mark_dynamic(images, 0)
        try:
            with self._lock:
                outputs: dict[str, Any] = self._call(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _failure(self._name, error) from error
        return outputs


def _failure(name: str, error: Exception) -> CompilationError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return CompilationError(f"torch.compile cannot compile {name} ({reason}); use compile=False")


class _Cut(nn.Module):
    """A twin of the network, of the same tensors, whose hooks stay: a compiler reads them once."""

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        tensors = [*module.parameters(), *module.buffers()]
        self.network = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
        self.network.eval()
        self._found: dict[str, Any] = {}
        parts = dict(self.network.named_modules())
        for layer in layers:
            parts[layer].register_forward_hook(self._keeping(layer))

    def _keeping(self, layer: str) -> Callable[..., None]:
        found = self._found

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if layer not in found:
                # What follows may write into this tensor; where nothing does, no copy is made.
                found[layer] = output.clone() if isinstance(output, Tensor) else output

        return hook

    def forward(self, images: Tensor) -> dict[str, Any]:
        self._found.clear()
        self.network(images)
        outputs = dict(self._found)
        self._found.clear()
        return outputs
