"""Two detectors on the same images: what is compared, against predictions of each."""

from __future__ import annotations

import csv
import json
import warnings
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
from PIL import Image
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.evaluation import Row
from ensemblead.evaluation.comparing import Compared, ComparedDetector, ComparedImage

OPTIONS: dict[str, Any] = {"bootstrap": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A category with blots in the test images, a detector of it, and one that has learned two more images
    and calls everything anomalous.
    """
    root = tmp_path_factory.mktemp("data") / "weave"
    spoiled, masks = with_defects(normal_images(3, seed=2))
    truth = np.repeat(masks[..., None], 3, axis=3).astype(np.uint8) * 255
    places = {"train/good": normal_images(8), "test/good": normal_images(4, seed=1), "test/blot": spoiled}
    for place, images in {**places, "ground_truth/blot": truth}.items():
        (root / place).mkdir(parents=True)
        for i, pixels in enumerate(images):
            mask = "_mask" if place.startswith("ground") else ""
            Image.fromarray(pixels).save(root / place / f"{i}{mask}.png")
    old = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu")
    old.fit(root / "train/good")
    new = ead.create(old.describe()).fit([*(root / "train/good").iterdir(), *_first(root, 2)])
    new.threshold_ = 0.01
    return SimpleNamespace(root=root, old=old, new=new)


def _first(root: Path, count: int) -> list[Path]:
    return sorted((root / "test/good").iterdir())[:count]


def test_plain_images(made: SimpleNamespace) -> None:
    folder = made.root / "test"
    found = ead.compare(made.old, made.new, folder, **OPTIONS).data
    before, after = made.old.predict(folder), made.new.predict(folder)
    assert [one.path for one in found.images] == before.paths
    for place, one in enumerate(found.images):
        assert (one.label, one.defect_type) == (None, None)
        assert (one.old_score, one.new_score) == (before.anomaly_score[place], after.anomaly_score[place])
        assert one.old_verdict == before.is_anomalous[place]
        assert one.new_verdict
        assert one.is_changed == (not one.old_verdict)
        normal = made.old.calibration_.scores
        reach = made.old.threshold_ - float(np.median(normal))
        assert one.old_relative == pytest.approx((one.old_score - made.old.threshold_) / reach)
        # A threshold below the median has no such place.
        assert np.isnan(one.new_relative)
        assert one.new_knows == (Path(one.path) in _first(made.root, 2))
        assert not one.old_knows
    changes = [abs(one.new_score - one.old_score) for one in found.changed]
    assert changes == sorted(changes, reverse=True)
    assert len(changes) == int((~before.is_anomalous).sum()) >= 4
    assert not found.has_truth
    assert np.isnan(found.chance)
    assert any("the new detector has learned 2 of the 7 images" in note for note in found.notes)
    assert found.old.row is found.new.row is None
    assert found.new.history[-1].action == "threshold"


def test_a_data_set(made: SimpleNamespace) -> None:
    data = ead.MVTecAD(made.root)
    found = ead.compare(made.old, made.new, data, **OPTIONS).data
    for side, detector in ((found.old, made.old), (found.new, made.new)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of learned images; see the notes below
            report = ead.evaluate(detector, data, bootstrap=0, gallery=0)
        assert side.row is not None
        for name in ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate"):
            assert getattr(side.row, name) == pytest.approx(getattr(report, name))
    assert [one.defect_type for one in found.images] == ["blot"] * 3 + ["good"] * 4
    wrong = {one.path for one in found.images if not one.label and not one.old_verdict}
    assert {one.path for one in found.changed if not one.label} == wrong
    assert (found.mended, found.broken) == (
        sum(bool(one.label) for one in found.changed),
        sum(not one.label for one in found.changed),
    )
    assert any(note.startswith("new: 2 of 4 normal test images") for note in found.notes)


def test_files(made: SimpleNamespace, tmp_path: Path) -> None:
    comparison = ead.compare(made.old, made.new, ead.MVTecAD(made.root), **OPTIONS)
    rows = list(csv.DictReader(comparison.to_csv(tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == 7
    assert [row["changed"] == "True" for row in rows] == [one.is_changed for one in comparison.data.images]
    assert float(rows[0]["old_score"]) == pytest.approx(comparison.data.images[0].old_score, rel=1e-8)
    assert {row["new_relative"] for row in rows} == {""}
    comparison.to_json(tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    assert document["num_changed"] == len(comparison.data.changed) == len(document["changed"])
    assert document["old"]["history"][0]["action"] == "fit"
    assert document["new"]["metrics"]["false_alarm_rate"] == 1.0
    assert str(len(comparison.data.changed)) in repr(comparison)


def test_a_model_against_itself(made: SimpleNamespace) -> None:
    found = ead.compare(made.old, made.old, made.root / "test", **OPTIONS).data
    assert found.changed == ()
    assert all(one.old_score == one.new_score for one in found.images)
    assert found.notes == found.maps == ()


def test_other_sizes_are_said(made: SimpleNamespace) -> None:
    other = ead.PatchCore("gabor", resize=(48, 48), image_size=None, coreset_fraction=0.1, device="cpu")
    other.fit(made.root / "train/good")
    found = ead.compare(made.old, other, made.root / "test", **OPTIONS).data
    assert any(
        "in other sizes: the old one resize None, the new one resize (48, 48)" in n for n in found.notes
    )


def test_other_regions_are_said(made: SimpleNamespace) -> None:
    inside = np.zeros((64, 64), np.bool_)
    inside[8:, 8:] = True
    other = ead.PatchCore(
        "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu", region=inside
    )
    other.fit(made.root / "train/good")
    (note,) = ead.compare(made.old, other, made.root / "test/good", **OPTIONS).data.notes
    assert "other regions: the old one all of a photograph, the new one Region(77% of 64 x 64)" in note
    assert ead.compare(other, other, made.root / "test/good", **OPTIONS).data.notes == ()


def test_images_that_cannot_be_read(made: SimpleNamespace, tmp_path: Path) -> None:
    for i, path in enumerate(_first(made.root, 3)):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes() if i != 1 else b"no image")
    with pytest.raises(ValueError, match=r"1\.png"):
        ead.compare(made.old, made.new, tmp_path, **OPTIONS)
    with pytest.warns(UserWarning, match="left out 1"):
        found = ead.compare(made.old, made.new, tmp_path, errors="skip", **OPTIONS).data
    assert [Path(one.path).name for one in found.images] == ["0.png", "2.png"]
    # Places are those of the images that were given: the second is image 1 of the test set.
    assert [one.new_knows for one in found.images] == [True, False]


def test_refusals(made: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="new must be a fitted detector, got str"):
        ead.compare(made.old, "model", made.root / "test")  # type: ignore[arg-type]
    with pytest.raises(ead.EnsembleADError, match="not fitted"):
        ead.compare(made.old, ead.create(made.old.describe()), made.root / "test")
    minmax = ead.BackboneEnsemble([made.old, made.new], fusion="minmax")
    with pytest.raises(ValueError, match="old: fusion='minmax'"):
        ead.compare(minmax, made.new, made.root / "test")
    (category,) = ead.MVTecAD(made.root).categories
    several = ead.evaluation.Dataset("two", [category, category])
    with pytest.raises(ValueError, match="data must have one category, got 2"):
        ead.compare(made.old, made.new, several)


def image(label: bool, old: bool | None, new: bool | None, place: int) -> ComparedImage:
    return ComparedImage(f"{place}.png", label, "", 0.0, 1.0, 0.0, 0.0, old, new, False, False)


@pytest.mark.parametrize(("mended", "broken"), [(0, 0), (1, 0), (5, 1), (3, 3), (0, 7)])
def test_the_chance_is_a_coin_s(mended: int, broken: int) -> None:
    side = ComparedDetector("d", 0.5, "", Row("c"), {}, (), None)
    images = [image(True, False, True, i) for i in range(mended)]
    images += [image(True, True, False, 10 + i) for i in range(broken)]
    images += [image(True, True, True, 20), image(False, None, True, 21)]
    found = Compared(tuple(images), side, side)
    assert (found.mended, found.broken, len(found.changed)) == (mended, broken, mended + broken)
    total = mended + broken
    tail = sum(comb(total, i) for i in range(min(mended, broken) + 1)) / 2**total
    assert found.chance == pytest.approx(min(1.0, 2 * tail))
