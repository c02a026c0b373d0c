"""The engines by name: how a network can be run, and which way is taken by default."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ensemblead.networks.engines.compiled import COMPILED
from ensemblead.networks.engines.cuda_graph import CUDA_GRAPH
from ensemblead.networks.engines.engine import EngineKind, Part
from ensemblead.networks.engines.folded import FOLDED
from ensemblead.networks.engines.openvino import OPENVINO

# Those that users name.
NAMES = ("torch", OPENVINO.name, CUDA_GRAPH.name)
# Beside "eager", which is what these are compared with.
ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (FOLDED, COMPILED, OPENVINO, CUDA_GRAPH)}


def default_engine(dtype: torch.dtype, *, engine: str, compile: bool, changeable: bool) -> str:
    """The engine, by the name of its kind, for a network of this dtype; `engine` is one of `NAMES`.

    A network that its owner may yet change is never folded.
    """
    if engine != "torch":
        return engine
    if compile:
        return COMPILED.name
    name = str(dtype).removeprefix("torch.")
    return FOLDED.name if not changeable and name in FOLDED.precisions else "eager"


def run_by(
    engine: str, module: nn.Module, layers: tuple[str, ...], name: str
) -> Callable[[Tensor], list[Tensor]]:
    """What these layers of a module put out for images, by one of `NAMES` that is not torch, in the dtype
    that the module has and where it lies. `name` is for errors.
    """
    some = next(module.parameters())
    precision = str(some.dtype).removeprefix("torch.")
    made = ENGINES[engine].build(Part(module, layers, name, some.device, some.dtype, precision), None)
    assert made is not None

    def run(images: Tensor) -> list[Tensor]:
        outputs = made.run(images)
        return [outputs[layer] for layer in layers]

    return run
