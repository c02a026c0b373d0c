"""Image sizes that a network takes: a transformer's patches, or its windows, may not fit into others."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ensemblead.networks.engines.engine import NORMED_SUFFIX
from ensemblead.networks.layers import is_known, run_blank
from ensemblead.networks.zoo import blueprint, module_configuration

# Multiples of the patch that are tried as steps between sizes: of stages that halve, and of windows.
_STEPS = (1, 2, 4, 7, 8)
_STRIDE = 32  # of the last stage of nearly all networks without patches


def check_size(backbone: str, layers: tuple[str, ...], size: tuple[int, int], argument: str) -> None:
    """Raise ValueError, naming sizes that do, if a network cannot take images of `size` (h, w).

    Nothing is said of names and layers that do not exist: loading the network does that.
    """
    taken, step = sizes_taken(backbone, layers, size)
    if size in taken:
        return
    choices = " or ".join(f"{height} x {width}" for height, width in taken)
    rule = "" if step is None else f"; sides must be multiples of {step}"
    advice = f": {choices} would do{rule}" if choices else ""
    raise ValueError(f"{argument}: {backbone} cannot take images of {size[0]} x {size[1]} pixels{advice}")


def padded_size(backbone: str, layers: tuple[str, ...], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size (h, w) that a network takes and that images of `size` can be padded to: the next
    multiples of its patch, or of its windows. Raises ValueError for a network that takes one size alone.
    """
    taken, step = sizes_taken(backbone, layers, size)
    if size in taken:
        return size
    if step is None:
        check_size(backbone, layers, size, "pad_to_grid")
    return taken[-1]


@functools.lru_cache(maxsize=1024)
def sizes_taken(
    backbone: str, layers: tuple[str, ...], size: tuple[int, int]
) -> tuple[tuple[tuple[int, int], ...], int | None]:
    """`size` alone if the network takes it as far as `layers`; else the nearest sizes (h, w) that it takes.

    Then also the number that sides must be multiples of, where there is one.
    """
    if backbone == "gabor" or is_known(backbone):
        return (size,), None
    try:
        module = blueprint(backbone)
    except (ValueError, ImportError):
        return (size,), None
    parts = {name for name, _ in module.named_modules()}
    layers = tuple(dict.fromkeys(layer.removesuffix(NORMED_SUFFIX) for layer in layers))
    if not parts.issuperset(layers) or _takes(module, layers, size):
        return (size,), None
    for step in _steps(module):
        below = (size[0] // step * step, size[1] // step * step)
        above = (-(-size[0] // step) * step, -(-size[1] // step) * step)
        near = tuple(dict.fromkeys(one for one in (below, above) if min(one) > 0))
        if size not in near and all(_takes(module, layers, one) for one in near):
            return near, step
    side = module_configuration(module)[2] or 224
    own = (side, side)
    return ((own,) if _takes(module, layers, own) else ()), None


def _steps(module: nn.Module) -> list[int]:
    embedding: Any = getattr(module, "patch_embed", module)
    patch = getattr(embedding, "patch_size", _STRIDE)
    sides = patch if isinstance(patch, (tuple, list)) else (patch,)
    side = max((side for side in sides if isinstance(side, int)), default=_STRIDE)
    return [side * times for times in _STEPS]


def _takes(module: nn.Module, layers: tuple[str, ...], size: tuple[int, int]) -> bool:
    try:
        run_blank(module, layers, size, lambda _layer, _output: None)
    except Exception:  # each network has its own way to refuse a size
        return False
    return True
