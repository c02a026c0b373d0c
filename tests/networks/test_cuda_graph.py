"""`engine="cuda-graph"`: what holds without a GPU is tested with a recording that runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import LAYERS, OPTIONS, Normed, detector_of, part_of
from support.textures import normal_images
from torch import nn

import ensemblead as ead
from ensemblead.common.errors import EngineError
from ensemblead.networks.engines.cuda_graph import CudaGraphEngine, ReadStorages
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Outputs
from ensemblead.networks.placement import check_engine, resolve_engine


class Replayed:
    """Behaves as a graph does: it reads one tensor, and writes into the same ones each time."""

    made: list[tuple[int, ...]]

    def __init__(self, run: Callable[[torch.Tensor], Outputs], images: torch.Tensor) -> None:
        self.made.append(tuple(images.shape))
        self.given = torch.zeros_like(images)
        self.run, self.outputs = run, run(self.given)

    def replay(self, images: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
        self.given.copy_(images)
        for layer, output in self.run(self.given).items():
            self.outputs[layer].copy_(output)
        return {layer: output[:count].clone() for layer, output in self.outputs.items()}


@pytest.fixture(autouse=True)
def none_made() -> None:
    Replayed.made = []


# --- without a GPU --------------------------------------------------------------------------------


@torch.no_grad()
def test_each_shape_is_recorded_once() -> None:
    module = Normed()
    engine, plain = CudaGraphEngine(part_of(module), Replayed), EagerEngine(part_of(module))
    kept = []
    for count, height in ((5, 32), (6, 32), (1, 32), (2, 48), (5, 32)):
        given = torch.randn(count, 3, height, 32)
        found = engine.run(given)
        for layer, expected in plain.run(given).items():
            torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-6)
        kept += [found["first"], found["first"].clone()]
    assert Replayed.made == [(6, 3, 32, 32), (1, 3, 32, 32), (2, 3, 48, 32)]
    for given, later in zip(kept[::2], kept[1::2], strict=True):
        assert torch.equal(given, later)


@torch.no_grad()
def test_weights_that_are_exchanged_are_recorded_anew() -> None:
    module = Normed()
    engine = CudaGraphEngine(part_of(module), Replayed)
    given = torch.rand(2, 3, 16, 16)
    before = engine.run(given)["first"]
    engine.run(given)
    module.first = nn.Conv2d(3, 10, 3, 2, 1)
    assert not torch.equal(engine.run(given)["first"], before)
    assert Replayed.made == 2 * [(2, 3, 16, 16)]


@torch.no_grad()
def test_what_was_true_of_the_recorded_images_alone_is_refused() -> None:
    class Frozen(Replayed):
        def replay(self, images: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
            return {layer: output[:count].clone() for layer, output in self.outputs.items()}

    engine = CudaGraphEngine(part_of(Normed()), Frozen)
    with pytest.raises(EngineError, match=r"a CUDA graph computes other features .*; use engine='torch'"):
        engine.run(torch.rand(1, 3, 16, 16))


@torch.no_grad()
def test_a_network_may_write_into_its_input() -> None:
    class Writing(Normed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.sub_(0.5).mul_(2))

    part, given = part_of(Writing()), torch.rand(2, 3, 16, 16)
    expected = EagerEngine(part).run(given.clone())
    found = CudaGraphEngine(part, Replayed).run(given.clone())  # its first batch, which is compared
    torch.testing.assert_close(found["first"], expected["first"], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_a_pass_has_read_and_not_made_is_noted() -> None:
    kept = {"matrix": torch.rand(8, 8), "other": torch.rand(8, 8)}
    given, counts, module = torch.rand(8, 8), torch.zeros(8), nn.Linear(8, 8)

    def run() -> torch.Tensor:
        counts.add_(given.sum(1))  # an output that was there before
        return module(given @ kept["matrix"]).relu_()  # type: ignore[no-any-return]

    with ReadStorages() as read:
        made = run()
    places = {storage.data_ptr() for storage in read.found.values()}
    assert places == {one.data_ptr() for one in (kept["matrix"], given, counts, *module.parameters())}
    assert made.data_ptr() not in places
    values, at = kept["matrix"].clone(), kept.pop("matrix").data_ptr()
    held = next(storage for storage in read.found.values() if storage.data_ptr() == at)
    assert torch.equal(torch.empty(0).set_(held).view(8, 8), values)


def test_errors_while_recording() -> None:
    def failing(error: Exception) -> Any:
        def record(run: object, images: object) -> Any:
            raise error

        return record

    given = torch.rand(1, 3, 16, 16)
    engine = CudaGraphEngine(part_of(Normed()), failing(RuntimeError("\nnot permitted\nwhile capturing")))
    with pytest.raises(
        EngineError,
        match=r"^Normed as far as first, second cannot be recorded .* \(not permitted\); use",
    ):
        engine.run(given)
    engine = CudaGraphEngine(part_of(Normed()), failing(torch.OutOfMemoryError("none left")))
    with pytest.raises(torch.OutOfMemoryError, match="none left"):  # batches become smaller by it
        engine.run(given)


def test_it_is_for_gpus_alone() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert check_engine("cuda-graph", "auto", compile=False) == "cuda-graph"
    assert check_engine("cuda-graph", "cuda:1", compile=False) == "cuda-graph"
    assert resolve_engine("cuda-graph", "auto", gpu, compile=False) == "cuda-graph"
    refused = "engine='cuda-graph' is for GPUs, and device is 'cpu'; use device='cuda', or engine='torch'"
    with pytest.raises(ValueError, match=refused):
        check_engine("cuda-graph", "cpu", compile=False)
    with pytest.raises(ValueError, match=refused):
        resolve_engine("cuda-graph", "bfloat16", cpu, compile=False)
    with pytest.raises(ValueError, match="compile=True goes with engine='torch', got engine='cuda-graph'"):
        check_engine("cuda-graph", "auto", compile=True)
    with pytest.raises(ValueError, match="float16 with engine='cuda-graph', got 'int8'"):
        resolve_engine("cuda-graph", "int8", gpu, compile=False)
    with pytest.raises(ValueError, match=refused):
        ead.PatchCore(Normed(), LAYERS, engine="cuda-graph", **OPTIONS)


def test_a_saved_model_is_not_opened_by_it_on_a_cpu(tmp_path: Path) -> None:
    detector_of().fit(normal_images(8)).save(tmp_path / "model", include_backbone=True)
    with pytest.raises(ValueError, match="engine='cuda-graph' is for GPUs"):
        ead.load(tmp_path / "model", backbone=Normed(), engine="cuda-graph", device="cpu")


# --- on a GPU -------------------------------------------------------------------------------------

ON_GPU = OPTIONS | {"device": "cuda"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_those_of_torch(cuda_torch: Any, dtype: torch.dtype) -> None:
    module = Normed()
    plain = ead.FeatureExtractor(module, LAYERS).to("cuda", dtype, channels_last=True)
    quick = ead.FeatureExtractor(module, LAYERS).to("cuda", dtype, channels_last=True).run_by("cuda-graph")
    allowed = 1e-3 if dtype == torch.float32 else 0.05
    kept = []
    for count, height in ((5, 32), (6, 32), (1, 32), (2, 48), (5, 32)):
        given = torch.randn(count, 3, height, 32, device="cuda", dtype=dtype)
        found = quick(given)
        for one, other in zip(plain(given), found, strict=True):
            assert one.stride() == other.stride()
            torch.testing.assert_close(other, one, rtol=allowed, atol=allowed)
        kept += [found[0], found[0].clone()]
    for before, later in zip(kept[::2], kept[1::2], strict=True):
        assert torch.equal(before, later)


def test_two_threads_with_streams_of_their_own(cuda_torch: Any) -> None:
    quick = ead.FeatureExtractor(Normed(), LAYERS).to("cuda").run_by("cuda-graph")
    plain = ead.FeatureExtractor(quick.module, LAYERS)
    batches = [torch.randn(2, 3, 64, 64, device="cuda") for _ in range(2)]
    expected = [plain(given)[1] for given in batches]
    quick(batches[0])
    torch.cuda.synchronize()

    def use(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                assert float((quick(batches[number])[1] - expected[number]).abs().max()) < 1e-2

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, range(2)))


def test_a_network_that_waits_for_the_gpu_is_refused_and_torch_goes_on(cuda_torch: Any) -> None:
    class Waiting(Normed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if float(images.sum()) > 1e30:
                images = images + 1
            return super().forward(images)

    given, stream = torch.rand(2, 3, 32, 32, device="cuda"), torch.cuda.current_stream()
    extractor = ead.FeatureExtractor(Waiting(), LAYERS).to("cuda").run_by("cuda-graph")
    with pytest.raises(EngineError, match="Waiting as far as first, second cannot be recorded"):
        extractor(given)
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.rand(1, device="cuda").isfinite()
    assert extractor.run_by("eager")(given)[0].isfinite().all()
    other = ead.FeatureExtractor(Normed(), LAYERS).to("cuda").run_by("cuda-graph")
    assert other(given)[0].isfinite().all()


def test_what_a_cache_lets_go_is_still_read(cuda_torch: Any) -> None:
    kept: dict[int, torch.Tensor] = {}

    class Resizing(Normed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            side = images.shape[3]
            if side not in kept:
                kept[side] = torch.eye(side, device=images.device)
            return super().forward(images @ kept[side])

    quick = ead.FeatureExtractor(Resizing(), LAYERS).to("cuda").run_by("cuda-graph")
    plain = ead.FeatureExtractor(quick.module, LAYERS)
    given = torch.rand(2, 3, 64, 64, device="cuda")
    expected = plain(given)[1]
    quick(given)
    kept.clear()
    others = [torch.full((64, 64), 1e6, device="cuda") for _ in range(100)]  # in the memory that came free
    torch.testing.assert_close(quick(given)[1], expected, rtol=1e-3, atol=1e-3)
    del others


def test_recordings_beside_other_work(cuda_torch: Any) -> None:
    def record(seed: int) -> None:
        quick = ead.FeatureExtractor(Normed(seed), LAYERS).to("cuda").run_by("cuda-graph")
        plain = ead.FeatureExtractor(quick.module, LAYERS)
        for side in (32, 40, 48):
            given = torch.rand(2, 3, side, side, device="cuda")
            torch.testing.assert_close(quick(given)[1], plain(given)[1], rtol=1e-2, atol=1e-2)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(record, range(3)))


def compare_over_sizes(detector: Any, model: Path) -> None:
    """Fit, and compare with torch, once more when other sizes have filled what is kept."""
    images, larger = normal_images(8, side=96), normal_images(2, side=128)
    detector.fit(images)
    detector.save(model)
    expected = ead.load(model, engine="torch", device="cuda").predict(images).anomaly_map
    for given in (images, larger, larger[:, :96], larger[:, :, :96], images):
        found = detector.predict(given).anomaly_map
        if given is images:
            np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


def test_networks_that_were_trained(cuda_torch: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "resize": None, "device": "cuda", "engine": "cuda-graph"}
    compare_over_sizes(ead.DRAEM(width=8, image_size=None, batch_size=4, **options), tmp_path / "draem")
    compare_over_sizes(ead.EfficientAD("small", "gabor", **options), tmp_path / "efficientad")
