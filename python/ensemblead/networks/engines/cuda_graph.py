"""CUDA graphs: the kernels of a network recorded once, and launched together ever after.

A batch of one image costs a GPU less time than it takes to launch the network's kernels one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ensemblead.common.errors import EngineError
from ensemblead.networks.engines.by_shape import ByShape, first_line
from ensemblead.networks.engines.engine import EngineKind, Outputs, Part

# Passes before the recording: libraries choose their kernels and take their workspaces in the first ones.
_WARM_UP = 2
_recording = threading.Lock()


class Graph(Protocol):
    """A recorded pass of one shape of images."""

    def replay(self, images: Tensor, count: int) -> dict[str, Tensor]:
        """The outputs for the first `count` of the images, as tensors of their own."""


class ReadStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, the memory is noted that operations read and that none of them has made.

    Attributes:
        found: storages by an address of theirs, such as those of weights, and of matrices that a cache holds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[int, torch.UntypedStorage] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._made:
                self.found[storage._cdata] = storage
        outputs = function(*args, **(kwargs or {}))
        self._made.update(one._cdata for one in _storages(outputs) if one._cdata not in self.found)
        return outputs


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = (one for one in tree_leaves(values) if isinstance(one, Tensor) and one.layout == torch.strided)
    return [one.untyped_storage() for one in tensors]


class CudaGraph:
    """A pass of a network, recorded on a device for images of one shape and layout.

    A graph reads at fixed addresses whatever the pass read. So it holds that memory: a cache may let go a
    matrix that is no longer looked up.
    """

    def __init__(self, run: Callable[[Tensor], Outputs], images: Tensor) -> None:
        self._device = images.device
        with torch.cuda.device(self._device):
            # Recorded on images of zeros: what holds for the images at hand alone would differ from torch.
            self._images = torch.zeros_like(images)
            beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            self._graph = torch.cuda.CUDAGraph()
            self._is_read: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # Around it all, since torch leaves the thread on this stream where a recording fails.
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    run(self._images)
                with ReadStorages() as read:
                    run(self._images)
                self._read = read.found
                # Other threads may use the GPU meanwhile, but not record. The stream is of this GPU: torch's
                # own would be that of the first recording in the process.
                with (
                    _recording,
                    torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"),
                ):
                    self._outputs = run(self._images)
            torch.cuda.current_stream().wait_stream(beside)

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
        except RuntimeError as error:
            raise EngineError(
                f"{part.name} as far as {', '.join(part.layers)} cannot be recorded as a CUDA graph, as "
                f"where its pass waits for the GPU ({first_line(error)}); use engine='torch'"
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
