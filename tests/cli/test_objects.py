"""`predict` writes regions (COCO), masks and pictures that speak."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from PIL import Image
from support.commands import call, call_json

import ensemblead as ead
from ensemblead.cli.drawing import (
    OUTLINE,
    Caption,
    canvas_of,
    caption_words,
    draw_boxes,
    draw_outline,
    fine_mask,
    line_width,
)
from ensemblead.cli.objects import ObjectsFile, annotation
from ensemblead.cli.pictures import PlacedMap, placed_mask
from ensemblead.cli.writing import without_small
from ensemblead.common.objects import detected_regions
from ensemblead.common.regions import label_regions
from ensemblead.images import Geometry, Region


def refuse(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def strict(path: Path) -> dict[str, Any]:
    """A JSON file without NaN and infinity."""
    document: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return document


def checked(document: dict[str, Any]) -> None:
    """That a document has COCO's structure: ids that refer to each other, boxes and areas that fit."""
    assert {"info", "licenses", "images", "annotations", "categories"} == document.keys()
    categories = {one["id"] for one in document["categories"]}
    assert [one["name"] for one in document["categories"]] == ["anomaly"]
    images = {one["id"]: one for one in document["images"]}
    assert len(images) == len(document["images"])
    assert len({one["id"] for one in document["annotations"]}) == len(document["annotations"])
    for one in document["annotations"]:
        image = images[one["image_id"]]
        assert one["category_id"] in categories
        assert one["iscrowd"] == 0
        x, y, width, height = one["bbox"]
        assert x >= -0.01
        assert y >= -0.01
        assert 0 < width <= image["width"] - x + 0.02
        assert 0 < height <= image["height"] - y + 0.02
        assert 0 < one["area"] <= width * height * 1.001 + 0.01
        for polygon in one["segmentation"]:
            assert len(polygon) >= 8
            assert len(polygon) % 2 == 0
            corners = np.array(polygon).reshape(-1, 2)
            np.testing.assert_allclose(corners.min(axis=0), (x, y), atol=0.011)
            np.testing.assert_allclose(corners.max(axis=0), (x + width, y + height), atol=0.021)


