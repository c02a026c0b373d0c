"""One image file, of any mode, to 8-bit RGB.

Peak memory of one image, beside the file: 8 bytes per pixel, 4 as Pillow keeps them and 3 of the result, or
4 and 4 while an image is turned by its EXIF orientation. Transparency adds a band of `_BAND_PIXELS` pixels,
16-bit colour 4 bytes per pixel, and a progressive JPEG up to 6 while it is decoded.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import ImageTooLargeError, MissingExtraError, UnreadableImageError
from ensemblead.common.files import StrPath
from ensemblead.common.validation import whole_number
from ensemblead.images.depth import BitDepthWarning, checked_bits, to_eight_bits

try:
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
except ImportError as error:  # pragma: no cover - the tests install Pillow
    raise MissingExtraError('reading images needs Pillow: pip install "ensemblead[cpu]"') from error

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    _HEIF: tuple[str, ...] = ("heic", "heif")
except ImportError:
    _HEIF = ()

# Suffixes that a folder is searched for; a list of paths may name files of any suffix that Pillow decodes.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
        *_HEIF,
    )
)

# Pixels of the largest image that is decoded unless `max_pixels` allows more: Pillow's limit, 512 MiB of RGB.
MAX_PIXELS = 178_956_970
_LIMIT_VARIABLE = "ENSEMBLEAD_MAX_PIXELS"

# Pixels that are converted at a time, so that no temporary array is as large as a large image.
_BAND_PIXELS = 1 << 22
# Formats that are never opened: Pillow would start another program for them.
_REFUSED_FORMATS = frozenset({"EPS"})
# Those of `IMAGE_SUFFIXES`. Bytes come from strangers, and Pillow's rare decoders are no doors to leave open.
_FORMATS_OF_BYTES = frozenset(
    {"BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
)
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, in memory; it is read as the file would be, by the same code.

    Only formats that folders are searched for are decoded. `name` stands for the file in messages.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


def read_image(
    path: StrPath | EncodedImage, *, bits: int | None = None, max_pixels: int | None = None
) -> npt.NDArray[np.uint8]:
    """Decode an image file of any mode to RGB, uint8 `[H, W, 3]`, turned upright by its EXIF orientation.

    Grey is repeated over the channels; palettes are looked up; CMYK, YCbCr and Lab are converted. Transparent
    pixels are composited over black, because their hidden colours are arbitrary. Of several frames or pages
    the first is read. Colour profiles are ignored.

    Args:
        path: The file, or its bytes.
        bits: How many of the bits of 16-bit files are used: 8, 10, 12, 14 or 16. Their values become 8 bits
            by `round(v * 255 / (2**bits - 1))`, the same for every image, so that a dark image stays a dark
            image. None: 16, with a warning where the values say that there are fewer. Files that state their
            range (packed TIFF of 10, 12 or 14 bits, PGM and PPM) are read by that.
        max_pixels: The most pixels that are decoded. None: `MAX_PIXELS`, or the environment's
            `ENSEMBLEAD_MAX_PIXELS`.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableImageError: A ValueError that names the file: it is no image, no ordinary file (a named
            pipe), truncated, larger than `max_pixels` (an ImageTooLargeError), has values beyond `bits`, or
            holds floating-point or 32-bit pixels, whose range nothing defines.
        MemoryError: There is not enough memory for it; names the file.
    """
    bits = checked_bits(bits)
    with open_file(path, max_pixels=pixel_limit(max_pixels)) as image:
        layout = _Layout(image)
        decoded = upright(image)
        if layout.low_bytes is None:
            return to_rgb(decoded, str(path), layout.bits or bits, layout.white_is_zero)
        with open_file(path, max_pixels=None) as second:
            second.tile = layout.low_bytes
            return _colour_of_sixteen_bits(decoded, upright(second), str(path), bits)


def largest_value(path: StrPath | EncodedImage, *, max_pixels: int | None = None) -> int | None:
    """The largest value of a file's 16-bit pixels; None if it has none, or states their range itself.

    Only files whose header says 16 bits are decoded. Errors as `read_image`.
    """
    with open_file(path, max_pixels=pixel_limit(max_pixels)) as image:
        layout = _Layout(image)
        if layout.bits is not None:
            return None
        if layout.low_bytes is not None:
            high = np.asarray(upright(image))
            with open_file(path, max_pixels=None) as second:
                second.tile = layout.low_bytes
                low = np.asarray(upright(second))
            top = int(high.max())
            return top << 8 | int(low[high == top].max())
        return int(np.asarray(upright(image)).max()) if image.mode.startswith("I") else None


def upright_size(path: StrPath | EncodedImage, what: str = "image") -> tuple[int, int]:
    """(H, W) of an image turned upright by its EXIF orientation, from its header alone. Errors as
    `read_image`; `what` names the kind of file in them.
    """
    with open_file(path, what, max_pixels=None) as image:
        width, height = image.size
        stored = getattr(image, "tag_v2", None)
        if stored is not None:  # newer releases of Pillow state the size of a TIFF as it is after turning
            width, height = stored.get(256, width), stored.get(257, height)
        if image.format == "PNG" and "exif" not in image.info and _describes_itself_late(image):
            image.load()
        # Not the PNG's own `getexif`, which decodes all pixels.
        turned = Image.Image.getexif(image).get(_ORIENTATION, 1) in _SIDEWAYS
    return (width, height) if turned else (height, width)


def _describes_itself_late(image: ImageFile.ImageFile) -> bool:
    """Whether text or EXIF, which may state an orientation, follows the pixels of a PNG."""
    file = image.fp
    assert file is not None
    place, late = file.tell(), False
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8 and not late:
        length, kind = struct.unpack(">I4s", head)
        pixels |= kind == b"IDAT"
        late = pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(place)
    return late


def check_ordinary_file(path: StrPath, what: str = "image") -> None:
    """Raise UnreadableImageError for folders, named pipes and devices, which block a process that opens them,
    and FileNotFoundError for nothing at all.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device"
        raise UnreadableImageError(f"cannot read {what} {path}: it is {kind}, no file")


