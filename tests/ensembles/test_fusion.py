"""Fusing scores and maps of several members."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemblead.calibration import Calibration, NormalSample
from ensemblead.ensembles.fusion import (
    check_weights,
    combine_calibrations,
    fuse_maps,
    fuse_minmax,
    fuse_scores,
    rank,
)


def _calibration(scale: float, shift: float, seed: int, count: int = 50, images: str = "a") -> Calibration:
    rng = np.random.default_rng(seed)
    sample = NormalSample()
    sample.add(
        torch.from_numpy((scale * rng.random(count) + shift).astype(np.float32)),
        torch.from_numpy((scale * rng.random((count, 8, 8)) + shift).astype(np.float32)),
    )
    return sample.calibration(0.05, "calibrated", images)


MEMBERS = [_calibration(1, 0, 0), _calibration(100, 7, 1), _calibration(0.01, -0.03, 2)]


def test_calibrated_fusion_by_hand() -> None:
    scores = [torch.tensor([0.2, 0.9]), torch.tensor([50.0, 300.0]), torch.tensor([-0.03, 0.07])]
    weights = [0.5, 0.3, 0.2]
    fused = fuse_scores("calibrated", scores, MEMBERS, weights)
    expected = sum(
        w * (s.double().numpy() - c.scores.astype(np.float64).mean()) / c.scores.astype(np.float64).std()
        for s, c, w in zip(scores, MEMBERS, weights, strict=True)
    )
    np.testing.assert_allclose(fused.numpy(), expected, rtol=1e-4)
    assert fused[1] > fused[0]
    maps = [s.view(2, 1, 1).expand(2, 3, 4) for s in scores]
    fused_maps = fuse_maps("calibrated", maps, MEMBERS, weights)
    assert fused_maps.shape == (2, 3, 4)
    expected = sum(
        w * (s.double().numpy() - c.map_mean) / c.map_std
        for s, c, w in zip(scores, MEMBERS, weights, strict=True)
    )
    np.testing.assert_allclose(fused_maps[:, 1, 2].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("fusion", ["calibrated", "max", "rank"])
def test_the_scale_of_a_member_has_no_say(fusion: str) -> None:
    scores = [torch.tensor([0.5, 1.5, 0.1]), torch.tensor([60.0, 120.0, 8.0])]
    plain = [_calibration(1, 0, 0), _calibration(100, 7, 1)]
    scaled = [_calibration(1000, 0, 0), plain[1]]
    a = fuse_scores(fusion, scores, plain, [0.5, 0.5])
    b = fuse_scores(fusion, [scores[0] * 1000, scores[1]], scaled, [0.5, 0.5])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_mean_and_max() -> None:
    scores = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0])]
    torch.testing.assert_close(
        fuse_scores("mean", scores, MEMBERS[:2], [0.25, 0.75]), torch.tensor([2.5, 1.0])
    )
    standard = torch.stack([c.standardize_scores(s) for s, c in zip(scores, MEMBERS[:2], strict=True)])
    torch.testing.assert_close(fuse_scores("max", scores, MEMBERS[:2], [0.5, 0.5]), standard.amax(0))


def test_minmax_is_the_references() -> None:
    a, b = np.array([1.0, 3.0, 2.0], np.float32), np.array([10.0, 0.0, 5.0], np.float32)
    flat = np.full(3, 7.0, np.float32)
    np.testing.assert_allclose(fuse_minmax([a, b], [0.5, 0.5]), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(fuse_minmax([a, b], [0.75, 0.25]), [0.25, 0.75, 0.5])
    np.testing.assert_allclose(fuse_minmax([a, flat], [0.5, 0.5]), [0.0, 0.5, 0.25])


def test_rank_is_the_empirical_distribution_with_open_ends() -> None:
    normal = np.array([4.0, 1.0, 2.0, 2.0, 3.0], np.float32)
    places = rank(torch.tensor([1.0, 2.0, 3.0, 4.0, 3.5]), normal)
    torch.testing.assert_close(places, torch.tensor([1, 2.5, 4, 5, 4.5]) / 6)
    steps = torch.logspace(-2, 3, 200)
    line = rank(torch.cat([-steps.flip(0), torch.linspace(0, 1, 50), 1 + steps]), np.linspace(0, 1, 100))
    assert bool((line.diff() > 0).all())
    assert float(line[0]) > 0
    assert float(line[-1]) < 1
    # One normal image, and equal ones.
    assert bool((rank(torch.tensor([0.0, 1.0, 2.0]), np.ones(3)).diff() > 0).all())


def test_members_calibrated_together_give_their_images_fused_scores() -> None:
    combined = combine_calibrations("calibrated", MEMBERS[:2], [0.5, 0.5])
    expected = fuse_scores(
        "calibrated", [torch.from_numpy(c.scores) for c in MEMBERS[:2]], MEMBERS[:2], [0.5, 0.5]
    )
    np.testing.assert_array_equal(combined.scores, expected.numpy())
    assert combined.score_mean == pytest.approx(0, abs=1e-6)
    # Independent members: their mean varies less than either.
    assert combined.score_std == pytest.approx(1 / np.sqrt(2), rel=0.25)
    assert combined.map_std == pytest.approx(1 / np.sqrt(2), rel=0.05)
    assert combined.origin == "calibrated"
    assert combined.requested_rate == 0.05


def test_members_calibrated_apart_are_taken_to_agree() -> None:
    apart = [MEMBERS[0], _calibration(100, 7, 1, count=80, images="b")]
    combined = combine_calibrations("calibrated", apart, [0.5, 0.5])
    assert len(combined.scores) == 50
    assert combined.origin == "leave_one_out"
    together = combine_calibrations("calibrated", MEMBERS[:2], [0.5, 0.5])
    assert combined.threshold > together.threshold
    assert combined.score_std == pytest.approx(1.0, rel=0.05)
    assert combined.map_std == pytest.approx(1.0, rel=0.05)
    # Of the sum of two quantiles: the threshold is the mean of the members' own.
    own = [float(c.standardize_scores(torch.tensor([c.threshold]))) for c in apart]
    assert combined.threshold == pytest.approx(np.mean(own), abs=0.15)


def test_weights() -> None:
    assert check_weights(None, 4, "rank") == (0.25,) * 4
    assert check_weights([1, 3], 2, "calibrated") == (0.25, 0.75)
    for weights, message in (
        ([1], r"one per member \(2\), got 1"),
        ([1, -1], "not negative"),
        ([0, 0], "not all zero"),
        ([1, float("nan")], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_weights(weights, 2, "calibrated")
    with pytest.raises(ValueError, match="weights have no meaning with fusion='max'"):
        check_weights([1, 2], 2, "max")
    with pytest.raises(ValueError, match="fusion must be one of calibrated, .*, got 'vote'"):
        check_weights(None, 2, "vote")
