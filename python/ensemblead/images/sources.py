"""What `images` may be: a folder, a list of paths, an array, a torch Dataset; read one by one as 8-bit
RGB.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.images.decode import IMAGE_SUFFIXES, read_image, to_rgb


class ImageSource(ABC):
    """Images in a fixed order. `paths[i]` is the file of image i, or None; `read(i)` gives uint8 `[H, W,
    3]`.
    """

    paths: list[str | None]
    ignored: int = 0  # files of a folder that are no images by their suffix, or hidden
    concurrent: bool = True  # may several threads read at once

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Image `index` as RGB, uint8 `[H, W, 3]`."""

    def describe(self, index: int) -> str:
        """What to call image `index` in a message: its path, or its place."""
        return self.paths[index] or f"image {index}"


def open_images(images: Any) -> ImageSource:
    """Accept images in any of the forms that `fit` and `predict` take; nothing is decoded yet.

    A folder: all image files in it and in the folders below (by suffix, `IMAGE_SUFFIXES`; links are
    followed; hidden files are left out), in the natural order of their relative
    paths (`2.png` before `10.png`); what else
    lies there is counted in `.ignored`. One image file. A list or tuple of paths, kept in its order. An
    array uint8 `[N, H, W, 3]` or, grey, `[N, H, W]`. A torch `Dataset` with a length, whose items are an
    image or a tuple that begins with one: a PIL image, an array uint8 `[H, W, 3]` or `[H, W]`, a tensor
    uint8 or float in 0..1 `[C, H, W]`, C = 1 or 3.
    A Dataset is read by one thread only. An `ImageSource` is returned as it is.

    Raises FileNotFoundError for a missing folder, ValueError for no images at all or a wrong shape,
    TypeError for anything else.
    """
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, (str, os.PathLike)):
        return _open_path(Path(images))
    if isinstance(images, np.ndarray):
        return _Array(images)
    if isinstance(images, (list, tuple)):
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
    def __init__(self, paths: Sequence[str], ignored: int = 0) -> None:
        self.paths = list(paths)
        self.ignored = ignored

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        path = self.paths[index]
        assert path is not None
        return read_image(path)


class _Array(ImageSource):
    def __init__(self, array: npt.NDArray[Any]) -> None:
        if array.dtype != np.uint8:
            raise TypeError(
                f"images must be uint8, got {array.dtype}; "
                "for floats in 0..1 pass (images * 255).round().astype(np.uint8)"
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

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        image = self._array[index]
        return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


class _Dataset(ImageSource):
    concurrent = False  # nothing says that a Dataset may be asked by several threads at once

    def __init__(self, dataset: Any) -> None:
        if len(dataset) == 0:
            raise ValueError("images must not be empty, got a Dataset of length 0")
        self._dataset = dataset
        self.paths = [None] * len(dataset)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        item = self._dataset[index]
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        return _item_to_rgb(image, f"item {index} of the Dataset")


def _item_to_rgb(image: Any, what: str) -> npt.NDArray[np.uint8]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(image, torch.Tensor):
        pixels = _tensor_to_array(image, what)
    elif isinstance(image, np.ndarray):
        pixels = image
    elif isinstance(image, Image.Image):
        pixels = to_rgb(image, what)
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
    if path.is_file():
        return _Files([str(path)])
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder of images: {path}")
    found, ignored = [], 0
    for name in _walk(path):
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if hidden or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            ignored += 1
        else:
            found.append(name)
    if not found:
        raise ValueError(f"images: no image files in {path} ({ignored} other files ignored)")
    found.sort(key=_natural)
    return _Files([str(path / name) for name in found], ignored)


def _walk(root: Path) -> Iterator[str]:
    """All files below `root`, relative to it; linked folders too, each real folder once."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in files)


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    # Digits compare as numbers; the name itself breaks ties such as 1.png and 01.png.
    parts = re.split(r"([0-9]+)", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts if part], name
