"""The path on a GPU, as far as a CPU can show it: what is decided, what is queued and when it is read, and
that nothing in between reads from the device.

Three means: torch's fake tensors, which have a device and shapes but no values, so that any look at a value
fails; the asynchronous path with a CPU in the GPU's place; a count of looks at values.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import TinyNet
from support.textures import normal_images, with_defects
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

import ensemblead as ead
from ensemblead.calibration import NormalSample
from ensemblead.common.errors import NonFiniteFeaturesError
from ensemblead.detectors import running
from ensemblead.images import batches, iterate_batches, open_images
from ensemblead.images.batches import stack_planes
from ensemblead.kernels import maps
from ensemblead.memory import buffer
from ensemblead.memory.buffer import take, waits_on_host
from ensemblead.networks import placement, transfer
from ensemblead.networks.network import FeaturePool, resolve_device, resolve_precision
from ensemblead.search.exact import ExactIndex

NATIVE: dict[str, Any] = {"image_size": None, "resize": None, "device": "cpu"}

# Of the fake tensors: not the first GPU, unless there is just one (where torch looks at the real one, too).
PLACE = "cuda:0" if torch.cuda.device_count() == 1 else "cuda:1"


def _detector(**options: Any) -> ead.PatchCore:
    return ead.PatchCore(
        TinyNet(), ("first", "second"), **(NATIVE | {"coreset_fraction": 0.02, "batch_size": 3} | options)
    )


# Decisions


@pytest.mark.parametrize(
    ("asked", "kernels", "gpus", "expected"),
    [
        ("auto", True, 2, "cuda:1"),
        ("auto", False, 2, "cpu"),
        ("auto", True, 0, "cpu"),
        ("cpu", True, 2, "cpu"),
        ("cuda", True, 2, "cuda:1"),
        ("cuda:0", True, 2, "cuda:0"),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, asked: str, kernels: bool, gpus: int, expected: str
) -> None:
    _pretend_gpus(monkeypatch, gpus, kernels)
    assert resolve_device(asked) == torch.device(expected)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpus(monkeypatch, 2, True)
    with pytest.raises(ValueError, match="device is 'cuda:2', but this torch sees 2 GPUs: cuda:0, cuda:1"):
        resolve_device("cuda:2")
    _pretend_gpus(monkeypatch, 0, True)
    with pytest.raises(ValueError, match="device is 'cuda', but this torch sees no GPU"):
        resolve_device("cuda")


def test_a_gpu_that_torch_sees_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is older than the CUDA of the kernels."""
    _pretend_gpus(monkeypatch, 2, True)
    monkeypatch.setattr(placement, "cuda_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="this torch sees 2 GPUs, but the CUDA kernels can use none"):
        assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(
        ValueError, match="device is 'cuda:1', and this torch sees 2 GPUs, but the CUDA kernels"
    ):
        resolve_device("cuda:1")


def _pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, kernels: bool) -> None:
    """So many GPUs, the second of them the current one."""
    monkeypatch.setattr(placement, "has_cuda_kernels", lambda: kernels)
    monkeypatch.setattr(placement, "cuda_available", lambda: kernels and count > 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_half_precision_is_what_the_very_card_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {torch.device("cuda:0"): (7, 5), torch.device("cuda:1"): (8, 0), torch.device("cuda:2"): (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", cards.__getitem__)
    chosen = [resolve_precision("auto", card) for card in cards]
    assert chosen == [torch.float16, torch.bfloat16, torch.bfloat16]
    assert resolve_precision("auto", torch.device("cpu")) == torch.float32
    assert resolve_precision("float32", torch.device("cuda:0")) == torch.float32


def test_rows_wait_on_the_host_where_the_card_is_small() -> None:
    assert waits_on_host(1_450_000_000, 2_000_000_000)
    assert not waits_on_host(1_450_000_000, 140_000_000_000)


# Fake tensors: no look at a value between the upload and the results


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], FakeTensorMode]]:
    """A mode in which `PLACE` exists and holds no values; the one kernel of `predict` has none either."""

    def aggregate(feature_maps: list[torch.Tensor], target_dim: int, **_: Any) -> torch.Tensor:
        grid = feature_maps[0].shape
        channels = sum(feature_map.shape[1] for feature_map in feature_maps)
        return torch.empty(grid[0], *grid[2:], min(target_dim, channels), device=feature_maps[0].device)

    def mode() -> FakeTensorMode:
        monkeypatch.setattr("ensemblead.detectors.patchcore.detector.aggregate_patches", aggregate)
        return FakeTensorMode(allow_non_fake_inputs=True)

    maps._operator.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about its own storages
        yield mode
    maps._operator.cache_clear()  # of matrices without values


