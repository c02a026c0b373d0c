"""Files of tensors in the format of safetensors, written a piece at a time: no second copy is held.

The format: https://github.com/huggingface/safetensors#format. Eight bytes give the length of a header in
JSON, which says the kind, the shape and the place of every tensor; their bytes follow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

# In the order that the library writes them: the largest values first, so that all are aligned.
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = 1 << 23  # bytes
_ALIGNMENT = 8


def write_tensors(file: BinaryIO, arrays: Mapping[str, Any], half: Sequence[str] = ()) -> tuple[int, str]:
    """Write NumPy arrays and torch tensors of any device; those in `half` rounded to float16.

    Returns how many bytes were written, and their SHA-256.
    """
    tensors = {name: _as_tensor(array) for name, array in arrays.items()}
    dtypes = {name: torch.float16 if name in half else tensor.dtype for name, tensor in tensors.items()}
    unknown = [f"{name}: {dtype}" for name, dtype in dtypes.items() if dtype not in _NAMES]
    if unknown:
        raise TypeError(f"tensors of these kinds cannot be saved: {', '.join(unknown)}")
    ranks = list(_NAMES)
    order = sorted(tensors, key=lambda name: (ranks.index(dtypes[name]), name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    count = 0
    for piece in _pieces(text, [(tensors[name], dtypes[name]) for name in order]):
        file.write(piece)
        digest.update(piece)
        count += len(piece)
    return count, digest.hexdigest()


def _pieces(header: bytes, tensors: Sequence[tuple[torch.Tensor, torch.dtype]]) -> Iterator[memoryview]:
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for tensor, dtype in tensors:
        # A view, where the tensor is in one piece.
        flat = tensor.reshape(-1)
        step = max(1, _PIECE // tensor.element_size())
        for start in range(0, len(flat), step):
            piece = flat[start : start + step].cpu().to(dtype)
            yield piece.view(torch.uint8).numpy().data


def _as_tensor(array: Any) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(array))
    tensor: torch.Tensor = array.detach()
    return tensor
