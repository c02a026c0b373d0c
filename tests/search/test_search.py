"""Nearest neighbours against a float64 brute force, on every index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.search import neighbors, products
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissCandidates
from ensemblead.search.neighbors import Excluded, Index
from ensemblead.search.plan import (
    INDEX_NAMES,
    SearchPlan,
    extended_index,
    index_from_bytes,
    make_index,
    search_plan,
)


def _data(rows: int, dims: int, queries: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dims))
    draw = lambda n: centres[rng.integers(20, size=n)] + 0.3 * rng.normal(size=(n, dims))  # noqa: E731
    return torch.from_numpy(draw(rows).astype(np.float32)), torch.from_numpy(draw(queries).astype(np.float32))


def _on_gpu_told_of_copies(name: str, rows: torch.Tensor) -> Index:
    """`make_index`, which warns where it will copy queries to the CPU."""
    if not search_plan(name, rows.device).copies:
        return make_index(name, rows, seed=0)
    pytest.importorskip("faiss")  # else its absence would come out as a warning that is missing
    with pytest.warns(UserWarning, match="copied"):
        return make_index(name, rows, seed=0)


def _brute_force(queries: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    differences = queries.double().cpu()[:, None] - rows.double().cpu()[None]
    return differences.square().sum(2).numpy()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_exact_search_over_many_tiles(torch_device: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiles that divide neither the rows nor the queries, the last one of fewer rows than k.
    monkeypatch.setattr(products, "_QUERY_TILE", 50)
    monkeypatch.setattr(products, "_ROW_TILE", 32)
    monkeypatch.setattr(neighbors, "_CPU_GATHER", 700)
    monkeypatch.setattr(neighbors, "_CUDA_GATHER", 700)
    rows, queries = (x.to(torch_device) for x in _data(32 * 6 + 3, 24, 127))
    distances, found = ExactIndex(rows).search(queries, k, None)
    expected = np.sort(_brute_force(queries, rows), axis=1)[:, :k]
    np.testing.assert_allclose(distances.cpu().numpy(), expected, rtol=1e-5)
    taken = np.take_along_axis(_brute_force(queries, rows), found.cpu().numpy(), axis=1)
    np.testing.assert_allclose(taken, expected, rtol=1e-5)
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.parametrize("k", [1, 3])
def test_exact_search_leaves_rows_out(torch_device: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_QUERY_TILE", 64)
    monkeypatch.setattr(products, "_ROW_TILE", 16)
    rows, queries = (x.to(torch_device) for x in _data(60, 8, 30))
    # Two whole tiles and a part of the third.
    excluded = Excluded.of((torch.arange(60) >= 37).long().to(torch_device), np.array(0))
    _, found = ExactIndex(rows).search(queries, k, excluded)
    assert int(found.min()) >= 37
    expected = np.argsort(_brute_force(queries, rows)[:, 37:], axis=1)[:, :k] + 37
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


@pytest.mark.parametrize("name", ["flat", "hnsw", "ivf"])
def test_every_query_leaves_out_rows_of_its_own(
    torch_device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_QUERY_TILE", 16)
    monkeypatch.setattr(products, "_ROW_TILE", 24)
    rows, queries = _data(90, 8, 40)
    images, own = np.arange(90) % 5, np.arange(40) % 7  # rows of images 5 and 6 there are none
    excluded = Excluded.of(torch.from_numpy(images).to(torch_device), own)
    index = _on_gpu_told_of_copies(name, rows.to(torch_device))
    distances, found = index.search(queries.to(torch_device), 2, excluded)
    exact = _brute_force(queries, rows)
    exact[own[:, None] == images] = np.inf
    if name == "flat":
        np.testing.assert_array_equal(found.cpu().numpy(), np.argsort(exact, axis=1)[:, :2])
    taken = np.take_along_axis(exact, found.cpu().numpy(), 1)
    np.testing.assert_allclose(distances.cpu().numpy(), taken, rtol=1e-4)  # none of them infinite


def test_near_duplicates_far_from_the_origin() -> None:
    rows, queries = _data(300, 64, 40)
    rows, queries = rows + 1000.0, queries + 1000.0
    queries[:5] = rows[100:105] + 0.01
    distances, found = ExactIndex(rows).search(queries, 1, None)
    expected = _brute_force(queries, rows)
    np.testing.assert_array_equal(found[:, 0].numpy(), expected.argmin(1))
    np.testing.assert_allclose(distances[:, 0].numpy(), expected.min(1), rtol=1e-5)


def test_distance_to_itself_is_zero() -> None:
    rows, _ = _data(200, 32, 1)
    assert torch.equal(ExactIndex(rows).search(rows, 1, None)[0], torch.zeros(200, 1))


@pytest.mark.parametrize("name", INDEX_NAMES)
def test_every_index_finds_mostly_the_right_rows(torch_device: str, name: str) -> None:
    rows, queries = _data(1500, 32, 200)
    index = _on_gpu_told_of_copies(name, rows.to(torch_device))
    distances, found = (x.cpu() for x in index.search(queries.to(torch_device), 5, None))
    exact = _brute_force(queries, rows)
    # Whatever rows are found, their distances are the true ones, in order.
    np.testing.assert_allclose(distances.numpy(), np.take_along_axis(exact, found.numpy(), 1), rtol=1e-4)
    assert (np.diff(distances.numpy(), axis=1) >= 0).all()
    nearest = np.argsort(exact, axis=1)[:, :5]
    recall = np.mean(
        [len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), nearest.tolist(), strict=True)]
    )
    assert recall > {"flat": 0.999, "sq16": 0.99, "ivf": 0.9, "hnsw": 0.95, "ivfpq": 0.5}[name]


@pytest.mark.parametrize("name", INDEX_NAMES)
def test_k_is_kept_when_lists_are_short_and_rows_left_out(name: str) -> None:
    rows, queries = _data(400, 16, 50)
    excluded = Excluded.of((torch.arange(400) % 4 == 0).long(), np.array(0))
    _, found = make_index(name, rows, seed=0).search(queries, 90, excluded)
    assert found.shape == (50, 90)
    assert bool((found >= 0).all())
    assert bool((found % 4 == 0).all())
    assert all(len(set(row)) == 90 for row in found.tolist())


@pytest.mark.parametrize("name", INDEX_NAMES[1:])
def test_bytes_there_and_back(name: str) -> None:
    rows, queries = _data(600, 16, 40)
    index = make_index(name, rows, seed=3)
    again = index_from_bytes(name, rows, index.to_bytes(), 3)
    for a, b in zip(index.search(queries, 3, None), again.search(queries, 3, None), strict=True):
        assert torch.equal(a, b)


def test_bytes_of_something_else_are_refused() -> None:
    rows, _ = _data(600, 16, 1)
    data = make_index("ivf", rows, seed=0).to_bytes()
    with pytest.raises(DamagedModelError, match="IndexIVFFlat of 600 rows"):
        index_from_bytes("hnsw", rows, data, 0)
    with pytest.raises(DamagedModelError, match=r'"ivf" over \(599, 16\)'):
        index_from_bytes("ivf", rows[1:], data, 0)
    with pytest.raises(DamagedModelError, match="cannot be read"):
        index_from_bytes("ivf", rows, data[: len(data) // 2], 0)


def test_lists_in_another_file_are_never_opened(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    rows, queries = _data(600, 16, 40)
    index = make_index("ivf", rows, seed=3)
    secret = tmp_path / "secret"
    lists = faiss.OnDiskInvertedLists(index.faiss_index.nlist, index.faiss_index.code_size, os.fspath(secret))
    own = index.faiss_index.invlists
    for i in range(own.nlist):
        lists.add_entries(i, own.list_size(i), own.get_ids(i), own.get_codes(i))
    expected = index.search(queries, 3, None)
    index.faiss_index.replace_invlists(lists)
    data = index.to_bytes()
    assert os.fspath(secret).encode() in data
    with pytest.raises(DamagedModelError, match="cannot be read"):  # though it is there, and whole
        FaissCandidates.read("ivf", (600, 16), data)
    # With the file gone, opening it would be an error.
    secret.unlink()
    again = index_from_bytes("ivf", rows, data, 3)
    for a, b in zip(expected, again.search(queries, 3, None), strict=True):
        assert torch.equal(a, b)


def test_codes_that_look_like_the_mark_of_another_file() -> None:
    """As those of a million images may: codes are any bytes."""
    faiss = pytest.importorskip("faiss")
    rows, queries = (part.numpy() for part in _data(600, 16, 5))
    index = FaissCandidates.trained("ivfpq", rows, 600, 0)
    index.add(rows)
    lists = index.faiss_index.invlists
    faiss.rev_swig_ptr(lists.get_codes(0), lists.list_size(0) * lists.code_size)[:4] = list(b"ilod")
    data = bytearray()
    index.write(data.extend)
    assert b"ilod" in data
    found = FaissCandidates.read("ivfpq", (600, 16), bytes(data)).search(queries, 10, None)
    np.testing.assert_array_equal(found, index.search(queries, 10, None))


@pytest.mark.parametrize("name", INDEX_NAMES[1:])
def test_more_rows_leave_the_old_index_alone(name: str) -> None:
    rows, _ = _data(600, 16, 1)
    more = torch.cat([rows, rows[:10] + 5.0])
    old = make_index(name, rows, seed=0)
    new = extended_index(old, more, 600)
    found = new.search(more[600:], 1, None)[1][:, 0]
    # Product quantisation may take one new row for another, but not for an old one.
    assert int(found.min()) >= 600 if name == "ivfpq" else found.tolist() == list(range(600, 610))
    assert int(old.search(more[600:], 1, None)[1].max()) < 600


def test_too_few_rows_for_product_quantisation() -> None:
    with pytest.raises(ValueError, match="at least 256 rows, got 100"):
        make_index("ivfpq", torch.rand(100, 8), seed=0)


@pytest.mark.parametrize(
    ("name", "device", "faiss_gpus", "expected"),
    [
        ("flat", "cpu", 0, SearchPlan("core", "cpu")),
        ("flat", "cpu", 1, SearchPlan("core", "cpu")),
        ("ivf", "cpu", 1, SearchPlan("faiss-cpu", "cpu")),
        ("flat", "cuda:1", 0, SearchPlan("torch", "cuda:1")),
        ("flat", "cuda:1", 1, SearchPlan("torch", "cuda:1")),  # FAISS sees the first one only
        ("flat", "cuda:1", 2, SearchPlan("faiss-gpu", "cuda:1")),
        ("ivf", "cuda:0", 1, SearchPlan("faiss-gpu", "cuda:0")),
        ("ivf", "cuda:0", 0, SearchPlan("faiss-cpu", "cpu", copies=True)),
        ("hnsw", "cuda:0", 1, SearchPlan("faiss-cpu", "cpu", copies=True)),
        ("ivfpq", "cuda:0", 1, SearchPlan("faiss-cpu", "cpu", copies=True)),
        ("sq16", "cuda:0", 1, SearchPlan("faiss-cpu", "cpu", copies=True)),
    ],
)
def test_what_searches_where(name: str, device: str, faiss_gpus: int, expected: SearchPlan) -> None:
    assert search_plan(name, device, faiss_gpus=faiss_gpus) == expected


def test_a_copy_for_every_batch_is_told() -> None:
    assert str(search_plan("hnsw", "cuda:0", faiss_gpus=1)).endswith("copied to the host for every batch")
    assert str(search_plan("flat", "cuda:0", faiss_gpus=1)) == "FAISS for GPUs on cuda:0"


def test_low_precision_of_products_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    inside: list[str] = []
    merge = products._merge
    monkeypatch.setattr(
        products,
        "_merge",
        lambda *arguments: (inside.append(torch.get_float32_matmul_precision()), merge(*arguments)),
    )
    try:
        torch.set_float32_matmul_precision("medium")
        rows, queries = _data(200, 16, 30)
        products.ProductSearch(rows)._by_tiles(queries, 1, None)  # as on a GPU
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(inside) == {"highest"}
