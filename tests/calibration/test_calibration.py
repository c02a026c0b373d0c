"""Statistics of normal images, and the conformal threshold."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.textures import normal_images

import ensemblead as ead
from ensemblead.calibration import (
    Calibration,
    NormalSample,
    Origin,
    conformal_threshold,
    estimated_threshold,
    floored,
    sampled_positions,
    set_digest,
    warn_if_too_few,
)
from ensemblead.ensembles.fusion import combine_calibrations
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state

ORIGINS: tuple[Origin, Origin] = ("calibrated", "leave_one_out")


def _calibration(scores: list[float], rate: float = 0.01, seed: int = 0) -> Calibration:
    sample, generator = NormalSample(), torch.Generator().manual_seed(seed)
    maps = torch.rand(len(scores), 40, 50, generator=generator)
    sample.add(torch.tensor(scores), maps)
    return sample.calibration(rate, "leave_one_out", str(seed))


@pytest.mark.parametrize(
    ("n", "rate"), [(99, 0.01), (100, 0.01), (19, 0.05), (20, 0.05), (500, 0.03), (9, 0.1)]
)
def test_threshold_is_the_conformal_rank(n: int, rate: float) -> None:
    scores = np.random.default_rng(0).permutation(n).astype(np.float32) + 1
    threshold, stated = conformal_threshold(scores, rate)
    # Scores are 1..n: the rank is the threshold. In whole numbers, without rounding.
    percent = round(rate * 100)
    assert threshold == -((-(n + 1) * (100 - percent)) // 100)
    assert stated == rate


def test_too_few_scores_give_the_largest_and_say_so() -> None:
    scores = np.arange(98, dtype=np.float32)
    assert conformal_threshold(scores, 0.01) == (97.0, 1 / 99)
    assert conformal_threshold(scores[:1], 0.01) == (0.0, 0.5)
    with pytest.warns(UserWarning, match=r"98 images cannot .* 0\.01 \(99 are needed\).* rate of 0\.0101"):
        warn_if_too_few([_calibration(list(range(98)))])
    warn_if_too_few([_calibration(list(range(99)))])


def test_an_odd_image_does_not_set_an_estimated_threshold() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(7, 0.6, 30)
    usual, _ = estimated_threshold(scores, 0.01)
    odd, stated = estimated_threshold(np.append(scores, 14.0), 0.01)
    largest, _ = conformal_threshold(np.append(scores, 14.0), 0.01)
    assert largest == 14.0
    assert usual < odd < 12
    # One of 31 lies above: a fresh one does so with 2 of 32, as far as ranks can tell.
    assert stated == 2 / 32


@pytest.mark.parametrize("n", [2, 3, 9])
def test_an_estimated_threshold_of_few_images_is_the_bound_of_a_normal_distribution(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(n).normal(5, 1, n)
    bound = stats.t.ppf(0.99, n - 1, scores.mean(), scores.std(ddof=1) * np.sqrt(1 + 1 / n))
    threshold, stated = estimated_threshold(scores, 0.01)
    assert threshold == pytest.approx(min(bound, scores.max()))
    assert stated == (1 + (scores > threshold).sum()) / (n + 1)


@pytest.mark.parametrize(("n", "tail", "odd"), [(10, 5, 1), (31, 6, 2), (98, 20, 5), (400, 80, 20)])
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_an_estimated_threshold_is_that_of_an_exponential_tail(
    n: int, tail: int, odd: int, rate: float
) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(n).gamma(3, size=n)
    ordered = np.sort(scores)
    level, share = ordered[-tail - 1], tail / (n + 1)
    # A normal distribution of which the scores but the largest ones are what lies below an edge.
    edge = stats.norm.ppf((n - odd + 0.5) / (n + 1))
    deviation = ordered[:-odd].std(ddof=1) / stats.truncnorm(-np.inf, edge).std()
    beyond = stats.norm.isf(share)
    expected = deviation * (stats.truncnorm(beyond, np.inf).mean() - beyond)
    scale = ((ordered[-tail:] - level).sum() + 10 * expected) / (tail + 10)
    threshold, stated = estimated_threshold(scores, rate)
    assert threshold == pytest.approx(level + scale * np.log(share / rate), rel=1e-6)
    assert stated == max(rate, (1 + (scores > threshold).sum()) / (n + 1))
    shuffled = np.random.default_rng(0).permutation(scores)
    assert estimated_threshold(shuffled, rate) == pytest.approx((threshold, stated))
    # Whatever the unit of the scores, negative ones too.
    assert estimated_threshold(7 * scores - 99, rate)[0] == pytest.approx(7 * threshold - 99)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.15])
def test_the_tail_of_many_exponential_scores_is_found(rate: float) -> None:
    scores = np.random.default_rng(1).exponential(size=20_000)
    threshold, stated = estimated_threshold(scores, rate)
    assert threshold == pytest.approx(-np.log(rate), rel=0.03)
    assert stated == pytest.approx(rate, rel=0.15)


def test_an_estimated_threshold_within_the_scores_is_their_rank() -> None:
    scores = np.random.default_rng(1).normal(5, 1, 99)
    assert estimated_threshold(scores, 0.2) == conformal_threshold(scores, 0.2)
    assert estimated_threshold(scores[:19], 0.3) == conformal_threshold(scores[:19], 0.3)
    assert estimated_threshold(scores[:9], 0.1) == conformal_threshold(scores[:9], 0.1)


def test_an_estimated_threshold_of_few_or_equal_scores() -> None:
    assert estimated_threshold(np.array([3.0]), 0.01) == (3.0, 0.5)
    assert estimated_threshold(np.full(5, 3.0), 0.01) == (3.0, 1 / 6)
    assert estimated_threshold(np.full(40, 3.0), 0.01) == (3.0, 1 / 41)


@pytest.mark.parametrize(("n", "most"), [(12, 0.035), (30, 0.03), (100, 0.025), (400, 0.02)])
def test_an_estimated_threshold_alarms_about_as_often_as_asked(n: int, most: float) -> None:
    rng = np.random.default_rng(2)
    alarms = []
    for _ in range(500):
        scores = rng.gamma(4, size=n + 50)
        alarms.append((scores[n:] > estimated_threshold(scores[:n], 0.01)[0]).mean())
    assert 0.007 < np.mean(alarms) < most


def test_fresh_images_keep_their_guarantee() -> None:
    sample = NormalSample()
    scores = np.append(np.random.default_rng(0).normal(7, 0.6, 30), 14.0)
    sample.add(torch.from_numpy(scores.astype(np.float32)), torch.zeros(31, 4, 4))
    fresh, estimated = (sample.calibration(0.01, origin, "") for origin in ORIGINS)
    assert (fresh.threshold, fresh.false_alarm_rate) == (14.0, 1 / 32)
    assert (estimated.threshold < 12, estimated.false_alarm_rate) == (True, 2 / 32)


def test_the_guarantee_holds_on_fresh_scores() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        scores = rng.gamma(2.0, size=40)
        threshold, stated = conformal_threshold(scores[:39], 0.1)
        assert stated == 0.1
        alarms.append(scores[39] > threshold)
    assert 0.08 < np.mean(alarms) < 0.115


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_bad_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="false_alarm_rate must be between 0 and 1"):
        conformal_threshold(np.ones(3), rate)


def test_statistics_are_those_of_all_images_and_all_pixels() -> None:
    sample, rng = NormalSample(), np.random.default_rng(1)
    maps = [rng.gamma(2.0, size=(n, 31, 47)).astype(np.float32) * n for n in (3, 1, 4)]
    scores = [rng.random(len(m)).astype(np.float32) for m in maps]
    for s, m in zip(scores, maps, strict=True):
        sample.add(torch.from_numpy(s), torch.from_numpy(m))
    calibration = sample.calibration(0.2, "calibrated", "x")
    pixels = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    assert calibration.map_mean == pytest.approx(pixels.mean(), rel=1e-9)
    assert calibration.map_std == pytest.approx(pixels.std(), rel=1e-9)
    every = np.concatenate(scores).astype(np.float64)
    assert calibration.score_mean == pytest.approx(every.mean(), rel=1e-9)
    assert calibration.score_std == pytest.approx(every.std(), rel=1e-9)
    assert calibration.pixels.shape == (8, 1024)
    assert np.isin(calibration.pixels, np.concatenate([m.ravel() for m in maps])).all()
    z = calibration.standardize_scores(torch.from_numpy(np.concatenate(scores)))
    assert float(z.mean()) == pytest.approx(0, abs=1e-5)
    assert float(z.std(correction=0)) == pytest.approx(1, rel=1e-5)
    together = torch.cat([calibration.standardize_maps(torch.from_numpy(m)).ravel() for m in maps])
    assert float(together.std(correction=0)) == pytest.approx(1, rel=1e-4)


def test_the_lattice_is_the_same_place_in_maps_of_any_size() -> None:
    def sampled(side: int) -> np.ndarray:
        ramp = torch.linspace(0, 1, side).expand(side, side).clone()
        sample = NormalSample()
        sample.add(torch.zeros(1), ramp[None])
        return sample.calibration(0.1, "leave_one_out", "").pixels[0]

    np.testing.assert_allclose(sampled(224), sampled(320), atol=0.005)
    assert sampled(5).shape == (1024,)


def test_merging_is_adding() -> None:
    a, b = _calibration([1.0, 2.0, 3.0]), _calibration([5.0], seed=1)
    merged, sample = a.merged(b), NormalSample()
    for scores, seed in (([1.0, 2.0, 3.0], 0), ([5.0], 1)):
        maps = torch.rand(len(scores), 40, 50, generator=torch.Generator().manual_seed(seed))
        sample.add(torch.tensor(scores), maps)
    both = sample.calibration(0.01, "leave_one_out", "")
    assert merged.map_mean == pytest.approx(both.map_mean)
    assert merged.map_std == pytest.approx(both.map_std)
    np.testing.assert_array_equal(merged.scores, both.scores)
    assert merged.images_sha256 not in (a.images_sha256, b.images_sha256)


def test_state_there_and_back(tmp_path: Path) -> None:
    calibration = _calibration([0.1, 0.7, 0.3], rate=0.3)
    writer = FolderWriter(tmp_path, {})
    state = save_state(writer, "calibration", calibration, Calibration)
    writer.finish("Calibration", state)
    again = load_state(FolderReader(tmp_path, {}), "calibration", state, Calibration)
    for field in fields(Calibration):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(calibration, field.name))
    assert again.threshold == calibration.threshold == pytest.approx(0.7)


def test_a_standard_deviation_of_zero_can_be_divided_by() -> None:
    assert floored(0.0, 5.0) == pytest.approx(0.005)
    assert floored(0.0, 0.0) == floored(1e-14, -1e-13, rounding=1e-12) == 1.0
    assert floored(2.0, 5.0) == 2.0
    assert floored(1e-7, 0.0) == 1e-7  # of squared distances
    assert floored(1e-7, 0.0, rounding=1e-6) == 1.0


def test_the_rounding_goes_with_the_statistics(tmp_path: Path) -> None:
    def member(score: str) -> Any:
        sizes: dict[str, Any] = {"image_size": None, "resize": None}
        return ead.PatchCore("gabor", ("layer1",), score=score, coreset_fraction=0.5, device="cpu", **sizes)

    images, fresh = normal_images(3), normal_images(3, seed=1)
    largest = []
    for score in ("max", "reweighted"):
        tiled = ead.TiledEnsemble(member(score), 32, 32, image_size=64, shared=True)
        ensemble: Any = ead.BackboneEnsemble([tiled, member("max")]).fit(images)

        def roundings(one: Any) -> list[float]:
            return [each.calibration_.rounding for each in (one, *one.members, *one.members[0].members_)]

        before = roundings(ensemble)
        assert min(before) > 0
        ensemble.extend(normal_images(2, seed=2))
        # The fused one depends on the deviations too.
        assert all(after >= known for after, known in zip(roundings(ensemble)[1:], before[1:], strict=True))
        before = roundings(ensemble)
        ensemble.calibrate(fresh, 0.5)
        assert roundings(ensemble)[1:] == before[1:]
        ensemble.save(tmp_path / score)
        assert roundings(ead.load(tmp_path / score)) == roundings(ensemble)
        largest.append(before[3] / ensemble.members[0].members_[0].calibration_.score_mean)
    # Of squared distances and of their roots.
    assert all(1e-7 < share < 1e-2 for share in largest)


def test_positions_are_spread_over_the_training_set() -> None:
    assert sampled_positions(1) == {0}
    assert sampled_positions(7) == set(range(7))
    many = sorted(sampled_positions(5000))
    assert len(many) == 400
    assert (many[0], many[-1]) == (0, 4999)
    assert set(np.diff(many)) == {12, 13}
    assert sampled_positions(400) == set(range(400))
    assert sampled_positions(9, most=3) == {0, 4, 8}
    assert sampled_positions(20, share=0.1) == {5, 15}


def test_the_digest_tells_sets_of_images_apart() -> None:
    def digest(value: int, side: int = 8, index: int = 0) -> str:
        return set_digest([index], [(side, 8)], [value])

    assert digest(1) == digest(1)
    assert len({digest(1), digest(2), digest(1, 9), digest(1, index=1)}) == 4


def test_nothing_to_take_statistics_from() -> None:
    with pytest.raises(ValueError, match="no normal images"):
        NormalSample().calibration(0.1, "leave_one_out", "")
    with pytest.raises(ValueError, match="scores must not be empty"):
        conformal_threshold(np.zeros(0), 0.1)


def test_results_are_kept_and_given_again() -> None:
    sample, generator = NormalSample(rounding=1e-4), torch.Generator().manual_seed(0)
    grids = torch.rand(3, 4, 5, generator=generator)
    sample.add_grids(None, grids[:2], (20, 25), sigma=1.5)
    sample.add_grids(torch.tensor([7.0]), grids[2:], (20, 25), sigma=1.5, counted=False)
    again = NormalSample.of_results(*sample.results(), torch.device("cpu"))
    assert again.num_results == 3
    assert again.rounding == sample.rounding
    for index in range(3):
        for mine, theirs in zip(again.result(index), sample.result(index), strict=True):
            assert torch.equal(mine, theirs)
        assert again.is_counted(index) == sample.is_counted(index) == (index < 2)
    sample.add_grids(None, grids, (10, 10), sigma=1.5)
    with pytest.raises(ValueError, match="one size, sigma and kind"):
        sample.results()


def test_rounding_moves_scores_and_maps_by_their_own_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = NormalSample(rounding=0.1)
    sample.add(torch.rand(9, generator=generator), torch.rand(9, 40, 40, generator=generator))
    known = sample.standardized(0.5, 2.0, 0.5, 0.25).calibration(0.1, "leave_one_out", "")
    assert (known.rounding, known.map_rounding) == pytest.approx((0.05, 0.4))
    assert known.pixel_threshold(0.25) == pytest.approx(known._regions_threshold(0.25)[0] + 0.4)
    far = sample.calibration(0.1, "leave_one_out", "").threshold
    scores = torch.tensor([far, far + 0.11, far + 1.0])
    assert known.is_anomalous((scores - 0.5) / 2).tolist() == [False, True, True]
    assert known.merged(known).rounding_of_maps == known.map_rounding
    plain = sample.calibration(0.1, "leave_one_out", "")
    assert plain.map_rounding is None
    assert plain.rounding_of_maps == plain.rounding == 0.1
    with pytest.raises(ValueError, match="must not be negative"):
        replace(plain, map_rounding=-1.0)


@pytest.mark.parametrize(("fusion", "factor"), [("calibrated", 1.0), ("max", 1.0), ("rank", 0.1)])
def test_fused_scores_and_maps_round_by_their_own_deviations(fusion: str, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sample = NormalSample(rounding=1e-4)
    sample.add(torch.rand(9, generator=generator), torch.rand(9, 40, 40, generator=generator) / 4)
    member = sample.calibration(0.1, "leave_one_out", "same")
    fused = combine_calibrations(fusion, [member, member], [0.5, 0.5])
    assert fused.rounding == pytest.approx(factor * 1e-4 / member.score_std)
    assert fused.map_rounding == pytest.approx(factor * 1e-4 / member.map_std)


@pytest.mark.parametrize("normalization", ["tile", "image", "none"])
def test_merged_scores_and_maps_round_by_their_own_deviations(tmp_path: Path, normalization: Any) -> None:
    member = ead.PatchCore("gabor", ("layer1",), resize=None, image_size=None, device="cpu")
    ensemble: Any = ead.TiledEnsemble(member, 32, 32, image_size=64, normalization=normalization)
    ensemble.fit(normal_images(5))
    roundings = torch.tensor([one.calibration_.rounding for one in ensemble.members_], dtype=torch.float64)
    known, expected = ensemble.calibration_, [roundings.max(), roundings.max()]
    statistics = ensemble._state.statistics
    if statistics is not None:
        rows = statistics.values
        moved = roundings if normalization == "tile" else roundings.max()
        expected = [(moved / rows[:, 1]).max(), (moved / rows[:, 3]).max()]
    assert (known.rounding, known.rounding_of_maps) == pytest.approx(tuple(map(float, expected)))
    ensemble.save(tmp_path / "saved")
    again = ead.load(tmp_path / "saved").calibration_
    assert (again.rounding, again.map_rounding) == (known.rounding, known.map_rounding)
    ensemble.calibrate(normal_images(9, seed=1), 0.1)
    again = ensemble.calibration_
    assert (again.rounding, again.map_rounding) == (known.rounding, known.map_rounding)
