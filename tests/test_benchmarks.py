"""What benchmark scripts share: rows that are made of cells, and the order in which cells are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import bench_patchcore
import bench_peers
import bench_trained
import kept
import record

from ensemblead.images.geometry import Geometry


class Row(kept.Kept):
    def figure(self) -> record.Figure:
        details = {"cells": self._cells}
        return record.Figure(self.benchmark, self._what, sum(self.values("x")), details=details)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results, in place of the repository's."""

    def write(*arguments: Any) -> Path:
        return record.write_results(*arguments, folder=tmp_path)

    monkeypatch.setattr(kept, "load_results", lambda folder: record.load_results(tmp_path))
    monkeypatch.setattr(kept, "write_results", write)
    return tmp_path


def rows(*, again: bool = False) -> list[Row]:
    figures = record.Figures().of("numbers")
    return [Row(figures, what, again) for what in ("one", "two")]


def test_a_cell_is_measured_once_and_kept_at_once(results: Path) -> None:
    assert kept.measure_together(rows(), "0", lambda: [{"x": 1.0}, {"x": 2.0}])
    assert not kept.measure_together(rows(), "0", lambda: pytest.fail("it is known"))
    assert kept.measure_together(rows(), "1", lambda: [{"x": 10.0}, {"x": 20.0}])
    assert [row.values("x") for row in rows()] == [[1.0, 10.0], [2.0, 20.0]]
    assert rows()[1].spread("x") == "11.000 ± 12.728"


def test_again_measures_anew(results: Path) -> None:
    kept.measure_together(rows(), "0", lambda: [{"x": 1.0}, {"x": 2.0}])
    assert kept.measure_together(rows(again=True), "0", lambda: [{"x": 3.0}, {"x": 4.0}])
    assert [row.values("x") for row in rows()] == [[3.0], [4.0]]


def test_files_of_other_scripts_are_left_alone(results: Path) -> None:
    (results / "house.json").write_text(json.dumps({"processor": "some"}))
    kept.measure_together(rows(), "0", lambda: [{"x": 1.0}, {"x": 2.0}])
    assert "| numbers | cpu | two | 2 |" in record.markdown(record.load_results(results))


def test_the_tables_of_the_repository_can_be_made() -> None:
    assert "| trained |" in record.markdown(record.load_results())


@pytest.mark.parametrize("name", record.SHORT_TABLES)
def test_documents_show_what_was_measured(name: str) -> None:
    """Where it fails: run `python benchmarks/record.py`."""
    pages = record.documents_with(name)
    assert pages
    for page in pages:
        _, _, rest = page.read_text().partition(record.markers(name)[0])
        shown, _, _ = rest.partition(record.markers(name)[1])
        assert shown.strip() == record.SHORT_TABLES[name]()


def test_a_table_is_put_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", *record.markers("one"), "after"]))
    record.fill(page, "one", "| 1 |")
    record.fill(page, "one", "| 2 |")
    begin, end = record.markers("one")
    assert page.read_text().splitlines() == ["before", begin, "| 2 |", end, "after"]
    with pytest.raises(SystemExit, match="lacks the markers <!-- two"):
        record.fill(page, "two", "")


def test_cells_of_trained_families_have_names_of_their_own() -> None:
    cells = bench_trained.ordered_cells()
    assert len({cell.id for cell in cells}) == len(cells)
    assert {cell.category for cell in cells[:3]} == set(bench_trained.CATEGORIES)
    named = [(name, cell.seed) for cell in cells for name in cell.rows()]
    assert len(set(named)) == len(named)


def test_cells_of_peers_have_names_of_their_own() -> None:
    cells = bench_peers.cells()
    assert len({cell.id for cell in cells}) == len(cells)
    named = [(*cell.values[:2], cell.values[2].tool, cell.values[2].name) for cell in cells]
    assert len(set(named)) == len(named)


def test_maps_of_crops_lie_where_the_tool_looked() -> None:
    side, crop = bench_peers.SIDE, bench_peers.SIDE // 2
    maps = np.arange(2 * crop * crop, dtype=np.float32).reshape(2, crop, crop) + 1
    placed = bench_peers.on_whole_images(maps, [(side, side), (2 * side, 2 * side)], Geometry(side, crop))
    middle = slice(crop // 2, crop // 2 + crop)
    assert np.array_equal(placed[:, middle, middle], maps)
    placed[:, middle, middle] = 1
    assert np.array_equal(placed, np.ones((2, side, side), np.float32))  # the least of all maps


def test_maps_of_whole_images_are_interpolated() -> None:
    small = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    (placed,) = bench_peers.on_whole_images(small, [(30, 20)], Geometry((2, 2), None))
    side = bench_peers.SIDE
    assert placed[0, 0] == 0
    assert placed[-1, -1] == 3
    assert placed.mean() == pytest.approx(1.5)
    assert placed[side // 2 - 1, side // 2] == pytest.approx(1.5 - 1 / side)


def test_a_trial_takes_the_first_images_of_each_kind(tmp_path: Path) -> None:
    names = ["train/good/1", "train/good/2", "test/good/1", "test/good/2", "test/cut/1"]
    for name in [*names, "ground_truth/cut/1_mask"]:
        path = tmp_path / "part" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 255).save(path)
    copy = bench_peers.first_images(tmp_path / "part", 1, tmp_path / "copy" / "part")
    found = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.png"))
    assert found == ["ground_truth/cut/1_mask.png", "test/cut/1.png", "test/good/1.png", "train/good/1.png"]


def test_the_bare_pass_reads_what_an_unfitted_detector_prepares(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    files = [str(tmp_path / f"{number}.png") for number in range(2)]
    for number, path in enumerate(files):
        Image.fromarray(np.full((300, 300, 3), 100 * number, dtype=np.uint8)).save(path)
    detector = bench_patchcore.detector_of("resnet18")
    (batch,) = bench_patchcore.prepared(detector, files)
    assert batch.shape == (2, 3, 224, 224)
    bench_patchcore.bare(detector, [batch])()
