"""Suites in parts and on executors: the same results as in one run."""

from __future__ import annotations

import csv
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from support.brightness import draw_two_categories
from support.suites import Config, two_by_two
from support.units import Inline

pytest.importorskip("torch")
pytest.importorskip("yaml")

from ensemblead.common.errors import PartialFitError
from ensemblead.evaluation import SuiteResults, run
from ensemblead.evaluation.results import COLUMNS

# They are measured anew, and differ from run to run.
TIMES = [name for name in COLUMNS if "second" in name or "memory" in name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_two_categories(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path) -> Config:
    return small(data)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The rows of one run."""
    out = tmp_path_factory.mktemp("whole")
    run(small(data), out)
    return table(out)


def small(data: Path) -> Config:
    """Two small detectors on two categories."""
    config = two_by_two(data) | {"gallery": 0}
    config["detectors"][1] = {**config["detectors"][0], "name": "two", "layers": ["layer2"]}
    return config


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return [
            {name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)
        ]


def reused(results: SuiteResults) -> list[bool]:
    return [cell.reused for cell in results.cells]


class TestParts:
    def test_parts_make_a_whole(self, config: Config, whole: list[dict[str, str]], tmp_path: Path) -> None:
        first = run(config, tmp_path, part=(2, 2))
        assert [cell.status for cell in first.cells] == ["pending", "done", "pending", "done"]
        # Tables would be of half the suite, while the other part is under way.
        assert os.listdir(tmp_path) == ["cells"]
        last = run(config, tmp_path, part=(1, 2))
        assert reused(last) == [False, True, False, True]
        assert table(tmp_path) == whole
        assert len(os.listdir(tmp_path / "reports")) == 2
        assert all(reused(run(config, tmp_path)))

    @pytest.mark.slow
    def test_a_part_that_fails_leaves_the_tables_to_a_later_run(
        self, config: Config, data: Path, whole: list[dict[str, str]], tmp_path: Path
    ) -> None:
        def lost(cell: Any, image: Any) -> None:
            raise OSError("the machine is gone")

        with pytest.raises(OSError, match="the machine is gone"):
            run(config, tmp_path, part=(1, 2), on_image=lost)
        run(config, tmp_path, part=(2, 2))
        assert not (tmp_path / "results.csv").exists()
        run(config, tmp_path)
        assert table(tmp_path) == whole

    def test_more_parts_than_cells(self, config: Config, tmp_path: Path) -> None:
        results = run(config, tmp_path, part=(5, 5))
        assert {cell.status for cell in results.cells} == {"pending"}

    @pytest.mark.parametrize(
        ("part", "error", "message"),
        [
            ((0, 2), ValueError, "part must be at least 1, got 0"),
            ((3, 2), ValueError, "part must be part 1 to 2 of 2, got 3"),
            ("1/2", TypeError, r"part must be a pair \(k, n\)"),
            ((1, 2.0), TypeError, "part must be a whole number"),
        ],
    )
    def test_wrong_parts(
        self, config: Config, part: Any, error: type[Exception], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            run(config, tmp_path, part=part)


class TestExecutors:
    def test_the_same_results(self, config: Config, whole: list[dict[str, str]], tmp_path: Path) -> None:
        executor, seen, steps = Inline(), [], []
        results = run(
            config,
            tmp_path,
            executor=executor,
            on_result=seen.append,
            progress=lambda cell, *step: steps.append(step),
        )
        assert executor.given == 4
        assert table(tmp_path) == whole
        assert sorted(map(str, seen)) == sorted(map(str, results.cells))
        assert steps == [("cells", done, 4) for done in (1, 2, 3, 4)]
        # A run here finds what workers measured, and the other way round.
        assert all(reused(run(config, tmp_path)))
        assert all(reused(run(config, tmp_path, executor=executor)))
        assert executor.given == 4

    def test_relative_paths(
        self, config: Config, whole: list[dict[str, str]], data: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """Workers have whole paths, and cells are found under any spelling."""
        monkeypatch.chdir(data.parent)
        config["datasets"][0]["root"] = data.name
        monkeypatch.setattr(Inline, "submit", _elsewhere(Inline.submit, tmp_path))
        run(config, tmp_path / "out", executor=Inline())
        assert table(tmp_path / "out") == whole
        config["datasets"][0]["root"] = str(data)
        assert all(reused(run(config, tmp_path / "out")))

    def test_a_part_on_workers(self, config: Config, whole: list[dict[str, str]], tmp_path: Path) -> None:
        executor = Inline()
        run(config, tmp_path, executor=executor, part=(1, 2))
        assert executor.given == 2
        run(config, tmp_path, part=(2, 2))
        assert table(tmp_path) == whole

    def test_an_executor_that_breaks(
        self, config: Config, whole: list[dict[str, str]], tmp_path: Path
    ) -> None:
        def dies(number: int) -> None:
            if number == 2:
                raise BrokenProcessPool("a worker is dead")

        with pytest.raises(PartialFitError, match="3 of 4 units .* missing: two on parts/bolt") as caught:
            run(config, tmp_path, executor=Inline(dies))
        assert len(caught.value.done) == 3
        executor = Inline()
        run(config, tmp_path, executor=executor)
        assert executor.given == 1
        assert table(tmp_path) == whole

    def test_a_cell_that_fails(self, config: Config, data: Path, tmp_path: Path) -> None:
        broken = {**config["detectors"][0], "name": "broken", "num_neighbors": 9999}
        config["detectors"] = [broken]
        expected = run(config, tmp_path / "here")
        found = run(config, tmp_path / "there", executor=Inline())
        assert [str(cell.failure) for cell in found.cells] == [str(cell.failure) for cell in expected.cells]
        assert all(cell.failure is not None for cell in found.cells)

    @pytest.mark.slow
    def test_warnings_are_the_same(self, config: Config, data: Path, tmp_path: Path) -> None:
        from support.brightness import draw

        root = draw_two_categories(tmp_path / "own")
        for name in ("bolt", "nut"):
            draw(root / name / "train/good/9.png", 1)
            (root / name / "train/good/9.png").write_bytes(b"no image")
        config |= {"errors": "skip", "datasets": [{"type": "MVTecAD", "root": str(root), "name": "parts"}]}
        messages = []
        for out, options in (("here", {}), ("there", {"executor": Inline()})):
            with pytest.warns(UserWarning, match="left out") as caught:
                run(config, tmp_path / out, **options)
            messages.append(sorted(str(one.message) for one in caught))
        assert messages[0] == messages[1]
        assert any("left out 1 of 4 images" in message for message in messages[0])

    def test_a_warning_of_a_class_of_its_own(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ensemblead.detectors.patchcore.accumulator._SLOW", 1.0)
        del config["detectors"][1]
        config["datasets"][0]["category"] = "nut"
        for out, options in (("here", {}), ("there", {"executor": Inline()})):
            with pytest.warns(UserWarning, match="one on parts/nut: .* bank rows"):
                results = run(config, tmp_path / out, **options)
            finished = results.cells[0].finished
            assert finished is not None
            assert any("bank rows" in line for line in finished.warnings)

    def test_refusals(self, config: Config, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="on_image goes without executor="):
            run(config, tmp_path, executor=Inline(), on_image=lambda cell, image: None)
        with pytest.raises(TypeError, match="executor must have a submit"):
            run(config, tmp_path, executor=object())
        with pytest.raises(ValueError, match="retries must be at least 0"):
            run(config, tmp_path, executor=Inline(), retries=-1)
        assert os.listdir(tmp_path) == []


def _elsewhere(submit: Any, folder: Path) -> Any:
    """Workers that run in another folder."""

    def moved(self: Inline, function: Any, /, *args: Any) -> Any:
        here = os.getcwd()
        os.chdir(folder)
        try:
            return submit(self, function, *args)
        finally:
            os.chdir(here)

    return moved
