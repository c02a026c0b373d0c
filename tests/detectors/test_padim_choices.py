"""PaDiM: channels by number, nearest interpolation, and Gaussians from inverse covariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.padim import BAD, tiny
from support.textures import normal_images

import ensemblead as ead
from ensemblead.detectors.padim.detector import Positions
from ensemblead.detectors.padim.gaussians import Gaussians

NORMAL = normal_images(8)


def test_channels_by_number_are_those_that_are_kept() -> None:
    maps = [torch.rand(2, 5, 8, 8), torch.rand(2, 7, 4, 4)]
    whole = ead.PaDiM("gabor", num_dimensions=None, device="cpu").embed(maps)
    some = ead.PaDiM("gabor", num_dimensions=(11, 0, 6), device="cpu")
    assert some.num_dimensions == (0, 6, 11)
    assert torch.equal(some.embed(maps), whole[..., [0, 6, 11]])


def test_nearest_interpolation_repeats_coarse_positions() -> None:
    maps = [torch.rand(2, 3, 9, 7), torch.rand(2, 4, 4, 3)]
    seen = ead.PaDiM("gabor", num_dimensions=None, interpolation="nearest", device="cpu").embed(maps)
    up = torch.nn.functional.interpolate(maps[1], (9, 7), mode="nearest")
    expected = torch.cat([maps[0], up], 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1, 1), "must be different channels"),
        ((), "must be different channels"),
        ((0, -1), "num_dimensions must be at least 0, got -1"),
    ],
)
def test_wrong_channels_are_refused(given: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ead.PaDiM("gabor", num_dimensions=given)


def test_a_channel_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="names channel 12, but the layers have 12 channels"):
        ead.PaDiM("gabor", num_dimensions=(0, 12)).embed([torch.rand(1, 5, 4, 4), torch.rand(1, 7, 2, 2)])


def test_choices_are_saved(tmp_path: Path) -> None:
    detector = tiny(num_dimensions=(0, 3, 5), interpolation="nearest", map_kind="reflect").fit(NORMAL)
    detector.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model", backbone=detector.network_.module)
    assert loaded.num_dimensions == (0, 3, 5)
    assert (loaded.interpolation, loaded.map_kind) == ("nearest", "reflect")
    np.testing.assert_array_equal(loaded.predict(BAD).anomaly_map, detector.predict(BAD).anomaly_map)
    other = tiny(num_dimensions=(0, 3, 5), interpolation="nearest").fit(NORMAL)
    assert np.abs(other.predict(BAD).anomaly_map - detector.predict(BAD).anomaly_map).max() > 1e-3


def test_gaussians_of_inverse_covariances() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 60, generator=generator)
    spread = torch.randn(5, 90, 60, generator=generator)
    precision = torch.linalg.inv((spread.mT @ spread / 90 + 0.01 * torch.eye(60)).double())
    gaussians = Gaussians.from_precision(mean, precision.float())
    rows = torch.randn(3, 5, 60, generator=generator)
    deviations = (rows - mean).double()
    expected = torch.einsum("npd,pde,npe->np", deviations, precision, deviations)
    torch.testing.assert_close(gaussians.squared_distances(rows).double(), expected, rtol=2e-5, atol=0)
    detector = ead.PaDiM("gabor", device="cpu")
    with pytest.raises(ValueError, match="it is not known of how many images"):
        detector.start(Positions(gaussians, (1, 5)))


def test_inverse_covariances_that_are_none() -> None:
    precision = torch.eye(3).repeat(4, 1, 1)
    with pytest.raises(ValueError, match=r"precision must be \(4, 3, 3\) as the mean"):
        Gaussians.from_precision(torch.zeros(4, 3), precision[:3])
    precision[2, 1, 1] = -1.0
    with pytest.raises(ValueError, match="positive definite, but is not at position 2"):
        Gaussians.from_precision(torch.zeros(4, 3), precision)
    precision[2, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="positive definite"):
        Gaussians.from_precision(torch.zeros(4, 3), precision)
