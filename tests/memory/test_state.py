"""A bank's state as data: there and back, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.memory import BankState, MemoryBank

ROWS = torch.from_numpy(np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32))
PLACES = torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1)
GOOD = BankState(
    rows=ROWS[:40],
    images=torch.arange(40),
    projection=torch.zeros(4, 16),
    radius=0.5,
    num_added=400,
)


def _bank(**options: Any) -> MemoryBank:
    bank = MemoryBank(0.6, **options)
    bank.add(ROWS)
    return bank.fit()


def test_numpy_becomes_torch() -> None:
    state = BankState(ROWS[:40].numpy(), np.arange(40), None, 1, 40)  # type: ignore[arg-type]
    assert isinstance(state.rows, torch.Tensor)
    assert isinstance(state.images, torch.Tensor)
    bank = MemoryBank.from_state({"num_neighbors": 2}, state)
    assert bank.search(ROWS[:3])[1][:, 0].tolist() == [0, 1, 2]
    assert type(bank.radius_) is float


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": [[1.0]]}, TypeError, "rows must be an array or a tensor, got list"),
        ({"rows": ROWS[:40].double()}, TypeError, r"rows must be float32, got torch\.float64"),
        ({"rows": ROWS[0]}, ValueError, r"rows must have 2 axes and not be empty, got shape \(16,\)"),
        ({"rows": ROWS[:0]}, ValueError, "rows must have 2 axes and not be empty"),
        ({"rows": ROWS[:40] * torch.nan}, ValueError, "rows must be finite, got NaN or infinity"),
        ({"rows": ROWS[:40] / 0.0}, ValueError, "rows must be finite, got NaN or infinity"),
        ({"images": torch.arange(39)}, ValueError, r"images must be \[40\] as the rows, got shape \(39,\)"),
        ({"images": torch.zeros(40)}, TypeError, r"images must be int64, got torch\.float32"),
        (
            {"projection": torch.zeros(4, 15)},
            ValueError,
            r"projection must be \[d, 16\], got shape \(4, 15\)",
        ),
        ({"projection": torch.zeros(17, 16)}, ValueError, r"projection must be \[d, 16\]"),
        ({"projection": torch.full((4, 16), torch.inf)}, ValueError, "projection must be finite"),
        ({"radius": torch.nan}, ValueError, "radius must be a finite distance, got nan"),
        ({"radius": -1.0}, ValueError, "radius must be a finite distance, got -1"),
        ({"radius": "1"}, TypeError, "radius must be a number, got '1'"),
        ({"radius": True}, TypeError, "radius must be a number, got True"),
        ({"reach": -1.0}, ValueError, "reach must be a finite distance, got -1"),
        ({"separation": torch.inf}, ValueError, "separation must be a finite distance, got inf"),
        ({"separation": None}, TypeError, "separation must be a number, got None"),
        ({"certificate": "2"}, TypeError, "certificate must be a number, got '2'"),
        ({"certificate": torch.nan}, ValueError, "certificate must be a finite factor, got nan"),
        ({"num_added": 39}, ValueError, "num_added must be at least the 40 rows, got 39"),
        ({"num_added": 2**64}, ValueError, "num_added must be at least the 40 rows"),
        ({"num_added": 50.0}, TypeError, r"num_added must be a whole number, got 50\.0"),
        ({"index": "bytes"}, TypeError, "index must be bytes, got str"),
        ({"places": torch.zeros(40, 2)}, TypeError, r"places must be int64, got torch\.float32"),
        ({"places": PLACES[:39]}, ValueError, r"places must be \[40, 2\], got shape \(39, 2\)"),
        ({"places": PLACES.flip(0)}, ValueError, "places must ascend"),
        ({"places": PLACES - 1}, ValueError, "cells of 0 to 4095 in y and x, got -1"),
        ({"places": PLACES, "grid": (5, 7)}, ValueError, r"grid must hold all places, got \(5, 7\)"),
        ({"place_scale": -1.0}, ValueError, "place_scale must be a finite distance, got -1"),
    ],
)
def test_what_no_bank_has_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(GOOD, **changes)


@pytest.mark.parametrize(("index", "data"), [("hnsw", None), ("flat", b"index")])
def test_an_index_that_does_not_go_with_the_parameters(index: str, data: bytes | None) -> None:
    with pytest.raises(ValueError, match=f"index='{index}' does not go with a state"):
        MemoryBank.from_state({"index": index}, replace(GOOD, index=data))


@pytest.mark.parametrize("name", ["ivf", "ivfpq", "hnsw", "sq16"])
def test_a_stored_index_with_bits_flipped_is_refused_or_harmless(name: str) -> None:
    pytest.importorskip("faiss")
    bank = _bank(index=name)
    state = bank.state()
    assert state.index is not None
    rng = np.random.default_rng(1)
    refused = 0
    # The head, where the sizes are, and places all over.
    places = [*range(0, 64, 3), *rng.integers(64, len(state.index), size=60).tolist()]
    for place in places:
        data = bytearray(state.index)
        data[place] ^= 1 << int(rng.integers(8))
        try:
            again = MemoryBank.from_state(bank.parameters(), replace(state, index=bytes(data)))
        except (DamagedModelError, ValueError):
            refused += 1
            continue
        distances, found = again.search(ROWS[:20], 2)
        assert bool(((found >= 0) & (found < len(again))).all())
        assert bool(torch.isfinite(distances).all())
    assert refused > 5
    for end in (0, 7, len(state.index) // 2, len(state.index) - 1):
        with pytest.raises(DamagedModelError):
            MemoryBank.from_state(bank.parameters(), replace(state, index=state.index[:end]))


def test_rows_that_an_index_names_must_be_there() -> None:
    faiss = pytest.importorskip("faiss")
    bank = _bank(index="ivf")
    state = bank.state()
    index = faiss.deserialize_index(np.frombuffer(state.index, dtype=np.uint8))
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(0), index.invlists.list_size(0))
    ids[0] = 10**6
    with pytest.raises(DamagedModelError, match="its lists do not name every row once"):
        MemoryBank.from_state(bank.parameters(), replace(state, index=faiss.serialize_index(index).tobytes()))
    bank = _bank(index="hnsw")
    state = bank.state()
    index = faiss.deserialize_index(np.frombuffer(state.index, dtype=np.uint8))
    neighbors = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    neighbors[3] = 10**6
    with pytest.raises(DamagedModelError, match="its graph names points that there are not|cannot be read"):
        MemoryBank.from_state(bank.parameters(), replace(state, index=faiss.serialize_index(index).tobytes()))


def test_a_bank_of_all_rows_is_not_the_best_once_they_are_rounded() -> None:
    state = replace(GOOD, radius=0.0, certificate=1.0, projection=None)
    rounded = state.for_half()
    moved = torch.linalg.vector_norm(state.rows - state.rows.half().float(), dim=1).max()
    assert rounded.radius == pytest.approx(float(moved), rel=1e-4)
    assert rounded.certificate is None
    assert replace(state, rows=state.rows.half().float()).for_half().certificate == 1.0
