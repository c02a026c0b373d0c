"""Images from a folder, a list of paths, an array or a torch Dataset, read one by one as 8-bit RGB."""

from __future__ import annotations

import copy
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.threads import available_cores
from ensemblead.common.warnings import warn
from ensemblead.images.decode import (
    EncodedImage,
    check_ordinary_file,
    largest_value,
    pixel_limit,
    read_image,
    to_rgb,
    upright_size,
)
from ensemblead.images.depth import BitDepthWarning, checked_bits, depth_of
from ensemblead.images.folders import describe_ignored, describe_unread, scan_folder


class ImageSource(ABC):
    """Images in a fixed order. `paths[i]` is the file of image i, or None; `read(i)` gives uint8 `[H, W,
    3]`.

    Attributes:
        ignored_files: Files of a folder that are not read: hidden, masks, of other types, no ordinary files.
        folders: Real paths of the folders in which images were looked for.
        concurrent: Whether several threads may read at once.
        bits: Used bits of 16-bit files, see `read_image`.
        max_pixels: The most pixels of an image, see `read_image`.
    """

    paths: list[str | None]
    ignored_files: tuple[str, ...] = ()
    folders: frozenset[str] = frozenset()
    concurrent: bool = True
    bits: int | None = None
    max_pixels: int | None = None

    @property
    def ignored(self) -> int:
        """How many files of a folder are not read."""
        return len(self.ignored_files)

    def describe_ignored(self) -> str:
        """A sentence for people: how many files were ignored, which, and the types that are read; may be
        empty.
        """
        return describe_ignored(self.ignored_files)

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Image `index` as RGB, uint8 `[H, W, 3]`."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`, upright."""
        pixels = self.read(index)
        return pixels.shape[0], pixels.shape[1]

    def largest_value(self, index: int) -> int | None:
        """The largest 16-bit value of image `index`; None if it has none, or its file states their range."""
        return None

    def describe(self, index: int) -> str:
        """The name of image `index` in messages: its path, or its place."""
        return self.paths[index] or f"image {index}"


def open_images(images: Any, *, bits: int | None = None, max_pixels: int | None = None) -> ImageSource:
    """Accept images in any of the forms that `fit` and `predict` take; nothing is decoded yet.

    A folder: all image files in it and in the folders below, as `scan_folder` finds them, in the natural
    order of their relative paths (`2.png` before `10.png`); other files are counted in `.ignored`, with a
    warning if there are pictures of a type that is not read. One image file. A list or tuple of paths, kept
    in its order, or of `EncodedImage`, bytes of image files. A PIL image, or a list of them. An
    array uint8 `[N, H, W, 3]` or, grey, `[N, H, W]`. A torch `Dataset` with a length, whose items are an
    image or a tuple that begins with one: a PIL image, an array uint8 `[H, W, 3]` or `[H, W]`, a tensor
    uint8 or float in 0..1 `[C, H, W]`, C = 1 or 3.
    A Dataset is read by one thread only. An `ImageSource` is returned as it is, or, where `bits` or
    `max_pixels` are given, as a copy with those.

    Args:
        bits: Used bits of 16-bit files, see `read_image` and `detect_bits`.
        max_pixels: The most pixels of an image, see `read_image`.

    Raises FileNotFoundError for a missing folder, ValueError for no images at all, a folder of masks or a
    wrong shape, TypeError for anything else.
    """
    bits = checked_bits(bits)
    if max_pixels is not None:
        pixel_limit(max_pixels)
    source = _open(images)
    if bits is None and max_pixels is None:
        return source
    source = copy.copy(source)
    source.bits = source.bits if bits is None else bits
    source.max_pixels = source.max_pixels if max_pixels is None else max_pixels
    return source


