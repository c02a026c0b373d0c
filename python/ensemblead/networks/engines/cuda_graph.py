"""CUDA graphs: the kernels of a network recorded once, and launched together ever after.

A batch of one image costs a GPU less time than it takes to launch the network's kernels one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ensemblead.common.errors import EngineError
from ensemblead.networks.engines.by_shape import ByShape, first_line
from ensemblead.networks.engines.engine import EngineKind, Outputs, Part

# Passes before the recording: libraries choose their kernels and take their workspaces in the first ones.
_WARM_UP = 3
_recording = threading.Lock()


class Graph(Protocol):
    """A recorded pass of one shape of images."""

    def replay(self, images: Tensor, count: int) -> dict[str, Tensor]:
        """The outputs for the first `count` of the images, as tensors of their own."""


class CudaGraph:
    """A pass of a network, recorded on a device for images of one shape and layout."""

    def __init__(self, run: Callable[[Tensor], Outputs], images: Tensor) -> None:
        self._device = images.device
        with torch.cuda.device(self._device):
            # Recorded on images of zeros: what holds for the images at hand alone would differ from torch.
            self._images = torch.zeros_like(images)
            beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    run(self._images)
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            self._is_read: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # Other threads may use the GPU meanwhile, but not record. The stream is of this GPU: torch's own
            # would be that of the first recording in the process.
            with _recording, torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"):
                self._outputs = run(self._images)

    def replay(self, images: Tensor, count: int) -> dict[str, Tensor]:
        """See `Graph.replay`. Nothing is waited for but on the GPU, in the order of calls."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._is_read)  # by the last call, which may have been on another stream
            self._images.copy_(images)
            self._images.record_stream(stream)
            self._graph.replay()
            found = {layer: output[:count].clone() for layer, output in self._outputs.items()}
            self._is_read.record(stream)
        return found


class CudaGraphEngine(ByShape):
    """A network as far as some of its layers, as a CUDA graph for each shape of images.

    Args:
        record: makes a graph of a pass, and of images of its shape.
    """

    title = "a CUDA graph"
    # A graph has torch's own kernels, but a library may choose others, whose float32 may be TF32.
    tolerances = {"float32": 1e-2, "bfloat16": 0.1, "float16": 0.1}  # noqa: RUF012

    def __init__(
        self, part: Part, record: Callable[[Callable[[Tensor], Outputs], Tensor], Graph] = CudaGraph
    ) -> None:
        super().__init__(part)
        self._record = record

    def _made(self, images: Tensor) -> Graph:
        part = self._part
        try:
            return self._record(self._eager.run, images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # such as a step that waits for the GPU
            raise EngineError(
                f"{part.name} as far as {', '.join(part.layers)} cannot be recorded as a CUDA graph "
                f"({first_line(error)}); use engine='torch'"
            ) from error

    def _run(self, made: Any, images: Tensor, count: int) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = made.replay(images, count)
        return found


CUDA_GRAPH = EngineKind(
    name="cuda-graph",
    build=lambda part, _seen: CudaGraphEngine(part),
    precisions=tuple(CudaGraphEngine.tolerances),
    device_types=("cuda",),
    tolerance=lambda part: CudaGraphEngine.tolerances[part.precision],
    strict=True,
)
