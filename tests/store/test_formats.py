"""Models of every format ever released load, and say what they said when they were saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ensemblead as ead

SAVED = Path(__file__).resolve().parents[1] / "saved_models"


class TwoConvolutions(nn.Module):
    """The architecture of the module that a member of `tiled` was fitted with; its weights come from the
    folder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return out


def load(form: str, name: str) -> ead.PatchCore:
    backbone = {1: TwoConvolutions()} if name == "tiled" else None
    loaded: ead.PatchCore = ead.load(SAVED / form / name, backbone=backbone, device="cpu")
    return loaded


@pytest.mark.parametrize("form", sorted(path.name for path in SAVED.glob("format*")))
@pytest.mark.parametrize("name", ["patchcore", "padim", "tiled"])
def test_old_models_say_what_they_said(form: str, name: str, tmp_path: Path) -> None:
    expected = np.load(SAVED / form / "expected.npz")
    detector = load(form, name)
    for _ in range(2):  # as it was saved, and saved again
        found = detector.predict(expected["images"])
        np.testing.assert_allclose(
            found.anomaly_score, expected[f"{name}.anomaly_score"], rtol=1e-3, atol=1e-4
        )
        maps = found.anomaly_map[:, ::4, ::4]
        np.testing.assert_allclose(maps, expected[f"{name}.anomaly_map"], rtol=1e-3, atol=1e-3)
        assert detector.threshold_ == pytest.approx(float(expected[f"{name}.threshold"]), rel=1e-3)
        np.testing.assert_array_equal(detector.calibration_.scores, expected[f"{name}.normal_scores"])
        detector.save(tmp_path / "again")
        backbone = {1: TwoConvolutions()} if name == "tiled" else None
        detector = ead.load(tmp_path / "again", backbone=backbone, device="cpu")


def test_the_origin_of_the_statistics_is_known() -> None:
    assert load("format1", "patchcore").calibration_.origin == "leave_one_out"
    assert load("format1", "padim").calibration_.origin == "calibrated"


def test_what_earlier_versions_did_not_say_of_their_banks() -> None:
    detector = load("format1", "patchcore")
    assert (detector.coreset_size, detector.memory_budget) == (None, 1_450_000_000)
    bank = detector.memory_bank_
    assert (bank.certificate_, bank._reach) == (None, bank.radius_)
    images = np.load(SAVED / "format1" / "expected.npz")["images"]
    assert detector.verify(images).certificate is None


def test_they_can_be_extended() -> None:
    images = np.load(SAVED / "format1" / "expected.npz")["images"]
    detector = load("format1", "patchcore")
    rows = len(detector.memory_bank_)
    assert len(detector.extend(images).memory_bank_) > rows


@pytest.mark.parametrize("form", sorted(path.name for path in SAVED.glob("index_format*")))
def test_old_indexes_find_what_they_found(form: str, tmp_path: Path) -> None:
    images = np.load(SAVED / "format1" / "expected.npz")["images"]
    shutil.copytree(SAVED / form, tmp_path / "index")  # SQLite writes beside a catalogue that it reads
    with ead.ImageIndex.open(tmp_path / "index") as index:
        index.verify()
        assert (len(index), index.kind, index.dtype, index.dim) == (3, "flat", "float16", 42)
        hits = index.search(images[2], top=3)
        assert (hits.paths[0][0], hits.labels[0][0], int(hits.ids[0, 0])) == ("2.png", None, 2)
        assert hits.similarities[0, 0] > 0.999
        assert set(hits.ids[0]) == {0, 2, 3}  # number 1 was removed
        assert index.search(images[0], where={"label": "good"}).paths == [["0.png"]]
        assert index.add_vectors(["new"], np.eye(42)[:1]) == 1
        assert index.search(np.eye(42)[0], where={"path": "new"}).ids.tolist() == [[4]]
