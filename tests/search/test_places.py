"""Searches near a query's place, by the core and by torch, and how far they must look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.places import by_brute_force, make_case

from ensemblead.memory.places import Blocks, PlaceCounts, grid_places
from ensemblead.search import products
from ensemblead.search.exact import ExactIndex
from ensemblead.search.neighbors import Excluded, Nearby


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("by", ["sketches", "products", "tiles"])
@pytest.mark.parametrize("k", [1, 4])
def test_all_ways_find_the_same(
    torch_device: str, by: str, leave_out: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_QUERY_TILE", 50)
    monkeypatch.setattr(products, "_ROW_TILE", 128)
    if by == "tiles":
        monkeypatch.setattr(products.ProductSearch, "_ordered", products.ProductSearch._by_tiles)
    case = make_case(900, (9, 7), images=2, radius=None, leave_out=leave_out)
    expected, order = by_brute_force(case, k)
    where = torch.from_numpy
    excluded = None
    if leave_out:
        own = where(case.images["row_images"]).to(torch_device)
        excluded = Excluded.of(own, case.images["query_images"])
    near = Nearby(
        *(
            where(case.places[name]).to(torch_device)
            for name in ("row_places", "query_places", "query_radii")
        ),
        excluded,
    )
    index = ExactIndex(where(case.rows).to(torch_device))
    if by != "sketches":
        index._sketched = None
    elif torch_device == "cpu":
        assert index._sketched is not None
    distances, found = index.search(where(case.queries).to(torch_device), k, near)
    full = np.isfinite(expected).all(1)  # of all others a bank widens the radius
    assert full.mean() > 0.8
    np.testing.assert_array_equal(found.cpu().numpy()[full], order[full])
    np.testing.assert_allclose(distances.cpu().numpy()[full], expected[full], rtol=1e-5)


@pytest.mark.parametrize("least", [0, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_the_least_radius_that_holds_enough(k: int, least: int) -> None:
    rng = np.random.default_rng(k)
    places = rng.integers(0, 9, size=(14, 2))
    owners = rng.integers(3, size=14)
    queries = grid_places(1, 11, 5)
    apart = np.abs(queries[:, None] - places).max(2)
    counts = PlaceCounts(places)
    expected = np.maximum(np.sort(apart, axis=1)[:, k - 1], least)
    np.testing.assert_array_equal(counts.radii(queries, least, k, owners, None), expected)
    away = np.where(owners == 1, 99, apart)
    expected = np.maximum(np.sort(away, axis=1)[:, k - 1], least)
    np.testing.assert_array_equal(counts.radii(queries, least, k, owners, np.array(1)), expected)


def test_radii_of_any_places_are_kept_for_the_cells_of_the_rows_alone() -> None:
    places = grid_places(1, 6, 5)
    counts, owners = PlaceCounts(places), np.zeros(30, dtype=np.int64)
    for own in (places[:0], places[:1], places[7:19], places):
        np.testing.assert_array_equal(counts.radii(own, 0, 1, owners, None), np.zeros(len(own)))
    far = np.array([[4095, 4095], [2, 2], [0, 9]])
    np.testing.assert_array_equal(counts.radii(far, 0, 1, owners, None), [4091, 0, 5])
    assert [known.shape for known in counts._maps.values()] == [(6, 5)]


@pytest.mark.parametrize("side", [1, 3, 4096])
def test_squares_lie_apart_by_twice_the_scale(side: int) -> None:
    blocks = Blocks(side)
    blocks.fit_scale(torch.full((5, 4), 0.6))  # of norm 1.2
    assert blocks.scale == 2.0
    places = torch.from_numpy(np.random.default_rng(0).integers(0, 4096, size=(40, 2)))
    coordinates = blocks.coordinates(places)
    apart = torch.cdist(coordinates, coordinates)
    same = ((places[:, None] // side) == (places // side)).all(2)
    assert float(apart[same].max()) == 0
    if not same.all():
        assert float(apart[~same].min()) >= 4.0
