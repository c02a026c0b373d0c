"""Connected regions, their outlines, and defects as objects against naive definitions."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy")
pytest.importorskip("PIL")

import ensemblead as ead
from ensemblead.common.objects import detected_regions, quiet_outside, regions_above
from ensemblead.common.regions import label_regions, outlines, signed_area
from ensemblead.images import Geometry, Region

Mask = npt.NDArray[np.bool_]


def components(mask: Mask) -> list[set[tuple[int, int]]]:
    """The 8-connected components of a mask by breadth-first search: sets of (row, column), by first pixel."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        component, waiting = {start}, deque([start])
        while waiting:
            row, column = waiting.popleft()
            for near in ((row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.discard(near)
                    component.add(near)
                    waiting.append(near)
        found.append(component)
    return found


def filled(rings: Any, rows: int, columns: int) -> Mask:
    """Polygons filled by the even-odd rule: pixels whose centres have an odd number of sides on their
    left.
    """
    inside = np.zeros((rows, columns), np.int64)
    y, x = np.mgrid[:rows, :columns] + 0.5
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = (min(y0, y1) <= y) & (y < max(y0, y1))
                inside += crosses & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x)
    return inside % 2 == 1


def random_masks() -> list[Mask]:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (7, 8), (12, 5)]
    return [
        rng.random(shape) < share for shape in shapes for share in (0.0, 0.2, 0.5, 0.7, 1.0) for _ in range(6)
    ]


class TestRegions:
    def test_labels_are_those_of_a_search(self) -> None:
        for mask in random_masks():
            labels, count = label_regions(mask)
            found = {frozenset(map(tuple, np.argwhere(labels == k).tolist())) for k in range(1, count + 1)}
            assert found == {frozenset(one) for one in components(mask)}

    def test_outlines_give_the_mask_back(self) -> None:
        for mask in random_masks():
            rings = outlines(mask)
            np.testing.assert_array_equal(filled(rings, *mask.shape), mask)
            assert sum(map(signed_area, rings)) == mask.sum()
            assert sum(signed_area(ring) > 0 for ring in rings) == len(components(mask))

    def test_outlines_have_corners_alone(self) -> None:
        (ring,) = outlines(np.ones((3, 5), np.bool_))
        assert ring.tolist() == [[0, 0], [5, 0], [5, 3], [0, 3]]
        for mask in random_masks():
            for ring in outlines(mask):
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps == 0).sum(axis=1) == 1).all()
                assert ((steps * np.roll(steps, -1, axis=0)).sum(axis=1) == 0).all()  # every corner is one

    def test_touching_corners_join_and_holes_stay(self) -> None:
        mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], np.bool_)
        rings = outlines(mask)
        assert sorted(map(signed_area, rings)) == [-1.0, 10.0]


def predictions(maps: Any, **more: Any) -> ead.Predictions:
    values = np.asarray(maps, np.float32)
    count = len(values)
    given: dict[str, Any] = {
        "sizes": [(60, 90)] * count,
        "geometry": Geometry((30, 30), None),
        **more,
    }
    return ead.Predictions(
        np.zeros(count, np.float32),
        values,
        np.zeros(count, np.bool_),
        [f"{i}.png" for i in range(count)],
        **given,
    )


