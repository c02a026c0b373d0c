"""Rows that differ by rounding alone, start rows that do not depend on an order, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from ensemblead.memory import MemoryBank, start_rows


def _repeats(count: int = 30, kinds: int = 7, noise: float = 1e-5) -> np.ndarray:
    """Few kinds of rows, over and over, each time with other rounding."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.normal(size=(kinds, 40)), (count, 1))
    return (rows + noise * rng.normal(size=rows.shape) / np.sqrt(40)).astype(np.float32)


def _fitted(rows: np.ndarray, fraction: float = 0.5, **options: Any) -> MemoryBank:
    bank = MemoryBank(fraction, projection_dim=options.pop("projection_dim", None))
    bank.add(rows)
    return bank.fit(**options)


@pytest.mark.parametrize("projection_dim", [None, 16])
def test_rows_within_the_floor_do_not_enter(projection_dim: int | None) -> None:
    rows = _repeats()
    bank = _fitted(rows, noise_floor=1e-3, projection_dim=projection_dim)
    assert len(bank) == 7
    assert len({tuple(np.round(row, 2)) for row in bank.rows_.tolist()}) == 7
    assert bank.radius_ == 1e-3
    assert len(_fitted(rows, projection_dim=projection_dim)) == 105


def test_rows_around_the_start_rows_are_covered_as_well() -> None:
    # Start rows all of one kind: the mean distance of that kind to them is below the floor before any pick.
    rows = np.concatenate([_repeats(40, 1), _repeats(5, 6) + 5.0])
    bank = _fitted(rows, noise_floor=1e-2, start_indices=list(range(10)))
    assert len(bank) == 7
    assert float(bank.search(torch.from_numpy(rows))[0].max()) <= 1e-4


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_single_kind_leaves_a_single_row(noise: float) -> None:
    assert len(_fitted(_repeats(50, 1, noise), noise_floor=1e-3)) == 1


def test_without_a_floor_nothing_changes() -> None:
    rows = np.random.default_rng(1).normal(size=(300, 20)).astype(np.float32)
    plain, zero = _fitted(rows, 0.1), _fitted(rows, 0.1, noise_floor=0.0)
    assert torch.equal(plain.rows_, zero.rows_)
    assert plain.radius_ == zero.radius_ > 0
    # A floor far below all distances changes nothing either.
    assert torch.equal(_fitted(rows, 0.1, noise_floor=1e-6).rows_, plain.rows_)


def test_extending_goes_by_the_larger_of_radius_and_floor() -> None:
    rows = _repeats()
    bank = _fitted(rows, noise_floor=1e-3)
    bank.extend(_repeats(3, noise=3e-5))
    assert len(bank) == 7
    bank.extend(rows[:1] + 1e-2, noise_floor=1.0)
    assert len(bank) == 7
    again = MemoryBank.from_state(bank.parameters(), bank.state())
    again.extend(rows[:1] + 1e-2)
    assert len(again) == 8


@pytest.mark.parametrize("floor", [-1.0, float("nan"), float("inf")])
def test_floors_that_are_none(floor: float) -> None:
    with pytest.raises(ValueError, match="noise_floor must be a finite distance of 0 or more, got"):
        _fitted(_repeats(2), noise_floor=floor)


def test_rows_too_far_apart_are_refused_by_name() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32) * np.float32(1e25)
    with pytest.raises(ValueError, match="embeddings lie so far from each other that squared distances"):
        _fitted(rows)


def test_the_mean_square_norm_of_what_was_added() -> None:
    rows = np.random.default_rng(2).normal(size=(90, 12)).astype(np.float32)
    bank = MemoryBank(0.5)
    assert bank.mean_square_norm() == 0.0
    for part in np.array_split(rows, 4):
        bank.add(part)
    expected = float((rows.astype(np.float64) ** 2).sum(1).mean())
    assert bank.mean_square_norm() == pytest.approx(expected, rel=1e-9)
    bank.fit()
    assert bank.mean_square_norm() == 0.0
    bank.add(3 * rows)
    assert bank.mean_square_norm() == pytest.approx(9 * expected, rel=1e-6)
    huge = MemoryBank(0.5)
    huge.add(np.full((2, 4), 1e30, np.float32))
    assert huge.mean_square_norm() == pytest.approx(4e60, rel=1e-6)


class _Looks(TorchFunctionMode):
    """Counts looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("item", "__bool__", "__float__", "tolist")
        return func(*args, **(kwargs or {}))


def test_rows_known_to_be_finite_are_added_without_a_look() -> None:
    bank = MemoryBank(0.5)
    with _Looks() as looks:
        bank.add(torch.randn(20, 8), 0, known_finite=True)
        bank.add(torch.randn(20, 8), 1, known_finite=True)
    assert looks.count == 0


# Start rows


def _images(order: list[int]) -> tuple[list[str], list[int], np.ndarray]:
    """Fingerprints, rows per image and all rows, of the images in an order."""
    counts = [5 + image for image in order]
    rows = [np.random.default_rng(image).normal(size=(5 + image, 30)) for image in order]
    return [f"{image * 7919 % 101:04d}" for image in order], counts, np.concatenate(rows).astype(np.float32)


def test_start_rows_follow_from_the_set_of_images() -> None:
    first, other = list(range(12)), np.random.default_rng(5).permutation(12).tolist()
    banks, starts = [], []
    for order in (first, other):
        fingerprints, counts, rows = _images(order)
        chosen = start_rows(fingerprints, counts, 10, seed=3)
        assert chosen.dtype == np.int64
        assert len(set(chosen.tolist())) == 10
        starts.append(rows[chosen])
        banks.append(_fitted(rows, 0.2, start_indices=chosen))
    assert np.array_equal(*starts)
    assert torch.equal(banks[0].rows_, banks[1].rows_)
    assert banks[0].radius_ == banks[1].radius_
    fingerprints, counts, _ = _images(first)
    assert not np.array_equal(
        start_rows(fingerprints, counts, 10, seed=3), start_rows(fingerprints, counts, 10, seed=4)
    )


def test_start_rows_of_few_rows_and_of_equal_counts() -> None:
    assert sorted(start_rows(["b", "a"], 3, 10, seed=0).tolist()) == list(range(6))
    assert sorted(start_rows([b"b", b"a"], [1, 2], 10, seed=0).tolist()) == [0, 1, 2]
    draws = np.concatenate([start_rows([str(i) for i in range(4)], 5, 4, seed=s) for s in range(400)])
    assert np.bincount(draws, minlength=20).min() > 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 3, 1, 0), "rows_per_image must be at least 1 for one image or more"),
        ((["a"], 0, 1, 0), "rows_per_image must be at least 1"),
        ((["a"], 3, 0, 0), "num_starts must be at least 1, got 0"),
        ((["a"], 3, 1, -1), "seed must be at least 0, got -1"),
    ],
)
def test_start_rows_that_cannot_be_drawn(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_rows(*arguments)
