"""FAISS's GPU build, played by its CPU build: the calls and pointers are real, the device is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ensemblead.search import faiss as faiss_module
from ensemblead.search import plan as plan_module
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissIndex, GpuProductSearch
from ensemblead.search.neighbors import Excluded
from ensemblead.search.products import ProductSearch

faiss = pytest.importorskip("faiss")


class Pretended:
    """What `faiss` is on a GPU machine, as far as it is used, over FAISS on the CPU."""

    def __init__(self) -> None:
        self.streams: list[Any] = []
        self.scratch: list[int] = []
        self.searches: list[int] = []
        outer = self

        class StandardGpuResources:
            def setTempMemory(self, size: int) -> None:  # noqa: N802
                outer.scratch.append(size)

            def setDefaultStream(self, device: int, stream: Any) -> None:  # noqa: N802
                outer.streams.append((device, stream))

            def revertDefaultStream(self, device: int) -> None:  # noqa: N802
                outer.streams.append((device, None))

        class Counted:
            """An index whose searches are only allowed on the stream that was set."""

            def __init__(self, index: Any) -> None:
                self._index = index
                self.nprobe = 0

            def add_c(self, *arguments: Any) -> None:
                assert outer.streams[-1][1] is not None
                self._index.add_c(*arguments)

            def search_c(self, count: int, *arguments: Any) -> None:
                assert outer.streams[-1][1] is not None
                outer.searches.append(count)
                self._index.search_c(count, *arguments)

        self.StandardGpuResources = StandardGpuResources
        self.GpuIndexFlatConfig = lambda: SimpleNamespace(device=None)
        self.GpuIndexFlatL2 = lambda resources, dims, config: Counted(faiss.IndexFlatL2(dims))
        self.index_cpu_to_gpu = lambda resources, device, index: Counted(index)
        self.cast_integer_to_cudastream_t = lambda handle: ("stream", handle)
        self.get_num_gpus = lambda: 1

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    stand_in = Pretended()
    monkeypatch.setattr(faiss_module, "_faiss", lambda: stand_in)
    monkeypatch.setattr(faiss_module, "_cuda_stream", lambda device: 77)
    plan = plan_module.search_plan
    monkeypatch.setattr(plan_module, "search_plan", lambda name, device: plan(name, "cuda:0"))
    return stand_in


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(700, 24, generator=generator) + 100.0
    return rows, torch.randn(60, 24, generator=generator) + 100.0


@pytest.mark.parametrize("k", [1, 5])
def test_flat_through_pointers(pretended: Pretended, k: int) -> None:
    rows, queries = _data()
    index = plan_module.make_index("flat", rows, seed=0)
    assert isinstance(index, ExactIndex)
    assert isinstance(index.products, GpuProductSearch)
    distances, found = index.search(queries, k, None)
    expected = ExactIndex(rows, ProductSearch(rows)).search(queries, k, None)
    assert torch.equal(found, expected[1])
    assert torch.equal(distances, expected[0])
    assert pretended.searches == [60]
    assert pretended.streams == [(0, ("stream", 77)), (0, None)] * 2  # adding and searching
    assert pretended.scratch == [faiss_module._GPU_SCRATCH]


def test_what_faiss_cannot_do_there_is_left_to_torch(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = _data()
    index = plan_module.make_index("flat", rows, seed=0)
    own = np.arange(60) % 3
    excluded = Excluded.of(torch.arange(700) % 3, own)
    _, found = index.search(queries, 2, excluded)
    assert bool((found % 3 != torch.from_numpy(own)[:, None]).all())
    assert pretended.searches == []
    monkeypatch.setattr(faiss_module, "_GPU_MOST_NEIGHBORS", 4)
    assert index.search(queries, 5, None)[1].shape == (60, 5)
    assert pretended.searches == []


def test_inverted_lists(pretended: Pretended) -> None:
    rows, queries = _data()
    index = plan_module.make_index("ivf", rows, seed=0)
    assert isinstance(index, FaissIndex)
    assert index._gpu_index.nprobe == index._probes() >= 8
    index.faiss_index.nprobe = index._probes()
    distances, found = index.search(queries, 3, None)
    exact = ((queries[:, None].double() - rows[None].double()) ** 2).sum(2)
    torch.testing.assert_close(distances, exact.gather(1, found).float(), rtol=1e-4, atol=1e-4)
    recall = (found[:, :1] == exact.argmin(1, keepdim=True)).float().mean()
    assert recall > 0.6
    assert pretended.searches == [60]
    # What is saved is the index on the CPU.
    again = plan_module.index_from_bytes("ivf", rows, index.to_bytes(), 0)
    assert type(again.faiss_index) is faiss.IndexIVFFlat


def test_an_index_of_the_cpu_alone_says_that_it_copies(pretended: Pretended) -> None:
    rows, _ = _data()
    with pytest.warns(UserWarning, match='index="hnsw" is searched on the CPU: the queries of every batch'):
        plan_module.make_index("hnsw", rows, seed=0)