class _Chosen(ImageSource):
    """Some images of a source."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = copy.copy(source), list(indices)
        self.paths = [source.paths[index] for index in indices]
        self.folders, self.concurrent = source.folders, source.concurrent
        self.bits, self.max_pixels = source.bits, source.max_pixels

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        self._source.bits = self.bits  # which a detector settles
        return self._source.read(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(self._indices[index])

    def largest_value(self, index: int) -> int | None:
        return self._source.largest_value(self._indices[index])

    def describe(self, index: int) -> str:
        return self._source.describe(self._indices[index])


def chosen_images(source: ImageSource, count: int, seed: int) -> ImageSource:
    """`count` images of a source, drawn by a seed, in their order; the source itself if it has no more."""
    if count >= len(source):
        return source
    drawn = np.random.default_rng(seed).choice(len(source), count, replace=False)
    return _Chosen(source, sorted(drawn.tolist()))


def detect_bits(source: ImageSource, *, errors: Literal["raise", "skip"] = "raise") -> int | None:
    """How many bits the 16-bit files among images use; None if there are no such files.

    That is the fewest of 8, 10, 12, 14 and 16 whose range holds the largest value of all images.

    Files of 16 bits are decoded for that, of all others only the header is read. Fewer bits than 16 raise
    a `BitDepthWarning`. Give the result to `open_images(..., bits=...)` for the same images and for all
    that are compared with them.

    Args:
        errors: "skip" passes over files that cannot be read.
    """

    def largest(index: int) -> int | None:
        try:
            return source.largest_value(index)
        except (UnreadableImageError, FileNotFoundError, MemoryError):
            if errors == "raise":
                raise
            return None

    with ThreadPoolExecutor(min(8, available_cores()), thread_name_prefix="ensemblead-depth") as pool:
        # A thousand at a time: a call that waits takes 1.6 KB, which of 100,000 images would be 160 MB.
        parts = (range(len(source))[start : start + 1000] for start in range(0, len(source), 1000))
        found = [value for part in parts for value in pool.map(largest, part) if value is not None]
    if not found:
        return None
    bits = depth_of(max(found))
    if bits < 16:
        warn(
            f"{len(found)} images have 16-bit pixels with values up to {max(found)}: they are read as {bits} "
            f"bits, 0..{(1 << bits) - 1}, and so are all images that are compared with them",
            BitDepthWarning,
        )
    return bits


def are_files(source: ImageSource) -> bool:
    """Whether the images are files that another process can read by their paths."""
    return isinstance(source, _Files) and not isinstance(source, _Encoded)


def _open(images: Any) -> ImageSource:
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, (str, os.PathLike)):
        return _open_path(Path(images))
    if isinstance(images, np.ndarray):
        return _Array(images)
    if isinstance(images, Image.Image):
        return _Dataset((images,), images)
    if isinstance(images, (list, tuple)):
        if images and all(isinstance(image, Image.Image) for image in images):
            return _Dataset([(image,) for image in images], images)
        if images and all(isinstance(image, EncodedImage) for image in images):
            return _Encoded(images)
        return _Files(_checked_paths(images))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(images, torch.Tensor):
        raise TypeError(
            "images must be a uint8 NumPy array [N, H, W, 3], a folder, paths or a Dataset; "
            "convert a tensor [N, 3, H, W] with images.permute(0, 2, 3, 1).numpy()"
        )
    if (
        hasattr(images, "__getitem__")
        and hasattr(images, "__len__")
        and not isinstance(images, (bytes, Mapping))
    ):
        return _Dataset(images)
    raise TypeError(
        "images must be a folder, a list of paths, a uint8 array [N, H, W, 3] or a torch Dataset "
        f"with a length, got {type(images).__name__}"
    )


class _Files(ImageSource):
    def __init__(self, paths: Sequence[str]) -> None:
        self._files: list[str] | list[EncodedImage] = list(paths)
        self.paths = list(paths)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return read_image(self._files[index], bits=self.bits, max_pixels=self.max_pixels)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`, upright."""
        return upright_size(self._files[index])

    def largest_value(self, index: int) -> int | None:
        return largest_value(self._files[index], max_pixels=self.max_pixels)


class _Encoded(_Files):
    """The same files in memory: they have names for messages, and no paths."""

    def __init__(self, images: Sequence[EncodedImage]) -> None:
        self._files = list(images)
        self.paths = [None] * len(images)

    def describe(self, index: int) -> str:
        return str(self._files[index])


