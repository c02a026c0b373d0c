"""Evaluation of a detector with a region: pixel metrics are of the inside, and the page says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.brightness import GEOMETRY, HEIGHT, WIDTH, Brightness, draw_category

from ensemblead import Report
from ensemblead.evaluation import MVTecAD, aupro, auroc, evaluate
from ensemblead.evaluation.gallery import PictureKeeper, Pictures
from ensemblead.images import Geometry, Region, read_image, read_mask
from ensemblead.metrics import PixelScores
from ensemblead.metrics.inputs import as_floats
from ensemblead.report.pictures import describe_item, photo_url

pytest.importorskip("PIL")

LEFT = np.zeros((HEIGHT, WIDTH), bool)
LEFT[:, :20] = True


class OnTheLeft(Brightness):
    def __init__(self) -> None:
        super().__init__()
        self.geometry = Geometry(GEOMETRY.resize, GEOMETRY.crop, region=Region(LEFT))


def measured(tmp_path: Path) -> tuple[Report, MVTecAD]:
    data = MVTecAD(draw_category(tmp_path / "part", 0))
    with pytest.warns(UserWarning, match="no defect inside of the region"):
        return evaluate(OnTheLeft(), data, bootstrap=0), data


def test_pixel_metrics_are_those_of_the_inside(tmp_path: Path) -> None:
    report, data = measured(tmp_path)
    geometry = OnTheLeft().geometry
    inside = geometry.inside()
    assert inside is not None
    assert 0 < inside.mean() < 1
    maps = np.stack([as_floats(geometry.apply(read_image(one.path))[..., 0], "map") for one in data.test])
    masks = np.stack(
        [
            np.zeros((16, 16), bool)
            if one.mask_path is None
            else geometry.apply_mask(read_mask(one.mask_path))
            for one in data.test
        ]
    )
    assert masks[:, ~inside].any()
    assert masks[:, inside].any()
    assert report.pixel_auroc == pytest.approx(auroc(maps[:, inside], masks[:, inside]), abs=1e-12)
    # The region is the left of the map, so what is cut off there is all the same an image.
    columns = inside.all(0)
    assert np.array_equal(inside, np.broadcast_to(columns, inside.shape))
    expected = aupro(maps[:, :, columns], masks[:, :, columns])
    assert report.aupro == pytest.approx(expected, abs=1e-12)
    # Labels of images stay: those whose defect is not inspected count as defective.
    assert report.summary.num_anomalous == sum(one.label for one in data.test)
    unseen = sum(bool(mask.any() and not mask[inside].any()) for mask in masks)
    assert unseen > 0
    (details,) = report.details.values()
    outside = masks[:, ~inside].sum() / masks.sum()
    assert f"{inside.mean():.1%} of the map is inspected" in details.inspected
    assert f"{outside:.1%} of the defective pixels lie outside" in details.inspected
    assert f"{unseen} of {masks.any((1, 2)).sum()} defective images" in details.inspected


def test_page_and_files_say_what_is_inspected(tmp_path: Path) -> None:
    report, _ = measured(tmp_path)
    (details,) = report.details.values()
    report.to_html(tmp_path / "report.html")
    report.to_json(tmp_path / "report.json")
    assert details.inspected in (tmp_path / "report.html").read_text()
    assert details.inspected in (tmp_path / "report.json").read_text()
    assert details.inspected in report.to_markdown()
    assert details.pictures is not None
    picture = details.pictures.kept[0]
    photo = read_image(details.images[picture.index].path)
    shown = describe_item(details, picture, str(tmp_path), [])["photo"]
    assert shown == photo_url(Region(LEFT).shaded(photo)) != photo_url(photo)
    document = details.pictures.to_json()
    assert document is not None
    assert Pictures.from_json(document).frame == OnTheLeft().geometry


def test_inside_of_pixel_scores() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((4, 6, 8)).astype(np.float32), rng.random((4, 6, 8)) < 0.2
    inside = rng.random((6, 8)) < 0.6
    pixels = PixelScores()
    for one, mask in zip(maps, masks, strict=True):
        pixels.add(one, mask, inside=inside)
    assert pixels.num_pixels == 4 * inside.sum()
    assert pixels.num_defective_pixels == masks[:, inside].sum()
    found = pixels.compute().values
    assert found["pixel_auroc"] == pytest.approx(auroc(maps[:, inside], masks[:, inside]))
    with pytest.raises(ValueError, match="must have the shape of its anomaly map"):
        pixels.add(maps[0], masks[0], inside=inside[1:])


def test_pictures_do_not_shine_outside() -> None:
    """Maps are zero there, which of FastFlow is higher than all values inside."""
    frame = Geometry((8, 8), None, region=Region(np.eye(8, dtype=bool)))
    keeper = PictureKeeper(SimpleNamespace(geometry=frame, fusion="minmax"), 1)
    values = np.where(np.eye(8, dtype=bool), -0.9, 0.0)
    values[3, 3] = -0.2
    keeper.add(0, values, 1.0, None, False, "good")
    found = keeper.pictures()
    assert found is not None
    assert (found.kept[0].low, found.kept[0].high) == (pytest.approx(-0.9), pytest.approx(-0.2))
