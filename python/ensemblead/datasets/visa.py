"""VisA as it is published."""

from __future__ import annotations

import os
from pathlib import Path

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.datasets.categories import NORMAL, Category, Dataset, Sample
from ensemblead.datasets.files import (
    check_holdout,
    chosen_categories,
    existing_folder,
    folder_name,
    hold_out,
    read_csv,
    relative_path,
    scan,
)
from ensemblead.datasets.masks import MissingMasks, check_missing_masks, missing_mask_notes, pair_masks
from ensemblead.images.folders import describe_unread, subfolders

_NORMAL = "Data/Images/Normal"


class VisA(Dataset):
    """VisA as it is published: `<category>/Data/Images`, `<category>/Data/Masks`, `split_csv/<split>.csv`.

    The csv names the images of training and test, and every mask. Without it (`split=None`) the folders
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
            one-class split, a csv with other columns or with names that lead out of `root`, masks missing or
            ambiguous.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> import ensemblead as ead
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("pcb1/Data/Images/Normal", "pcb1/Data/Images/Anomaly"):
        ...         folder = Path(root, name)
        ...         folder.mkdir(parents=True)
        ...         Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
        ...     data = ead.VisA(root, split=None, missing_masks="exclude")
        >>> data.categories[0].name
        'pcb1'
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
        check_holdout(holdout)
        if split is None:
            known = [path.name for path in subfolders(base) if (path / _NORMAL).is_dir()]
            names = chosen_categories(category, known, base)
            if not names:
                raise ValueError(f"root must hold folders with {_NORMAL}, got none in {base}")
            found = [_category_of_folders(base / name, holdout, seed, missing_masks) for name in names]
        else:
            table = base / "split_csv" / f"{split}.csv"
            rows = read_csv(table, ("object", "split", "label", "image", "mask"))
            known = sorted({folder_name(row["object"], table) for row in rows})
            names = chosen_categories(category, known, table)
            by_name = {name: [row for row in rows if row["object"] == name] for name in names}
            found = [_category_of_rows(base, name, by_name[name], table, missing_masks) for name in names]
        super().__init__(base.name if category is None else category, found)


def _category_of_rows(
    base: Path, name: str, rows: list[dict[str, str]], table: Path, missing_masks: MissingMasks
) -> Category:
    """A category as the csv has it."""
    kinds = _defect_types(base / name)
    train: list[str] = []
    test: list[Sample] = []
    left_out = 0
    for row in rows:
        label = {"normal": False, "anomaly": True}.get(row["label"])
        if label is None or row["split"] not in ("train", "test"):
            raise ValueError(
                f"{table} must say train or test and normal or anomaly, "
                f"got {row['split']!r} and {row['label']!r} for {row['image']}"
            )
        path = str(base / relative_path(row["image"], table))
        mask = base / relative_path(row["mask"], table) if row["mask"] else None
        if row["split"] == "test":
            known = str(mask) if label and mask is not None and mask.is_file() else None
            test.append(Sample(path, label, kinds.get(row["image"], "anomaly") if label else NORMAL, known))
        elif not label:
            train.append(path)
        elif table.name.startswith("2cls"):
            left_out += 1
        else:
            raise ValueError(f"{table} has an anomalous training image: {row['image']}")
    if not train:
        raise ValueError(f"category {name} has no training images in {table}")
    absent = [path for path in (*train, *(sample.path for sample in test)) if not os.path.isfile(path)]
    if absent:
        raise FileNotFoundError(f"{table} names {len(absent)} image(s) that do not exist: {some_of(absent)}")
    notes = missing_mask_notes(
        [sample for sample in test if sample.label], str(base / name / "Data/Masks"), True, missing_masks
    )
    if left_out:
        notes.append(f"{left_out} anomalous training image(s) of {table.name} are left out")
    test.sort(key=lambda sample: sample.path)
    return Category(name, tuple(sorted(train)), tuple(test), 0, tuple(notes))


def _category_of_folders(folder: Path, holdout: float, seed: int, missing_masks: MissingMasks) -> Category:
    """A category as its folders have it."""
    normal, ignored = scan(folder / _NORMAL)
    if not normal:
        raise ValueError(f"category {folder.name} has no training images in {folder / _NORMAL}")
    train, held_out = hold_out(normal, holdout, seed)
    defects, truth = folder / "Data/Images/Anomaly", folder / "Data/Masks/Anomaly"
    anomalous, others = scan(defects)
    ignored += others
    masks, notes = pair_masks(anomalous, defects, truth if truth.is_dir() else None)
    kinds = _defect_types(folder)
    samples = [Sample(str(path), False) for path in held_out]
    for path, mask in zip(anomalous, masks, strict=True):
        kind = kinds.get(path.relative_to(folder.parent).as_posix(), "anomaly")
        samples.append(Sample(str(path), True, kind, mask))
    if not samples:
        raise ValueError(f"category {folder.name} has no test images in {folder}")
    notes += missing_mask_notes([s for s in samples if s.label], str(truth), truth.is_dir(), missing_masks)
    notes += filter(None, [describe_unread(ignored)])
    samples.sort(key=lambda sample: sample.path)
    searched = (str(folder / _NORMAL), str(defects))
    return Category(folder.name, tuple(map(str, train)), tuple(samples), len(ignored), tuple(notes), searched)


def _defect_types(folder: Path) -> dict[str, str]:
    """Defect types by image, as the annotations name it (`<category>/Data/Images/Anomaly/000.JPG`)."""
    annotations = folder / "image_anno.csv"
    if not annotations.is_file():
        return {}
    return {row["image"]: row["label"] for row in read_csv(annotations, ("image", "label"))}
