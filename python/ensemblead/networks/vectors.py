"""A vector per image out of what a layer puts out: pooled over places, or the class token."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ensemblead.networks.engines.engine import INPUT_SUFFIX
from ensemblead.networks.grids import TokenLayout

Pooling = Literal["avg", "max", "gem", "token"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

# Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018: the exponent
# that generalised means start from, and the floor under what is raised to it.
_GEM_POWER, _GEM_FLOOR = 3.0, 1e-6
# The libraries' names of the part that classifies.
_HEADS = ("fc", "classifier", "head", "heads", "last_linear")


def check_pooling(pooling: Any) -> Pooling | None:
    """The pooling itself. Raises ValueError for one that is not known."""
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"pooling must be None or one of {', '.join(POOLINGS)}, got {pooling!r}")
    return pooling  # type: ignore[no-any-return]


def to_vector(
    output: object, layer: str, image_size: tuple[int, int], layout: TokenLayout, pooling: Pooling
) -> Tensor:
    """Turn a layer's output for images of `image_size` into vectors `[B, C]`, of the output's dtype.

    `[B, C]` stays as it is. Of a grid or of tokens "avg", "max" and "gem" pool over the places, in float32 at
    least and without class and register tokens; "token" takes the class token. Raises ValueError for an
    output that has no such thing.
    """
    if isinstance(output, Tensor) and output.ndim == 2:
        return output
    if pooling == "token":
        if not isinstance(output, Tensor) or output.ndim != 3 or not layout.prefix_tokens:
            raise ValueError(f"pooling: {layer!r} has no class token; use pooling='avg'")
        return output[:, 0]
    grid = layout.to_grid(output, layer, image_size)
    places = grid.flatten(2)
    if pooling == "max":
        return places.amax(2)
    values = places if places.dtype == torch.float64 else places.float()
    if pooling == "gem":
        mean = values.clamp(min=_GEM_FLOOR).pow(_GEM_POWER).mean(2).pow(1.0 / _GEM_POWER)
    else:
        mean = values.mean(2)
    return mean.to(grid.dtype)


def head_input(module: nn.Module) -> str:
    """The layer name of what a classifier reads: timm's output without its head (`pre_logits`).

    Raises ValueError for a network whose classifier is not known.
    """
    names: dict[Any, str] = {part: name for name, part in module.named_modules() if name}
    ask = getattr(module, "get_classifier", None)
    found = ask() if callable(ask) else None
    if found is None or found not in names:
        heads = (part for part, name in names.items() if name.split(".")[0] in _HEADS)
        found = next((part for part in reversed(list(heads)) if isinstance(part, nn.Linear)), None)
    if found is None:
        raise ValueError(
            f"layers: {type(module).__name__} has no classifier whose input could be read; name a layer"
        )
    return names[found] + INPUT_SUFFIX