class _Array(ImageSource):
    def __init__(self, array: npt.NDArray[Any]) -> None:
        if array.dtype != np.uint8:
            raise TypeError(
                f"images must be uint8, got {array.dtype}; for floats in 0..1 pass "
                "(images * 255).round().astype(np.uint8), for 12 bits images >> 4"
            )
        if array.ndim == 3 and array.shape[2] != 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[3] not in (1, 3):
            shape = array.shape
            hint = " (channels come last)" if array.ndim == 4 and shape[1] in (1, 3) else ""
            hint = " (one image alone is images[None])" if array.ndim == 3 else hint
            raise ValueError(f"images must be [N, H, W, 3] or [N, H, W], got shape {shape}{hint}")
        if 0 in array.shape:
            raise ValueError(f"images must not be empty, got shape {array.shape}")
        self._array = array
        self.paths = [None] * len(array)

    def size(self, index: int) -> tuple[int, int]:
        return self._array.shape[1], self._array.shape[2]

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        image = self._array[index]
        return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


class _Alone:
    """A lock of the process that it is in: pickled, copied deeply, or after a fork it is a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[type[_Alone], tuple[()]]:
        return _Alone, ()


# The locks of Datasets that are in use, by their identity: all sources of one share its lock.
_reading: WeakValueDictionary[int, _Alone] = WeakValueDictionary()


def _after_a_fork() -> None:
    for alone in _reading.values():  # a thread that held one is not there
        alone.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_a_fork)


class _Dataset(ImageSource):
    concurrent = False  # nothing says that a Dataset may be asked by several threads at once

    def __init__(self, dataset: Any, given: Any = None) -> None:
        if len(dataset) == 0:
            raise ValueError("images must not be empty, got a Dataset of length 0")
        self._dataset, self._given = dataset, dataset if given is None else given
        self.paths = [None] * len(dataset)
        # A thread of an iterator that was left may still be at an image when the next one begins.
        self._alone = _reading.setdefault(id(self._given), _Alone())

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        with self._alone.lock:
            item = self._dataset[index]
            image = item[0] if isinstance(item, (tuple, list)) and item else item
            return _item_to_rgb(image, f"item {index} of the Dataset", self.bits)


def _item_to_rgb(image: Any, what: str, bits: int | None) -> npt.NDArray[np.uint8]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(image, torch.Tensor):
        pixels = _tensor_to_array(image, what)
    elif isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, Image.Image):
        pixels = to_rgb(image, what, bits)
    else:
        raise TypeError(f"{what} must be a PIL image, an array or a tensor, got {type(image).__name__}")
    if pixels.dtype != np.uint8:
        raise TypeError(f"{what} must be uint8, got an array of {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"{what} must be [H, W, 3] or [H, W] as an array, got shape {pixels.shape}")
    return np.ascontiguousarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


def _tensor_to_array(image: Any, what: str) -> npt.NDArray[Any]:
    """A tensor `[C, H, W]`, uint8 or float in 0..1, as an array `[H, W, C]`."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"{what} must be [3, H, W] or [1, H, W] as a tensor, got shape {tuple(image.shape)}")
    pixels: npt.NDArray[Any] = (
        image.detach().cpu().float().numpy() if image.is_floating_point() else image.cpu().numpy()
    )
    if image.is_floating_point():
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"{what} must be a float tensor in 0..1, got values in [{low:.4g}, {high:.4g}]; "
                "normalisation is the detector's work"
            )
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
    turned: npt.NDArray[Any] = pixels.transpose(1, 2, 0)
    return turned


def _checked_paths(paths: Sequence[Any]) -> list[str]:
    if not paths:
        raise ValueError("images must not be empty, got an empty list")
    for i, path in enumerate(paths):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"images[{i}] must be a path, got {type(path).__name__}; "
                "stack arrays of one size into [N, H, W, 3], or wrap others in a torch Dataset"
            )
    return [os.fspath(path) for path in paths]


def _open_path(path: Path) -> ImageSource:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"no such image or folder of images: {path}")
    check_ordinary_file(path)
    return _Files([str(path)])


def _open_folder(path: Path) -> ImageSource:
    parts = Path(os.path.abspath(path)).parts
    if "ground_truth" in map(str.lower, parts[-2:]):
        raise ValueError(f"images: {path} holds masks (ground_truth), no photographs")
    found = scan_folder(path)
    if not found.images:
        said = describe_ignored(found.ignored) or "it has no files at all"
        raise ValueError(f"images: no image files in {path}: {said}")
    if unread := describe_unread(found.ignored):
        warn(unread)
    source = _Files(found.images)
    source.ignored_files, source.folders = found.ignored, found.folders
    return source
