"""Principal directions of a bank, and the search that goes by them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblead.search import exact as exact_module  # noqa: E402
from ensemblead.search.directions import principal_directions  # noqa: E402
from ensemblead.search.exact import ExactIndex  # noqa: E402
from ensemblead.search.neighbors import Excluded  # noqa: E402


def _decaying(rows: int, dims: int, seed: int = 0, power: float = 1.0) -> torch.Tensor:
    """Variance falls with a power of the direction's number, as in a trained network's features."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(dims, dims)))[0]
    scales = np.arange(1, dims + 1) ** -power
    return torch.from_numpy(((rng.normal(size=(rows, dims)) * scales) @ turn + 3.0).astype(np.float32))


def test_directions_carry_what_the_best_ones_do() -> None:
    rows = _decaying(3000, 256)
    found = principal_directions(rows)
    assert found is not None
    middle, axes = found
    assert axes.shape == (32, 256)  # as many as leave less than a twenty-fifth
    torch.testing.assert_close(axes.double() @ axes.double().T, torch.eye(32).double(), atol=1e-6, rtol=0)
    centred = (rows - middle).double()
    carried = (centred @ axes.double().T).square().sum(0)
    best = torch.linalg.svdvals(centred).square()
    assert float(carried.sum()) > 0.96 * float(best.sum())
    assert float(carried.sum()) > 0.99 * float(best[:32].sum())
    assert bool((carried[:-1] > 0.8 * carried[1:]).all())  # the first ones first


def test_the_same_rows_give_the_same_directions() -> None:
    rows = _decaying(1500, 256)
    state = torch.get_rng_state()
    one, other = principal_directions(rows), principal_directions(rows.clone())
    assert one is not None
    assert other is not None
    assert torch.equal(one[1], other[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("rows", "directions"),
    [
        (_decaying(40, 256), 8),  # few rows
        (_decaying(3, 256), 3),
        (_decaying(3000, 40), 8),  # few dimensions
        (_decaying(3000, 5), 5),
        (_decaying(3000, 256, power=0.0), 8),  # noise
        (_decaying(6000, 384, power=0.0), 8),  # half of all directions carry .74 of a sample's variance
        (torch.ones(500, 256), None),  # nothing varies
        (_decaying(3000, 256) * 1e17, None),  # squares near the end of float32
        (_decaying(3000, 256) * 1e-24, None),  # and beyond
        (torch.arange(2 * 131073, dtype=torch.float32).reshape(2, 131073), None),
    ],
    ids=["few", "three", "few dims", "five dims", "noise", "more noise", "constant", "huge", "tiny", "long"],
)
def test_rows_for_which_sketches_gain_nothing(rows: torch.Tensor, directions: int | None) -> None:
    found = principal_directions(rows)
    assert (None if found is None else len(found[1])) == directions
    index = ExactIndex(rows)
    assert index.search(rows[:2], 1, None)[1][:, 0].tolist() in ([0, 1], [0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("leave_out", ["none", "one image", "own"])
def test_pruned_or_not_the_same_is_found(k: int, leave_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = _decaying(1200, 256), _decaying(300, 256, seed=1)
    images = torch.arange(1200) % 5
    excluded = {
        "none": None,
        "one image": Excluded.of(images, np.array(2)),
        "own": Excluded.of(images, np.arange(300) % 6),
    }[leave_out]
    calls: list[int] = []
    real = exact_module.nearest_rows
    monkeypatch.setattr(
        exact_module, "nearest_rows", lambda q, s, k, **kw: (calls.append(k), real(q, s, k, **kw))[1]
    )
    distances, found = ExactIndex(rows).search(queries, k, excluded)
    assert calls == ([k] if k < 40 else [])
    monkeypatch.setattr(exact_module, "principal_directions", lambda rows: None)
    expected = ExactIndex(rows).search(queries, k, excluded)
    torch.testing.assert_close(distances, expected[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found, expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 40])
def test_a_default_device_changes_nothing(k: int) -> None:
    rows = _decaying(1200, 256)
    expected = ExactIndex(rows).search(rows[:5], k, None)[1]
    with torch.device("meta"):
        found = ExactIndex(rows).search(rows[:5], k, None)[1]
    assert torch.equal(found, expected)


def test_queries_that_are_slices() -> None:
    rows, queries = _decaying(1200, 256), _decaying(300, 256, seed=1)
    index = ExactIndex(rows)
    every_other = index.search(queries[::2], 1, None)
    assert torch.equal(every_other[1], index.search(queries, 1, None)[1][::2])