class TestPredict:
    def test_objects_are_those_of_python(self, category: Path, model: Path, tmp_path: Path) -> None:
        summary = call_json("predict", model, category / "test", "--out", tmp_path, "--masks")
        document = strict(tmp_path / "objects.json")
        checked(document)
        detector = ead.load(model)
        found = detector.predict(category / "test")
        expected = found.objects()
        assert summary["regions"] == len(document["annotations"]) == len(expected) > 0
        for one, region in zip(document["annotations"], expected, strict=True):
            assert one["image_id"] == region.index + 1
            np.testing.assert_allclose(one["bbox"], region.box, atol=0.006)
            np.testing.assert_allclose(
                [one["area"], one["score"], one["mean"]],
                [region.area, region.maximum, region.mean],
                rtol=1e-4,
            )
        assert [one["file_name"] for one in document["images"]] == found.paths
        assert [one["is_anomalous"] for one in document["images"]] == found.is_anomalous.tolist()
        assert document["info"]["pixel_threshold"] == found.pixel_threshold == summary["pixel_threshold"]
        assert document["info"]["false_regions_per_normal_image"] == summary["false_regions"] < 0.5
        for index, path in enumerate(found.paths):
            below = Path(str(path)).relative_to(category / "test").with_suffix(".png")
            with Image.open(tmp_path / "masks" / below) as mask:
                assert (mask.mode, mask.size) == ("L", (64, 64))
                # The map is as large as the photograph: the mask is where it lies above the threshold.
                above = found.anomaly_map[index] > found.pixel_threshold
                np.testing.assert_array_equal(np.asarray(mask), 255 * above)

    def test_thresholds_and_small_regions(self, category: Path, model: Path, tmp_path: Path) -> None:
        blot = category / "test/blot"
        detector = ead.load(model)
        few = call_json("predict", model, blot, "--out", tmp_path / "few", "--false-regions", 0.3)
        assert few["pixel_threshold"] == detector.calibration_.pixel_threshold(0.3)
        found = detector.predict(blot)
        level = float(np.quantile(found.anomaly_map, 0.3))  # low, so that there are many regions of all sizes
        least = float(np.median([one.area for one in found.objects(level)])) + 1
        given = call_json(
            *("predict", model, blot, "--out", tmp_path / "given", "--masks"),
            *("--pixel-threshold", level, "--min-area", least),
        )
        assert (given["pixel_threshold"], given["false_regions"]) == (level, None)
        expected = found.objects(level, min_area=least)
        assert 0 < given["regions"] == len(expected) < len(found.objects(level))
        for index in range(4):
            with Image.open(tmp_path / f"given/masks/{index:03d}.png") as mask:
                regions = label_regions(np.asarray(mask) > 0)[1]
            assert regions == sum(one.index == index for one in expected)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--pixel-threshold", "nan", "pixel_threshold must be finite"),
            ("--min-area", "-1", "min_area must not be negative"),
            ("--min-area", "inf", "min_area must be finite"),
            ("--false-regions", "0", "false_regions must be above 0"),
            ("--false-regions", "nan", "false_regions must be finite"),
            ("--pictures", "-1", "pictures must be at least 0"),
            ("--scale", ("0", "inf"), "scale must be finite"),
        ],
    )
    def test_bad_options(
        self, option: str, value: Any, message: str, category: Path, model: Path, tmp_path: Path
    ) -> None:
        values = value if isinstance(value, tuple) else (value,)
        outcome = call("predict", model, category / "test", "--out", tmp_path / "out", option, *values)
        assert outcome.exit_code == 2
        assert message in outcome.stderr
        assert not (tmp_path / "out").exists()

    def test_a_model_without_statistics_of_regions(self, category: Path, tmp_path: Path) -> None:
        model = tmp_path / "model"
        shutil.copytree(Path(__file__).parents[1] / "saved_models/format1/patchcore", model)
        image = category / "test/blot/000.png"
        summary = call_json("predict", model, image, "--out", tmp_path / "out", "--masks")
        assert any("no regions are found" in line and "calibrate" in line for line in summary["warnings"])
        assert (
            summary["objects"] is summary["regions"] is summary["pixel_threshold"] is summary["masks"] is None
        )
        assert not (tmp_path / "out/objects.json").exists()
        assert not (tmp_path / "out/masks").exists()
        assert (tmp_path / "out/heat_maps/000.png").is_file()
        given = call_json(
            "predict", model, image, "--out", tmp_path / "out", "--pixel-threshold", -1e6, "--no-heat-maps"
        )
        assert given["regions"] == 1  # all of the map
        # They are not those of the model, which says nothing of regions.
        text = call(
            "predict", model, image, "--out", tmp_path / "out", "--no-heat-maps", "--pictures", "0"
        ).stderr
        for name in ("objects.json", "report.html"):
            assert f"{name} is of a run before" in text.replace("\n", " ")

    def test_parts_of_several_models_are_not_put_together(
        self, category: Path, model: Path, tmp_path: Path
    ) -> None:
        for number, threshold in ((1, 0.5), (2, 0.6)):
            options = ("--part", f"{number}/2", "--pixel-threshold", threshold, "--no-heat-maps")
            call_json("predict", model, category / "test", "--out", tmp_path, *options)
        outcome = call("merge", tmp_path)
        assert outcome.exit_code == 2
        assert "of several models or sets of images" in outcome.stderr
        (tmp_path / "objects.part-2-of-2.json").write_text("[1")
        assert "is not what predict --part writes" in call("merge", tmp_path).stderr.replace("\n", " ")
        (tmp_path / "objects.part-2-of-2.json").unlink()
        assert "objects.part-2-of-2.json is not in" in call("merge", tmp_path).stderr.replace("\n", " ")
        (tmp_path / "objects.part-1-of-2.json").unlink()
        assert call_json("merge", tmp_path)["objects"] is None  # parts of before had none


