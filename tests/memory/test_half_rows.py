"""Bank rows in half precision: half the memory, distances exact for the rounded rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.memory import BankState, MemoryBank
from ensemblead.memory.projection import project_chunks
from ensemblead.search.exact import ExactIndex


def _rows(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Rows whose variance lies along few directions, so that the core's search is taken."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(4, dims, generator=generator)
    rows = torch.randn(count, 4, generator=generator) @ basis
    return rows + 0.05 * torch.randn(count, dims, generator=generator)


def _by_hand(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    squared = (queries.double()[:, None] - rows.double()[None]).square().sum(2)
    values, order = squared.sort(dim=1, stable=True)
    return values[:, :k], order[:, :k]


@pytest.mark.parametrize(("dims", "directions"), [(256, 32), (37, 8)])
@pytest.mark.parametrize("k", [1, 3])
def test_the_search_of_half_rows_is_that_of_the_same_values(dims: int, directions: int, k: int) -> None:
    halves = _rows(1500, dims).half()
    halves[7] = halves[900]  # equal rows: the lower one is found
    halves[11, :3] = torch.tensor([6e-8, -3e-6, 0.0])  # subnormal in float16
    queries = torch.cat([_rows(40, dims, 1), halves[[11, 900]].float(), 3 * torch.randn(8, dims)])
    here, there = ExactIndex(halves), ExactIndex(halves.float())
    assert here._sketched is not None
    assert here._sketched.num_directions == directions
    distances, found = here.search(queries, k, None)
    expected = there.search(queries, k, None)
    assert torch.equal(distances, expected[0])
    assert torch.equal(found, expected[1])
    exact, _ = _by_hand(queries, halves, k)
    torch.testing.assert_close(distances.double(), exact, rtol=1e-5, atol=1e-6)
    assert distances[40, 0] == distances[41, 0] == 0
    assert found[41, 0] == 7


def test_far_rows_in_half_are_refused_by_name() -> None:
    halves = torch.cat([_rows(1500, 256).half()])
    queries = torch.full((1, 256), 3e38)
    with pytest.raises(ValueError, match=r"beyond float32"):
        ExactIndex(halves).search(queries, 1, None)


def test_a_bank_of_half_rows() -> None:
    rows = _rows(400, 20)
    whole, half = MemoryBank(0.2), MemoryBank(0.2, dtype="float16")
    for bank in (whole, half):
        bank.add(rows[:200], 0)
        bank.add(rows[200:], 1)
        bank.fit()
    assert half.rows_.dtype == torch.float16
    assert torch.equal(half.rows_, whole.rows_.half())
    assert whole.radius_ < half.radius_ < whole.radius_ * 1.01
    queries = rows.numpy()
    distances, found = half.search(queries, exclude_image=[0] * 200 + [1] * 200)
    others = [half.images_ != image for image in (0, 1)]
    for i in (0, 399):
        which = others[0 if i < 200 else 1].nonzero()[:, 0]
        exact, places = _by_hand(rows[i : i + 1], half.rows_[which], 1)
        assert found[i, 0] == which[places[0, 0]]
        assert distances[i, 0] == pytest.approx(float(exact[0, 0]), rel=1e-5)
    assert half.verify(rows).radius <= half.radius_ * (1 + 1e-5)
    half.extend(_rows(50, 20, 3) * 3, 2)
    assert half.rows_.dtype == torch.float16
    assert torch.equal(half.rows_[:80], whole.rows_.half())
    again = MemoryBank.from_state(half.parameters(), half.state())
    assert torch.equal(again.rows_, half.rows_)
    assert half.extend(_rows(9, 20, 4), 3, max_rows=30).rows_.shape == (30, 20)


def test_rows_that_are_known_but_for_rounding_do_not_enter_again() -> None:
    rows = _rows(50, 200)
    half, whole = MemoryBank(1.0, dtype="float16"), MemoryBank(1.0)
    for bank in (half, whole):
        bank.add(rows, 0)
        bank.fit()
    saved = whole.state().for_half()
    again = MemoryBank.from_state(whole.parameters(), replace(saved, rows=saved.rows.half().float()))
    for bank in (half, again):
        assert len(bank.extend(rows, 1)) == 50
        assert len(bank.extend(rows[:1] + 1, 2)) == 51


def test_half_rows_are_widened_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def project(rows: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        counts.append(len(rows))
        return rows @ projection.T

    monkeypatch.setattr("ensemblead.memory.projection.project", project)
    halves = torch.zeros(9000, 8, dtype=torch.float16)
    short = project_chunks([halves, halves[:5].float()], torch.ones(2, 8), halves.device)
    assert (short.shape, counts) == ((9005, 2), [4096, 4096, 808, 5])


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"banks": "per_layer", "position_radius": 1}])
def test_a_detector_with_half_rows(tmp_path: Path, options: dict[str, Any]) -> None:
    common = {**NATIVE, "coreset_fraction": 0.05, "device": "cpu", **options}
    train, probe = normal_images(4), with_defects(normal_images(2, 1))[0]
    whole = ead.PatchCore(TinyNet(), ("first", "second"), **common).fit(train)
    half = ead.PatchCore(TinyNet(), ("first", "second"), bank_dtype="float16", **common).fit(train)
    np.testing.assert_allclose(
        half.predict(probe).anomaly_score, whole.predict(probe).anomaly_score, rtol=5e-3
    )
    sizes = []
    for made, name in ((whole, "whole"), (half, "half"), (half, "again")):
        made.save(tmp_path / name, half=name == "again")
        sizes.append((tmp_path / name / "learned.safetensors").stat().st_size)
    values = sum(bank.rows_.numel() for bank in half.memory_banks_)
    assert sizes[0] - sizes[1] == pytest.approx(2 * values, abs=100)
    assert sizes[2] == sizes[1]
    loaded = ead.load(tmp_path / "half", backbone=TinyNet())
    assert all(bank.rows_.dtype == torch.float16 for bank in loaded.memory_banks_)
    np.testing.assert_array_equal(loaded.predict(probe).anomaly_map, half.predict(probe).anomaly_map)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, got 'bfloat16'"):
        MemoryBank(dtype="bfloat16")
    with pytest.raises(
        ValueError, match=r'dtype="float16" \(bank_dtype of a detector\) needs index="flat", got \'ivf\''
    ):
        MemoryBank(dtype="float16", index="ivf")
    with pytest.raises(ValueError, match="bank_dtype must be one of float32, float16, got 16"):
        ead.PatchCore(TinyNet(), ("first",), bank_dtype=16)  # type: ignore[arg-type]
    far = MemoryBank(1.0, dtype="float16")
    far.add(torch.tensor([[1.0, 2.0], [1e5, 0.0]]))
    with pytest.raises(
        ValueError,
        match=r"bank_dtype of a detector\): float16 has values up to 65504, the bank's go up to 100000",
    ):
        far.fit()
    assert not far.is_fitted
    near = MemoryBank(1.0, dtype="float16")
    near.add(torch.tensor([[1.0, 2.0], [65519.0, 0.0]]))  # which is rounded to 65504
    near.fit()
    with pytest.raises(ValueError, match="65504, the bank's go up to 65520"):
        near.extend(torch.tensor([[0.0, -65520.0]]))
    assert near.rows_.tolist() == [[1.0, 2.0], [65504.0, 0.0]]
    assert near.rows_.dtype == torch.float16
    state = BankState(torch.ones(1, 2, dtype=torch.float16), torch.zeros(1, dtype=torch.int64), None, 0.0, 1)
    with pytest.raises(ValueError, match=r"dtype='float32' does not go with rows of torch\.float16"):
        MemoryBank.from_state(MemoryBank(0.5).parameters(), state)
    with pytest.raises(TypeError, match="rows must be float32, got torch.float64"):
        BankState(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), None, 0.0, 1)