def _placed(detector: ead.PatchCore, device: str) -> None:
    """Move a fitted detector; inside a mode of fake tensors its values stay behind."""
    module = TinyNet()
    for name in ("first", "second"):
        old = getattr(module, name)
        setattr(module, name, type(old)(old.in_channels, old.out_channels, 3, 2, 1, device=device))
    detector.network_.module = module.eval().requires_grad_(False)
    detector._frozen.network.device = torch.device(device)
    fitted = detector.memory_bank_
    fitted._set(torch.empty_like(fitted.rows_, device=device), fitted._owners[:, None], fitted._search)
    fitted._images = torch.empty(len(fitted), dtype=torch.int64, device=device)
    fitted._intake.buffer.home = torch.device(device)
    fitted._search = ExactIndex(fitted.rows_)
    # Seen once per bank, from values that there are none of here.
    fitted._search.products.__dict__["is_separated"] = True


def _pool(detector: ead.PatchCore) -> FeaturePool:
    assert detector._frozen is not None
    return FeaturePool([(detector._frozen.network, detector.geometry)])


@pytest.mark.parametrize("score", ["max", "reweighted", "topk"])
@pytest.mark.parametrize("num_neighbors", [1, 3])
def test_no_step_of_predict_looks_at_a_value(
    no_values: Callable[[], FakeTensorMode],
    monkeypatch: pytest.MonkeyPatch,
    score: str,
    num_neighbors: int,
) -> None:
    detector = _detector(score=score, num_neighbors=num_neighbors).fit(normal_images(6))
    pixels = torch.from_numpy(normal_images(3)).permute(0, 3, 1, 2).contiguous()
    with no_values(), torch.no_grad():
        _placed(detector, PLACE)
        batch = _pool(detector).batch({detector.geometry: pixels})
        with transfer.deferred_checks() as checks, batch as features:
            seen = detector._seen(pixels, detector.geometry, features)
        scores, heat = detector._result(seen)
        assert (len(checks), checks._flags[0].device) == (1, torch.device(PLACE))
        assert (scores.device, heat.device) == (torch.device(PLACE), torch.device(PLACE))
        assert (tuple(scores.shape), tuple(heat.shape)) == ((3,), (3, 64, 64))
        # Held-out images, as the end of `fit` scores them, and the statistics of what they score.
        found = detector._scoring.scores(detector.memory_bank_, seen.embeddings, [0, 1, 1])
        NormalSample().add_grids(found.images, found.grids, (64, 64))
        # Rows of the next fit, which wait there, or on the host.
        for free, place in ((10**12, PLACE), (0, "cpu")):
            monkeypatch.setattr(buffer, "free_on", lambda device, free=free: free)
            bank = detector.memory_bank_.copy()
            bank.add(seen.embeddings.flatten(0, 2), 7, copy=False, known_finite=True)
            assert bank._intake.buffer.chunks[0].device == torch.device(place)
            picks = np.array([5, 0, 9])
            assert take(bank._intake.buffer.chunks, picks, scores.device).device == scores.device
        # And that a look would have failed.
        with pytest.raises(DataDependentOutputException):
            bool(scores.isfinite().all())
        with pytest.raises(DataDependentOutputException):
            detector.memory_bank_.add(seen.embeddings.flatten(0, 2), 7)


