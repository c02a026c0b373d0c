"""Outputs of layers as grids `[B, C, H, W]`: of convolutions as they are, tokens laid back onto the image."""

from __future__ import annotations

import math

from torch import Tensor, nn

# Class token, registers and distillation token together; no published transformer has more.
_MOST_PREFIX_TOKENS = 16


class TokenLayout:
    """The layout of a network's outputs, as far as it tells: leading tokens that belong to no place, and the
    order of the axes.
    """

    def __init__(self, module: nn.Module) -> None:
        prefixes = [getattr(part, "num_prefix_tokens", None) for part in module.modules()]
        self.prefix_tokens: int | None = next((n for n in prefixes if isinstance(n, int)), None)
        formats = [str(getattr(part, "output_fmt", "")) for part in module.modules()]
        self.channels_last = any(name.upper().endswith("NHWC") for name in formats)

    def to_grid(self, output: object, layer: str, image_size: tuple[int, int]) -> Tensor:
        """Turn a layer's output for images of `image_size` into `[B, C, H, W]` (a view where it can be one).

        `[B, C, H, W]` and `[B, H, W, C]` are told apart by which pair of axes has the image's aspect; if both
        have it, by what the network says, else they count as `[B, C, H, W]`. Of `[B, T, C]` the leading class
        and register tokens are dropped (as many as the network says, else as few as leave a grid of the
        image's aspect). Raises ValueError for anything else.
        """
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layers: {layer!r} gives a {type(output).__name__}, not one tensor of features; "
                "name a layer inside it"
            )
        if output.ndim == 4:
            return self._four_axes(output, image_size)
        if output.ndim == 3:
            return self._tokens(output, layer, image_size)
        raise ValueError(
            f"layers: {layer!r} gives shape {tuple(output.shape)}, which has no grid; "
            "it must be [B, C, H, W], [B, H, W, C] or tokens [B, T, C], or be read as vectors by pooling="
        )

    def _four_axes(self, output: Tensor, image_size: tuple[int, int]) -> Tensor:
        _, a, b, c = output.shape
        as_first, as_last = _one_stride(image_size, (b, c)), _one_stride(image_size, (a, b))
        if as_last and (not as_first or self.channels_last):
            return output.permute(0, 3, 1, 2)
        return output

    def _tokens(self, output: Tensor, layer: str, image_size: tuple[int, int]) -> Tensor:
        batch, tokens, channels = output.shape
        known = self.prefix_tokens
        # A layer before the tokens are joined has none of the leading ones that the network speaks of.
        few = (0, 1) if known is None else (known, 0)
        for exact in (True, False):
            # Rounded grids fit too many numbers of tokens for the number of leading ones to be guessed
            # freely.
            for prefix in range(_MOST_PREFIX_TOKENS + 1) if exact and known is None else few:
                grid = _grid(tokens - prefix, image_size, exact)
                if grid is not None:
                    rows = output[:, prefix:].transpose(1, 2)
                    return rows.reshape(batch, channels, *grid)
        leading = "" if known is None else f" after {known} leading ones"
        raise ValueError(
            f"layers: {layer!r} gives {tokens} tokens{leading}, which no grid of the image's aspect "
            f"{image_size[0]}:{image_size[1]} accounts for"
        )


def _grid(tokens: int, image_size: tuple[int, int], exact: bool) -> tuple[int, int] | None:
    """Rows and columns of `tokens` cells over an image; exact if both sides divide by one patch size."""
    height, width = image_size
    fitting = []
    for rows in range(1, tokens + 1):
        if tokens % rows:
            continue
        columns = tokens // rows
        whole = height % rows == 0 and width % columns == 0 and height // rows == width // columns
        if whole or (not exact and _one_stride(image_size, (rows, columns))):
            fitting.append((abs(math.log(rows * width / (columns * height))), rows, columns))
    return min(fitting)[1:] if fitting else None


def _one_stride(image_size: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Could one stride, rounded up or down on either side, make this grid of this image?"""
    if min(grid) < 1:
        return False
    (height, width), (rows, columns) = image_size, grid
    # A side of n cells comes from strides in (side / (n + 1), side / (n - 1)).
    low = max(height / (rows + 1), width / (columns + 1))
    high = min(
        height / (rows - 1) if rows > 1 else math.inf, width / (columns - 1) if columns > 1 else math.inf
    )
    return low < high
