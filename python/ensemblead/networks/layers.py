"""Layers of networks by name: those that can be tapped, and those that are tapped by default.

Nothing here loads weights: shapes come from a network on the meta device, which computes no values.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensemblead.common.validation import some_of
from ensemblead.networks.engines.eager import attach, evaluating
from ensemblead.networks.gabor import GaborBank
from ensemblead.networks.grids import TokenLayout
from ensemblead.networks.modes import default_modes
from ensemblead.networks.pdn import NAMES as PDN_NAMES
from ensemblead.networks.weights import HEADS
from ensemblead.networks.zoo import ALIASES, blueprint, module_configuration

# The strides whose layers are the default: mid-level features, as PatchCore chose them.
MIDDLE_STRIDES = (8, 16)

# Names whose layers are known without a model zoo: the filters, and the networks of the papers.
_KNOWN = re.compile(
    r"gabor|resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext(50_32x4d|101_32x8d|101_64x4d)"
)
_KNOWN_LAYERS = {4: "layer1", 8: "layer2", 16: "layer3"}
# Blocks of torchvision's transformers, which carry no record of their features.
_TORCHVISION_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_\d+")
# Blueprints are shared between threads, and so would be the hooks of a pass.
_running = threading.Lock()
# Tapped layers as `ensemblead layers` lists them lie this deep: stages, and the blocks of stages.
_DEPTH = 2


@dataclass(frozen=True)
class Tap:
    """A layer that can be tapped, and its feature map for images of some size.

    `stride`: pixels of the image per cell of the grid.
    """

    name: str
    channels: int
    stride: int
    grid: tuple[int, int]


def architecture(backbone: str) -> str:
    """A network's name without a tag of weights, as the zoos spell it."""
    name = backbone.partition(".")[0]
    return ALIASES.get(name, name)


def is_known(backbone: str) -> bool:
    """Whether the network's layers are known without a look at it. Such networks take images of any size."""
    return isinstance(backbone, str) and _KNOWN.fullmatch(architecture(backbone)) is not None


def layer_names(layers: Sequence[str]) -> tuple[str, ...]:
    """Names of layers that a network may have: at least one, each once."""
    layers = tuple(layers)
    if not layers:
        raise ValueError("layers must not be empty")
    strange = [layer for layer in layers if not isinstance(layer, str)]
    if strange:
        raise TypeError(f"layers must be names, got {strange[0]!r}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers must differ from each other, got {layers}")
    return layers


def default_layers(backbone: str | nn.Module, strides: Sequence[int] = MIDDLE_STRIDES) -> tuple[str, ...]:
    """The layers that stand for `layers="auto"`.

    Of a network of stages these are the last layers of the wanted strides, by timm's record of its features.
    Of a transformer, whose blocks have one stride, they lie at even parts of its depth and end at three
    quarters: two are blocks 5 and 8 of twelve. Of a patch description network it is the last layer.

    Raises ValueError for a module, and for a network whose layers are not known.
    """
    if isinstance(backbone, nn.Module):
        names = [name for name, _ in backbone.named_modules() if name and name.count(".") < _DEPTH]
        raise ValueError(
            'layers="auto" needs a network by name, got a module; give layers=[...], names such as '
            f"{some_of(names, 20)}"
        )
    if not isinstance(backbone, str):
        raise TypeError(f"backbone must be a name or a torch.nn.Module, got {type(backbone).__name__}")
    if backbone in PDN_NAMES:
        return (PDN_NAMES[backbone],)
    if is_known(backbone):
        return tuple(_KNOWN_LAYERS[stride] for stride in strides if stride in _KNOWN_LAYERS)
    found = _looked_up(backbone, tuple(strides))
    if not found:
        raise ValueError(
            f"layers: no default is known for {backbone}; give layers=[...] with names that "
            f"`ensemblead layers {backbone}` lists"
        )
    return found


