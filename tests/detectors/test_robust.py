"""Robust fits: odd training images are left out, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.detectors.left_out import LeftOut, joined
from ensemblead.detectors.patchcore.robust import (
    FEW_ROWS,
    LIMIT,
    deviations,
    looks_of,
    odd_ones,
    out_of_bag_scores,
)
from ensemblead.memory import MemoryBank

GOOD = normal_images(24, side=32)
BAD, _ = with_defects(normal_images(3, seed=3, side=32))
MIXED = np.concatenate([GOOD[:10], BAD[:2], GOOD[10:], BAD[2:]])
ODD = [10, 11, 26]
CPU = torch.device("cpu")


def _detector(**options: Any) -> ead.PatchCore:
    defaults: dict[str, Any] = {**NATIVE, "coreset_size": 60, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore(TinyNet(), ("second", "first"), **(defaults | options))


@pytest.fixture(scope="module")
def fitted() -> ead.PatchCore:
    return _detector(contamination="auto").fit(MIXED)


def _places(detector: ead.Detector) -> list[int]:
    return sorted(one.index for one in detector.left_out_)


# Judging


def test_scores_equal_plain_distances() -> None:
    """With ten images every bank has one image, whatever part it was dealt to, and with 50 rows at least it
    has all of its patches. Image 3 is seen twice, as two tiles.
    """
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(11, 5, 4)).astype(np.float32)
    numbers = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    expected: dict[int, float] = {}
    for own, number in zip(patches.astype(np.float64), numbers, strict=True):
        away = []
        for other in sorted(set(numbers) - {number}):
            rows = patches[np.array(numbers) == other].reshape(-1, 4).astype(np.float64)
            away.append(np.sqrt(((own[:, None] - rows) ** 2).sum(2)).min(1))
        expected[number] = max(expected.get(number, 0.0), float(np.mean(away, axis=0).max()))
    rows = torch.from_numpy(patches.reshape(-1, 4))
    pieces = [rows[:15], rows[15:40], rows[40:]]
    looks = looks_of(pieces, [5] * 11, numbers, list(range(11)))
    found = out_of_bag_scores(looks, MemoryBank(seed=4), CPU, lambda done, total: None)
    assert found.keys() == expected.keys()
    for number, score in expected.items():
        assert found[number] == pytest.approx(score, rel=1e-5)


def test_banks_are_parts_of_the_whole_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows that every bank is asked for."""
    rng = np.random.default_rng(1)
    rows = torch.from_numpy(rng.normal(size=(20 * 100, 3)).astype(np.float32))
    sizes: list[int] = []

    numbers = list(range(20))
    looks = looks_of([rows], [100] * 20, numbers, numbers)
    done: list[tuple[int, int]] = []
    fit = MemoryBank.fit

    def counted(self: MemoryBank, **options: Any) -> MemoryBank:
        sizes.append(len(fit(self, **options)))
        return self

    monkeypatch.setattr(MemoryBank, "fit", counted)
    for like, least in (
        (MemoryBank(0.4), 80),
        (MemoryBank(0.01), FEW_ROWS),
        (MemoryBank(coreset_size=700), 70),
    ):
        out_of_bag_scores(looks, like, CPU, lambda *at: done.append(at))
        assert sizes == [least] * 10
        sizes.clear()
    assert done[-1] == (10, 10)


def test_deviations_by_hand() -> None:
    scores = np.exp(np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 9.0, 9.0]))
    # Without the two last, the median is 1.3, and the median absolute deviation 0.2.
    expected = (np.log(scores) - 1.3) / (1.4826 * 0.2)
    np.testing.assert_allclose(deviations(scores), expected, rtol=1e-9)
    assert (expected > LIMIT).tolist() == [False] * 7 + [True] * 2


def test_two_fifths_odd_are_told() -> None:
    rng = np.random.default_rng(0)
    scores = np.exp(np.concatenate([rng.normal(0, 0.15, 60), rng.normal(2.5, 0.3, 40)]))
    found = odd_ones(dict(enumerate(scores)), "auto")
    assert {number for number in found if number < 60} == set()
    assert len(found) >= 36


def test_of_scores_that_are_rounding_none_is_odd() -> None:
    assert odd_ones({0: 0.0, 1: 1e-7, 2: 3e-7, **dict.fromkeys(range(3, 12), 0.0)}, "auto", 1e-6) == {}


@pytest.mark.filterwarnings("ignore::ensemblead.common.warnings.ThresholdWarning")  # one defect stays
@pytest.mark.parametrize(("share", "count"), [(0.05, 2), (0.1, 3), (0.2, 6), (0.49, 14)])
def test_a_share_is_rounded_up(share: float, count: int) -> None:
    detector = _detector(contamination=share).fit(MIXED)
    assert len(detector.left_out_) == count
    assert set(_places(detector)) & set(ODD) == set(ODD[:count] if count >= 3 else _places(detector))
    scores = [one.score for one in detector.left_out_]
    assert scores == sorted(scores, reverse=True)


