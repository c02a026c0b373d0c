"""Work on real workers: a Dask cluster of two processes, and a pool of new processes; one is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("distributed")
import torch
from distributed import Client, LocalCluster
from support.brightness import draw_two_categories
from support.suites import two_by_two
from support.textures import normal_images
from support.units import SIZES, assert_same, draw_images, logged, trapped

import ensemblead as ead
from ensemblead.common.errors import PartialFitError
from ensemblead.evaluation import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default::ResourceWarning")]
SEEN = normal_images(3, seed=9, side=32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Here as on the workers, so that bits are equal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client(_one_thread: None) -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder)
    return folder


def core() -> ead.PatchCore:
    return ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.3, batch_size=4, **SIZES)


def tiled() -> ead.TiledEnsemble:
    padim = ead.PaDiM("gabor", ("layer2",), num_dimensions=4, batch_size=3, **SIZES)
    return ead.TiledEnsemble(ead.BackboneEnsemble([core(), padim]), 16, 16, image_size=32)


class TestDask:
    def test_a_worker_that_is_killed(self, client: Client, images: Path, tmp_path: Path) -> None:
        """The scheduler gives its unit to another process by itself; the other unit is not disturbed."""
        (tmp_path / "trap0").touch()
        executor = client.get_executor()
        found = trapped(tmp_path).fit(images, executor=executor, workdir=tmp_path / "work", retries=0)
        log = logged(tmp_path)
        assert sorted(log) == ["0 begun", "0 begun", "0 ended", "1 begun", "1 ended"]
        assert_same(found, trapped(tmp_path).fit(images), SEEN)
        before = len(logged(tmp_path))
        trapped(tmp_path).fit(images, executor=executor, workdir=tmp_path / "work")
        assert len(logged(tmp_path)) == before
        assert not [name for name in os.listdir(tmp_path / "work") if name.startswith(".")]

    def test_a_unit_that_fails_is_tried_again(self, client: Client, images: Path, tmp_path: Path) -> None:
        """Dask would answer a call that is like one before with the failure of that one."""
        (tmp_path / "trap1").touch()
        executor = client.get_executor()
        trapped(tmp_path, "error").fit(images, executor=executor, workdir=tmp_path / "work")
        assert sorted(logged(tmp_path)) == ["0 begun", "0 ended", "1 begun", "1 begun", "1 ended"]

    def test_tiles(self, client: Client, images: Path, tmp_path: Path) -> None:
        found = tiled().fit(images, executor=client.get_executor(), workdir=tmp_path)
        assert_same(found, tiled().fit(images), SEEN)

    def test_a_suite(self, client: Client, tmp_path: Path) -> None:
        config = two_by_two(draw_two_categories(tmp_path / "data"))
        config["datasets"][0]["category"] = "bolt"
        results = run(config, tmp_path / "out", executor=client.get_executor())
        assert results.is_complete
        expected = run(config, tmp_path / "here")
        for mine, theirs in zip(results.cells, expected.cells, strict=True):
            assert mine.key == theirs.key
            assert mine.finished is not None
            assert theirs.finished is not None
            assert mine.finished.details.images == theirs.finished.details.images


class TestPool:
    def test_a_worker_that_is_killed(self, images: Path, tmp_path: Path) -> None:
        """It breaks the whole pool; what is done is kept, and calling again does the rest."""
        (tmp_path / "trap1").touch()
        ensemble, where = trapped(tmp_path), tmp_path / "work"
        with (
            ead.Executors.processes(1) as pool,
            pytest.raises(PartialFitError, match="1 of 2 .* The executor broke .*; call again") as caught,
        ):
            ensemble.fit(images, executor=pool, workdir=where)
        assert caught.value.done == ("member0-test-trapped",)
        assert caught.value.missing == ("member1-test-trapped",)
        assert not ensemble.is_fitted
        with ead.Executors.processes(2) as pool:
            ensemble.fit(images, executor=pool, workdir=where)
            assert logged(tmp_path) == ["0 begun", "0 ended", "1 begun", "1 begun", "1 ended"]
            assert_same(ensemble, trapped(tmp_path).fit(images), SEEN)
            found: Any = tiled().fit(images, executor=pool, workdir=where)
            assert_same(found, tiled().fit(images), SEEN)
