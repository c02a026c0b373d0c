"""A bank that keeps all rows: without repeats, and without a selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensemblead.memory import MemoryBank


def rows(count: int, seed: int = 0, dims: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)


@pytest.fixture(autouse=True)
def without_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither picks one by one, nor distances between all rows."""

    def refused(*_: Any, **__: Any) -> None:
        pytest.fail("this takes time by the square of the rows")

    monkeypatch.setattr("ensemblead.memory.selection.select", refused)
    monkeypatch.setattr("ensemblead.memory.selection._nearest", refused)


@pytest.mark.parametrize("options", [{"coreset_fraction": 1.0}, {"coreset_size": 60}, {"coreset_size": 999}])
@pytest.mark.parametrize("projection_dim", [8, None])
def test_all_are_kept_whatever_the_order(options: dict[str, Any], projection_dim: int | None) -> None:
    images = {4: rows(25), 7: rows(35, 1)}
    told: list[tuple[int, int]] = []
    banks = []
    for order in ((4, 7), (7, 4)):
        bank = MemoryBank(**options, projection_dim=projection_dim)
        for image in order:
            bank.add(images[image], image)
        banks.append(bank.fit(noise_floor=1e-3, progress=lambda *call: told.append(call)))
        for image, own in images.items():
            kept = bank.rows_[bank.images_ == image].tolist()
            assert sorted(kept) == sorted(own.tolist())
        assert (bank.radius_, bank.certificate_, len(bank)) == (1e-3, 1.0, 60)
    assert torch.equal(banks[0].rows_, banks[1].rows_)
    assert torch.equal(banks[0].images_, banks[1].images_)
    assert told[-1][0] == told[-1][1]


def test_repeats_enter_once_and_belong_to_all_of_their_images() -> None:
    own = rows(6)
    own[4] = -0.0
    bank = MemoryBank(1.0)
    bank.add(np.concatenate([own, own[:2]]), 0)
    bank.add(np.concatenate([rows(2, 1), own[3:5] + 0.0]), 1)
    bank.fit(noise_floor=1e-6)
    expected = dict(
        zip(map(tuple, np.concatenate([own, rows(2, 1)]) + 0.0), [0, 0, 0, -1, -1, 0, 1, 1], strict=True)
    )
    assert dict(zip(map(tuple, bank.rows_.numpy() + 0.0), bank.images_.tolist(), strict=True)) == expected
    assert bank.radius_ == 1e-6
    # What several images have is found whichever of them is left out.
    distances, _ = bank.search(own[3:4], 1, exclude_image=0)
    assert float(distances[0, 0]) == 0.0


def test_places_count() -> None:
    same = np.repeat(rows(1), 4, axis=0)
    # Of equal rows in one square of position_radius + 1 cells one stays.
    places = np.array([[0, 0], [0, 1], [4, 4], [0, 0]])
    bank = MemoryBank(1.0, position_radius=1)
    bank.add(same, 0, places=places)
    assert len(bank.fit()) == 2


def test_half_precision_and_saving() -> None:
    bank = MemoryBank(1.0, dtype="float16")
    bank.add(rows(10), 0)
    bank.fit()
    assert sorted(bank.rows_.tolist()) == sorted(torch.from_numpy(rows(10)).half().tolist())
    bank.augment_ = ("rotations",)
    again = MemoryBank.from_state(bank.parameters(), bank.state())
    assert again.augment_ == again.copy().augment_ == ("rotations",)


def test_a_state_with_wrong_names_of_changes_is_refused() -> None:
    bank = MemoryBank(1.0)
    bank.add(rows(3), 0)
    state = bank.fit().state()
    with pytest.raises(TypeError, match=r"augment must be names, got \(1,\)"):
        type(state)(**{**vars(state), "augment": (1,)})
