"""Images that are gone, or no longer readable, after a data set was listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from brightness import Brightness, draw, draw_category

pytest.importorskip("torch")

from ensemblead.errors import UnreadableImageError
from ensemblead.evaluation import Category, MVTecAD, Suite, evaluate, run

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
    assert "part: 1 training image(s) are gone, the first is " in str(caught[0].message)
    assert len(report.details["part"].images) == len(category.test) - 1
    assert len(report.details["part"].duplicates) == 1


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
    assert cell.finished.row.num_normal == 4
    assert any("1 training image(s) are gone" in line for line in cell.finished.warnings)
    assert all(cell.reused for cell in run(careful, tmp_path / "out").cells)
    for seed, place in enumerate(("train/good/2.png", "test/good/2.png")):
        draw(root / place, 70 + seed)
    (cell,) = run(careful, tmp_path / "out").cells
    assert not cell.reused
    assert cell.finished is not None
    assert cell.finished.row.num_normal == 5


def test_a_mask_that_is_gone_is_not_skipped(category: Category, tmp_path: Path) -> None:
    config = {
        "errors": "skip",
        "detectors": [{**GABOR, "device": "cpu"}],
        "datasets": [{"type": "MVTecAD", "root": str(tmp_path / "part")}],
    }
    suite = Suite.parse(config)
    mask = next(one.mask_path for one in category.test if one.mask_path)
    Path(mask).unlink()
    with pytest.raises(FileNotFoundError, match=f"no such image: {mask}"):
        run(suite, tmp_path / "out")
