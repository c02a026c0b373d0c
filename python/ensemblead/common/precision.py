"""Float32 that is float32, whatever a program has allowed torch elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_EXACT = ("ieee", "none")  # "none" leaves it to torch's default, which is exact for products


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside, torch's float32 matrix products keep all 24 bits of the mantissa.

    `torch.set_float32_matmul_precision("high")`, which programs call to speed their networks up, rounds the
    factors to TF32 (11 bits) on a GPU, or to bfloat16 on a CPU: enough to take one bank row for another. The
    setting is the process's, and put back on the way out.
    """
    import torch

    # torch has two ways to set this, and refuses to compute where they contradict each other: both are set.
    # (The second way came with torch 2.9.)
    rooms = (getattr(getattr(torch.backends, name), "matmul", None) for name in ("cuda", "mkldnn"))
    knobs: list[Any] = [room for room in rooms if getattr(room, "fp32_precision", None) is not None]
    before = [knob.fp32_precision for knob in knobs]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = "highest"  # only the new way was used, and says otherwise
    if legacy == "highest" and all(value in _EXACT for value in before):
        yield
        return
    try:
        torch.set_float32_matmul_precision("highest")
        for knob in knobs:
            knob.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for knob, value in zip(knobs, before, strict=True):
            knob.fp32_precision = value