def test_gabor_filters_go_to_the_device_once(no_values: Callable[[], FakeTensorMode]) -> None:
    from ensemblead.networks.gabor import GaborBank

    with no_values() as mode, torch.no_grad():
        bank = GaborBank()
        images = mode.from_tensor(torch.rand(2, 3, 64, 64)).to(PLACE)
        bank(images)
        copies: list[str] = []
        with _Uploads(copies):
            out = bank(images)
        assert out.device == torch.device(PLACE)
    assert copies == []


class _Uploads(TorchFunctionMode):
    """Notes what is brought to a device, or made there from Python's values."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moves = name == "to" and any(isinstance(a, (torch.device, str)) for a in args[1:])
        if moves or name in ("tensor", "cuda", "from_numpy"):
            self._seen.append(name)
        return func(*args, **(kwargs or {}))


# The asynchronous path, with a CPU in the place of the GPU


class _Queue:
    """What was queued and what was waited for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.stacked = 0

        def stack(planes: list[Any], pin_memory: bool = False) -> torch.Tensor:
            self.stacked += pin_memory
            return stack_planes(planes)

        for module in (running, transfer):
            monkeypatch.setattr(module, "is_asynchronous", lambda device: True)
        monkeypatch.setattr(transfer, "_pinned_like", torch.empty_like)
        monkeypatch.setattr(transfer, "_arrival", self._arrival)
        monkeypatch.setattr(batches, "stack_planes", stack)

    def _arrival(self, device: torch.device) -> Any:
        number = sum(entry.startswith("queued") for entry in self.log)
        self.log.append(f"queued {number}")
        log = self.log

        class Event:
            def synchronize(self) -> None:
                log.append(f"waited {number}")

        return Event()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> _Queue:
    return _Queue(monkeypatch)


