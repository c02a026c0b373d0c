"""select_coreset and project refuse what is wrong, and name the argument and what they saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.coresets import core_select, features_of
from support.dlpack_by_hand import CUDA, ByHand

from ensemblead import _core
from ensemblead.kernels.coreset import project, select_coreset

Array = np.ndarray[Any, Any]


def spoilt(value: float, *place: int, shape: tuple[int, int] = (6, 4)) -> Array:
    array = features_of(*shape)
    array[place] = value
    return array


GOOD = features_of(6, 4)
FORTRAN = np.asfortranarray(GOOD)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([[1.0]], TypeError, "features must be a NumPy, CuPy or torch array, got list"),
        (None, TypeError, "features must be a NumPy, CuPy or torch array, got NoneType"),
        (np.ma.masked_array(GOOD), TypeError, "features is a masked array"),
        (GOOD[0], ValueError, r"features must be 2-D \[N, D\], got shape \(4,\)"),
        (GOOD[None], ValueError, r"features must be 2-D \[N, D\], got shape \(1, 6, 4\)"),
        (GOOD[:0], ValueError, r"features is empty, got shape \(0, 4\)"),
        (GOOD[:, :0], ValueError, r"features is empty, got shape \(6, 0\)"),
        (GOOD.astype(np.float64), TypeError, "features must be float32, got float64"),
        (GOOD.astype(np.float16), TypeError, "features must be float32, got float16"),
        (GOOD.astype(np.int64), TypeError, "features must be float32, got int64"),
        (GOOD.astype(">f4"), ValueError, "features cannot be read: .*byte order"),
        (GOOD[:, ::2], ValueError, r"features is not contiguous \(shape .*\); pass a contiguous array"),
        (GOOD[::2], ValueError, r"features is not contiguous .*; pass a contiguous array"),
        (FORTRAN, ValueError, r"features is not contiguous .*; pass a contiguous array"),
        (GOOD[::-1], ValueError, r"features is not contiguous .*; pass a contiguous array"),
        (spoilt(np.nan, 3, 2), ValueError, r"features contains NaN at \[3, 2\]; every value must be finite"),
        (spoilt(np.inf, 5, 3), ValueError, r"features contains an infinite value at \[5, 3\]"),
        (spoilt(-np.inf, 0, 0), ValueError, r"features contains an infinite value at \[0, 0\]"),
        (spoilt(np.nan, slice(2, 4)), ValueError, r"features contains NaN at \[2, 0\]"),
        (spoilt(np.nan, 400, 71, shape=(401, 300)), ValueError, r"features contains NaN at \[400, 71\]"),
    ],
)
@pytest.mark.parametrize("projection_dim", [None, 2])
def test_bad_features(
    features: Any, projection_dim: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        select_coreset(features, projection_dim=projection_dim)


@pytest.mark.parametrize(
    ("bank", "error", "message"),
    [
        ([[1.0]], TypeError, "bank must be a NumPy, CuPy or torch array, got list"),
        (GOOD[0], ValueError, r"bank must be 2-D \[K, D\], got shape \(4,\)"),
        (GOOD[:0], ValueError, r"bank is empty, got shape \(0, 4\)"),
        (features_of(6, 5), ValueError, r"bank must have 4 columns like features, got shape \(6, 5\)"),
        (GOOD.astype(np.float64), TypeError, "bank must be float32, got float64"),
        (FORTRAN, ValueError, "bank is not contiguous .*; pass a contiguous array"),
        (spoilt(np.nan, 1, 0), ValueError, r"bank contains NaN at \[1, 0\]"),
        (spoilt(np.inf, 5, 3), ValueError, r"bank contains an infinite value at \[5, 3\]"),
    ],
)
@pytest.mark.parametrize("projection_dim", [None, 2])
def test_bad_banks(bank: Any, projection_dim: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select_coreset(GOOD, bank=bank, projection_dim=projection_dim)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fraction": 0.0}, ValueError, r"fraction must lie in \(0, 1\], got 0\.0"),
        ({"fraction": -0.1}, ValueError, r"fraction must lie in \(0, 1\], got -0\.1"),
        ({"fraction": 1.5}, ValueError, r"fraction must lie in \(0, 1\], got 1\.5"),
        ({"fraction": float("nan")}, ValueError, r"fraction must lie in \(0, 1\], got nan"),
        ({"fraction": "1 %"}, TypeError, "fraction must be a number, got str"),
        ({"fraction": True}, TypeError, "fraction must be a number, got bool"),
        ({"fraction": None}, ValueError, "fraction may be None only together with radius"),
        ({"size": 0}, ValueError, r"size must lie in \[1, 6\] for 6 rows of features, got 0"),
        ({"size": 7}, ValueError, r"size must lie in \[1, 6\] for 6 rows of features, got 7"),
        ({"size": 2.0}, TypeError, "size must be an integer, got float"),
        ({"size": True}, TypeError, "size must be an integer, got bool"),
        ({"radius": -1.0}, ValueError, r"radius must be a finite distance of 0 or more, got -1\.0"),
        ({"radius": float("nan")}, ValueError, "radius must be a finite distance of 0 or more, got nan"),
        ({"radius": float("inf")}, ValueError, "radius must be a finite distance of 0 or more, got inf"),
        ({"radius": "1"}, TypeError, "radius must be a number, got str"),
        ({"radius": True}, TypeError, "radius must be a number, got bool"),
        ({"start": "rows"}, ValueError, 'start must be "mean" or "row", got \'rows\''),
        ({"start": None}, ValueError, 'start must be "mean" or "row", got None'),
        ({"num_starts": 0}, ValueError, "num_starts must be at least 1, got 0"),
        ({"num_starts": 2.5}, TypeError, "num_starts must be an integer, got float"),
        ({"seed": -1}, ValueError, "seed must not be negative, got -1"),
        ({"seed": 1.0}, TypeError, "seed must be an integer, got float"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType"),
        ({"seed": True}, TypeError, "seed must be an integer, got bool"),
        ({"start_indices": [0, 6]}, ValueError, r"start_indices must lie in \[0, 6\), got 0 to 6"),
        ({"start_indices": [-1]}, ValueError, r"start_indices must lie in \[0, 6\), got -1 to -1"),
        ({"start_indices": []}, (ValueError, TypeError), "start_indices must be "),
        ({"start_indices": [[0, 1]]}, ValueError, r"start_indices must be 1-D .*got shape \(1, 2\)"),
        ({"start_indices": [0.0]}, TypeError, "start_indices must be integers, got float64"),
        ({"start_indices": [True]}, TypeError, "start_indices must be integers, got bool"),
        (
            {"start": "row", "start_indices": [0, 1]},
            ValueError,
            'start_indices must hold exactly one row for start="row", got 2',
        ),
        ({"projection_dim": 0}, ValueError, "projection_dim must be at least 1, got 0"),
        ({"projection_dim": 2.0}, TypeError, "projection_dim must be an integer or None, got float"),
        ({"projection_dim": True}, TypeError, "projection_dim must be an integer or None, got bool"),
        ({"projection": [[1.0]]}, TypeError, "projection must be a NumPy, CuPy or torch array, got list"),
        ({"projection": GOOD[0]}, ValueError, r"projection must be 2-D \[P, D\], got shape \(4,\)"),
        ({"projection": GOOD[:0]}, ValueError, r"projection is empty, got shape \(0, 4\)"),
        (
            {"projection": features_of(3, 5)},
            ValueError,
            r"projection must be \[P, 4\] for features with 4 columns, got shape \(3, 5\)",
        ),
        (
            {"projection": GOOD.astype(np.float64)},
            TypeError,
            "projection must be float32, got float64",
        ),
        ({"projection": FORTRAN}, ValueError, "projection is not contiguous .*; pass a contiguous array"),
        ({"projection": spoilt(np.nan, 2, 1)}, ValueError, r"projection contains NaN at \[2, 1\]"),
        ({"progress": 3}, TypeError, "progress must be callable, got int"),
    ],
)
def test_bad_options(
    options: dict[str, Any], error: type[Exception] | tuple[type[Exception], ...], message: str
) -> None:
    with pytest.raises(error, match=message):
        select_coreset(GOOD, **options)


def test_frameworks_do_not_mix() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="bank must be a numpy array like features, got a torch array"):
        select_coreset(GOOD, bank=torch.from_numpy(GOOD))
    with pytest.raises(TypeError, match="bank must be a torch array like features, got a numpy array"):
        select_coreset(torch.from_numpy(GOOD), bank=GOOD)


@pytest.mark.parametrize("projection_dim", [None, 2])
def test_torch_features_that_do_not_hold_their_values(projection_dim: int | None) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(GOOD.copy())
    for wrong, message in [
        (tensor.clone().requires_grad_(), "features cannot be read: .*grad"),
        (tensor.to("meta"), "features cannot be read: .*meta"),
        (torch._neg_view(tensor), "features is a lazily negated view"),
        (tensor.T, "features is not contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            select_coreset(wrong, projection_dim=projection_dim)
    with pytest.raises(TypeError, match="features must be float32, got bfloat16"):
        select_coreset(tensor.bfloat16(), projection_dim=projection_dim)


@pytest.mark.parametrize(
    ("features", "projection", "error", "message"),
    [
        (GOOD[0], GOOD, ValueError, r"features must be 2-D \[N, D\], got shape \(4,\)"),
        (GOOD, GOOD[0], ValueError, r"projection must be 2-D \[P, D\], got shape \(4,\)"),
        (GOOD, features_of(4, 5), ValueError, r"projection must have 4 columns .*got shape \(4, 5\)"),
        (GOOD[:0], GOOD, ValueError, r"features is empty, got shape \(0, 4\)"),
        (GOOD.astype(np.float64), GOOD, TypeError, "features must be float32, got float64"),
        (GOOD, GOOD.astype(np.float16), TypeError, "projection must be float32, got float16"),
        (FORTRAN, GOOD, ValueError, "features is not contiguous"),
        (GOOD, FORTRAN, ValueError, "projection is not contiguous"),
        (spoilt(np.nan, 0, 3), GOOD, ValueError, r"features contains NaN at \[0, 3\]"),
        (GOOD, spoilt(-np.inf, 4, 3), ValueError, r"projection contains an infinite value at \[4, 3\]"),
        (GOOD, [[1.0]], TypeError, "projection must be a NumPy, CuPy or torch array, got list"),
    ],
)
def test_bad_projections(features: Any, projection: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        project(features, projection)


PICKS = np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("picks", "options", "error", "message"),
    [
        (PICKS.astype(np.int32), {}, TypeError, "picks must be int64, got int32"),
        (PICKS[None], {}, ValueError, r"picks must be 1-D \[M\], got shape \(1, 3\)"),
        (np.zeros(6, np.int64)[::2], {}, ValueError, "picks is not contiguous"),
        (PICKS, {"start": "median"}, ValueError, 'start must be "mean" or "row", got "median"'),
        (PICKS, {"start_rows": np.array([6])}, ValueError, r"start_indices must lie in \[0, 6\), got 6"),
        (PICKS, {"start_rows": np.array([-1])}, ValueError, r"start_indices must lie in \[0, 6\), got -1"),
        (PICKS, {"start_rows": PICKS[:0]}, ValueError, "start_indices is empty"),
        (PICKS, {"start_rows": np.zeros(1, np.int32)}, TypeError, "start_indices must be int64, got int32"),
        (PICKS, {"bank": features_of(2, 3)}, ValueError, r"bank must have shape \(2, 4\), got \(2, 3\)"),
    ],
)
def test_the_core_checks_for_itself(
    picks: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        core_select(GOOD, picks, **options)


def test_the_core_refuses_read_only_outputs() -> None:
    picks, projected = np.zeros(3, np.int64), np.zeros((6, 6), np.float32)
    picks.flags.writeable = projected.flags.writeable = False
    with pytest.raises(ValueError, match="picks is read-only"):
        core_select(GOOD, picks)
    with pytest.raises(ValueError, match="projected is read-only"):
        _core.project_rows(GOOD, GOOD, projected, num_threads=1)


@pytest.mark.skipif(
    _core.cuda_decision.startswith(("on", "emulated")), reason="would believe the pretended pointers"
)
def test_devices_do_not_mix() -> None:
    elsewhere = "is on .* but features is on .*; put both on one device"
    with pytest.raises(ValueError, match="bank " + elsewhere):
        core_select(GOOD, PICKS, bank=ByHand(GOOD, device=CUDA))
    with pytest.raises(ValueError, match="picks " + elsewhere):
        core_select(GOOD, ByHand(PICKS, device=CUDA))
    with pytest.raises(ValueError, match="projection " + elsewhere):
        _core.project_rows(GOOD, ByHand(GOOD, device=CUDA), np.zeros((6, 6), np.float32), num_threads=1)
    with pytest.raises(ValueError, match="projected " + elsewhere):
        _core.project_rows(GOOD, GOOD, ByHand(np.zeros((6, 6), np.float32), device=CUDA), num_threads=1)
    with pytest.raises(ValueError, match="CUDA"):
        core_select(ByHand(GOOD, device=CUDA), ByHand(PICKS, device=CUDA))
    with pytest.raises(ValueError, match="CUDA"):
        _core.project_rows(
            ByHand(GOOD, device=CUDA),
            ByHand(GOOD, device=CUDA),
            ByHand(np.zeros((6, 6), np.float32), device=CUDA),
            num_threads=1,
        )
