"""Cells that are inspected image by image: the same as a region's, for each image alone."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ensemblead.kernels.filling import nearest_inside
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import render_inside
from ensemblead.kernels.object_cells import ObjectCells, between, dilated, reached


def _cells(text: str) -> torch.Tensor:
    return torch.tensor([[mark == "#" for mark in row] for row in text.split()])[None]


@pytest.fixture(scope="module")
def cells() -> torch.Tensor:
    masks = torch.from_numpy(np.random.default_rng(0).random((6, 7, 9)) < 0.15)
    masks[0, :4] = False  # rows without any
    return masks


def test_each_image_is_rendered_as_with_its_cells_as_a_region(cells: torch.Tensor) -> None:
    """Maps of as many pixels as cells, where a region has the same cells."""
    grids = torch.rand(cells.shape, generator=torch.Generator().manual_seed(0))
    objects = ObjectCells(cells)
    largest, maps = render_inside(grids, (7, 9), objects, sigma=1.0)
    for i, mask in enumerate(cells.numpy()):
        expected = render_inside(grids[i : i + 1], (7, 9), Inside(mask), sigma=1.0)
        assert torch.allclose(largest[i], expected[0][0])
        assert torch.allclose(maps[i], expected[1][0])
        spread = grids[i].flatten()[torch.from_numpy(nearest_inside(mask).ravel())].view(7, 9)
        assert torch.equal(objects.spread(grids)[i], spread)
    assert objects.counts.tolist() == cells.sum((1, 2)).tolist()


def test_a_pixel_belongs_to_the_cell_of_its_centre() -> None:
    maps = ObjectCells(_cells("#.. ...")).blank(torch.ones(1, 4, 7))
    assert maps[0].int().tolist() == [[1, 1, 0, 0, 0, 0, 0]] * 2 + [[0] * 7] * 2


def test_an_image_without_cells_is_inspected_whole() -> None:
    assert ObjectCells(torch.zeros(1, 2, 3, dtype=torch.bool)).cells.all()


def test_on_another_grid_a_cell_counts_if_any_is_inspected_that_it_shares_ground_with() -> None:
    objects = ObjectCells(_cells("#... .... .... ...."))
    assert torch.equal(objects.on((2, 2)).cells, _cells("#. .."))
    assert torch.equal(objects.on((3, 3)).cells, _cells("#.. ... ..."))
    assert torch.equal(objects.on((8, 8)).cells[0, :3, :3], _cells("##. ##. ...")[0])


def test_what_lies_between_the_parts_is_filled_on_four_sides_alone() -> None:
    assert torch.equal(between(_cells(".#. #.# .#.")), _cells(".#. ### .#."))
    assert torch.equal(between(_cells("### #.# #.#")), _cells("### #.# #.#"))  # open below
    assert torch.equal(dilated(_cells("... .#. ... ...")), _cells("### ### ### ..."))


def test_pieces_that_nothing_leads_to_are_dropped_unless_all_are() -> None:
    pieces = _cells("#...# .#..# ....#")
    start = _cells("#.... ..... .....")
    assert torch.equal(reached(pieces, start), _cells("#.... .#... ....."))
    assert torch.equal(reached(pieces, ~pieces), pieces)
