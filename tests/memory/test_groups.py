"""Rows beyond the budget: groups, what they keep, and what is promised of the radius."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblead.memory import MemoryBank
from ensemblead.memory.buffer import Buffer
from ensemblead.memory.groups import Groups
from ensemblead.memory.projection import Space
from ensemblead.memory.selection import ROUNDING, farthest_first

CPU = torch.device("cpu")


def _rows(count: int, dims: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


def _reach(rows: np.ndarray, bank: MemoryBank) -> float:
    """The largest distance of a row to the bank, in the projected space, in float64."""
    short = rows.astype(np.float64), bank.rows_.numpy().astype(np.float64)
    if bank.projection_ is not None:
        short = tuple(part @ bank.projection_.numpy().T.astype(np.float64) for part in short)
    return float(np.sqrt(((short[0][:, None] - short[1]) ** 2).sum(2)).min(1).max())


def _fitted(rows: np.ndarray, piece: int, *, expect: bool = True, **options: Any) -> MemoryBank:
    bank = MemoryBank(options.pop("coreset_fraction", 0.01), **options)
    if expect:
        bank.expect(len(rows), rows.shape[1])
    for image, start in enumerate(range(0, len(rows), piece)):
        bank.add(rows[start : start + piece], image)
    return bank.fit()


def _budget(group: int, size: int, dims: int = 8) -> int:
    """That of groups of so many rows, of which `size` are kept, without a projection."""
    return group * 2 * 8 * dims + 4 * size * dims


# The radius


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(30, 200),
    distinct=st.integers(1, 200),
    size=st.integers(1, 12),
    group=st.integers(2, 60),
    piece=st.integers(1, 30),
    dims=st.sampled_from([(3, None), (12, 4)]),
    expect=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_no_row_lies_beyond_the_radius(
    seed: int,
    count: int,
    distinct: int,
    size: int,
    group: int,
    piece: int,
    dims: tuple[int, int | None],
    expect: bool,
    spread: float,
) -> None:
    """Whatever the size of groups, the order and the repeats; and no bank does better than certified."""
    rng = np.random.default_rng(seed)
    kinds = min(distinct, count)
    rows = (_rows(kinds, dims[0], seed) * np.float32(spread))[rng.integers(kinds, size=count)]
    budget = _budget(max(group, 2 * size), size, dims[0]) if expect else _budget(group, 0, dims[0])
    bank = _fitted(
        rows, piece, expect=expect, coreset_size=size, memory_budget=budget, projection_dim=dims[1], seed=seed
    )
    reach = _reach(rows, bank)
    assert reach <= bank.radius_ * (1 + ROUNDING) + 1e-6 * spread  # of the projection, in float32
    if bank.holds_all_rows:
        assert len(bank) == min(size, len(np.unique(rows, axis=0)))
    if bank.certificate_ is not None:
        assert bank.certificate_ == 1.0 or bank.certificate_ >= 2.0
    measured = bank.verify(rows[i : i + 7] for i in range(0, count, 7))
    assert measured.radius == pytest.approx(reach, rel=1e-4, abs=1e-5 * spread)
    assert measured.num_rows == count


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_no_bank_of_as_many_rows_is_better_than_certified(order: tuple[int, ...]) -> None:
    groups = [_rows(4, 2, seed) for seed in order]
    rows = np.concatenate(groups)
    bank = _fitted(rows, 4, coreset_size=2, memory_budget=_budget(4, 2, dims=2), projection_dim=None)
    assert not bank.holds_all_rows or bank.certificate_
    assert bank.certificate_ is not None
    distances = np.sqrt(((rows[:, None].astype(np.float64) - rows) ** 2).sum(2))
    best = min(distances[:, list(pair)].min(1).max() for pair in combinations(range(12), 2))
    assert best >= bank.radius_ / bank.certificate_ * (1 - 1e-4)
    assert _reach(rows, bank) <= 4 * best


def _groups_of(rows: np.ndarray, group: int, size: int) -> MemoryBank:
    return _fitted(rows, group, coreset_size=size, memory_budget=_budget(group, size), projection_dim=None)


@pytest.mark.parametrize("place", ["first", "last"])
def test_clusters_that_are_all_in_one_group_are_found(place: str) -> None:
    """k clusters in one group of eight; the others are of one cluster. A share of each group misses most."""
    rng, size, group = np.random.default_rng(1), 20, 100
    centres = 100 * rng.normal(size=(size, 8))
    one = centres[rng.permutation(np.arange(group) % size)] + 0.1 * rng.normal(size=(group, 8))
    rest = centres[0] + 0.1 * rng.normal(size=(7 * group, 8))
    parts = [one, rest] if place == "first" else [rest, one]
    rows = np.concatenate(parts).astype(np.float32)
    bank = _groups_of(rows, group, size)
    assert bank._num_added == 800
    best = np.sqrt(((rows[:, None] - centres) ** 2).sum(2)).min(1).max()  # that of the centres: OPT at most
    assert _reach(rows, bank) <= bank.radius_ <= 4 * best
    assert bank.certificate_ is not None
    unannounced = _fitted(
        rows,
        group,
        expect=False,
        coreset_fraction=size / 800,
        memory_budget=_budget(group, 0),
        projection_dim=None,
    )
    assert _reach(rows, unannounced) > 20 * best
    assert _reach(rows, unannounced) <= unannounced.radius_


def test_many_groups_are_merged_in_a_shallow_tree() -> None:
    """A chain, which merges whatever waits, would have 50 selections after each other."""
    groups, room, size = Groups(), 4, 5
    for number in range(150):
        group = Buffer()
        group.append(torch.from_numpy(_rows(20, 3, number)), torch.full((20, 1), number))
        groups.reduce(group, size, Space(None), 0, CPU)
        groups.merge(size, room * size, Space(None), 0, CPU)
        assert groups.num_rows <= room * size
    assert groups.count == 150
    assert max(one.level for one in groups.kept) <= 8
    assert sorted(one.slack for one in groups.kept)[-1] > 0
    assert groups.separation(size) > 0
    assert groups.separation(size + 1) == 0


def test_what_merged_rows_stand_for() -> None:
    rows = torch.from_numpy(_rows(300, 4))
    groups = Groups()
    for number, part in enumerate(rows.split(30)):
        group = Buffer()
        group.append(part, torch.full((len(part), 1), number))
        groups.reduce(group, 6, Space(None), 0, CPU)
        groups.merge(6, 12, Space(None), 0, CPU)
    seen = rows.double()
    least = torch.stack(
        [(torch.cdist(seen, one.rows.double()).min(1).values - one.slack) for one in groups.kept]
    )
    assert float(least.min(0).values.max()) <= 0
    for one in groups.kept:
        for row, image in zip(one.rows, one.labels[:, 0].tolist(), strict=True):
            place = int((rows == row).all(1).nonzero()[0, 0])
            assert place // 30 == image


def test_farthest_first_is_the_rule_of_gonzalez() -> None:
    rows = torch.from_numpy(_rows(120, 5))
    picks, reach = farthest_first(rows, 10, seed=3)
    distances = torch.cdist(rows.double(), rows.double())
    expected = [int(picks[0])]
    for _ in range(9):
        expected.append(int(distances[:, expected].min(1).values.argmax()))
    assert picks.tolist() == expected
    assert reach == pytest.approx(float(distances[:, expected].min(1).values.max()), rel=1e-4)
    assert reach >= float(distances[:, expected].min(1).values.max())
    few, none = farthest_first(rows, 120, seed=0)
    assert few.tolist() == list(range(120))
    assert none == 0
    repeats, none = farthest_first(rows[:3].repeat(9, 1), 5, seed=1)
    assert len({int(pick) % 3 for pick in repeats}) == len(repeats) == 3
    assert none == 0


def test_where_all_rows_fit_nothing_depends_on_what_was_expected() -> None:
    rows = _rows(600, 40)
    plain, told = _fitted(rows, 50, expect=False), _fitted(rows, 50)
    sized = _fitted(rows, 50, coreset_size=6)
    for other in (told, sized):
        assert torch.equal(plain.rows_, other.rows_)
        assert torch.equal(plain.images_, other.images_)
        assert plain.radius_ == other.radius_
    assert plain.radius_ == pytest.approx(_reach(rows, plain), rel=1e-5)
    assert plain.certificate_ is not None
    assert 2.0 <= plain.certificate_ < 4.0


def test_a_bank_of_all_rows_is_certified_to_be_the_best() -> None:
    bank = _fitted(_rows(50), 10, coreset_size=50)
    assert (len(bank), bank.radius_, bank.certificate_) == (50, 0.0, 1.0)
    assert bank.verify(_rows(50)).certificate == 1.0


def test_groups_come_the_same_way_every_time() -> None:
    rows = _rows(900)
    first, again = (_groups_of(rows, 100, 20) for _ in range(2))
    assert torch.equal(first.rows_, again.rows_)
    assert first.radius_ == again.radius_
    assert not first.holds_all_rows or len(first) == 20


# The budget


def test_a_budget_that_does_not_do_is_refused_before_the_first_row() -> None:
    bank = MemoryBank(0.1, memory_budget=100_000, projection_dim=None)
    with pytest.raises(
        ValueError, match="memory_budget is 100000 bytes, too few for a bank of 1000 of"
    ) as told:
        bank.expect(10_000, 32)
    message = str(told.value)
    least = int(message.split("memory_budget=")[1].split()[0])
    size = int(message.split("coreset_size=")[1].split()[0])
    assert (least, size) == (1000 * (4 * 256 + 128), 86)
    MemoryBank(0.1, memory_budget=least, projection_dim=None).expect(10_000, 32)
    MemoryBank(coreset_size=size, memory_budget=100_000, projection_dim=None).expect(10_000, 32)
    with pytest.raises(ValueError, match="memory_budget is"):
        MemoryBank(0.1, memory_budget=least - 1, projection_dim=None).expect(10_000, 32)
    with pytest.raises(ValueError, match="memory_budget is"):
        MemoryBank(coreset_size=size + 1, memory_budget=100_000, projection_dim=None).expect(10_000, 32)
    with pytest.raises(ValueError, match=f"give memory_budget={least + 500} or more$"):
        MemoryBank(0.1, memory_budget=1000, projection_dim=None).expect(10_000, 32, beside=500)


def test_where_all_rows_fit_others_do_not_count() -> None:
    bank = MemoryBank(1.0, memory_budget=100 * 32 * 4 * 3, projection_dim=None)
    assert bank.fits(100, 32)
    assert not bank.fits(101, 32)
    bank.expect(100, 32, beside=10**9)
    with pytest.raises(ValueError, match="memory_budget is"):
        bank.expect(101, 32, beside=10**9)


def test_rows_held_keep_to_the_budget() -> None:
    rows, budget = _rows(4000, 16), 40_000
    bank = MemoryBank(coreset_size=40, memory_budget=budget, projection_dim=4)
    bank.expect(len(rows), 16)
    for start in range(0, len(rows), 20):
        bank.add(rows[start : start + 20], start)
        group, waiting = bank._intake.buffer.num_rows, bank._intake.groups.num_rows
        assert group * 4 * (16 + 4) + (waiting + 40) * 4 * 16 <= budget  # with what the group will keep
    assert len(bank.fit()) == 40
    assert _reach(rows, bank) <= bank.radius_


def test_expectations_that_cannot_be() -> None:
    bank = MemoryBank(0.5)
    with pytest.raises(ValueError, match="num_rows must be at least 1, got 0"):
        bank.expect(0, 4)
    with pytest.raises(ValueError, match="num_columns must be at least 1, got 0"):
        bank.expect(3, 0)
    bank.add(_rows(20))
    with pytest.raises(ValueError, match="expect comes before them"):
        bank.expect(20, 8)
    bank.fit()
    bank.expect(10**9, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"coreset_size": 0}, ValueError, "coreset_size must be at least 1, got 0"),
        ({"coreset_size": 2.0}, TypeError, "coreset_size must be a whole number"),
        (
            {"coreset_fraction": 0.1, "coreset_size": 5},
            ValueError,
            "coreset_size is 5 and coreset_fraction 0.1",
        ),
        ({"memory_budget": 1e9}, TypeError, "memory_budget must be a whole number"),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MemoryBank(**options)


def test_the_former_name_of_the_budget() -> None:
    with pytest.warns(DeprecationWarning, match="max_buffer_bytes is called memory_budget now"):
        bank = MemoryBank(0.1, max_buffer_bytes=12345)
    assert bank.memory_budget == bank.parameters()["memory_budget"] == 12345
    assert "max_buffer_bytes" not in bank.parameters()
    with pytest.raises(ValueError, match="give only one"):
        MemoryBank(max_buffer_bytes=12345, memory_budget=99)


@pytest.mark.parametrize("dims", [(16, None), (64, 128), (256, 128), (256, 32)])
@pytest.mark.parametrize("banks", [5, 8])
def test_selections_keep_to_the_budget(
    monkeypatch: pytest.MonkeyPatch, dims: tuple[int, int | None], banks: int
) -> None:
    """Rows with their projections, the rows that wait beside them, and those that are selected."""
    width, size, held = dims[0], 30, []
    projected = min(width, dims[1] or width)
    selected, slacks = Groups._selected, Groups.slacks

    def noted(self: Groups, chunks: Any, *rest: Any, **options: Any) -> Any:
        rows = sum(map(len, chunks))
        beside = self.num_rows - (rows if options else 0)  # a merge is of rows that were kept
        held.append(4 * (rows * (width + projected) + (beside + size) * width))
        return selected(self, chunks, *rest, **options)

    def noted_at_the_end(self: Groups, device: torch.device) -> torch.Tensor:
        held.append(4 * (self.num_rows * (width + projected) + size * width))
        return slacks(self, device)

    monkeypatch.setattr(Groups, "_selected", noted)
    monkeypatch.setattr(Groups, "slacks", noted_at_the_end)
    budget = banks * size * 4 * (width + projected)
    rows = _rows(2000, width)
    bank = _fitted(rows, 10, coreset_size=size, memory_budget=budget, projection_dim=dims[1])
    assert len(held) > 20
    assert max(held) <= budget
    assert _reach(rows, bank) <= bank.radius_ * (1 + ROUNDING) + 1e-5


# Extending


@pytest.mark.parametrize("budget", [10**9, _budget(40, 20)])
def test_extend_reduces_a_bank_that_would_be_too_large(budget: int) -> None:
    rows, new = _rows(400), _rows(300, seed=1) + 3

    def extended(most: int | None) -> MemoryBank:
        bank = _fitted(rows, 20, coreset_size=20, memory_budget=budget, projection_dim=None)
        for image, part in enumerate(np.array_split(new, 15)):
            bank.add(part, 100 + image)
        return bank.extend(max_rows=most)

    free, bank, again = extended(None), extended(25), extended(25)
    assert len(free) > len(bank) == 25
    assert torch.equal(bank.rows_, again.rows_)
    assert torch.equal(bank.images_, again.images_)
    both = np.concatenate([rows, new])
    assert _reach(both, bank) <= bank.radius_ == again.radius_
    assert max(bank.images_.tolist()) >= 100
    assert bank.certificate_ is not None
    best = farthest_first(torch.from_numpy(both), 25, 0)[1]
    assert best >= bank.radius_ / bank.certificate_
    assert free.certificate_ is None
    assert _reach(both, free) <= free.radius_ * (1 + ROUNDING)
    assert free.verify(both).certificate is None
    enough = extended(len(free))
    assert torch.equal(enough.rows_, free.rows_)
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        bank.extend(max_rows=0)


def test_a_reduced_bank_is_searched_and_saved_like_others() -> None:
    bank = _fitted(_rows(300), 20, coreset_size=30, projection_dim=None)
    bank.extend(_rows(50, seed=2) * 5, 99, max_rows=12)
    again = MemoryBank.from_state(bank.parameters(), bank.state())
    assert torch.equal(again.search(bank.rows_)[1][:, 0], torch.arange(12))
    assert (again.radius_, again.certificate_) == (bank.radius_, bank.certificate_)
    assert again.verify(_rows(300)) == bank.verify(_rows(300))
    for one in (again, bank):
        one.extend(_rows(50, seed=3) * 9)
    assert torch.equal(again.rows_, bank.rows_)


def test_extending_goes_by_the_distance_of_the_last_selection() -> None:
    bank = _groups_of(_rows(900), 100, 20)
    assert not np.isclose(bank._reach, bank.radius_)
    beyond = bank.rows_[:1] + torch.eye(1, 8) * 50
    bank.extend(beyond)
    assert len(bank) == 21
    rows = bank.rows_.clone()
    bank.extend(beyond + torch.eye(1, 8) * bank._reach * 0.99)
    assert torch.equal(bank.rows_, rows)
    bank.extend(beyond + torch.eye(1, 8) * bank._reach * 1.01)
    assert len(bank) == 22


def test_rows_of_an_extension_that_will_not_fit_are_taken_by_groups_at_once() -> None:
    rows, new = _rows(400), _rows(600, seed=1) + 2
    options: dict[str, Any] = {"memory_budget": 500 * 64, "projection_dim": None}
    banks = [_fitted(rows, 50, coreset_size=20, **options) for _ in range(2)]
    banks[0].expect(len(new), 8)
    most = [0, 0]
    for image, part in enumerate(np.array_split(new, 30)):
        for number, bank in enumerate(banks):
            bank.add(part, image)
            most[number] = max(most[number], bank._intake.buffer.num_rows)
    assert most == [120, 500]
    for bank in banks:
        assert _reach(np.concatenate([rows, new]), bank.extend()) <= bank.radius_ * (1 + ROUNDING)


def test_an_extension_by_rows_at_the_radius_keeps_the_bound() -> None:
    """Rows enter beyond the radius and a little, so that the bound is a little above it."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(200, 3)).astype(np.float32)
        bank = _fitted(rows, 20, coreset_size=10, projection_dim=None)
        way = rng.normal(size=(2000, 3))
        way *= bank._reach * (1 + 1.5e-6) / np.linalg.norm(way, axis=1, keepdims=True)
        bank.extend((bank.rows_[0].numpy() + way).astype(np.float32))
        assert _reach(bank.rows_.numpy()[:1] + way, bank) <= bank.radius_


