"""Maps: upsampling and blur against torch and SciPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch
from scipy.ndimage import gaussian_filter

from ensemblead.kernels.maps import render_maps, resize_maps


def _expected(grids: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    tensor = torch.from_numpy(grids.astype(np.float64))[:, None]
    up = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    return np.stack([gaussian_filter(m, sigma, mode="reflect", truncate=4.0) for m in up[:, 0].numpy()])


# Up and down, rectangles, one cell, and maps shorter than the blur's radius of 16, where the reflection
# repeats.
@pytest.mark.parametrize(
    ("grid", "size"),
    [((28, 28), (224, 224)), ((7, 13), (50, 31)), ((1, 1), (5, 9)), ((3, 2), (6, 4)), ((40, 30), (20, 64))],
)
def test_render_equals_interpolate_then_scipy(grid: tuple[int, int], size: tuple[int, int]) -> None:
    grids = np.random.default_rng(0).random((3, *grid)).astype(np.float32)
    out = render_maps(torch.from_numpy(grids), size)
    assert out.dtype == torch.float32
    assert out.shape == (3, *size)
    np.testing.assert_allclose(out.numpy(), _expected(grids, size, 4.0), atol=1e-5, rtol=0)


def test_other_sigmas() -> None:
    grids = np.random.default_rng(1).random((1, 9, 9)).astype(np.float32)
    out = render_maps(torch.from_numpy(grids), (36, 36), sigma=2.0)
    np.testing.assert_allclose(out.numpy(), _expected(grids, (36, 36), 2.0), atol=1e-5, rtol=0)


def test_resize_without_blur() -> None:
    maps = torch.rand(2, 10, 12, generator=torch.Generator().manual_seed(0))
    assert resize_maps(maps, (10, 12)) is maps
    expected = torch.nn.functional.interpolate(
        maps[:, None], size=(25, 17), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(resize_maps(maps, (25, 17)), expected[:, 0], atol=1e-6, rtol=0)


def test_a_constant_grid_stays_constant() -> None:
    out = render_maps(torch.full((1, 4, 4), 3.0), (33, 65))
    torch.testing.assert_close(out, torch.full((1, 33, 65), 3.0), atol=1e-5, rtol=0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"grids must be \[B, h, w\], got shape \(4, 4\)"):
        render_maps(torch.zeros(4, 4), (8, 8))
    with pytest.raises(ValueError, match="cannot turn"):
        render_maps(torch.zeros(1, 4, 0), (8, 8))
    with pytest.raises(ValueError, match="sigma must be finite"):
        render_maps(torch.zeros(1, 4, 4), (8, 8), sigma=-1.0)


@pytest.mark.parametrize("kind", ["reflect", "nearest"])
@pytest.mark.parametrize(("grid", "size"), [((8, 8), (64, 64)), ((7, 13), (50, 31)), ((3, 40), (90, 17))])
def test_maps_as_anomalib_makes_them(kind: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    grids = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0))
    how = {"mode": "nearest"} if kind == "nearest" else {"mode": "bilinear", "align_corners": False}
    up = torch.nn.functional.interpolate(grids.double()[:, None], size=size, **how)[:, 0].numpy()
    # SciPy's "mirror" is torch's and anomalib's "reflect".
    expected = np.stack([gaussian_filter(one, 4.0, mode="mirror", truncate=4.0) for one in up])
    out = render_maps(grids, size, kind=kind)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5, rtol=0)
    assert np.abs(out.numpy() - render_maps(grids, size).numpy()).max() > 1e-3


def test_maps_that_the_blur_outreaches() -> None:
    with pytest.raises(ValueError, match=r"maps of \(16, 40\) are too small: .*'reflect' needs sides of 17"):
        render_maps(torch.rand(1, 4, 4), (16, 40), kind="reflect")