# Fits


def test_the_fit_is_that_of_the_other_images(fitted: ead.PatchCore) -> None:
    assert _places(fitted) == ODD
    assert all(one.score > LIMIT and one.path is None and not one.partly for one in fitted.left_out_)
    alone = _detector().fit(GOOD)
    assert torch.equal(fitted.memory_bank_.rows_, alone.memory_bank_.rows_)
    assert fitted.threshold_ == alone.threshold_ < _detector().fit(MIXED).threshold_
    assert fitted.calibration_.positions == tuple(at for at in range(27) if at not in ODD)
    assert fitted.predict(BAD).is_anomalous.all()
    assert fitted.known_ == []
    fitted.predict(MIXED)
    assert fitted.known_ == [at for at in range(27) if at not in ODD]


def test_a_clean_set_is_left_alone() -> None:
    detector = _detector(contamination="auto").fit(GOOD)
    assert detector.left_out_ == ()
    assert torch.equal(detector.memory_bank_.rows_, _detector().fit(GOOD).memory_bank_.rows_)


def test_the_order_does_not_matter(fitted: ead.PatchCore) -> None:
    order = np.random.default_rng(2).permutation(len(MIXED))
    other = _detector(contamination="auto", batch_size=7).fit(MIXED[order])
    assert sorted(int(order[at]) for at in _places(other)) == ODD
    assert other.threshold_ == pytest.approx(fitted.threshold_, rel=1e-5)
    by_image = {int(order[one.index]): one.score for one in other.left_out_}
    for one in fitted.left_out_:
        assert by_image[one.index] == pytest.approx(one.score, rel=1e-3)


def test_threads_do_not_matter(fitted: ead.PatchCore) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        other = _detector(contamination="auto").fit(MIXED)
    finally:
        torch.set_num_threads(before)
    assert [one.index for one in other.left_out_] == [one.index for one in fitted.left_out_]
    for one, own in zip(other.left_out_, fitted.left_out_, strict=True):
        assert one.score == pytest.approx(own.score, rel=1e-3)


def test_every_image_left_out_somewhere_is_refused() -> None:
    """Of ten images each is odd in a tile of its own, so that none is whole."""
    images = normal_images(10, side=64)[:, :48].copy()
    for number, image in enumerate(images):
        row, column = divmod(number, 4)
        image[row * 16 : row * 16 + 12, column * 16 : column * 16 + 12] = 20
    ensemble = ead.TiledEnsemble(
        _detector(contamination="auto", coreset_size=50), 16, 16, image_size=(48, 64)
    )
    with pytest.raises(ValueError, match="left out at one of the tile locations"):
        ensemble.fit(images)


def test_copies_are_left_out_together() -> None:
    detector = _detector(contamination="auto").fit(np.concatenate([MIXED, BAD[:1], BAD[:1]]))
    assert _places(detector) == [*ODD, 27, 28]
    assert len({one.score for one in detector.left_out_ if one.index in (10, 27, 28)}) == 1
    assert len(_detector(contamination=0.1).fit(np.concatenate([GOOD, GOOD[:6]])).left_out_) in (3, 4, 5, 6)