def _opened(path: StrPath | EncodedImage, what: str) -> IO[bytes]:
    if isinstance(path, EncodedImage):
        return io.BytesIO(path.data)
    check_ordinary_file(path, what)
    return open(path, "rb")


@contextmanager
def open_file(
    path: StrPath | EncodedImage, what: str = "image", *, max_pixels: int | None
) -> Iterator[ImageFile.ImageFile]:
    """An image file, identified and not yet decoded. Errors inside become such that name the file.

    `what` names the kind of file in errors. `max_pixels=None` sets no limit, for headers.
    """
    try:
        with _opened(path, what) as file:
            if not file.read(1):
                raise UnreadableImageError(f"cannot read {what} {path}: it is empty")
            image = _identify(file, _FORMATS_OF_BYTES if isinstance(path, EncodedImage) else None)
            pixels = image.width * image.height
            if max_pixels is not None and pixels > max_pixels:
                raise ImageTooLargeError(
                    f"cannot read {what} {path}: it has {image.width} x {image.height} = {pixels} pixels, "
                    f"more than max_pixels={max_pixels} allows; if the image is meant to be so large, allow "
                    f"it by open_images(..., max_pixels={pixels}), or {_LIMIT_VARIABLE}={pixels} in "
                    "the environment"
                )
            _check_tiles(image, str(path), max_pixels)
            yield image
    except (UnreadableImageError, BitDepthWarning):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"no such {what}: {path}") from None
    except MemoryError as error:
        raise MemoryError(f"not enough memory for {what} {path}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"cannot read {what} {path}: it has more pixels than Pillow decodes of its format"
        ) from error
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        raise UnreadableImageError(f"cannot read {what} {path}: {error}") from error


def _check_tiles(image: ImageFile.ImageFile, what: str, max_pixels: int | None) -> None:
    """Refuse a TIFF whose tiles are far larger than the image: one is decoded whole."""
    tags: Any = getattr(image, "tag_v2", {})
    width, length = tags.get(322), tags.get(323)
    if max_pixels is None or not isinstance(width, int) or not isinstance(length, int):
        return
    if width * length > max(max_pixels, _BAND_PIXELS):
        raise ImageTooLargeError(
            f"cannot read image {what}: its tiles have {width} x {length} = {width * length} pixels, more "
            f"than max_pixels={max_pixels} allows"
        )


def _identify(file: IO[bytes], formats: Collection[str] | None) -> ImageFile.ImageFile:
    """`Image.open` without its limit on pixels, which is one for the whole process, and without the formats
    that start other programs. `formats`: of these alone.
    """
    file.seek(0)
    prefix = file.read(16)
    tried: set[str] = set(_REFUSED_FORMATS)
    for load_plugins in (Image.preinit, Image.init):  # the few common ones, then all
        load_plugins()
        for kind in [one for one in Image.ID if one not in tried]:
            tried.add(kind)
            if formats is not None and kind not in formats:
                continue
            factory, accept = Image.OPEN[kind]
            try:
                accepted = accept is None or accept(prefix)
                if not accepted or isinstance(accepted, str):  # a text says why not
                    continue
                file.seek(0)
                # Without a name, Pillow does not map the file: a file that shrinks meanwhile would end the
                # process, and Pillow 13 turns mapped TIFFs wrongly.
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # it is of another format
    raise UnidentifiedImageError("it is no image of a known format")


