"""Where a detector comes from: steps, dates, versions and parents, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from support.tampering import set_state
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.provenance import Step

SAVED = Path(__file__).resolve().parents[1] / "saved_models"
IMAGES = normal_images(20, side=48)


def small(**options: Any) -> ead.PatchCore:
    return ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu", **options)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def actions(detector: Any) -> list[str]:
    return [step.action for step in detector.history_]


def test_every_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    detector = small()
    assert detector.history_ == ()
    detector.fit(IMAGES[:10])
    (first,) = detector.history_
    assert (first.action, first.date, first.images) == ("fit", "2023-11-14T22:13:20Z", 10)
    assert first.images_sha256 == detector.calibration_.images_sha256
    assert first.versions["ensemblead"] == ead.__version__
    assert {"python", "numpy", "torch"} <= first.versions.keys()
    detector.save(tmp_path / "one")
    loaded = ead.load(tmp_path / "one")
    assert loaded.history_ == detector.history_
    loaded.calibrate(IMAGES[10:19], 0.1)
    loaded.threshold_ = 3.0
    loaded.save(tmp_path / "two")
    again = ead.load(tmp_path / "two")
    with pytest.warns(UserWarning, match="the threshold was given"):
        again.extend(IMAGES[19:], max_rows=20)
    assert actions(again) == ["fit", "calibrate", "threshold", "extend"]
    fit, calibrate, threshold, extend = again.history_
    assert calibrate.arguments == {"false_alarm_rate": 0.1}
    assert (threshold.arguments, threshold.images) == ({"threshold": 3.0}, 0)
    assert (extend.arguments, extend.images) == ({"max_rows": 20}, 1)
    # A step names the folder that the detector was loaded from.
    assert fit.parent is None
    assert calibrate.parent == threshold.parent == loaded._loaded != extend.parent == again._loaded
    assert len({loaded._loaded, again._loaded}) == 2


def test_a_new_fit_begins_anew(tmp_path: Path) -> None:
    small().fit(IMAGES[:5]).save(tmp_path / "m")
    detector = ead.load(tmp_path / "m")
    detector.fit(IMAGES[:6])
    assert [(step.action, step.images, step.parent) for step in detector.history_] == [("fit", 6, None)]


def test_saves_of_one_fit_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A date is that of the fit; two fits differ in it alone, and not at all under SOURCE_DATE_EPOCH."""
    detector = small().fit(IMAGES[:6])
    monkeypatch.setattr("ensemblead.detectors.provenance.now", lambda: "2001-01-01T00:00:00Z")
    detector.save(tmp_path / "one")
    ead.load(tmp_path / "one").save(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    small().fit(IMAGES[:6]).save(tmp_path / "three")
    assert files(tmp_path / "one") != files(tmp_path / "three")
    monkeypatch.undo()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    small().fit(IMAGES[:6]).save(tmp_path / "four")
    small().fit(IMAGES[:6]).save(tmp_path / "five")
    assert files(tmp_path / "four") == files(tmp_path / "five")


def test_ensembles_and_tiles(tmp_path: Path) -> None:
    member = small().fit(IMAGES[:5])
    ensemble = ead.BackboneEnsemble([member, small(seed=1).fit(IMAGES[:5])])
    assert ensemble.history_ == ()
    assert actions(ensemble.members[0]) == ["fit"]
    ensemble.fit(IMAGES[:6])
    assert (actions(ensemble), actions(ensemble.members[0])) == (["fit"], [])
    ensemble.save(tmp_path / "ensemble")
    loaded = ead.load(tmp_path / "ensemble").extend(IMAGES[6:8])
    assert actions(loaded) == ["fit", "extend"]
    assert loaded.history_[1].parent == loaded._loaded
    tiled = ead.TiledEnsemble(small(), tile_size=32, stride=16, image_size=None).fit(IMAGES[:4])
    tiled.save(tmp_path / "tiled")
    assert ead.load(tmp_path / "tiled").history_ == tiled.history_
    assert actions(tiled) == ["fit"]


def test_a_failed_step_leaves_no_trace() -> None:
    detector = small().fit(IMAGES[:5])
    with pytest.raises(ValueError, match="fitted on"):
        detector.calibrate(IMAGES[:5])
    with pytest.raises(ValueError, match="must be finite"):
        detector.threshold_ = float("nan")
    with pytest.raises(ValueError, match="learned already"):
        detector.extend(IMAGES[:5])
    assert actions(detector) == ["fit"]


def test_old_folders_have_no_history(tmp_path: Path) -> None:
    detector: Any = ead.load(SAVED / "format1/patchcore", device="cpu")
    assert detector.history_ == ()
    detector.extend(np.load(SAVED / "format1/expected.npz")["images"])
    assert actions(detector) == ["extend"]
    detector.save(tmp_path / "m")
    (step,) = ead.load(tmp_path / "m").history_
    assert step.parent == detector._loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "guess"}, "action must be one of"),
        ({"date": "yesterday"}, "date must be"),
        ({"images": -1}, "images must be a count"),
        ({"images_sha256": None}, "images_sha256 must be a str"),
        ({"arguments": {"a": []}}, "arguments must be a mapping"),
        ({"versions": ["1"]}, "versions must be a mapping"),
        ({"parent": "../m"}, "parent must be a SHA-256"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_no_history_has_is_damage(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    small().fit(IMAGES[:3]).save(tmp_path / "m")

    set_state(tmp_path / "m", "", lambda state: state["history"][0].update(change))
    with pytest.raises(DamagedModelError, match=message):
        ead.load(tmp_path / "m")


def test_a_history_is_a_list(tmp_path: Path) -> None:
    small().fit(IMAGES[:3]).save(tmp_path / "m")
    set_state(tmp_path / "m", "", lambda state: state.update(history={"action": "fit"}))
    with pytest.raises(DamagedModelError, match="history must be a list"):
        ead.load(tmp_path / "m")


def test_a_step_may_be_bare() -> None:
    assert Step("fit", "2026-11-30T08:15:00Z").parent is None
