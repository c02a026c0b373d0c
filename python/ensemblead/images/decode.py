"""One image file, of any mode, to 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import MissingExtraError, UnreadableImageError

try:
    from PIL import Image, ImageOps
except ImportError as error:  # pragma: no cover - the tests install Pillow
    raise MissingExtraError('reading images needs Pillow: pip install "ensemblead[cpu]"') from error

# What a folder is searched for; a list of paths may name files of any suffix that Pillow decodes.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Decode an image file of any mode to RGB, uint8 `[H, W, 3]`, turned upright by its EXIF orientation.

    Grey is repeated over the channels; palettes are looked up; CMYK, YCbCr and Lab are converted. 16 bits
    become 8 by `round(v / 257)`, the same for every image, so that a dark image stays a dark image.
    Transparent pixels are composited over black, because what lies beneath them is arbitrary. Of several
    frames or pages the first is read. Colour profiles are ignored.

    Raises FileNotFoundError if there is no such file, UnreadableImageError (a ValueError) naming the file
    if it is no image, is truncated, or holds floating-point or 32-bit pixels, whose range nothing defines.
    """
    with _open(path) as image:
        return to_rgb(image, str(path))


def read_mask(path: str | os.PathLike[str]) -> npt.NDArray[np.bool_]:
    """Decode a ground-truth mask: bool `[H, W]`, true wherever any channel but alpha is not zero.

    A palette image is judged by its indices, as segmentation masks are written. Errors as `read_image`.
    """
    with _open(path, "mask") as image:
        pixels = np.asarray(image.convert("RGB") if image.mode in _ALPHA_MODES else image)
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0, dtype=np.bool_)


def upright_size(path: str | os.PathLike[str], what: str = "image") -> tuple[int, int]:
    """(H, W) of an image turned upright by its EXIF orientation, from its header alone. Errors as
    `read_image`; they call the file what it is ("mask").
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {what}: {path}") from None
    except Exception as error:  # as in _open
        raise UnreadableImageError(f"cannot read {what} {path}: {error}") from error
    return (width, height) if turned else (height, width)


class _open:  # noqa: N801 - a context manager used as a function
    """The decoded, upright image; whatever goes wrong inside becomes an error that names the file."""

    def __init__(self, path: str | os.PathLike[str], what: str = "image") -> None:
        self.path, self.what = Path(path), what
        self.image: Image.Image | None = None

    def __enter__(self) -> Image.Image:
        try:
            with Image.open(self.path) as image:
                image.load()
                upright: Image.Image = ImageOps.exif_transpose(image)
                # exif_transpose returns a copy only if it turned something; the file is closed either way.
                self.image = upright if upright is not image else image.copy()
        except FileNotFoundError:
            raise FileNotFoundError(f"no such {self.what}: {self.path}") from None
        except Exception as error:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged
            # files.
            raise UnreadableImageError(f"cannot read {self.what} {self.path}: {error}") from error
        return self.image

    def __exit__(self, *_: object) -> None:
        self.image = None


def to_rgb(image: Image.Image, what: str) -> npt.NDArray[np.uint8]:
    """A decoded PIL image of any mode as RGB, uint8 `[H, W, 3]`; `what` names it in errors. See
    `read_image`.
    """
    mode = image.mode
    if mode.startswith("I"):
        return _grey_to_rgb(_sixteen_to_eight(np.asarray(image), what))
    if mode == "F":
        raise UnreadableImageError(
            f"cannot read image {what}: floating-point pixels have no defined range; "
            "save it with 8 or 16 bits"
        )
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return np.ascontiguousarray(np.asarray(Image.alpha_composite(black, rgba))[..., :3])
    if mode in ("L", "1"):
        return _grey_to_rgb(np.asarray(image.convert("L")))
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _sixteen_to_eight(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    # Pillow gives 16-bit PNGs as "I;16" or, in older releases, as 32-bit "I".
    wide = values.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise UnreadableImageError(
            f"cannot read image {what}: 32-bit pixels with values in [{wide.min()}, {wide.max()}] have no "
            "defined range; save it with 8 or 16 bits"
        )
    if wide.size and 255 < wide.max() < 4096:
        warnings.warn(
            "a 16-bit image has no value above 4095, as cameras of 10 or 12 bits write them: 16 bits are "
            "read as 0..65535, so it is nearly black and most of its levels are lost; save such images "
            "scaled to 16 bits, or as 8 bits",
            UserWarning,
            stacklevel=2,
        )
    return ((wide * 2 + 257) // 514).astype(np.uint8)