class TestFile:
    def test_nothing_is_left_after_an_error(self, tmp_path: Path) -> None:
        def interrupted() -> None:
            with ObjectsFile(tmp_path, None, ["a.png"], {}) as file:
                file.add("a.png", (4, 4), 0.5, False, ())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert list(tmp_path.iterdir()) == []

    def test_no_images_no_verdict_and_odd_names(self, tmp_path: Path) -> None:
        with ObjectsFile(tmp_path, None, [], {"description": "x"}) as file:
            pass
        checked(strict(file.path))
        name = 'caf\udce9 "quoted"\n.png'
        with ObjectsFile(tmp_path, None, ["other", name], {}) as file:
            file.add(name, (4, 5), 0.5, None, ())
        (image,) = strict(file.path)["images"]
        assert image == {
            "id": 2,
            "file_name": 'caf\\xe9 "quoted"\n.png',
            "width": 5,
            "height": 4,
            "anomaly_score": 0.5,
            "is_anomalous": None,
        }

    def test_holes_are_not_in_the_polygon(self) -> None:
        values = np.zeros((9, 9), np.float32)
        values[2:7, 2:7] = 1.0
        values[4, 4] = 0.0
        (region,) = detected_regions(values, 0.5, Geometry(9, None), (18, 18))
        found = annotation(region, 1, 1)
        assert found["segmentation"] == [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]
        assert found["area"] == 96.0
        assert len(region.holes) == 1