def test_saved_models_know_what_was_left_out(fitted: ead.PatchCore, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model", include_backbone=True)
    loaded = ead.load(tmp_path / "model", backbone=TinyNet())
    assert loaded.left_out_ == fitted.left_out_
    assert getattr(loaded, "contamination") == "auto"  # noqa: B009
    np.testing.assert_array_equal(loaded._fingerprints, fitted._fingerprints)


def test_extend_takes_what_it_is_given(fitted: ead.PatchCore, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model", include_backbone=True)
    loaded: Any = ead.load(tmp_path / "model", backbone=TinyNet())
    count = len(loaded.calibration_.scores)
    loaded.extend(BAD[:1])
    assert len(loaded.calibration_.scores) == count + 1
    assert loaded.left_out_ == fitted.left_out_
    assert not loaded.predict(BAD[:1]).is_anomalous.any()


def test_a_second_fit_forgets_the_first() -> None:
    detector = _detector(contamination="auto").fit(MIXED)
    assert detector.fit(GOOD).left_out_ == ()


# Ensembles


def test_members_judge_for_themselves_and_are_fused_on_the_same_images() -> None:
    members = [_detector(contamination="auto"), _detector(contamination=0.2), _detector()]
    ensemble = ead.BackboneEnsemble(members).fit(MIXED)
    assert [len(member.left_out_) for member in members] == [3, 6, 0]
    by = {one.index: one.by for one in ensemble.left_out_}
    assert all(by[at] == (0, 1) for at in ODD)
    assert sorted(by) == sorted({one.index for one in members[1].left_out_})
    assert all(one.partly for one in ensemble.left_out_)
    kept = tuple(at for at in range(27) if at not in by)
    assert {member.calibration_.positions for member in members} == {kept}
    assert ensemble.calibration_.positions == kept
    twin = ead.BackboneEnsemble([_detector(contamination="auto"), _detector(contamination="auto", seed=1)])
    twin.fit(MIXED)
    assert [one.index for one in twin.left_out_ if not one.partly] != []
    twin.predict(MIXED)
    assert twin.known_ == [at for at in range(27) if at not in ODD]


def test_locations_judge_for_themselves() -> None:
    images = MIXED.copy()
    images[ODD] = GOOD[:3]
    images[10, 2:14, 2:14] = 20  # in one tile of four
    images[11, 2:14, 18:30] = 20
    images[26] = GOOD[3][::-1]
    member = _detector(contamination="auto", coreset_size=50)
    ensemble = ead.TiledEnsemble(member, 16, 16, image_size=32).fit(images)
    by = {one.index: one.by for one in ensemble.left_out_}
    assert by[10] == (0,)
    assert by[11] == (1,)
    assert all(one.partly for one in ensemble.left_out_)
    assert not set(by) & set(ensemble.calibration_.positions)
    assert len(ensemble.calibration_.scores) == len(ensemble.calibration_.positions)
    found = ensemble.predict(images[[10, 11, 0]])
    assert found.is_anomalous.tolist() == [True, True, False]
    shared = ead.TiledEnsemble(member._clone(), 16, 16, image_size=32, shared=True).fit(images)
    assert {one.index for one in shared.left_out_} >= {10, 11}
    assert all(one.by == () and not one.partly for one in shared.left_out_)


def test_joined_lists() -> None:
    first, second = LeftOut(3, "a", 6.0), LeftOut(3, "a", 8.0)
    other = LeftOut(1, None, 7.0)
    assert joined([(first, other), (second,)]) == (
        LeftOut(3, "a", 8.0, (0, 1), False),
        LeftOut(1, None, 7.0, (0,), True),
    )
    assert LeftOut.of(LeftOut(3, "a", 8.0, (0, 1), True).plain()) == LeftOut(3, "a", 8.0, (0, 1), True)


# Misuse


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1, -0.1, float("nan"), float("inf"), "some"])
def test_no_share(value: Any) -> None:
    with pytest.raises(ValueError, match="contamination must be"):
        _detector(contamination=value)


@pytest.mark.parametrize("value", [True, [0.1], {}])
def test_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match="contamination must be"):
        _detector(contamination=value)


@pytest.mark.parametrize("images", [GOOD[:9], np.repeat(GOOD[:1], 12, axis=0)])
def test_too_few_different_images(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\d different images are too few .* 10 are needed"):
        _detector(contamination=0.1).fit(images)
    detector = _detector(contamination="auto")
    with pytest.warns(ThresholdWarning) as caught:
        detector.fit(images)
    assert any("too few to judge each by the others" in str(one.message) for one in caught)
    assert detector.left_out_ == ()


def test_patches_beyond_the_budget() -> None:
    plain = _detector(coreset_size=20, memory_budget=200_000).fit(MIXED)
    assert not plain.new_bank().fits(27 * 64, 24)
    detector = _detector(coreset_size=20, memory_budget=200_000, contamination="auto")
    with pytest.raises(ValueError, match="contamination needs all patches at once") as told:
        detector.fit(MIXED)
    least = int(str(told.value).split("give memory_budget=")[1].split(",")[0])
    assert _places(_detector(coreset_size=20, memory_budget=least, contamination="auto").fit(MIXED)) == ODD
    with pytest.raises(ValueError, match="needs all patches"):
        _detector(coreset_size=20, memory_budget=least - 1, contamination="auto").fit(MIXED)


def test_a_share_of_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"contamination=0.1 would leave out that share of the tiles"):
        ead.TiledEnsemble(_detector(contamination=0.1), 16, 16, image_size=32)
    ead.TiledEnsemble(_detector(contamination=0.1), 16, 16, image_size=32, shared=True)


def test_rows_that_left_with_a_group_cannot_be_left_out() -> None:
    bank = MemoryBank(coreset_size=4, memory_budget=4000)
    rows = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    for start in range(0, 400, 40):
        bank.add(rows[start : start + 40])
    assert not bank.holds_all_rows
    with pytest.raises(ValueError, match="leave_out needs all rows at once"):
        bank.leave_out([3])
