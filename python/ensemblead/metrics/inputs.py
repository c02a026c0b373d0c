"""Arguments of the metrics as plain NumPy, and the errors of wrong ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Bools: TypeAlias = NDArray[np.bool_]


def as_numpy(array: Any, name: str) -> NDArray[Any]:
    """`array` on the host: NumPy arrays as they are, torch and CuPy arrays copied, sequences converted."""
    if hasattr(array, "detach"):  # torch; NumPy knows no bfloat16
        tensor = array.detach().cpu()
        array = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    elif not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__"):
        array = array.get()
    try:
        result = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} must be one array, got rows of different lengths: {error}") from None
    if result.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got dtype {result.dtype}")
    return result


def as_floats(array: Any, name: str) -> Floats:
    """`array` as finite floats: float32 and float64 are kept, half becomes float32, integers float64."""
    numbers = as_numpy(array, name)
    if numbers.dtype == np.float16:
        numbers = numbers.astype(np.float32)
    elif numbers.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        numbers = numbers.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), finite.shape)
        place = ", ".join(str(int(index)) for index in first)
        raise ValueError(
            f"{name} must be finite, got {int(finite.size - finite.sum())} value(s) that are not, "
            f"the first is {numbers[first]} at index ({place})"
        )
    return numbers


def as_labels(array: Any, name: str) -> Bools:
    """`array` as booleans; only the values 0 and 1 (or False and True) are labels."""
    labels = as_numpy(array, name)
    if labels.dtype != np.bool_:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            raise ValueError(f"{name} must hold only 0 and 1, got {labels[wrong].flat[0]}")
    return labels.astype(np.bool_)


def scores_and_labels(scores: Any, labels: Any, score_name: str = "scores") -> tuple[Floats, Bools]:
    """Both flattened, of one shape, and with both classes present."""
    values, truth = as_floats(scores, score_name), as_labels(labels, "labels")
    if values.shape != truth.shape:
        raise ValueError(f"{score_name} and labels must have one shape, got {values.shape} and {truth.shape}")
    positives = int(truth.sum())
    if positives in (0, truth.size):
        raise ValueError(
            f"labels must hold both classes, got {truth.size - positives} normal and {positives} anomalous"
        )
    return values.ravel(), truth.ravel()


def _images(array: Any, name: str) -> Iterator[Any]:
    """The images of a stack [N, H, W], of one image [H, W], or of any iterable of images."""
    dimensions = getattr(array, "ndim", None)
    if dimensions is None:
        if not isinstance(array, Iterable):
            raise TypeError(f"{name} must be an array or a sequence of arrays, got {type(array).__name__}")
        yield from array
    elif dimensions == 2:
        yield array
    elif dimensions == 3:
        yield from array
    else:
        raise ValueError(
            f"{name} must be [N, H, W], [H, W] or a list of [H, W], got shape {tuple(array.shape)}"
        )


def map_and_mask(anomaly_map: Any, mask: Any, where: str = "") -> tuple[Floats, Bools]:
    """One finite map [H, W] and its mask [H, W], binarised at > 0."""
    values = as_floats(anomaly_map, f"anomaly_maps{where}")
    if values.ndim != 2:
        raise ValueError(f"anomaly_maps{where} must be 2-D [H, W], got shape {values.shape}")
    truth = as_numpy(mask, f"masks{where}") > 0
    if truth.shape != values.shape:
        raise ValueError(
            f"masks{where} must have the shape of its anomaly map {values.shape}, got {truth.shape}"
        )
    return values, truth


def maps_and_masks(anomaly_maps: Any, masks: Any) -> Iterator[tuple[Floats, Bools]]:
    """Pairs of a finite map [H, W] and its mask [H, W] binarised at > 0, one image at a time."""
    all_masks = _images(masks, "masks")
    count = 0
    for anomaly_map in _images(anomaly_maps, "anomaly_maps"):
        try:
            mask = next(all_masks)
        except StopIteration:
            raise ValueError(f"masks must be as many as anomaly_maps, got only {count} masks") from None
        yield map_and_mask(anomaly_map, mask, f"[{count}]")
        count += 1
    if any(True for _ in all_masks):
        raise ValueError(f"masks must be as many as anomaly_maps, got more than the {count} maps")
    if count == 0:
        raise ValueError("anomaly_maps must hold at least one map, got none")
