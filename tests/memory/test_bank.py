"""The memory bank: what it keeps, how it grows, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensemblead.common.errors import NotFittedError
from ensemblead.kernels.coreset import select_coreset
from ensemblead.memory import MemoryBank
from ensemblead.memory.projection import make_projection, project_chunks

CPU = torch.device("cpu")


def _rows(n: int, dims: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)


def _nearest(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(((queries[:, None].astype(np.float64) - rows[None]) ** 2).sum(2)).min(1))


def test_fit_is_select_coreset_over_all_rows_added() -> None:
    data = _rows(1000, 200)
    bank = MemoryBank(0.05, seed=4)
    for i, part in enumerate(np.array_split(data, 7)):
        bank.add(part, i)
    bank.fit()
    projection = make_projection(None, 200, 128, 4)
    assert projection is not None
    picks = np.asarray(select_coreset(data, size=50, seed=4, projection=projection.numpy()))
    np.testing.assert_array_equal(bank.rows_.numpy(), data[picks])
    owner = np.repeat(np.arange(7), [len(part) for part in np.array_split(data, 7)])
    np.testing.assert_array_equal(bank.images_.numpy(), owner[picks])
    short = data @ projection.numpy().T
    expected = _nearest(short, short[picks]).max()
    assert bank.radius_ == pytest.approx(expected, rel=1e-5)


def test_injected_projection_and_start_rows_decide_the_selection() -> None:
    data = _rows(400, 30)
    projection, start = _rows(6, 30, seed=9), [3, 77, 200]
    bank = MemoryBank(0.1)
    bank.add(data)
    bank.fit(projection=projection, start_indices=start)
    # The greedy rule by hand, in float64.
    short = data.astype(np.float64) @ projection.T.astype(np.float64)
    value = np.mean([np.linalg.norm(short - short[s], axis=1) for s in start], axis=0)
    picks = []
    for _ in range(40):
        picks.append(int(value.argmax()))
        value = np.minimum(value, np.linalg.norm(short - short[picks[-1]], axis=1))
    np.testing.assert_array_equal(bank.rows_.numpy(), data[picks])


def test_projecting_by_chunks() -> None:
    data, projection = torch.from_numpy(_rows(5000, 300)), torch.from_numpy(_rows(7, 300, seed=1))
    out = project_chunks([data[:10], data[10:4000], data[4000:]], projection, CPU)
    assert torch.equal(out, project_chunks([data], projection, CPU))
    torch.testing.assert_close(out, data @ projection.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(project_chunks([data[:5], data[5:9]], None, CPU), data[:9])


def test_the_projection_is_drawn_from_the_seed_or_given() -> None:
    drawn = make_projection(None, 400, 128, 7)
    assert drawn is not None
    assert drawn.shape == (128, 400)
    # The reference's: uniform in +-1/sqrt(D).
    assert 0.99 / 20 < float(drawn.abs().max()) <= 1 / 20
    again, other = make_projection(None, 400, 128, 7), make_projection(None, 400, 128, 8)
    assert again is not None
    assert other is not None
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    assert make_projection(None, 128, 128, 7) is None
    assert make_projection(None, 400, None, 7) is None
    given = make_projection(_rows(400, 5), 400, 128, 7)
    assert given is not None
    assert torch.equal(given, torch.from_numpy(_rows(400, 5)).T)


@pytest.mark.parametrize("first", [0, 3])
def test_repeats_are_dropped(first: int) -> None:
    # 4 different rows in 40; the greedy rule runs out of new ones and repeats row 0.
    data = np.tile(_rows(4), (10, 1))
    data = np.roll(data, -first, axis=0)
    bank = MemoryBank(0.5)
    bank.add(data)
    bank.fit()
    assert len(bank) == 4
    assert len(np.unique(bank.rows_.numpy(), axis=0)) == 4
    assert bank.radius_ == 0.0


def test_one_constant_image_gives_one_row() -> None:
    bank = MemoryBank(1.0)
    bank.add(np.ones((50, 8), np.float32))
    assert len(bank.fit()) == 1


def test_search_gives_squared_distances_in_the_kind_that_came() -> None:
    bank = MemoryBank(0.2, num_neighbors=3)
    bank.add(_rows(200))
    bank.fit()
    queries = _rows(17, seed=5)
    distances, found = bank.search(queries)
    assert isinstance(distances, np.ndarray)
    exact = ((queries[:, None] - bank.rows_.numpy()[None]) ** 2).sum(2)
    np.testing.assert_allclose(distances, np.sort(exact, 1)[:, :3], rtol=1e-5)
    np.testing.assert_array_equal(found, np.argsort(exact, 1)[:, :3])
    tensors = bank.search(torch.from_numpy(queries), 2)
    assert isinstance(tensors[0], torch.Tensor)
    np.testing.assert_array_equal(tensors[1].numpy(), found[:, :2])


def test_an_image_can_be_left_out() -> None:
    data = _rows(300)
    bank = MemoryBank(0.2)
    bank.add(data, np.repeat([5, 6, 7], 100))
    bank.fit()
    own = bank.rows_[bank.images_ == 6]
    assert float(bank.search(own)[0].max()) == 0.0
    distances, found = bank.search(own, exclude_image=6)
    assert float(distances.min()) > 0
    assert 6 not in bank.images_[found[:, 0]].tolist()
    assert bank.rows_without(6) == len(bank) - len(own)
    with pytest.raises(ValueError, match=f"between 1 and the {len(bank) - len(own)} rows of the bank"):
        bank.search(own, len(bank), exclude_image=6)


def test_rows_that_outgrow_the_buffer_are_taken_by_groups() -> None:
    data = _rows(6000, 16)
    exact, grouped = MemoryBank(0.02), MemoryBank(0.02, memory_budget=6000 * 16 * 8 // 5)
    for bank in (exact, grouped):
        held = 0
        for i, part in enumerate(np.array_split(data, 60)):
            bank.add(part, i)
            held = max(held, bank._intake.buffer.num_rows)
        bank.fit()
        assert len(bank) == 120
        if bank is grouped:
            assert held <= 6000 // 5 + 100
    rows, images = grouped.rows_.numpy(), grouped.images_.numpy()
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(data[np.flatnonzero((data == row).all(1))[0]], row)
        assert np.flatnonzero((data == row).all(1))[0] // 100 == image
    # A composable coreset covers nearly as well as the one of all rows at once; a random choice does not.
    reach = _nearest(data, exact.rows_.numpy()).max()
    assert _nearest(data, rows).max() < 1.15 * reach
    assert len(set(images.tolist())) > 30


def test_injection_needs_all_rows_at_once() -> None:
    bank = MemoryBank(0.1, memory_budget=1000)
    for image in range(2):
        bank.add(_rows(50), image)
    with pytest.raises(ValueError, match="outgrew memory_budget=1000"):
        bank.fit(start_indices=[0])


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("buffer_bytes", [10**9, 20_000])
def test_extend_covers_what_is_new_and_keeps_what_is_old(index: str, buffer_bytes: int) -> None:
    old, new = _rows(500, 10), _rows(300, 10, seed=1) + 2.0
    bank = MemoryBank(0.1, index=index)
    bank.add(old, 0)
    bank.fit()
    bank = MemoryBank.from_state({**bank.parameters(), "memory_budget": buffer_bytes}, bank.state())
    before, radius = bank.rows_.clone(), bank.radius_
    unchanged = bank.copy()
    bank.extend(new[:200], 1)
    bank.add(new[200:], 2)
    bank.extend()
    assert torch.equal(bank.rows_[: len(before)], before)
    added = bank.rows_[len(before) :].numpy()
    assert 0 < len(added) < 300
    assert set(bank.images_[len(before) :].tolist()) == {1, 2}
    assert _nearest(new, bank.rows_.numpy()).max() <= radius * (1 + 1e-5)
    # Greedy: every new row was farther than the radius from all that stood before it.
    for i in range(len(before), len(bank)):
        assert _nearest(bank.rows_[i : i + 1].numpy(), bank.rows_[:i].numpy()) > radius * (1 - 1e-5)
    assert torch.equal(bank.search(torch.from_numpy(added))[1][:, 0], torch.arange(len(before), len(bank)))
    assert torch.equal(unchanged.rows_, before)


def test_extending_with_nothing_new_changes_nothing() -> None:
    data = _rows(300)
    bank = MemoryBank(0.1)
    bank.add(data)
    bank.fit()
    before = bank.rows_
    bank.extend(data)
    assert bank.rows_ is before


@pytest.mark.slow
@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_state_there_and_back(index: str) -> None:
    bank = MemoryBank(0.5, index=index, num_neighbors=2, seed=3)
    bank.add(_rows(600, 150))
    bank.fit()
    again = MemoryBank.from_state(bank.parameters(), bank.state())
    queries = _rows(20, 150, seed=2)
    for a, b in zip(bank.search(queries), again.search(queries), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.radius_ == bank.radius_
    assert again.parameters() == bank.parameters()
    again.extend(_rows(50, 150, seed=4) * 3)
    bank.extend(_rows(50, 150, seed=4) * 3)
    assert torch.equal(again.rows_, bank.rows_)


def test_same_seed_same_bank() -> None:
    def fit(seed: int) -> torch.Tensor:
        bank = MemoryBank(0.1, seed=seed)
        bank.add(_rows(500, 200))
        return bank.fit().rows_

    assert torch.equal(fit(1), fit(1))
    assert not torch.equal(fit(1), fit(2))


def test_added_arrays_may_be_reused() -> None:
    scratch = _rows(100)
    bank = MemoryBank(1.0)
    bank.add(scratch)
    expected = set(map(tuple, scratch.tolist()))
    scratch[:] = 0
    assert set(map(tuple, bank.fit().rows_.tolist())) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_fraction": 0}, r"coreset_fraction must be in \(0, 1\], got 0"),
        ({"coreset_fraction": 1.5}, "got 1.5"),
        ({"index": "kd"}, "index must be one of flat, .*, got 'kd'"),
        ({"num_neighbors": 0}, "num_neighbors must be at least 1, got 0"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"memory_budget": 0}, "memory_budget"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryBank(**options)


def test_bad_rows() -> None:
    bank = MemoryBank(0.5)
    with pytest.raises(ValueError, match="no rows to fit"):
        bank.fit()
    with pytest.raises(NotFittedError, match="call fit first"):
        bank.search(_rows(2))
    with pytest.raises(NotFittedError):
        bank.extend(_rows(2))
    with pytest.raises(ValueError, match=r"embeddings must be 2-D \[n, D\], got shape \(3, 4, 5\)"):
        bank.add(np.zeros((3, 4, 5), np.float32))
    with pytest.raises(TypeError, match=r"embeddings must be floating point, got torch\.int64"):
        bank.add(np.zeros((3, 4), np.int64))
    with pytest.raises(TypeError, match="got list"):
        bank.add([[1.0]])
    bank.add(_rows(10))
    with pytest.raises(ValueError, match=r"20 columns as before, got shape \(10, 21\)"):
        bank.add(_rows(10, 21))
    with pytest.raises(TypeError, match="images must be whole numbers, got float64"):
        bank.add(_rows(2), [0.5, 1.5])
    with pytest.raises(ValueError, match=r"images must be one int, or \[10\], got shape \(9,\)"):
        bank.add(_rows(10), range(9))
    # -1 stands for several images, whose rows are never left out of a search.
    with pytest.raises(ValueError, match=r"images must be from 0 to 2\^63 - 1, got -1"):
        bank.add(_rows(2), [3, -1])
    with pytest.raises(ValueError, match="got 18446744073709551615"):  # which would be -1
        bank.add(_rows(2), np.uint64(2**64 - 1))
    with pytest.raises(ValueError, match=r"projection must be \[d, 20\], got shape \(4, 19\)"):
        bank.fit(projection=np.zeros((4, 19), np.float32))
    bank.fit()
    with pytest.raises(ValueError, match="fitted already"):
        bank.fit()
    with pytest.raises(ValueError, match="k must be between 1 and the 5 rows of the bank, got 6"):
        bank.search(_rows(2), 6)
    with pytest.raises(TypeError, match=r"k must be a whole number, got 1\.5"):
        bank.search(_rows(2), 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exclude_image must be whole numbers, got float64"):
        bank.search(_rows(2), exclude_image=[0.5, 1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queries must have 20 columns"):
        bank.search(_rows(2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_alone(value: float) -> None:
    bank = MemoryBank(0.1)
    bank.add(_rows(200))
    bank.fit()
    bank.add(_rows(30, seed=1) + 9, 7)
    bad = _rows(5, seed=2)
    bad[3, 4] = value
    for take_in in (bank.add, bank.extend):
        with pytest.raises(ValueError, match="embeddings must be finite"):
            take_in(bad)
    bank.extend()
    assert 7 in bank.images_.tolist()
    assert bool(torch.isfinite(bank.rows_).all())
    huge = MemoryBank(1.0, projection_dim=None)
    huge.add(np.full((2, 3), 3e38, np.float32))  # finite, though their sum is not


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_rows_survive_a_failed_selection(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    data, more = _rows(200), [_rows(100, seed=s) + 4 * s for s in (1, 2, 3)]

    def extended() -> MemoryBank:
        # Every addition is a group of its own.
        bank = MemoryBank(0.1, memory_budget=4 * 100 * 40 * 4)
        bank.add(data)
        bank.fit()
        for rows in more:
            bank.add(rows)
        return bank

    expected, bank, calls = extended().extend(), extended(), []

    def select(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == failing + 1:
            raise MemoryError
        return select_coreset(*arguments, **options)

    monkeypatch.setattr("ensemblead.memory.selection.select_coreset", select)
    with pytest.raises(MemoryError):
        bank.extend()
    bank.extend()
    assert torch.equal(bank.rows_, expected.rows_)
    assert torch.equal(bank.images_, expected.images_)


def test_repr_is_one_line() -> None:
    bank = MemoryBank(0.5, index="ivf")
    assert repr(bank) == "MemoryBank(coreset_fraction=0.5, index='ivf'), not fitted"
    bank = MemoryBank(coreset_size=3)
    bank.add(np.eye(4, dtype=np.float32))
    assert repr(bank.fit()) == "MemoryBank(coreset_size=3, index='flat'), 3 rows of 4 dimensions"
