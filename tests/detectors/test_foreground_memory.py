"""What finding and learning an object holds: no second copy of all patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from torch.overrides import TorchFunctionMode

import ensemblead as ead
from ensemblead.detectors.parts import Run
from ensemblead.detectors.patchcore import accumulator
from ensemblead.detectors.patchcore.foreground import find_foreground
from ensemblead.kernels.object_cells import ObjectCells


class _Largest(TorchFunctionMode):
    """Notes how many values the largest tensor in float64 has."""

    largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            self.largest = max(self.largest, found.numel())
        return found


def test_one_image_at_a_time_is_taken_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(8, 16, 16, 24, generator=generator) * 0.1 + 1
    embeddings[:, 4:12, 4:12] += torch.randn(8, 8, 8, 24, generator=generator) + torch.arange(24) / 4
    with _Largest() as seen:
        found, reason = find_foreground(list(embeddings))
    assert found is not None, reason
    assert seen.largest == 16 * 16 * 24
    again, _ = find_foreground(embeddings)
    assert again is not None
    assert torch.equal(again.direction, found.direction)


def test_values_are_put_where_they_were_taken() -> None:
    cells = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])
    values = torch.arange(24.0).view(2, 2, 2, 3) + 1
    objects = ObjectCells(cells)
    assert torch.equal(objects.put(objects.take(values)), values * cells[..., None])


@pytest.mark.parametrize("banks", ["joint", "per_layer"])
def test_held_images_share_the_patches_of_the_bank(monkeypatch: pytest.MonkeyPatch, banks: Any) -> None:
    shared: list[bool] = []
    finish = accumulator.BankAccumulator.finish

    def looked_at(self: accumulator.BankAccumulator, run: Run) -> Any:
        places = {rows.untyped_storage().data_ptr() for rows, _ in self._bank.held_rows()}
        shared.extend(one.patches.untyped_storage().data_ptr() in places for one in self._held)
        return finish(self, run)

    monkeypatch.setattr(accumulator.BankAccumulator, "finish", looked_at)
    images = np.random.default_rng(0).integers(97, 103, (12, 64, 64, 3))
    images[:, 16:48, 16:48] = np.random.default_rng(1).integers(130, 220, (12, 32, 32, 3))
    detector = ead.PatchCore(
        TinyNet(), ("first", "second"), **NATIVE, foreground="auto", banks=banks, device="cpu", batch_size=5
    )
    detector.fit(images.astype(np.uint8))
    assert detector.foreground_ is not None
    assert shared == [True] * 12 * len(detector.memory_banks_)