def test_the_certificate_grows_with_the_radius() -> None:
    rows = _rows(600)
    bank = _fitted(rows, 20, coreset_size=20, projection_dim=None)
    radius, factor = bank.radius_, bank.certificate_
    assert factor is not None
    bank.extend(rows[:10], noise_floor=2 * radius)
    assert bank.certificate_ is not None
    assert bank.radius_ / bank.certificate_ == pytest.approx(radius / factor)


def test_rows_that_wait_are_not_lost_by_a_move() -> None:
    bank = _fitted(_rows(100), 20, coreset_size=20)
    bank.add(_rows(30, seed=1) * 10)
    with pytest.raises(ValueError, match="30 rows were added: call extend before to"):
        bank.to("cpu")
    assert len(bank.extend().to("cpu")) > 20


@pytest.mark.parametrize(("budget", "scale"), [(10**9, 3e18), (10**9, 1e19), (_budget(100, 20, 16), 1e19)])
def test_distances_beyond_float32_are_refused(budget: int, scale: float) -> None:
    with pytest.raises(ValueError, match="embeddings lie so far from each other"):
        _fitted(
            _rows(600, 16) * np.float32(scale), 20, coreset_size=20, memory_budget=budget, projection_dim=None
        )


# Half precision


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_of_rounded_rows_is_a_bound(seed: int) -> None:
    """Also where rounding in the projection is not small beside the radius."""
    rows = _rows(60, 13, seed) * np.float32(1e-3) + 1000
    bank = _fitted(rows, 20, coreset_size=40, projection_dim=1)
    state = bank.state().for_half()
    halves = replace(state, rows=state.rows.half().float())
    again = MemoryBank.from_state(bank.parameters(), halves)
    assert again.verify(rows).radius <= again.radius_


