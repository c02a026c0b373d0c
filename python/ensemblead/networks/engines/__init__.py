"""The engines by name: how a network can be run, and which way is taken by default."""

from __future__ import annotations

import torch

from ensemblead.networks.engines.compiled import COMPILED
from ensemblead.networks.engines.engine import EngineKind
from ensemblead.networks.engines.folded import FOLDED

# Beside "eager", which is what these are compared with.
ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (FOLDED, COMPILED)}


def default_engine(dtype: torch.dtype, *, compile: bool, changeable: bool) -> str:
    """The engine for a network of this dtype. One that its owner may yet change is never folded."""
    if compile:
        return COMPILED.name
    name = str(dtype).removeprefix("torch.")
    return FOLDED.name if not changeable and name in FOLDED.precisions else "eager"
