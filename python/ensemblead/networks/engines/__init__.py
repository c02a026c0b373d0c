"""The engines by name: how a network can be run, and which way is taken by default."""

from __future__ import annotations

import torch

from ensemblead.networks.engines.compiled import COMPILED
from ensemblead.networks.engines.engine import EngineKind
from ensemblead.networks.engines.folded import FOLDED
from ensemblead.networks.engines.openvino import OPENVINO

# Those that users name.
NAMES = ("torch", "openvino")
# Beside "eager", which is what these are compared with.
ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (FOLDED, COMPILED, OPENVINO)}


def default_engine(dtype: torch.dtype, *, engine: str, compile: bool, changeable: bool) -> str:
    """The engine, by the name of its kind, for a network of this dtype; `engine` is one of `NAMES`.

    A network that its owner may yet change is never folded.
    """
    if engine == OPENVINO.name:
        return OPENVINO.name
    if compile:
        return COMPILED.name
    name = str(dtype).removeprefix("torch.")
    return FOLDED.name if not changeable and name in FOLDED.precisions else "eager"
