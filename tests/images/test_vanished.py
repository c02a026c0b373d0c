"""Images that are gone, or no longer readable, after a data set was listed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.brightness import Brightness, draw, draw_category

pytest.importorskip("torch")

from ensemblead.common.errors import UnreadableImageError
from ensemblead.evaluation import Category, MVTecAD, Suite, evaluate, run
from ensemblead.images import read_mask

GABOR = {"type": "PatchCore", "backbone": "gabor", "resize": (24, 28), "image_size": None}


class Careful(Brightness):
    """Leaves out what is not there, if it may."""

    def predict_batches(self, images: Any, *, errors: str = "raise") -> Any:
        return super().predict_batches([one for one in images if errors == "raise" or Path(one).is_file()])


@pytest.fixture
def category(tmp_path: Path) -> Category:
    """With one duplicate, `train/good/1.png` and `test/good/copy.png`."""
    root = draw_category(tmp_path / "part", 0)
    (root / "test/good/copy.png").write_bytes((root / "train/good/1.png").read_bytes())
    return MVTecAD(root).categories[0]


def of(category: Category, end: str) -> Path:
    """The image whose path ends so."""
    (path,) = (path for path in (*category.train, *(one.path for one in category.test)) if path.endswith(end))
    return Path(path)


@pytest.mark.parametrize("end", ["train/good/0.png", "test/good/0.png"])
def test_duplicates_are_looked_for_among_what_is_there(category: Category, end: str) -> None:
    of(category, end).unlink()
    with pytest.raises(FileNotFoundError, match=f"^no such image: .*{end}$"):
        category.duplicates()
    ((train, sample),) = category.duplicates("skip")
    assert (Path(train).name, Path(sample.path).name) == ("1.png", "copy.png")
    of(category, "copy.png").unlink()
    assert category.duplicates("skip") == []


def test_what_has_a_size_but_cannot_be_read_is_no_duplicate(category: Category) -> None:
    for end in ("train/good/0.png", "test/good/0.png"):  # of one size
        of(category, end).unlink()
        of(category, end).mkdir()
    with pytest.raises(UnreadableImageError, match=r"cannot read image .*/good/0\.png"):
        category.duplicates()
    assert [Path(sample.path).name for _, sample in category.duplicates("skip")] == ["copy.png"]


def test_evaluate_skips_what_is_gone(category: Category) -> None:
    of(category, "train/good/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such image: .*train/good/0\.png"):
        evaluate(Careful(), category, bootstrap=0)
    of(category, "test/good/0.png").unlink()
    with pytest.warns(UserWarning, match=r"1 image\(s\) were not predicted") as caught:
        report = evaluate(Careful(), category, bootstrap=0, errors="skip")
    assert "part: 1 training image(s) are gone or cannot be read, the first is " in str(caught[0].message)
    assert len(report.details["part"].images) == len(category.test) - 1
    assert len(report.details["part"].duplicates) == 1


def test_training_files_that_cannot_be_read_are_counted(category: Category, tmp_path: Path) -> None:
    first, second = (of(category, f"train/good/{number}.png") for number in (0, 2))
    first.unlink()
    first.mkdir()
    second.write_text("no image, and of a size that no test image has")
    assert category.unreadable() == [str(first), str(second)]
    with pytest.warns(UserWarning, match=rf"2 training image\(s\) are gone or .* the first is {first}"):
        report = evaluate(Careful(), category, bootstrap=0, errors="skip")
    assert report.rows[0].num_train == 1
    report.to_html(tmp_path / "report.html")
    assert "1 training images" in (tmp_path / "report.html").read_text()


def test_a_suite_skips_what_is_gone_and_measures_it_when_it_is_back(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)
    config: dict[str, Any] = {
        "bootstrap": 0,
        "device": "cpu",
        "detectors": [{**GABOR, "layers": ["layer1"], "coreset_fraction": 0.2}],
        "datasets": [{"type": "MVTecAD", "root": str(root)}],
    }
    careful, strict = Suite.parse({**config, "errors": "skip"}), Suite.parse(config)
    for place in ("train/good/2.png", "test/good/2.png"):
        (root / place).unlink()
    with pytest.raises(FileNotFoundError, match=r"no such image: .*train/good/2\.png"):
        run(strict, tmp_path / "strict")
    assert not (tmp_path / "strict").exists()
    with pytest.warns(UserWarning, match=r"left out 1 of 3 images .*train/good/2\.png"):
        results = run(careful, tmp_path / "out")
    (cell,) = results.cells
    assert cell.finished is not None
    assert (cell.finished.row.num_train, cell.finished.row.num_normal) == (2, 4)
    assert any("1 training image(s) are gone or" in line for line in cell.finished.warnings)
    assert all(cell.reused for cell in run(careful, tmp_path / "out").cells)
    for seed, place in enumerate(("train/good/2.png", "test/good/2.png")):
        draw(root / place, 70 + seed)
    (cell,) = run(careful, tmp_path / "out").cells
    assert not cell.reused
    assert cell.finished is not None
    assert (cell.finished.row.num_train, cell.finished.row.num_normal) == (3, 5)


def quick_suite(*roots: Path, **settings: Any) -> Suite:
    return Suite.parse(
        {
            "bootstrap": 0,
            "device": "cpu",
            "detectors": [{**GABOR, "layers": ["layer1"], "coreset_fraction": 0.2}],
            "datasets": [{"type": "MVTecAD", "root": str(root)} for root in roots],
            **settings,
        }
    )


@pytest.mark.slow
def test_what_was_measured_while_a_file_was_away_is_not_reused(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)
    suite, out = quick_suite(root, errors="skip"), tmp_path / "out"
    image, away = root / "test/good/2.png", tmp_path / "away.png"

    def take_away(*_: object) -> None:
        if image.exists():
            image.rename(away)

    with pytest.warns(UserWarning, match="files changed while this was measured"):
        (cell,) = run(suite, out, progress=take_away).cells
    assert cell.finished is not None
    assert (cell.key, cell.finished.row.num_normal) == ("", 4)
    assert any("files changed" in line for line in cell.finished.warnings)
    (page,) = (out / "reports").iterdir()
    assert "files changed" in page.read_text()
    away.rename(image)  # its time of change goes with it
    (cell,) = run(suite, out).cells
    assert not cell.reused
    assert cell.finished is not None
    assert cell.finished.row.num_normal == 5
    assert "files changed" not in page.read_text()
    assert [again.reused for again in run(suite, out).cells] == [True]


def test_a_file_that_is_gone_after_its_cell_is_no_failure(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)

    def take_away(_: Any, stage: str, done: int, total: int) -> None:
        if (stage, done) == ("evaluate", total):
            (root / "train/good/2.png").unlink()

    with pytest.warns(UserWarning, match="files changed while this was measured"):
        (cell,) = run(quick_suite(root), tmp_path / "out", progress=take_away).cells
    assert (cell.status, cell.key) == ("done", "")
    assert not (tmp_path / "out/cells").exists()


def test_a_file_that_changes_before_its_cell_counts_as_it_is_then(tmp_path: Path) -> None:
    roots = [draw_category(tmp_path / name, seed) for seed, name in enumerate(("bolt", "nut"))]
    suite, out = quick_suite(*roots), tmp_path / "out"
    run(suite, out, on_result=lambda _: os.utime(roots[1] / "test/good/2.png", (1, 1)))
    assert [cell.reused for cell in run(suite, out).cells] == [True, True]


def test_a_mask_that_is_gone_is_not_skipped(category: Category, tmp_path: Path) -> None:
    config = {
        "errors": "skip",
        "detectors": [{**GABOR, "device": "cpu"}],
        "datasets": [{"type": "MVTecAD", "root": str(tmp_path / "part")}],
    }
    suite = Suite.parse(config)
    mask = next(one.mask_path for one in category.test if one.mask_path)
    Path(mask).unlink()
    with pytest.raises(FileNotFoundError, match=f"^no such mask: {mask}$"):
        run(suite, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=f"^no such mask: {mask}$"):
        evaluate(Careful(), category, errors="skip")
    with pytest.raises(FileNotFoundError, match=f"^no such mask: {mask}$"):
        read_mask(mask)
    Path(mask).write_text("no image")
    with pytest.raises(UnreadableImageError, match=f"^cannot read mask {mask}: "):
        category.check_masks()