class TestObjects:
    @pytest.mark.parametrize(
        ("resize", "crop", "size"),
        [
            ((20, 30), None, (50, 30)),
            (24, (20, 18), (48, 70)),
            (None, None, (11, 7)),
            ((32, 32), 16, (64, 32)),
        ],
    )
    def test_against_a_search(self, resize: Any, crop: Any, size: tuple[int, int]) -> None:
        frame = Geometry(resize, crop)
        top, left, bottom, right = frame.crop_box(*size)
        rng = np.random.default_rng(1)
        for share in (0.1, 0.4, 0.6):
            values = rng.random(frame.output_size(*size)).astype(np.float32)
            threshold = 1.0 - share
            high, wide = (bottom - top) / values.shape[0], (right - left) / values.shape[1]
            found = list(detected_regions(values, threshold, frame, size, path="a", index=3))
            expected = []
            for one in components(values > threshold):
                rows, columns = np.array(sorted(one)).T
                inside = values[rows, columns].astype(np.float64)
                box = (
                    *(left + columns.min() * wide, top + rows.min() * high),
                    *((np.ptp(columns) + 1) * wide, (np.ptp(rows) + 1) * high),
                )
                expected.append((inside.max(), inside.mean(), len(one) * wide * high, *box))
            expected.sort(key=lambda one: -one[0])
            got = [(one.maximum, one.mean, one.area, *one.box) for one in found]
            np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-12, atol=1e-12)
            assert {(one.index, one.path) for one in found} == {(3, "a")}
            rings = [ring for one in found for ring in (one.contour, *one.holes)]
            in_map = [(ring - (left, top)) / (wide, high) for ring in rings]
            np.testing.assert_array_equal(filled(in_map, *values.shape), values > threshold)

    def test_the_threshold_is_not_rounded_to_float32(self) -> None:
        value = np.float32(0.1)  # a little above 0.1
        assert len(regions_above(np.full((2, 2), value), 0.1)) == 1
        assert regions_above(np.full((2, 2), value), float(value)) == []

    def test_small_regions_are_left_out(self) -> None:
        maps = np.zeros((1, 30, 30))
        maps[0, 3, 4], maps[0, 10:14, 10:12] = 5.0, 4.0
        found = predictions(maps, pixel_threshold=1.0)
        assert [one.area for one in found.objects()] == [6.0, 48.0]  # a pixel of the map is 3 x 2
        assert [one.area for one in found.objects(min_area=6.0)] == [6.0, 48.0]
        assert [one.area for one in found.objects(min_area=6.1)] == [48.0]
        assert found.objects(threshold=5.0) == []
        assert found.objects()[0].box == (12.0, 6.0, 3.0, 2.0)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"threshold": float("nan")}, ValueError, "threshold must be finite, got nan"),
            ({"threshold": float("inf")}, ValueError, "threshold must be finite, got inf"),
            ({"threshold": "1"}, TypeError, "threshold must be a number"),
            ({"min_area": -1}, ValueError, "min_area must not be negative, got -1"),
            ({"min_area": float("nan")}, ValueError, "min_area must be finite"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            predictions(np.zeros((1, 30, 30)), pixel_threshold=1.0).objects(**arguments)

    def test_what_predictions_do_not_know(self) -> None:
        maps = np.zeros((1, 30, 30))
        with pytest.raises(ead.EnsembleADError, match="no pixel threshold is known.*call calibrate"):
            predictions(maps).objects()
        for name in ("sizes", "geometry"):
            with pytest.raises(ValueError, match=f"{name} is None"):
                predictions(maps, **{name: None}).objects(1.0)
        maps[0, 0, 0] = np.nan
        with pytest.raises(ValueError, match="anomaly_map must be finite"):
            predictions(maps).objects(1.0)

    def test_outside_of_the_region_there_is_nothing(self) -> None:
        """Maps are zero there, which of FastFlow is higher than all values inside."""
        inside = np.zeros((30, 30), np.bool_)
        inside[5:25, 5:25] = True
        frame = Geometry((30, 30), None, region=Region.of(inside))
        maps = np.where(inside, -0.9, 0.0)[None]
        maps[0, 10:12, 20:25] = -0.2
        (one,) = predictions(maps, sizes=[(30, 30)], geometry=frame, pixel_threshold=-0.5).objects()
        assert (one.box, one.maximum) == ((20.0, 10.0, 5.0, 2.0), pytest.approx(-0.2))
        shown = quiet_outside(maps[0], frame)
        assert (shown[~inside] == maps[0][inside].min()).all()
        np.testing.assert_array_equal(shown[inside], maps[0][inside])

    def test_parts_of_predictions_know_it_as_well(self) -> None:
        maps = np.zeros((3, 30, 30))
        maps[2, 5, 5] = 2.0
        whole = predictions(maps, pixel_threshold=1.0)
        (one,) = whole.take([2, 0]).objects()
        assert (one.index, one.path) == (0, "2.png")
        joined = ead.Predictions.concatenate([whole, whole])
        assert [found.index for found in joined.objects()] == [2, 5]
        other = predictions(maps, pixel_threshold=1.5)
        assert ead.Predictions.concatenate([whole, other]).pixel_threshold is None
