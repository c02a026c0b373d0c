"""The layout of MVTec AD."""

from __future__ import annotations

from pathlib import Path

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.datasets.categories import NORMAL, Category, Dataset, Sample
from ensemblead.datasets.files import chosen_categories, existing_folder, scan, stray_images
from ensemblead.datasets.masks import MissingMasks, check_missing_masks, missing_mask_notes, pair_masks
from ensemblead.images.folders import describe_unread, mask_folders, subfolders


class MVTecAD(Dataset):
    """The layout of MVTec AD: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>`.

    A mask belongs to the test image of its name: `<stem>_mask.png` or `<stem>.png`, of any image suffix. A
    category without a `ground_truth` folder has no masks; one that has the folder must have all of them.
    Folders are searched with all folders below them, as `fit` and `predict` search theirs.

    Args:
        root: The folder of the categories, or the folder of one category.
        category: A category's name; None for all in `root` (every folder that holds `train`).
        missing_masks: "raise" if a defective image has no mask, or "exclude" it from the pixel metrics.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: No such category, a category without training or test images, folders beside `good` in
            `train`, masks missing or ambiguous.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> import ensemblead as ead
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("train/good", "test/good", "test/scratch"):
        ...         folder = Path(root, name)
        ...         folder.mkdir(parents=True)
        ...         Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
        ...     data = ead.MVTecAD(root)
        >>> len(data.train), [sample.defect_type for sample in data.test]
        (1, ['good', 'scratch'])
    """

    def __init__(
        self, root: StrPath, category: str | None = None, *, missing_masks: MissingMasks = "raise"
    ) -> None:
        base = existing_folder(root)
        check_missing_masks(missing_masks)
        if category is None and (base / "train").is_dir():
            folders = [base]
        else:
            known = [path.name for path in subfolders(base) if (path / "train").is_dir()]
            folders = [base / name for name in chosen_categories(category, known, base)]
        if not folders:
            raise ValueError(f"root must hold folders with a train folder, or be one, got {base}")
        super().__init__(base.name, [_category(folder, missing_masks) for folder in folders])
        if len(folders) == 1:
            self.name = folders[0].name


def _category(folder: Path, missing_masks: MissingMasks) -> Category:
    others = [path.name for path in subfolders(folder / "train") if path.name != NORMAL and scan(path)[0]]
    if others:
        raise ValueError(f"{folder / 'train'} must hold only {NORMAL!r}, got images in {', '.join(others)}")
    train, ignored = scan(folder / "train" / NORMAL)
    if not train:
        raise ValueError(f"category {folder.name} has no training images in {folder / 'train' / NORMAL}")
    test, notes = _test_images(folder, ignored)
    if not test:
        raise ValueError(f"category {folder.name} has no test images in {folder / 'test'}")
    truth = folder / "ground_truth"
    defective = [sample for sample in test if sample.label]
    notes += missing_mask_notes(defective, str(truth), truth.is_dir(), missing_masks)
    for place in mask_folders(folder / "test"):
        notes.append(f"{place} holds masks by its name: {len(scan(place)[0])} image(s) left out")
    for name in ("train", "test"):
        if stray := stray_images(folder / name):
            notes.append(f"{len(stray)} image(s) lie in {folder / name} itself: {some_of(stray)}; left out")
            ignored += stray
    notes += filter(None, [describe_unread(ignored)])
    test.sort(key=lambda sample: sample.path)
    searched = tuple(str(folder / name) for name in ("train", "test"))
    return Category(folder.name, tuple(map(str, train)), tuple(test), len(ignored), tuple(notes), searched)


def _test_images(folder: Path, ignored: list[str]) -> tuple[list[Sample], list[str]]:
    """The test images of a category, and notes; files that are no images are appended to `ignored`."""
    samples: list[Sample] = []
    notes: list[str] = []
    truth = folder / "ground_truth"
    for kind in subfolders(folder / "test"):
        images, others = scan(kind)
        ignored += others
        if kind.name == NORMAL:
            samples += [Sample(str(path), False) for path in images]
            continue
        masks, more = pair_masks(images, kind, truth / kind.name if truth.is_dir() else None)
        pairs = zip(images, masks, strict=True)
        samples += [Sample(str(path), True, kind.name, mask) for path, mask in pairs]
        notes += more
    return samples, notes
