"""Your own folders as a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.datasets.categories import Category, Dataset, Sample
from ensemblead.datasets.files import (
    check_holdout,
    existing_folder,
    folders_in,
    hold_out,
    scan,
    scan_all,
)
from ensemblead.datasets.masks import MissingMasks, check_missing_masks, missing_mask_notes, pair_masks
from ensemblead.images.folders import describe_unread


class Folder(Dataset):
    """Your own folders; searched with all folders below them, as `fit` and `predict` search theirs.

    Args:
        root: The folder that the others are relative to.
        normal: The folder, or folders, of normal images; None for a data set to test on alone.
        anomalous: The folder, or folders, of anomalous images, if there are any. The first folder below it
            names the defect type; images in it directly have its own name as theirs.
        masks: For each anomalous folder its folder of masks, laid out in the same way: the mask of
            `<anomalous>/scratch/a.jpg` is `<masks>/scratch/a_mask.png` or `<masks>/scratch/a.png`, of any
            image suffix; None if there are no masks.
        test_normal: The folder, or folders, of normal images to test on. If None, a share of `normal` is held
            out for that.
        holdout: That share, in (0, 1); at least one image, and one is left to fit on.
        seed: Of the choice of images to hold out.
        name: The category's name; the name of `root` if None.
        missing_masks: As for `MVTecAD`.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: No normal image, an anomalous image among the normal ones, nothing to test on without
            `normal`, masks missing or ambiguous.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> import ensemblead as ead
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("good", "bad/dent", "checked"):
        ...         folder = Path(root, name)
        ...         folder.mkdir(parents=True)
        ...         Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
        ...     data = ead.Folder(root, normal="good", anomalous="bad", test_normal="checked")
        >>> len(data.train), [sample.defect_type for sample in data.test]
        (1, ['dent', 'good'])
    """

    def __init__(
        self,
        root: StrPath,
        *,
        normal: StrPath | Sequence[StrPath] | None,
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
        check_holdout(holdout)
        truths = [] if masks is None else folders_in(base, masks)
        given = [folder for folder in (normal, test_normal, anomalous) if folder is not None]
        searched = [str(folder) for one in given for folder in folders_in(base, one)]
        train, ignored = scan_all([] if normal is None else folders_in(base, normal), truths)
        if not train and normal is not None:
            raise ValueError(f"normal must hold images, got none in {normal}")
        notes: list[str] = []
        held_out: list[Path] = []
        if test_normal is not None:
            held_out, others = scan_all(folders_in(base, test_normal), truths)
            ignored += others
        elif train:
            train, held_out = hold_out(train, holdout, seed)
            if not held_out:
                notes.append("a single normal image: it is fitted on and none is left to test on")
        defects, more = _defects(base, anomalous, None if masks is None else truths, ignored)
        notes += more
        notes += missing_mask_notes(
            defects, "" if masks is None else str(masks), masks is not None, missing_masks
        )
        _check_disjoint([*train, *held_out], defects)
        notes += filter(None, [describe_unread(ignored)])
        test = [Sample(str(path), False) for path in held_out] + defects
        if normal is None and not test:
            raise ValueError("normal must be given, or images to test on in test_normal or anomalous")
        test.sort(key=lambda sample: sample.path)
        category = Category(
            name or base.name or "root",
            tuple(map(str, train)),
            tuple(test),
            len(ignored),
            tuple(notes),
            tuple(searched),
        )
        super().__init__(category.name, [category])


def _defects(
    base: Path,
    anomalous: StrPath | Sequence[StrPath] | None,
    truths: Sequence[Path] | None,
    ignored: list[str],
) -> tuple[list[Sample], list[str]]:
    """The anomalous samples, and notes; files that are no images are appended to `ignored`."""
    if anomalous is None:
        if truths is not None:
            raise ValueError("masks must be None without anomalous images")
        return [], []
    folders = folders_in(base, anomalous)
    if truths is not None and len(truths) != len(folders):
        raise ValueError(f"masks must be one per anomalous folder, got {len(truths)} for {len(folders)}")
    samples: list[Sample] = []
    notes: list[str] = []
    pairs: Iterable[tuple[Path, Path | None]] = (
        zip(folders, truths, strict=True) if truths is not None else ((folder, None) for folder in folders)
    )
    for folder, truth in pairs:
        images, others = scan(folder, truths or ())
        ignored += others
        found, more = pair_masks(images, folder, truth)
        notes += more
        for path, mask in zip(images, found, strict=True):
            below = path.relative_to(folder).parts[:-1]
            samples.append(Sample(str(path), True, below[0] if below else folder.name, mask))
    return samples, notes


def _check_disjoint(normal: Iterable[Path], defects: Sequence[Sample]) -> None:
    known = {os.path.realpath(sample.path) for sample in defects}
    both = [str(path) for path in normal if os.path.realpath(path) in known]
    if both:
        raise ValueError(f"normal must hold no anomalous images, got {len(both)} in both: {some_of(both)}")
