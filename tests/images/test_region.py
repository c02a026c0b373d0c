"""Regions of interest: what they may be given as, where they lie in frames, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from ensemblead.images import Geometry, Region
from ensemblead.kernels.filling import cells_inside, nearest_inside

MASK = np.zeros((20, 30), dtype=bool)
MASK[4:16, 6:20] = True
MASK[8:10, 10:12] = False


def of(given: Any) -> Region:
    region = Region.of(given)
    assert region is not None
    return region


def drawn(polygons: Any, size: tuple[int, int] = (8, 8)) -> Any:
    return of(polygons).sized(size).mask


# What it is given as


def test_a_mask_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(MASK.astype(np.uint8) * 255).save(path)
    region = of(path)
    path.unlink()
    assert np.array_equal(region.mask, MASK)
    assert region == of(MASK) == of(MASK.astype(np.uint8) * 3)
    assert hash(region) == hash(of(MASK))
    assert region != of(~MASK)
    assert Region.of(None) is None
    assert Region.of(region) is region


@pytest.mark.parametrize("mask", [MASK, ~MASK, np.ones((3, 2), bool), np.eye(5, dtype=bool)])
def test_plain_form_of_a_mask(mask: Any) -> None:
    plain = json.loads(json.dumps(of(mask).plain()))
    assert sum(plain["counts"]) == mask.size
    # COCO counts down the columns, zeros first.
    assert np.array_equal(
        np.repeat(np.arange(len(plain["counts"])) % 2 == 1, plain["counts"]).reshape(mask.T.shape).T, mask
    )
    assert of(plain) == of(mask)


def test_plain_form_of_polygons() -> None:
    region = of([np.array([[0, 0], [4, 0], [4, 4.5]]), [(1, 1), (2, 1), (2, 2)]])
    assert of(json.loads(json.dumps(region.plain()))) == region
    assert region.size is None


def test_repr_is_short() -> None:
    assert repr(of(MASK)) == "Region(27% of 20 x 30)"
    assert repr(of([[(0, 0), (1, 0), (1, 1)]])) == "Region(1 polygon)"


# Polygons


def test_polygons_take_pixels_by_their_centres() -> None:
    square = drawn([[(1, 2), (5, 2), (5, 6), (1, 6)]])
    assert square[2:6, 1:5].all()
    assert square.sum() == 16
    assert drawn([[(1.4, 0), (1.6, 0), (1.6, 8), (1.4, 8)]])[:, 1].all()
    # Two that overlap, and one whose edges cross.
    both = drawn([[(0, 0), (4, 0), (4, 4), (0, 4)], [(2, 2), (6, 2), (6, 6), (2, 6)]])
    assert both.sum() == 16 + 16 - 4
    bow = drawn([[(0, 0), (8, 8), (8, 0), (0, 8)]])
    assert bow[:, :2].any()
    assert not bow[0, 3:5].any()


def test_a_polygon_is_what_a_loop_over_pixels_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(0, 12, (5, 2))
        expected = np.zeros((12, 12), bool)
        for y, x in np.ndindex(12, 12):
            crossed = False
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
                if (y + 0.5 >= y0) != (y + 0.5 >= y1):
                    crossed ^= x0 + (y + 0.5 - y0) / (y1 - y0) * (x1 - x0) <= x + 0.5
            expected[y, x] = crossed
        if expected.any():
            assert np.array_equal(drawn([points.tolist()], (12, 12)), expected)


# Fills and grids


def test_nearest_inside_is_the_nearest_of_the_row() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((9, 11)) < 0.2
    mask[[2, 3, 8]] = False
    rows = np.flatnonzero(mask.any(1))
    found = nearest_inside(mask)
    for y, x in np.ndindex(mask.shape):
        row = rows[np.argmin(np.abs(rows - y))]
        columns = np.flatnonzero(mask[row])
        assert found[y, x] == row * 11 + columns[np.argmin(np.abs(columns - x))]
    with pytest.raises(ValueError, match="a pixel inside, got none"):
        nearest_inside(np.zeros((2, 2), bool))


@pytest.mark.parametrize("grid", [(20, 30), (5, 6), (3, 7), (1, 1), (40, 31)])
def test_a_cell_counts_where_any_of_its_pixels_does(grid: tuple[int, int]) -> None:
    found = cells_inside(MASK, grid)
    for i, j in np.ndindex(grid):
        rows = slice(i * 20 // grid[0], -(-(i + 1) * 20 // grid[0]))
        columns = slice(j * 30 // grid[1], -(-(j + 1) * 30 // grid[1]))
        assert found[i, j] == MASK[rows, columns].any()


def test_geometry_fills_before_it_resizes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    other = image.copy()
    other[~MASK] = 255 - other[~MASK]
    geometry = Geometry((10, 15), (8, 12), region=of(MASK))
    assert np.array_equal(geometry.apply(image), geometry.apply(other))
    filled = image.reshape(-1, 3)[nearest_inside(MASK)]
    assert np.array_equal(geometry.apply(image), Geometry((10, 15), (8, 12)).apply(filled))
    assert np.array_equal(geometry.inside(), geometry.apply_mask(MASK))
    assert geometry.share(20, 30) == MASK[2:18, 3:27].sum() / MASK.size
    inside = np.array(image)
    inside[6, 8] ^= 255
    assert not np.array_equal(geometry.apply(image), geometry.apply(inside))
    assert np.array_equal(of(MASK).shaded(image)[MASK], image[MASK])
    assert not np.array_equal(of(MASK).shaded(image), image)


def test_polygons_wait_for_photographs() -> None:
    geometry = Geometry("auto", region=of([[(0, 0), (50, 0), (50, 100), (0, 100)]]), crop=None)
    assert not geometry.is_decided
    decided = geometry.decided([(100, 100), (100, 100)])
    assert decided == Geometry((256, 256), None, region=of(np.arange(100)[None] < np.full((100, 1), 50)))
    assert not Geometry(64, 64, region=geometry.region).is_decided
    with pytest.raises(ValueError, match=r"for photographs of 100 x 100 pixels .* got one of 100 x 90"):
        geometry.decided([(100, 100), (100, 90)])


# Bad input


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.zeros((4, 4), bool), ValueError, "no pixel inside: all of the 4 x 4 are 0"),
        (np.zeros((0, 4), bool), ValueError, "no pixel inside"),
        (np.ones((4, 4), np.float32), TypeError, "must be bool or uint8 as an array, got float32"),
        (np.ones((4, 4), np.int64), TypeError, "got int64"),
        (np.ones((4, 4, 3), np.uint8), ValueError, r"must be \[H, W\] as an array, got shape \(4, 4, 3\)"),
        (7, TypeError, "must be the path of a mask, .* got int"),
        ("", ValueError, "must not be an empty path"),
        ([], ValueError, "a polygon at least"),
        ([(0, 0), (1, 0), (1, 1)], ValueError, r"write \[polygon\] for one alone"),
        ([[(0, 0), (1, 0)]], ValueError, "polygon 0 must be 3 points .* shape"),
        ([[(0, 0), (1, 0), (1, 1)], [(0, 0, 0)] * 3], ValueError, r"polygon 1 must be 3 points"),
        ([[(0, 0), (1, float("nan")), (1, 1)]], ValueError, "finite coordinates, got NaN"),
        ([[(0, 0), (float("inf"), 1), (1, 1)]], ValueError, "finite coordinates"),
        ([[(0, 0), (-2, 0), (1, 1)]], ValueError, "reaches beyond the photograph, to -2"),
        ([[(0, 0), (1,), (1, 1)]], ValueError, "polygon 0 must be a list of points"),
        (["mask.png"], TypeError, "polygon 0 must be a list of points, got str"),
        ({"size": [2, 2]}, ValueError, "must have size and counts"),
        ({"size": [2, 2], "counts": [1, 2]}, ValueError, "must add up to the pixels of size, got 3"),
        ({"size": [2, 2], "counts": [-1, 5]}, ValueError, "counts must be a list of whole numbers"),
        ({"size": [2, 2], "counts": [4]}, ValueError, "no pixel inside"),
    ],
)
def test_what_no_region_is_made_of(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Region.of(given)


def test_a_file_that_is_not_there_or_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        Region.of(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        Region.of(tmp_path / "text.png")


def test_polygons_that_do_not_fit_photographs() -> None:
    with pytest.raises(ValueError, match="polygon 0 reaches beyond the photograph of 8 x 8"):
        drawn([[(0, 0), (9, 0), (9, 9)]])
    with pytest.raises(ValueError, match="too thin for 8 x 8"):
        drawn([[(1.1, 0), (1.2, 0), (1.2, 8)]])
    with pytest.raises(ValueError, match="no pixels before"):
        _ = of([[(0, 0), (9, 0), (9, 9)]]).mask


def test_a_crop_that_leaves_nothing() -> None:
    mask = np.zeros((32, 32), bool)
    mask[:4] = True
    geometry = Geometry(32, 16, region=of(mask))
    with pytest.raises(ValueError, match=r"nothing of it is left after resize=32 and image_size=\(16, 16\)"):
        geometry.apply(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize("resize", [16, (23, 40), 96, None])
@pytest.mark.parametrize("crop", [None, 12])
def test_no_pixel_inside_is_lost_where_images_are_resized(resize: Any, crop: int | None) -> None:
    mask = np.zeros((64, 64), bool)
    mask[32, 5:60], mask[:, 31] = True, True  # a pixel thin
    frame = Geometry(resize, crop, region=Region.of(mask))
    found = frame.inside()
    assert found is not None
    assert found.shape == frame.output_size(64, 64)
    top, left, bottom, right = frame.crop_box(64, 64)
    height, width = (bottom - top) / found.shape[0], (right - left) / found.shape[1]
    for row, column in np.argwhere(mask):
        y, x = int((row + 0.5 - top) // height), int((column + 0.5 - left) // width)
        if 0 <= y < found.shape[0] and 0 <= x < found.shape[1]:
            assert found[y, x]
    assert not found.all()
