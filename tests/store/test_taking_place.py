"""Saves into volumes, beside loads, and in processes that end."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.methods import Colours
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError

SIDE = 32
TRAIN = normal_images(12, side=SIDE)
PROBE = normal_images(2, seed=1, side=SIDE)


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _as_a_volume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` one that cannot be renamed, nor replaced, as a mounted volume."""
    rename = os.rename

    def refused(source: Any, target: Any) -> None:
        if str(folder) in (str(source), str(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr("os.rename", refused)
    monkeypatch.setattr("ensemblead.store.saving.exchange", lambda first, second: False)
    folder.mkdir()


def test_a_volume_holds_a_model_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "m"
    _as_a_volume(volume, monkeypatch)
    (volume / "lost+found").mkdir()
    for patch in (4, 8):
        Colours(patch=patch).fit(TRAIN).save(volume)
        loaded: Any = ead.load(volume)
        assert loaded.patch == patch
        inside = {path.name for path in volume.iterdir()} - {"lost+found", "model.json"}
        assert len(inside) == 1
    # A save that fails changes nothing.
    before = _files(volume)
    broken = Colours().fit(TRAIN)
    monkeypatch.setattr(broken, "to_store", lambda writer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        broken.save(volume)
    assert _files(volume) == before
    (volume / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"it also holds notes\.txt"):
        broken.save(volume)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("inside", ["../other", "model-0123456789ab", 3, "/etc"])
def test_a_volume_that_names_no_folder_of_its_own(tmp_path: Path, inside: Any) -> None:
    Colours().fit(TRAIN).save(tmp_path / "other")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.json").write_text(json.dumps({"format": 2, "inside": inside}))
    (tmp_path / "m/model-0123456789ab").symlink_to(tmp_path / "other")
    with pytest.raises(DamagedModelError):
        ead.load(tmp_path / "m")


@pytest.mark.parametrize("kind", ["exchange", "renames", "volume"])
def test_a_load_beside_saves_gives_one_of_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "renames":
        monkeypatch.setattr("ensemblead.store.saving.exchange", lambda first, second: False)
    elif kind == "volume":
        _as_a_volume(tmp_path / "m", monkeypatch)
    models = [Colours().fit(TRAIN), Colours(patch=4).fit(255 - TRAIN)]
    known = {model.patch: (model.threshold_, model.state_.total) for model in models}
    models[0].save(tmp_path / "m")
    done = threading.Event()

    def save() -> None:
        for i in range(1, 40):
            models[i % 2].save(tmp_path / "m")
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    counts: Counter[str] = Counter()
    try:
        while not done.is_set():
            detector: Any = ead.load(tmp_path / "m")
            threshold, total = known[detector.patch]
            assert detector.threshold_ == threshold
            assert torch.equal(detector.state_.total, total)
            counts["loaded"] += 1
    finally:
        thread.join()
    assert counts["loaded"]
    assert isinstance(ead.load(tmp_path / "m"), Colours)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_names_in_every_folder_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    for module in ("folders", "saving"):
        monkeypatch.setattr(f"ensemblead.store.{module}.sync_folder", lambda path: synced.append(path.name))
    ead.BackboneEnsemble([Colours(), Colours(patch=4)]).fit(TRAIN).save(tmp_path / "m")
    below = {path.name for path in (tmp_path / "m").rglob("*") if path.is_dir()}
    assert len(below) == 2
    assert below < set(synced)
    assert synced[-1] == tmp_path.name


def test_a_model_that_a_killed_save_put_aside_goes_with_the_next_save(tmp_path: Path) -> None:
    """It would take the name of the model that is there, once that is removed."""
    Colours(patch=8).fit(TRAIN).save(tmp_path / "m")
    os.rename(tmp_path / "m", tmp_path / ".m.0123456789ab.old")
    Colours(patch=4).fit(TRAIN).save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    loaded: Any = ead.load(tmp_path / "m")
    assert loaded.patch == 4
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        ead.load(tmp_path / "m")


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from support.methods import Colours
from support.textures import normal_images
import ensemblead as ead
from ensemblead.store import saving
detector = Colours(patch=4).fit(normal_images(12, side=32))
kind, target = sys.argv[1:3]
rename, exchange = os.rename, saving.exchange
if kind == "exchange":
    def killed(first, second):
        assert exchange(first, second)
        os._exit(9)
    saving.exchange = killed
else:
    saving.exchange = lambda first, second: False
    def killed(source, target):
        rename(source, target)
        os._exit(9)
    os.rename = killed
detector.save(target)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exchange", "renames"])
def test_a_kill_between_the_renames_leaves_a_model(tmp_path: Path, kind: str) -> None:
    from ensemblead.store import exchange

    if kind == "exchange" and exchange._renameat2() is None:
        pytest.skip("this system has no exchange")
    Colours(patch=8).fit(TRAIN).save(tmp_path / "m")
    tests = str(Path(__file__).resolve().parents[1])
    call = [sys.executable, "-c", KILLED, kind, str(tmp_path / "m"), tests]
    outcome = subprocess.run(call, capture_output=True, text=True, check=False)
    assert outcome.returncode == 9, outcome.stderr
    assert (tmp_path / "m").exists() == (kind == "exchange")
    again: Any = ead.load(tmp_path / "m")
    assert again.patch == (4 if kind == "exchange" else 8)
    again.save(tmp_path / "m")
    assert ead.load(tmp_path / "m").predict(PROBE).anomaly_score.shape == (2,)
