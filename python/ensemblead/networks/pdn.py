"""Patch description networks: small networks of stride 4 that describe patches of 33 x 33 pixels.

Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

# Pixels per position of the grid, and the positions that are lost at each border without padding.
STRIDE, BORDER = 4, 4
CHANNELS = 384
# Of every convolution: its kernel, its channels (None: the network's), its padding in a padded network, and
# whether a mean over 2 x 2 follows.
_LAYERS: dict[str, tuple[tuple[int, int | None, int, bool], ...]] = {
    "small": ((4, 128, 3, True), (4, 256, 3, True), (3, 256, 1, False), (4, None, 0, False)),
    "medium": (
        (4, 256, 3, True),
        (4, 512, 3, True),
        (1, 512, 0, False),
        (3, 512, 1, False),
        (4, None, 0, False),
        (1, None, 0, False),
    ),
}
SIZES = tuple(_LAYERS)
# The names under which they are backbones, and the layer that has the descriptions.
NAMES = {f"pdn_{size}": f"conv{len(layers)}" for size, layers in _LAYERS.items()}


class PDN(nn.Sequential):
    """A patch description network; there is a ReLU behind every convolution but the last.

    Args:
        size: "small" or "medium".
        channels: of a description.
        is_padded: whether an image of `n` pixels has `ceil(n / 4)` descriptions, or 8 fewer.
    """

    def __init__(self, size: str, channels: int = CHANNELS, *, is_padded: bool = False) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        source = 3
        for number, (kernel, width, padding, is_halved) in enumerate(_LAYERS[size], start=1):
            target = width or channels
            parts[f"conv{number}"] = nn.Conv2d(source, target, kernel, padding=padding if is_padded else 0)
            if number < len(_LAYERS[size]):
                parts[f"relu{number}"] = nn.ReLU(inplace=True)
            if is_halved:
                parts[f"pool{number}"] = nn.AvgPool2d(2, 2, padding=1 if is_padded else 0)
            source = target
        super().__init__(parts)

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict whose layers may be called by their place ("0.weight", "3.weight"), by their names.

        Raises ValueError for one that has a tensor by both.
        """
        places = {str(place): name for place, (name, _) in enumerate(self.named_children())}
        renamed = {}
        for name, tensor in state.items():
            place, dot, rest = name.partition(".")
            own = places.get(place, place) + dot + rest
            if own in renamed:
                raise ValueError(f"weights: two tensors are {own} of the PDN, one is called {name}")
            renamed[own] = tensor
        return renamed