def pixel_limit(max_pixels: int | None) -> int:
    """The most pixels to decode: as given, else by the environment, else `MAX_PIXELS`."""
    if max_pixels is not None:
        return whole_number("max_pixels", max_pixels, 1)
    text = os.environ.get(_LIMIT_VARIABLE)
    if text is None:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{_LIMIT_VARIABLE} must be a positive whole number, got {text!r}")
    return int(text)


def upright(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Decode an image and turn it by its EXIF orientation, in place."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


class _Layout:
    """Facts about a file's pixels, from its header, that decoding loses.

    Attributes:
        bits: The depth that the file states for its integers of more than 8 bits, if it does.
        white_is_zero: Whether 16-bit values grow from white to black, which Pillow leaves as it is.
        low_bytes: For 16-bit colour, of which Pillow keeps the high bytes, the tiles that decode the low
            ones.
    """

    def __init__(self, image: ImageFile.ImageFile) -> None:
        tags: Any = getattr(image, "tag_v2", {})
        tiles: list[Any] = list(getattr(image, "tile", ()))
        stored = tags.get(258, ())
        self.bits: int | None = None
        if image.format == "PPM" and tiles and tiles[0][0] != "raw":
            self.bits = 16  # Pillow scales by the maximum that the file states
        elif stored and stored[0] in (10, 12, 14):
            self.bits = int(stored[0])
        self.white_is_zero = image.mode.startswith("I") and tags.get(262) == 0
        swapped = [_with_bytes_swapped(tile) for tile in tiles]
        self.low_bytes = swapped if swapped and None not in swapped else None


def _with_bytes_swapped(tile: Any) -> Any:
    """A tile of 16-bit colour that is read in the other order of bytes; None for any other tile."""
    decoder, extents, offset, arguments = tile
    first, *rest = (arguments,) if isinstance(arguments, str) else (arguments or ("",))
    mode, _, order = str(first).partition(";")
    other = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}.get(order)
    if mode not in ("RGB", "RGBA", "RGBX") or other is None:
        return None
    swapped = f"{mode};{other}"
    given = swapped if isinstance(arguments, str) else (swapped, *rest)
    return tile._replace(args=given) if hasattr(tile, "_replace") else (decoder, extents, offset, given)


def to_rgb(
    image: Image.Image, what: str, bits: int | None = None, white_is_zero: bool = False
) -> npt.NDArray[np.uint8]:
    """A decoded PIL image of any mode as RGB, uint8 `[H, W, 3]`; `what` names it in errors. See
    `read_image`.
    """
    mode = image.mode
    if mode.startswith("I"):
        grey = to_eight_bits(np.asarray(image), bits, what)
        return _grey_to_rgb(255 - grey if white_is_zero else grey)
    if mode == "F":
        raise UnreadableImageError(
            f"cannot read image {what}: floating-point pixels have no defined range; "
            "save it with 8 or 16 bits"
        )
    if is_transparent(image):
        return _by_bands(image, _over_black)
    if mode in ("L", "1"):
        return _by_bands(image, lambda band: _grey_to_rgb(np.asarray(band.convert("L"))))
    return _by_bands(image, lambda band: np.array(band if mode == "RGB" else band.convert("RGB")))


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or colours that are declared transparent."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _over_black(image: Image.Image) -> npt.NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    return np.ascontiguousarray(np.asarray(Image.alpha_composite(black, rgba))[..., :3])


def _by_bands(
    image: Image.Image, convert: Callable[[Image.Image], npt.NDArray[np.uint8]]
) -> npt.NDArray[np.uint8]:
    """`convert(image)`, a band of rows at a time where the image is large."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height or image.width > MAX_PIXELS // 4:  # Pillow crops no wider rows without a warning
        return convert(image)
    result = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        result[top:bottom] = convert(image.crop((0, top, image.width, bottom)))
    return result


def _grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _colour_of_sixteen_bits(
    high: Image.Image, low: Image.Image, what: str, bits: int | None
) -> npt.NDArray[np.uint8]:
    """RGB of the high and the low bytes of 16-bit colour; alpha always has 16 bits."""
    values = np.asarray(high)[..., :3].astype(np.uint16)
    values <<= 8
    values |= np.asarray(low)[..., :3]
    colour = to_eight_bits(values, bits, what)
    if high.mode != "RGBA":
        return colour
    alpha = np.asarray(high.getchannel("A"))
    return _by_bands(Image.fromarray(np.dstack([colour, alpha])), _over_black)
