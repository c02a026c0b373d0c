"""`torch.compile` for networks that are read at their layers."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ensemblead.common.errors import CompilationError
from ensemblead.networks.engines.engine import EngineKind, Part
from ensemblead.networks.engines.traced import Traced


class CompiledEngine:
    """A network as far as some of its layers, compiled.

    An exception, which ends an eager pass at the last layer, has no place in a compiled graph. The whole
    network is traced instead, only the layers' outputs are returned, and the compiler drops what does not
    lead to them. So the part behind the layers must be traceable, too.
    """

    def __init__(self, part: Part) -> None:
        self._name = part.name
        self._lock = threading.Lock()
        try:
            self._call = torch.compile(Traced(part))
        except Exception as error:  # Python or platform unknown to this torch
            raise _failure(part.name, error) from error

    def run(self, images: Tensor) -> dict[str, Any]:
        """See `Engine.run`. Raises CompilationError where the network cannot be compiled."""
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


def _mismatch(part: Part) -> CompilationError:
    return CompilationError(
        f"torch.compile computes other features than {part.name} as it is written; use compile=False"
    )


def _tolerance(part: Part) -> float:
    """Graphs that fuse operations round elsewhere; a GPU's convolutions in float32 may be TF32."""
    if part.dtype in (torch.bfloat16, torch.float16):
        return 0.1
    return 1e-4 if part.device.type == "cpu" else 1e-2


COMPILED = EngineKind(
    name="compiled",
    build=lambda part, _seen: CompiledEngine(part),
    precisions=("float32", "bfloat16", "float16"),
    device_types=("cpu", "cuda"),
    tolerance=_tolerance,
    whole_batch=True,
    mismatch=_mismatch,
)