def test_queueing_changes_no_number() -> None:
    images = normal_images(11)
    bad = with_defects(normal_images(7, 1))[0]
    plain = _detector().fit(images)
    expected = plain.predict(bad)
    with pytest.MonkeyPatch.context() as monkeypatch:
        queue = _Queue(monkeypatch)
        detector = _detector().fit(images)
        found = detector.predict(bad)
    assert torch.equal(detector.memory_bank_.rows_, plain.memory_bank_.rows_)
    np.testing.assert_array_equal(detector.calibration_.scores, plain.calibration_.scores)
    for name in ("anomaly_score", "anomaly_map", "is_anomalous"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert queue.stacked == 4 + 3  # every batch went through page-locked memory


def test_a_batch_is_read_when_the_next_is_queued(queue: _Queue) -> None:
    detector = _detector().fit(normal_images(6))
    queue.log.clear()
    seen = 0
    for number, _ in enumerate(detector.predict_batches(normal_images(12)), 1):
        seen += 1
        # Four batches, each with a flag and with results. When the results of one come out, the flags of the
        # two after it and the results of the one after it are queued already, as far as there are any.
        queued = sum(entry.startswith("queued") for entry in queue.log)
        assert queued == min(8, 2 * number + 3 - (number == 4) - (number == 3))
    assert seen == 4
    waits = [entry for entry in queue.log if entry.startswith("waited")]
    assert len(waits) == len(set(waits)) == 8


@pytest.mark.parametrize("queued", [True, False])
def test_what_is_not_finite_reaches_neither_bank_nor_caller(
    monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    if queued:
        _Queue(monkeypatch)
    detector = _detector().fit(normal_images(6))
    monkeypatch.setattr(
        detector.network_.module, "forward", _spoiled(detector.network_.module.forward, good_batches=2)
    )
    read = 0
    with pytest.raises(NonFiniteFeaturesError, match=r"TinyNet put out NaN or infinity in float32"):  # noqa: PT012
        for predictions in detector.predict_batches(normal_images(12)):
            assert np.isfinite(predictions.anomaly_map).all()
            read += len(predictions)
    # Queued, the caller has seen one batch less: the one before the bad was still on its way.
    assert read == (3 if queued else 6)

    fresh = _detector()
    fresh.network_.module.forward = _spoiled(fresh.network_.module.forward, good_batches=2)
    with pytest.raises(NonFiniteFeaturesError, match="TinyNet put out NaN or infinity"):
        fresh.fit(normal_images(12))
    assert not fresh.is_fitted


def _spoiled(forward: Callable[[torch.Tensor], torch.Tensor], good_batches: int) -> Callable[..., Any]:
    """A forward pass that meets one NaN pixel after some good batches."""
    calls = iter(range(1000))

    def spoiled(images: torch.Tensor) -> torch.Tensor:
        if next(calls) >= good_batches:
            images = images.clone()
            images[-1, 0, 5, 5] = torch.nan
        return forward(images)

    return spoiled


def test_results_are_in_memory_of_their_own(queue: _Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(torch.empty_like(tensor))
        return pinned[-1]

    monkeypatch.setattr(transfer, "_pinned_like", keep)
    source = torch.arange(5.0)
    (out,) = transfer.HostCopy([source]).wait()
    pinned[0].fill_(-1)  # handed out again
    np.testing.assert_array_equal(out, np.arange(5.0, dtype=np.float32))


# Counting looks at values


class _Looks(TorchFunctionMode):
    """Counts what would wait for a GPU: numbers, lists and arrays taken out of tensors."""

    NAMES = frozenset(
        [
            *("item", "tolist", "nonzero", "unique", "equal", "allclose", "masked_select"),
            *("__bool__", "__int__", "__float__", "__index__"),
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("score", ["max", "reweighted"])
def test_looks_do_not_grow_with_images(queue: _Queue, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows on a GPU have no directions: they serve the core's search.
    monkeypatch.setattr("ensemblead.search.exact.principal_directions", lambda rows: None)

    def fit(count: int) -> tuple[Counter[str], ead.PatchCore]:
        # One bank size, so that what is done once for a bank is done alike.
        detector = _detector(score=score, batch_size=2, coreset_fraction=0.2 / count)
        with _Looks() as looks:
            detector.fit(normal_images(count))
        return looks.counts, detector

    (few, _), (many, detector) = fit(6), fit(18)
    assert few == many
    assert sum(few.values()) < 10
    with _Looks() as looks:
        list(detector.predict_batches(normal_images(8)))
        detector.calibrate(normal_images(100, seed=3)[:100])
    assert not looks.counts


# What the bank does without asking the device


def test_rows_are_taken_out_of_chunks() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(500, 7)).astype(np.float32))
    chunks = list(rows.split([1, 199, 0, 250, 50]))
    picks = rng.permutation(500)[:90].astype(np.int64)
    assert torch.equal(take(chunks, picks, rows.device), rows[picks])
    last = np.array([499, 0], dtype=np.int64)
    assert torch.equal(take(chunks, last, rows.device), rows[last])


def test_page_locked_batches(torch_device: str) -> None:
    images = normal_images(5)
    geometry = _detector().geometry
    with iterate_batches(open_images(images), [geometry], 2, pin_memory=torch_device == "cuda") as found:
        parts = [batch.images[geometry] for batch in found]
    assert all(part.is_pinned() == (torch_device == "cuda") for part in parts)
    np.testing.assert_array_equal(torch.cat(parts).numpy(), images.transpose(0, 3, 1, 2))


def test_rows_that_wait_on_the_host_give_the_same_bank(
    cuda_torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(900, 200)).astype(np.float32)).cuda()

    def fitted(free: int, buffer_bytes: int) -> ead.MemoryBank:
        monkeypatch.setattr(buffer, "free_on", lambda device: free)
        bank = ead.MemoryBank(0.05, memory_budget=buffer_bytes)
        for i, part in enumerate(rows.split(100)):
            bank.add(part, i)
            assert bank._intake.buffer.num_rows == 0 or bank._intake.buffer.chunks[-1].is_cuda == (free > 0)
        return bank.fit()

    for buffer_bytes in (10**9, 300_000):  # at once, and by groups
        here, there = fitted(10**12, buffer_bytes), fitted(0, buffer_bytes)
        assert torch.equal(here.rows_, there.rows_)
        assert torch.equal(here.images_, there.images_)