def test_a_bank_of_all_rows_is_not_the_best_once_it_is_rounded() -> None:
    state = _fitted(_rows(50), 10, coreset_size=50).state()
    assert state.certificate == 1.0
    rounded = state.for_half()
    assert rounded.radius > 0
    assert rounded.certificate is None
    exact = replace(state, rows=state.rows.half().float())
    assert exact.for_half() == exact


# Measuring


def test_verify_refuses_what_add_refuses() -> None:
    for dims in (None, 4):
        bank = _fitted(_rows(100), 20, coreset_size=10, projection_dim=dims)
        assert bank.verify([_rows(9), _rows(9)[:0]]) == bank.verify(_rows(9))
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="embeddings must be finite"):
                bank.verify(np.full((3, 8), value, np.float32))


def test_verify_gives_the_distances_of_all_rows() -> None:
    rows, new = _rows(500, 20), _rows(777, 20, seed=4)
    bank = _fitted(rows, 50, coreset_size=40, projection_dim=6)
    found = bank.verify(np.array_split(new, 9))
    assert bank.projection_ is not None
    short = (new @ bank.projection_.numpy().T, bank.rows_.numpy() @ bank.projection_.numpy().T)
    expected = np.sort(np.sqrt(((short[0][:, None] - short[1]) ** 2).sum(2)).min(1))
    assert found.radius == pytest.approx(expected[-1], rel=1e-4)
    for share, distance in found.quantiles.items():
        assert distance == pytest.approx(expected[int(np.ceil(share * 777)) - 1], rel=1e-3)
    assert found.num_rows == 777
    assert bank.verify(new) == found
    own = bank.verify(bank.rows_)
    assert own.quantiles == dict.fromkeys(found.quantiles, 0.0)
    with pytest.raises(ValueError, match="no rows to measure"):
        bank.verify([])
    with pytest.raises(ValueError, match="embeddings must have 20 columns"):
        bank.verify(_rows(3, 4))


def test_the_certificate_of_a_second_pass_is_the_better_one() -> None:
    rows = _rows(900)
    bank = _groups_of(rows, 100, 20)
    found = bank.verify(rows)
    assert bank.certificate_ is not None
    assert found.certificate is not None
    assert found.certificate < bank.certificate_
    assert found.certificate / bank.certificate_ == pytest.approx(found.radius / bank.radius_)
