"""PatchCore of many images: a bank of a stated size, in a stated memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.textures import SIDE, Images, normal_images, with_defects

import ensemblead as ead
from ensemblead.common.warnings import SlowPredictWarning

# What an image of 64 pixels gives: 16 x 16 patches, of 24 values, which are not projected.
PATCHES, DIMS = 256, 24
ROW = 4 * 2 * DIMS
TRAIN = normal_images(40)
QUERIES, _ = with_defects(normal_images(4, seed=9))


class Counted:
    """Images, and how many of them were asked for."""

    def __init__(self, images: Images) -> None:
        self._images, self.seen = images, 0

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Images:
        self.seen += 1
        return self._images[index]


def _detector(**options: Any) -> ead.PatchCore:
    defaults = {**NATIVE, "coreset_size": 60, "batch_size": 4, "device": "cpu", "precision": "float32"}
    return ead.PatchCore(TinyNet(), ("second", "first"), **(defaults | options))


# A budget of groups of two batches, beside the images that give the threshold.
HELD = len(TRAIN) * PATCHES * DIMS * 4
SMALL = HELD + 2 * 8 * PATCHES * ROW


def test_a_small_budget_gives_a_bank_in_groups() -> None:
    detector = _detector(memory_budget=SMALL).fit(TRAIN)
    bank, exact = detector.memory_bank_, _detector().fit(TRAIN).memory_bank_
    assert bank.rows_.shape == exact.rows_.shape == (60, DIMS)
    assert not torch.equal(bank.rows_, exact.rows_)
    covered, least = detector.verify(TRAIN), exact.radius_
    assert covered.num_rows == 40 * PATCHES
    assert covered.radius <= bank.radius_ <= 4 * least
    assert covered.radius <= 1.5 * least
    assert bank.certificate_ is not None
    assert covered.radius / bank.certificate_ <= least
    again = _detector(memory_budget=SMALL).fit(TRAIN)
    assert torch.equal(again.memory_bank_.rows_, bank.rows_)
    assert again.threshold_ == detector.threshold_


def test_images_are_held_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblead.detectors.one_pass.HELD_IMAGES", 5)
    detector = _detector(memory_budget=4 * 8 * PATCHES * ROW).fit(TRAIN)
    # A quarter of the budget, where the embeddings of an image take half of its rows with what they are
    # selected by.
    assert len(detector.calibration_.scores) == 16
    assert len(_detector().fit(TRAIN).calibration_.scores) == 40


def test_a_budget_is_refused_after_the_first_batch() -> None:
    images, detector = Counted(TRAIN), _detector(coreset_size=2000, memory_budget=SMALL)
    with pytest.raises(ValueError, match="memory_budget is .* too few for a bank of 2000 of 10240") as told:
        detector.fit(images)
    assert images.seen < len(TRAIN)
    assert not detector.is_fitted
    least = int(str(told.value).split("memory_budget=")[1].split()[0])
    most = int(str(told.value).split("coreset_size=")[1].split()[0])
    _detector(coreset_size=most, memory_budget=SMALL).fit(TRAIN)
    assert len(_detector(coreset_size=2000, memory_budget=least).fit(TRAIN).memory_bank_) == 2000


def test_where_all_patches_fit_neither_the_budget_nor_the_order_matters() -> None:
    some, order = TRAIN[:12], np.random.default_rng(0).permutation(12)
    plain = _detector(coreset_size=None, coreset_fraction=0.02).fit(some).memory_bank_
    sized = _detector(coreset_size=61, memory_budget=13 * PATCHES * ROW).fit(some[order]).memory_bank_
    assert torch.equal(plain.rows_, sized.rows_)
    assert plain.radius_ == sized.radius_


def test_parameters_there_and_back(tmp_path: Path) -> None:
    detector = ead.PatchCore("gabor", coreset_size=70, memory_budget=10**8, **NATIVE, device="cpu")
    assert ead.create(detector.describe()).describe() == detector.describe()
    detector.fit(TRAIN[:12]).save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert (again.coreset_size, again.memory_budget) == (70, 10**8)
    bank, loaded = detector.memory_bank_, again.memory_bank_
    assert (loaded.radius_, loaded.certificate_) == (bank.radius_, bank.certificate_)
    assert loaded.parameters() == bank.parameters()
    assert again.verify(TRAIN[:12]) == detector.verify(TRAIN[:12])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset_size": 0}, "coreset_size must be at least 1, got 0"),
        ({"coreset_size": 5, "coreset_fraction": 0.5}, "give only one"),
        ({"memory_budget": 0}, "memory_budget must be at least 1, got 0"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _detector(**options)


def test_a_bank_that_makes_predict_slow_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    per_row = 2 * PATCHES * DIMS
    monkeypatch.setattr("ensemblead.detectors.patchcore.accumulator._SLOW", 59.5 * per_row)
    with pytest.warns(SlowPredictWarning, match=r"compared with 60 bank rows.* coreset_size=59 takes"):
        detector = _detector().fit(TRAIN[:12])
    with pytest.warns(SlowPredictWarning, match="bank rows.* max_rows=59 takes"):
        detector.extend(QUERIES)
    _detector(coreset_size=59).fit(TRAIN[:12])
    pytest.importorskip("faiss")
    _detector(index="hnsw").fit(TRAIN[:12])


# In ensembles every bank has its budget

TILE = 64 * DIMS * 4  # bytes of a tile's embeddings
GROUPS = 60 * (4 * ROW + 4 * DIMS)  # bytes that groups of a bank of 60 rows need


@pytest.mark.parametrize(("shared", "budget"), [(False, 40 * TILE + GROUPS), (True, 160 * TILE + GROUPS)])
def test_tiles_within_a_budget(shared: bool, budget: int) -> None:
    def ensemble(budget: int) -> ead.TiledEnsemble:
        member = _detector(memory_budget=budget)
        return ead.TiledEnsemble(member, tile_size=32, stride=32, image_size=SIDE, shared=shared)

    exact, fitted = ensemble(10**9).fit(TRAIN), ensemble(budget).fit(TRAIN)
    for bank, least in zip(_banks(fitted), _banks(exact), strict=True):
        assert len(bank) == len(least) == 60
        assert not torch.equal(bank.rows_, least.rows_)
        assert least.radius_ < bank.radius_ < 10 * least.radius_
    assert fitted.predict(QUERIES).is_anomalous.all()
    with pytest.raises(ValueError, match="memory_budget is"):
        ensemble(budget - 1).fit(TRAIN)


def test_members_within_their_budgets() -> None:
    members = [_detector(memory_budget=SMALL), _detector(seed=1)]
    ensemble = ead.BackboneEnsemble(members).fit(TRAIN)
    alone = _detector(memory_budget=SMALL).fit(TRAIN)
    assert torch.equal(_banks(ensemble)[0].rows_, alone.memory_bank_.rows_)
    assert ensemble.members[1].memory_bank_.radius_ < alone.memory_bank_.radius_


# Extending within a size


def _ensembles() -> list[Any]:
    member = _detector(batch_size=4)
    return [
        _detector(),
        ead.BackboneEnsemble(
            [_detector(), ead.PaDiM("gabor", ("layer1",), num_dimensions=4, **NATIVE, device="cpu")]
        ),
        ead.TiledEnsemble(member, tile_size=32, stride=32, image_size=SIDE),
    ]


def _banks(detector: Any) -> list[ead.MemoryBank]:
    if hasattr(detector, "members_"):
        return [one.memory_bank_ for one in detector.members_]
    return (
        [detector.memory_bank_] if hasattr(detector, "memory_bank_") else [detector.members[0].memory_bank_]
    )


@pytest.mark.parametrize("kind", range(3))
def test_banks_are_kept_small_by_extend(kind: int) -> None:
    first = [_ensembles()[kind].fit(TRAIN[:12]) for _ in range(2)]
    before = [bank.rows_.clone() for bank in _banks(first[0])]
    more = np.concatenate([TRAIN[12:16], QUERIES])
    grown, kept = first[0].extend(more), first[1].extend(more, max_rows=64)
    assert max(len(bank) for bank in _banks(grown)) > 64
    assert [len(bank) for bank in _banks(kept)] == [min(64, len(bank)) for bank in _banks(grown)]
    for bank, old in zip(_banks(grown), before, strict=True):
        assert torch.equal(bank.rows_[:60], old)
    for bank in _banks(kept):
        assert bank.certificate_ is not None or len(bank) < 64
        assert np.isfinite(kept.predict(QUERIES).anomaly_score).all()


@pytest.mark.parametrize("kind", [0, 2])
def test_a_guarantee_stays_unless_rows_were_replaced(kind: int) -> None:
    detectors = [_ensembles()[kind].fit(TRAIN[:12]) for _ in range(2)]
    for detector in detectors:
        detector.calibrate(normal_images(9, seed=5), 0.1)
    more = np.concatenate([TRAIN[12:16], QUERIES])
    assert detectors[0].extend(more, max_rows=10_000).calibration_.is_guaranteed
    with pytest.warns(UserWarning, match="the guarantee of calibrate does not hold after extend"):
        detectors[1].extend(more, max_rows=62)
    assert not detectors[1].calibration_.is_guaranteed


def test_sizes_for_extend_that_cannot_be() -> None:
    detector = _detector(num_neighbors=3).fit(TRAIN[:12])
    rows = detector.memory_bank_.rows_
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        detector.extend(QUERIES, max_rows=0)
    with pytest.raises(
        ValueError, match="num_neighbors is 3, but the memory bank has only 2 rows; .*max_rows"
    ):
        detector.extend(QUERIES, max_rows=2)
    assert torch.equal(detector.memory_bank_.rows_, rows)
    padim = ead.PaDiM("gabor", ("layer1",), num_dimensions=4, **NATIVE, device="cpu").fit(TRAIN[:12])
    with pytest.raises(ValueError, match="max_rows: there is no memory bank here"):
        padim.extend(QUERIES, max_rows=5)


# Half precision on disk


@pytest.mark.parametrize("kind", range(3))
def test_rows_in_half_precision(tmp_path: Path, kind: int) -> None:
    detector = _ensembles()[kind].fit(TRAIN[:12])
    detector.save(tmp_path / "whole", include_backbone=True)
    detector.save(tmp_path / "half", include_backbone=True, half=True)
    options = {"backbone": TinyNet()} if kind != 1 else {"backbone": {0: TinyNet()}}
    whole, half = (ead.load(tmp_path / name, **options) for name in ("whole", "half"))
    for rounded, bank in zip(_banks(half), _banks(whole), strict=True):
        assert rounded.rows_.dtype == torch.float32
        assert torch.equal(rounded.rows_, bank.rows_.half().float())
        assert bank.radius_ < rounded.radius_ < bank.radius_ * 1.01
    near, far = (one.predict(QUERIES) for one in (half, whole))
    np.testing.assert_allclose(near.anomaly_score, far.anomaly_score, rtol=5e-3)
    np.testing.assert_array_equal(near.is_anomalous, far.is_anomalous)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).rglob("learned.safetensors"))
        for name in ("half", "whole")
    ]
    rows = sum(len(bank) for bank in _banks(whole))
    assert sizes[1] - sizes[0] == pytest.approx(rows * DIMS * 2, abs=64 * len(_banks(whole)))
    # What was rounded once is not rounded again.
    half.save(tmp_path / "again", include_backbone=True, half=True)
    again = ead.load(tmp_path / "again", **options)
    assert [bank.radius_ for bank in _banks(again)] == [bank.radius_ for bank in _banks(half)]


def test_the_radius_of_rounded_rows_is_one(tmp_path: Path) -> None:
    detector = _detector().fit(TRAIN)
    detector.save(tmp_path / "half", half=True)
    rounded, bank = ead.load(tmp_path / "half", backbone=TinyNet()), detector.memory_bank_
    assert bank.radius_ < rounded.verify(TRAIN).radius * 1.001 < rounded.memory_bank_.radius_ * 1.001
    assert rounded.memory_bank_.certificate_ / bank.certificate_ == pytest.approx(
        rounded.memory_bank_.radius_ / bank.radius_
    )


def test_values_beyond_half_precision_are_refused() -> None:
    bank = ead.MemoryBank(coreset_size=3)
    bank.add(np.array([[1e5, 2.0], [3.0, -7e4], [0.0, 1.0]], np.float32))
    with pytest.raises(ValueError, match="half: float16 has values up to 65504, the bank's go up to 100000"):
        bank.fit().state().for_half()
