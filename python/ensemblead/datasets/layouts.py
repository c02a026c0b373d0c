"""Inspection data sets as plain lists of files: what to fit on, what to test on, and where the masks are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.datasets.categories import NORMAL, Category, Dataset, Sample
from ensemblead.datasets.files import (
    MissingMasks,
    check_missing_masks,
    child,
    existing_folder,
    folders_in,
    missing_mask_notes,
    no_such_category,
    pair_masks,
    read_csv,
    scan,
    scan_all,
    subfolders,
)

__all__ = ["NORMAL", "Category", "Dataset", "Folder", "MVTecAD", "Sample", "VisA"]


class MVTecAD(Dataset):
    """The layout of MVTec AD: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>`.

    A mask belongs to the test image of its name: `<stem>_mask.png` or `<stem>.png`, of any image suffix. A
    category without a `ground_truth` folder has no masks; one that has the folder must have all of them.

    Args:
        root: The folder of the categories, or the folder of one category.
        category: A category's name; None for all in `root` (every folder that holds `train`).
        missing_masks: "raise" if a defective image has no mask, or "exclude" it from the pixel metrics.

    Raises:
        FileNotFoundError: `root` does not exist.
        ValueError: No such category, a category without training or test images, folders beside `good` in
            `train`, masks missing or ambiguous.
    """

    def __init__(
        self, root: StrPath, category: str | None = None, *, missing_masks: MissingMasks = "raise"
    ) -> None:
        base = existing_folder(root)
        check_missing_masks(missing_masks)
        if category is not None:
            folders = [child(base, category, _categories_in(base))]
        elif (base / "train").is_dir():
            folders = [base]
        else:
            folders = [base / name for name in _categories_in(base)]
        if not folders:
            raise ValueError(f"root must hold folders with a train folder, or be one, got {base}")
        super().__init__(base.name, [_mvtec_category(folder, missing_masks) for folder in folders])
        if len(folders) == 1:
            self.name = folders[0].name


def _categories_in(base: Path) -> list[str]:
    return sorted(folder.name for folder in base.iterdir() if (folder / "train").is_dir())


def _mvtec_category(folder: Path, missing_masks: MissingMasks) -> Category:
    others = sorted(
        path.name for path in subfolders(folder / "train") if path.name != NORMAL and scan(path)[0]
    )
    if others:
        raise ValueError(f"{folder / 'train'} must hold only {NORMAL!r}, got images in {', '.join(others)}")
    train, ignored = scan(folder / "train" / NORMAL)
    if not train:
        raise ValueError(f"category {folder.name} has no training images in {folder / 'train' / NORMAL}")
    normal, anomalous, notes = [], [], []
    truth = folder / "ground_truth"
    for kind in subfolders(folder / "test"):
        images, skipped = scan(kind)
        ignored += skipped
        if kind.name == NORMAL:
            normal = [Sample(str(path), False) for path in images]
            continue
        masks, more = pair_masks(images, kind, truth / kind.name if truth.is_dir() else None)
        pairs = zip(images, masks, strict=True)
        anomalous += [Sample(str(path), True, kind.name, mask) for path, mask in pairs]
        notes += more
    if not normal and not anomalous:
        raise ValueError(f"category {folder.name} has no test images in {folder / 'test'}")
    notes += missing_mask_notes(anomalous, str(truth), truth.is_dir(), missing_masks)
    test = sorted(normal + anomalous, key=lambda sample: sample.path)
    return Category(folder.name, tuple(map(str, train)), tuple(test), ignored, tuple(notes))


class VisA(Dataset):
    """VisA as it is published: `<category>/Data/Images`, `<category>/Data/Masks`, `split_csv/<split>.csv`.

    The csv says what is trained on and tested on and names every mask. Without it (`split=None`) the folders
    do: `Images/Normal`, of which a share is held out to test on, `Images/Anomaly`, and in `Masks/Anomaly` the
    masks by name. Defect types come from `<category>/image_anno.csv` where that exists, otherwise all are
    called "anomaly".

    Args:
        root: The folder that holds the categories and `split_csv`.
        category: A category's name; None for all that the csv names, or all folders with normal images.
        split: "1cls" (the one-class split), "2cls_highshot" or "2cls_fewshot" (which train on defects too:
            those are left out, and counted in `notes`); None for the folders alone.
        missing_masks: As for `MVTecAD`.
        holdout: With `split=None`, the share of normal images to test on, in (0, 1).
        seed: Of the choice of those.

    Raises:
        FileNotFoundError: `root`, the csv, or images that it names do not exist.
        ValueError: No such category, one without training images, an anomalous training image in the
            one-class split, a csv with other columns, masks missing or ambiguous.
    """

    def __init__(
        self,
        root: StrPath,
        category: str | None = None,
        *,
        split: str | None = "1cls",
        missing_masks: MissingMasks = "raise",
        holdout: float = 0.1,
        seed: int = 0,
    ) -> None:
        base = existing_folder(root)
        check_missing_masks(missing_masks)
        _check_holdout(holdout)
        if split is None:
            names = sorted(path.name for path in subfolders(base) if (path / _VISA_NORMAL).is_dir())
            if category is not None and category not in names:
                raise ValueError(no_such_category(category, names, base))
            if not names:
                raise ValueError(f"root must hold folders with {_VISA_NORMAL}, got none in {base}")
            chosen = names if category is None else [category]
            found = [_visa_raw(base / name, holdout, seed, missing_masks) for name in chosen]
            super().__init__(base.name if category is None else category, found)
            return
        table = base / "split_csv" / f"{split}.csv"
        rows = read_csv(table, ("object", "split", "label", "image", "mask"))
        names = sorted({row["object"] for row in rows})
        if category is not None and category not in names:
            raise ValueError(no_such_category(category, names, table))
        chosen = names if category is None else [category]
        by_name = {name: [row for row in rows if row["object"] == name] for name in chosen}
        categories = [_visa_category(base, name, by_name[name], table, missing_masks) for name in chosen]
        super().__init__(base.name if category is None else category, categories)


def _visa_category(
    base: Path, name: str, rows: list[dict[str, str]], table: Path, missing_masks: MissingMasks
) -> Category:
    kinds = _visa_kinds(base / name)
    train, test, left_out = [], [], 0
    for row in rows:
        label = {"normal": False, "anomaly": True}.get(row["label"])
        if label is None or row["split"] not in ("train", "test"):
            raise ValueError(
                f"{table} must say train or test and normal or anomaly, "
                f"got {row['split']!r} and {row['label']!r} for {row['image']}"
            )
        path = str(base / row["image"])
        if row["split"] == "train":
            if label and not table.name.startswith("2cls"):
                raise ValueError(f"{table} has an anomalous training image: {row['image']}")
            left_out += label
            if not label:
                train.append(path)
        else:
            mask = base / row["mask"] if row["mask"] else None
            found = str(mask) if mask is not None and mask.is_file() else None
            kind = kinds.get(row["image"], "anomaly") if label else NORMAL
            test.append(Sample(path, label, kind, found if label else None))
    if not train:
        raise ValueError(f"category {name} has no training images in {table}")
    absent = [path for path in (*train, *(sample.path for sample in test)) if not os.path.isfile(path)]
    if absent:
        raise FileNotFoundError(f"{table} names {len(absent)} image(s) that do not exist: {some_of(absent)}")
    notes = missing_mask_notes(
        [s for s in test if s.label], str(base / name / "Data" / "Masks"), True, missing_masks
    )
    if left_out:
        notes.append(f"{left_out} anomalous training image(s) of {table.name} are left out")
    return Category(name, tuple(sorted(train)), tuple(sorted(test, key=lambda s: s.path)), 0, tuple(notes))


_VISA_NORMAL = "Data/Images/Normal"


def _visa_kinds(folder: Path) -> dict[str, str]:
    """Defect types by image, as the annotations name it (`<category>/Data/Images/Anomaly/000.JPG`)."""
    annotations = folder / "image_anno.csv"
    if not annotations.is_file():
        return {}
    return {row["image"]: row["label"] for row in read_csv(annotations, ("image", "label"))}


def _visa_raw(folder: Path, holdout: float, seed: int, missing_masks: MissingMasks) -> Category:
    """A category as its folders have it."""
    normal, ignored = scan(folder / _VISA_NORMAL)
    if not normal:
        raise ValueError(f"category {folder.name} has no training images in {folder / _VISA_NORMAL}")
    train, held_out = _hold_out(normal, holdout, seed)
    defects = folder / "Data/Images/Anomaly"
    anomalous, skipped = scan(defects)
    truth = folder / "Data/Masks/Anomaly"
    masks, notes = pair_masks(anomalous, defects, truth if truth.is_dir() else None)
    kinds = _visa_kinds(folder)
    samples = [Sample(str(path), False) for path in held_out]
    for path, mask in zip(anomalous, masks, strict=True):
        kind = kinds.get(path.relative_to(folder.parent).as_posix(), "anomaly")
        samples.append(Sample(str(path), True, kind, mask))
    notes += missing_mask_notes([s for s in samples if s.label], str(truth), truth.is_dir(), missing_masks)
    if not samples:
        raise ValueError(f"category {folder.name} has no test images in {folder}")
    ordered = tuple(sorted(samples, key=lambda sample: sample.path))
    return Category(folder.name, tuple(map(str, train)), ordered, ignored + skipped, tuple(notes))


class Folder(Dataset):
    """Your own folders; searched with all folders below them.

    Args:
        root: The folder that the others are relative to.
        normal: The folder, or folders, of normal images.
        anomalous: The folder, or folders, of anomalous images, if there are any. The first folder below it
            names the defect type; images in it directly have its own name as theirs.
        masks: For each anomalous folder its folder of masks, laid out in the same way: the mask of
            `<anomalous>/scratch/a.jpg` is `<masks>/scratch/a_mask.png` or `<masks>/scratch/a.png`, of any
            image suffix; None if there are no masks.
        test_normal: The folder, or folders, of normal images to test on. If None, a share of `normal` is held
            out for that.
        holdout: That share, in (0, 1); at least one image, and one is left to fit on.
        seed: Of the choice of images to hold out.
        name: What to call it; the name of `root` if None.
        missing_masks: As for `MVTecAD`.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: No normal image, an anomalous image among the normal ones, masks missing or ambiguous.
    """

    def __init__(
        self,
        root: StrPath,
        *,
        normal: StrPath | Sequence[StrPath],
        anomalous: StrPath | Sequence[StrPath] | None = None,
        masks: StrPath | Sequence[StrPath] | None = None,
        test_normal: StrPath | Sequence[StrPath] | None = None,
        holdout: float = 0.2,
        seed: int = 0,
        name: str | None = None,
        missing_masks: MissingMasks = "raise",
    ) -> None:
        base = existing_folder(root)
        check_missing_masks(missing_masks)
        _check_holdout(holdout)
        train, ignored = scan_all(folders_in(base, normal))
        if not train:
            raise ValueError(f"normal must hold images, got none in {normal}")
        notes: list[str] = []
        if test_normal is None:
            train, held_out = _hold_out(train, holdout, seed)
            if not held_out:
                notes.append("a single normal image: it is fitted on and none is left to test on")
        else:
            held_out, skipped = scan_all(folders_in(base, test_normal))
            ignored += skipped
        defects, skipped, more = _folder_defects(base, anomalous, masks, missing_masks)
        _check_disjoint([*train, *held_out], defects)
        test = [Sample(str(path), False) for path in held_out] + defects
        category = Category(
            name or base.name,
            tuple(map(str, train)),
            tuple(sorted(test, key=lambda sample: sample.path)),
            ignored + skipped,
            tuple(notes + more),
        )
        super().__init__(category.name, [category])


def _check_holdout(holdout: float) -> None:
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"holdout must be in (0, 1), got {holdout}")


def _hold_out(paths: list[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(paths))[:count].tolist())
    kept = [path for position, path in enumerate(paths) if position not in chosen]
    return kept, [path for position, path in enumerate(paths) if position in chosen]


def _folder_defects(
    base: Path,
    anomalous: StrPath | Sequence[StrPath] | None,
    masks: StrPath | Sequence[StrPath] | None,
    missing_masks: MissingMasks,
) -> tuple[list[Sample], int, list[str]]:
    """The anomalous samples, how many files were no images, and remarks."""
    if anomalous is None:
        if masks is not None:
            raise ValueError("masks must be None without anomalous images")
        return [], 0, []
    folders = folders_in(base, anomalous)
    truths = [None] * len(folders) if masks is None else folders_in(base, masks)
    if len(truths) != len(folders):
        raise ValueError(f"masks must be one per anomalous folder, got {len(truths)} for {len(folders)}")
    samples: list[Sample] = []
    ignored, notes = 0, []
    for folder, truth in zip(folders, truths, strict=True):
        images, skipped = scan(folder)
        ignored += skipped
        found, more = pair_masks(images, folder, truth)
        notes += more
        for path, mask in zip(images, found, strict=True):
            below = path.relative_to(folder).parts[:-1]
            samples.append(Sample(str(path), True, below[0] if below else folder.name, mask))
    return samples, ignored, notes + missing_mask_notes(samples, str(masks), masks is not None, missing_masks)


def _check_disjoint(normal: Iterable[Path], defects: Sequence[Sample]) -> None:
    known = {os.path.realpath(sample.path) for sample in defects}
    both = [str(path) for path in normal if os.path.realpath(path) in known]
    if both:
        raise ValueError(f"normal must hold no anomalous images, got {len(both)} in both: {some_of(both)}")
