"""Devices: every kernel test runs on all there are.

With ENSEMBLEAD_REQUIRE_CUDA=1 a test that would be skipped for lack of CUDA fails instead, so that a machine
with a GPU cannot pass by skipping.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

import hypothesis
import numpy as np
import pytest

import ensemblead
from ensemblead.common.errors import MissingExtraError
from ensemblead.common.threads import set_thread_defaults

set_thread_defaults()  # before torch is loaded

# A shell that starts a suite in the background has it ignore Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests never judge a time. In CI the same examples run every time.
hypothesis.settings.register_profile(
    "ensemblead",
    deadline=None,
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("brief", hypothesis.settings.get_profile("ensemblead"), max_examples=10)
hypothesis.settings.load_profile("ensemblead")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--numpy-only", action="store_true", help="behave as if no other array framework were installed"
    )
    parser.addoption(
        "--share",
        metavar="K/N",
        help="run one of N shares of the tests, the same in every run: K from 0",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (share := config.getoption("--share")) is not None:
        turn, shares = map(int, share.split("/"))
        if not 0 <= turn < shares:
            raise pytest.UsageError(f"--share: K/N must have 0 <= K < N, got {share}")
        parts: tuple[list[pytest.Item], list[pytest.Item]] = [], []
        for item in items:
            parts[zlib.crc32(item.nodeid.encode()) % shares == turn].append(item)
        others, items[:] = parts
        config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    with _skipped_without_faiss():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with _skipped_without_faiss():
        return (yield)


@contextmanager
def _skipped_without_faiss() -> Iterator[None]:
    """Images with a GPU often lack FAISS and usearch, and a test that needs them has nothing to say there. An
    installation of the extras `cpu` or `gpu` and `test` has them.
    """
    try:
        yield
    except MissingExtraError as error:
        if error.name not in ("faiss", "usearch"):
            raise
        pytest.skip(str(error))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--numpy-only"):
        for framework in ("torch", "cupy"):
            sys.modules[framework] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Device:
    """One framework on one kind of device: `name` is "numpy", "torch-cpu", "torch-cuda" or "cupy"."""

    name: str
    module: ModuleType

    @property
    def framework(self) -> str:
        return self.name.split("-")[0]

    @property
    def is_cuda(self) -> bool:
        return self.name in ("torch-cuda", "cupy")

    def supports(self, dtype: str) -> bool:
        """NumPy and CuPy have no bfloat16."""
        return dtype != "bfloat16" or self.framework == "torch"

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """`values` (anything NumPy reads) as an array of this framework, copied to its device.

        `dtype` is a name as NumPy writes it, or "bfloat16"; without it NumPy's dtype is kept.
        """
        host = np.array(values, order="C")
        if self.framework == "torch":
            tensor = self.module.from_numpy(host)
            where = "cuda" if self.is_cuda else "cpu"
            return tensor.to(device=where, dtype=getattr(self.module, dtype) if dtype else None)
        return self.module.asarray(host if dtype is None else host.astype(dtype))

    def numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """An array of this framework as NumPy sees it; bfloat16 comes back as float32 (exactly)."""
        if self.framework == "torch":
            host = array.detach().cpu()
            return np.asarray((host.float() if host.dtype == self.module.bfloat16 else host).numpy())
        return np.asarray(self.module.asnumpy(array) if self.framework == "cupy" else array)

    def is_own(self, array: Any) -> bool:
        """Whether `array` belongs to this framework and lies on this kind of device."""
        if self.framework == "torch":
            return isinstance(array, self.module.Tensor) and array.is_cuda == self.is_cuda
        return isinstance(array, self.module.ndarray)

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return self.name


def without_cuda(reason: str) -> NoReturn:
    """Skips a test for lack of CUDA; with ENSEMBLEAD_REQUIRE_CUDA=1, fails it."""
    if os.environ.get("ENSEMBLEAD_REQUIRE_CUDA") == "1":
        pytest.fail(f"ENSEMBLEAD_REQUIRE_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def make_device(name: str) -> Device:
    """The device of that name; skips (or fails, see `without_cuda`) when it is not there."""
    if name == "numpy":
        return Device(name, np)
    framework, cuda = name.split("-")[0], name != "torch-cpu"
    missing = without_cuda if cuda else pytest.skip
    if importlib.util.find_spec(framework) is None:
        missing(f"{framework} is not installed")
    if cuda and not ensemblead.cuda_available():
        missing("the core was built without CUDA, or there is no CUDA device")
    module = importlib.import_module(framework)
    if framework == "torch" and cuda and not module.cuda.is_available():
        missing("this torch has no CUDA device")
    return Device(name, module)


@pytest.fixture(scope="session", params=["numpy", "torch-cpu", "torch-cuda", "cupy"])
def device(request: pytest.FixtureRequest) -> Device:
    """Every framework and device there is, in turn."""
    return make_device(request.param)


@pytest.fixture(scope="session", params=["numpy", "torch-cpu"])
def cpu_device(request: pytest.FixtureRequest) -> Device:
    """The frameworks on the CPU, in turn."""
    return make_device(request.param)


@pytest.fixture(scope="session", params=["torch-cuda", "cupy"])
def cuda_device(request: pytest.FixtureRequest) -> Device:
    """The frameworks on CUDA, in turn."""
    return make_device(request.param)


@pytest.fixture(autouse=True)
def no_device_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors in tests name their device: "auto" is the GPU where there is one, in half precision."""
    network = sys.modules.get("ensemblead.networks.network")
    if network is None:
        return
    resolve = network.resolve_device

    def resolve_named(device: str) -> Any:
        assert device != "auto", 'name a device: with a GPU, "auto" computes there, in half precision'
        return resolve(device)

    monkeypatch.setattr(network, "resolve_device", resolve_named)


@pytest.fixture
def cuda_torch() -> Device:
    """torch on CUDA, for what detectors and banks do there alone."""
    return make_device("torch-cuda")


@pytest.fixture(params=["cpu", "cuda"])
def torch_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The devices that detectors and memory banks compute on, in turn.

    Convolutions on a GPU are in full float32 meanwhile, not in TF32 as torch would have it: tests compare
    with float64.
    """
    device = make_device(f"torch-{request.param}")
    cudnn = device.module.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    yield request.param
    cudnn.allow_tf32 = before
