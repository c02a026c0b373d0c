"""From select_coreset(features) to the CUDA twin, with a CuPy that the emulation stands behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import emulated, reference
from support.coresets import cluttered, integers
from support.emulated import DeviceArray

from ensemblead.kernels.coreset import project, random_projection, select_coreset

STREAM = 0x70
entered: list[int] = []


class Device:
    """CuPy's device: a scope, entered around everything that allocates or launches."""

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> Device:
        entered.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        entered.pop()


class ndarray:  # noqa: N801 - CuPy's name
    """What the library needs of CuPy's array."""

    def __init__(self, memory: DeviceArray) -> None:
        self.memory = memory
        self.shape = memory.values.shape
        self.dtype = np.dtype(memory.dtype)
        self.device = Device(memory.device)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return ndarray(self.memory.permuted(1, 0))

    def copy(self) -> ndarray:
        """On the current device, wherever the original is."""
        return array(np.ascontiguousarray(self.memory.values), device=entered[-1] if entered else 0)

    def get(self) -> Any:
        return self.memory.numpy()

    def __getitem__(self, part: slice) -> ndarray:
        return array(self.memory.numpy()[part], device=self.memory.device)

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


def array(values: Any, device: int = 0) -> ndarray:
    return ndarray(DeviceArray(np.ascontiguousarray(values), device=device))


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def empty(shape: tuple[int, ...], dtype: str) -> ndarray:
        return ndarray(DeviceArray.empty(shape, dtype, device=entered[-1]))

    module = SimpleNamespace(
        ndarray=ndarray,
        empty=empty,
        asarray=lambda values: array(values, device=entered[-1]),
        cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=STREAM + entered[-1])),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    emulated.reset()
    yield
    assert entered == []
    emulated.reset()


@pytest.mark.parametrize("device", [0, 1])
def test_a_selection_stays_on_its_device_and_stream(device: int) -> None:
    features, bank = integers(200, 30, spread=3), integers(20, 30, spread=3, seed=1)
    weights = integers(8, 30, spread=1, seed=2)
    expected = reference.select_coreset(features, 30, bank=bank, projection=weights)
    rows, known = array(features, device), array(bank, device)
    for projection in (array(weights, device), weights):  # on the device, and in host memory
        picks = select_coreset(rows, size=30, bank=known, projection=projection)
        assert isinstance(picks, ndarray)
        assert picks.device.id == device
        assert picks.dtype == np.int64
        assert picks.get().tolist() == expected
    assert {(item.device, item.stream) for item in emulated.log()} == {(device, STREAM + device)}


@pytest.mark.parametrize("device", [0, 1])
def test_a_transposed_projection_and_start_rows_on_the_device(device: int) -> None:
    features, weights = integers(100, 9, spread=3), integers(4, 9, spread=1, seed=2)
    expected = reference.select_coreset(features, 20, start="row", start_rows=[7], projection=weights)
    starts = array(np.array([7]), device)
    picks = select_coreset(
        array(features, device),
        size=20,
        start="row",
        start_indices=starts,
        projection=array(weights.T, device),
    )
    assert picks.get().tolist() == expected


def test_the_random_map_is_that_of_the_cpu() -> None:
    features = cluttered(60, 50)
    mine = project(array(features), random_projection(50, 8, 3)).get()
    np.testing.assert_allclose(mine, project(features, random_projection(50, 8, 3)), rtol=1e-5, atol=1e-5)
    on_device = select_coreset(array(features), 0.2, projection_dim=8, seed=3)
    np.testing.assert_array_equal(on_device.get(), select_coreset(features, 0.2, projection_dim=8, seed=3))


def test_a_radius_cuts_the_picks() -> None:
    features = integers(50, 3, spread=9)
    expected = reference.select_coreset(features, 50, start="row", start_rows=[0], radius=6.0)
    picks = select_coreset(
        array(features), None, radius=6.0, start="row", start_indices=np.array([0]), projection_dim=None
    )
    assert 1 < len(expected) < 50
    assert picks.get().tolist() == expected


def test_a_projection_of_another_framework_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frameworks have two current streams, and the kernel is put on one of them."""

    class Tensor(ndarray):
        def is_neg(self) -> bool:
            return False

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor))
    theirs = Tensor(DeviceArray(random_projection(30, 4, 0)))
    with pytest.raises(TypeError, match="projection must be a cupy array like features, got a torch array"):
        project(array(cluttered(20, 30)), theirs)
    assert emulated.log() == []


def test_frameworks_do_not_mix() -> None:
    features = cluttered(20, 4)
    with pytest.raises(TypeError, match="bank must be a cupy array like features, got a numpy array"):
        select_coreset(array(features), bank=features)
    with pytest.raises(ValueError, match="bank is on cuda:1 but features is on cuda:0"):
        select_coreset(array(features), bank=array(features, device=1))
    with pytest.raises(ValueError, match=r"features contains NaN at \[0, 0\]"):
        select_coreset(array(np.full((3, 4), np.nan, np.float32)))