@functools.lru_cache(maxsize=256)
def _looked_up(backbone: str, strides: tuple[int, ...]) -> tuple[str, ...]:
    """The default layers; none where the network has no record of its features, or a wrong one."""
    module = blueprint(backbone)
    features = _recorded(module) or _traced(module)
    if len({stride for _, stride in features}) == 1:
        blocks = [name for name, _ in features]
        # Even parts of the depth: of two 1/2 and 3/4, of three 1/4, 1/2 and 3/4.
        ends = [len(blocks) * (4 - len(strides) + i) // 4 for i in range(len(strides))]
        names = tuple(dict.fromkeys(blocks[max(0, end - 1)] for end in ends))
    else:
        last = [_last_of_stride(features, stride) for stride in strides]
        names = tuple(dict.fromkeys(name for name in last if name is not None))
    size = _own_size(module)
    maps = feature_shapes(module, names, size)
    return names if names and len(maps) == len(names) else ()


def _recorded(module: nn.Module) -> list[tuple[str, int]]:
    """Names and strides of timm's record of a network's features."""
    record: Any = getattr(module, "feature_info", None)
    entries = getattr(record, "info", record)
    if not isinstance(entries, (list, tuple)):
        return []
    return [(entry["module"], entry["reduction"]) for entry in entries if entry.get("module")]


def _traced(module: nn.Module) -> list[tuple[str, int]]:
    """Names and strides of the layers of a network without a record, in the order of their ends."""
    blocks = [name for name, _ in module.named_modules() if _TORCHVISION_BLOCK.fullmatch(name)]
    if blocks:
        return [(name, 1) for name in blocks]
    taps = taps_of(module, _own_size(module))
    return [
        (tap.name, tap.stride)
        for tap in taps
        if tap.name.split(".")[0] not in HEADS
        # No container of stages, which ends with the last of them.
        and not any(part.name.startswith(f"{tap.name}.") and part.stride != tap.stride for part in taps)
    ]


def _last_of_stride(features: Sequence[tuple[str, int]], wanted: int) -> str | None:
    """The last layer of a stride, or of the nearest within a factor of 1.4: patches may have 7 pixels."""
    strides = {stride for _, stride in features if max(stride / wanted, wanted / stride) < 1.4}
    if not strides:
        return None
    nearest = min(strides, key=lambda stride: abs(stride - wanted))
    return [name for name, stride in features if stride == nearest][-1]


def _own_size(module: nn.Module) -> tuple[int, int]:
    side = module_configuration(module)[2] or 224
    return side, side


# What can be tapped


def network_to_list(backbone: str) -> nn.Module:
    """The network that `taps_of` lists the layers of."""
    return GaborBank().eval() if backbone == "gabor" else blueprint(backbone)


def taps_of(module: nn.Module, image_size: tuple[int, int], *, depth: int = _DEPTH) -> list[Tap]:
    """The layers with a feature map for images of `image_size`, at most `depth` names deep, in the order in
    which they end.
    """
    names = tuple(name for name, _ in module.named_modules() if name and name.count(".") < depth)
    shapes = feature_shapes(module, names, image_size)
    return [
        Tap(name, channels, _stride(image_size, (rows, columns)), (rows, columns))
        for name, (channels, rows, columns) in shapes.items()
        if rows * columns > 1
    ]


def _stride(image_size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Pixels per cell; the nearest power of two where that is no whole number, as grids lose borders."""
    height, rows = image_size[0], grid[0]
    if height % rows == 0:
        return height // rows
    return min((1 << power for power in range(12)), key=lambda stride: abs(stride - height / rows))


def feature_shapes(
    module: nn.Module, layers: Sequence[str], image_size: tuple[int, int]
) -> dict[str, tuple[int, int, int]]:
    """Channels, rows and columns of the layers that have feature maps, in the order in which they end.

    Raises what the network raises for images of `image_size`.
    """
    shapes: dict[str, tuple[int, int, int]] = {}
    seen: set[str] = set()
    layout = TokenLayout(module)
    parts = dict(module.named_modules())

    def keep(layer: str, output: Any) -> None:
        if layer in seen:
            return
        seen.add(layer)
        with suppress(ValueError):  # no grid
            _, channels, rows, columns = layout.to_grid(output, layer, image_size).shape
            shapes[layer] = channels, rows, columns

    run_blank(module, tuple(layer for layer in layers if layer in parts), image_size, keep)
    return shapes


def run_blank(module: nn.Module, layers: tuple[str, ...], image_size: tuple[int, int], keep: Any) -> None:
    """Run a blank image as far as `layers`; `keep(layer, output)` is called for each, in their order."""
    remaining = set(layers)

    def note(layer: str, output: Any) -> None:
        keep(layer, output)
        remaining.discard(layer)
        if not remaining:
            raise _Done

    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    with _running, default_modes(), evaluating(module), device:
        handles = attach(module, layers, note)
        try:
            module(torch.zeros(1, 3, *image_size))
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()


class _Done(BaseException):
    """Ends a pass behind the last layer wanted."""