def grey(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.full((*size, 3), 120, np.uint8)


class TestDrawing:
    @pytest.mark.parametrize("size", [(20, 30), (100, 100), (480, 640), (2000, 200), (200, 2000)])
    def test_a_caption_is_legible_at_every_size(self, size: tuple[int, int]) -> None:
        words = caption_words(0.123456, 12345.678, True, 12)
        assert words == ("▲ anomalous", "score 0.1235", "threshold 1.235e+04", "12 regions")
        caption = Caption(size, words, True)
        canvas = canvas_of(grey(size), caption.height, caption.width)
        caption.draw(canvas)
        drawn = np.asarray(canvas)
        assert (drawn[: size[0], : size[1]] == 120).all()  # the photograph is not covered
        band = drawn[size[0] :].astype(int)
        bright = (band.max(axis=2) > 150) & (np.arange(len(band)) > caption._pad // 4 + 1)[:, None]
        rows, columns = np.nonzero(bright)
        assert rows.max() < len(band) - 1  # within the band on all sides
        assert columns.min() > 0
        assert columns.max() < canvas.width - 1
        letters = rows.max() - rows.min() + 1
        assert letters >= 8
        assert letters < 0.5 * max(size) or max(size) < 200
        lines = np.flatnonzero(np.diff(bright.any(axis=1).astype(int)) == 1)
        assert 1 <= len(lines) <= 4

    def test_verdicts(self) -> None:
        words = caption_words(1.0, 2.0, False, 1)
        assert (words[0], words[3]) == ("✓ normal", "1 region")
        words = caption_words(1.0, np.inf, None, None)
        assert words == ("no verdict", "score 1", "no threshold")

    @pytest.mark.parametrize("size", [(64, 64), (300, 500), (1200, 900)])
    def test_the_outline_of_any_mask(self, size: tuple[int, int]) -> None:
        mask = np.zeros((16, 16), np.bool_)
        mask[4:8, 6:12] = True
        canvas = canvas_of(grey(size))
        top, left, bottom, right = size[0] * 0.25, 0.0, float(size[0]), size[1] * 0.5
        draw_outline(canvas, mask, (top, left, bottom, right), width=line_width(size))
        drawn = (np.asarray(canvas) == OUTLINE).all(axis=2)
        rows, columns = np.nonzero(drawn)
        high, wide = (bottom - top) / 16, (right - left) / 16
        width = line_width(size)
        expected = [top + 4 * high, top + 8 * high, left + 6 * wide, left + 12 * wide]
        found = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
        np.testing.assert_allclose(found, expected, atol=width / 2 + 1)
        inside = drawn[
            int(top + 5 * high) : int(top + 7 * high), int(left + 8 * wide) : int(left + 10 * wide)
        ]
        assert not inside.any()

    def test_boxes_enclose_their_regions(self) -> None:
        canvas = canvas_of(grey((300, 300)))
        draw_boxes(canvas, [(50.0, 60.0, 40.0, 30.0)], width=2)
        rows, columns = np.nonzero((np.asarray(canvas) == 255).all(axis=2))
        found = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
        np.testing.assert_allclose(found, [56, 94, 46, 94], atol=1)

    @pytest.mark.parametrize("size", [(12, 12), (40, 70), (3000, 2000)])
    def test_a_fine_mask_keeps_every_region(self, size: tuple[int, int]) -> None:
        values = np.random.default_rng(0).random((30, 40), dtype=np.float32)
        coarse, fine = values > 0.95, fine_mask(values, 0.95, size)
        factors = np.array(fine.shape) // coarse.shape
        assert (factors % 2 == 1).all()
        assert fine.shape == tuple(factors * coarse.shape)
        assert max(fine.shape) <= 1024
        assert (max(size) < 1024) == (factors == 1).all()
        middle = fine[factors[0] // 2 :: factors[0], factors[1] // 2 :: factors[1]]
        np.testing.assert_array_equal(middle, coarse)

    def test_a_mask_lies_where_the_network_looked(self) -> None:
        values = np.ones((8, 8), np.float32)
        mask = placed_mask(PlacedMap(values, Geometry(16, 8), (32, 32)), 0.5)
        expected = np.zeros((32, 32), np.uint8)
        expected[8:24, 8:24] = 255
        np.testing.assert_array_equal(mask, expected)
        values = np.random.default_rng(0).random((30, 40), dtype=np.float32)
        for size in ((50, 51), (7, 9), (30, 40)):
            placed = PlacedMap(values, Geometry((30, 40), None), size)
            mask = placed_mask(placed, 0.95)
            assert mask[placed.places_above(0.95)].min() == 255
            assert len(placed.places_above(0.95)[0]) == (values > 0.95).sum()
        np.testing.assert_array_equal(mask > 0, values > 0.95)

    def test_small_regions_fall_below_the_threshold(self) -> None:
        values = np.zeros((9, 9), np.float32)
        values[0, 0], values[4:7, 4:7] = 3.0, 2.0
        threshold = 0.1  # which float32 rounds up
        kept = without_small(values, threshold, 5.0, 1.0)
        assert not (kept[:2, :2] > np.float64(threshold)).any()
        np.testing.assert_array_equal(kept[4:7, 4:7], values[4:7, 4:7])
        assert without_small(values, threshold, 1.0, 1.0) is values

    def test_what_is_not_inspected_is_no_region(self) -> None:
        inspected = np.arange(16).reshape(4, 4) % 4 < 2
        values = np.where(inspected, np.float32(-1.0), np.float32(0.0))  # zeros outside, as detectors have it
        kept = without_small(values, -2.0, 0.0, 1.0, inspected)
        np.testing.assert_array_equal(kept > -2.0, inspected)
        np.testing.assert_array_equal(without_small(values, 0.5, 0.0, 1.0, inspected), values)
        # Beside its border a region is not mixed with what lies outside.
        geometry = Geometry(4, None, region=Region.of(np.repeat(np.repeat(inspected, 8, 0), 8, 1)))
        placed = PlacedMap(values, geometry, (32, 32))
        whole = placed.values(slice(0, 32), slice(0, 32))
        assert (whole[:, :16] == -1.0).all()
        assert np.isnan(whole[:, 16:]).all()
        np.testing.assert_array_equal(placed_mask(placed, -2.0)[:, :16], 255)
