"""Masks paired with images by name, and notes where one is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from ensemblead.common.validation import some_of
from ensemblead.datasets.categories import Sample
from ensemblead.images.folders import is_image

MissingMasks: TypeAlias = Literal["raise", "exclude"]


class MaskFolder:
    """The masks in one folder, by name: never by their place in a sorted list."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._owners: dict[Path, Path] = {}
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if is_image(path):
                    self._by_stem[path.stem].append(path)

    def find(self, image: Path) -> str | None:
        """The mask of an image; None if there is none. ValueError if there are two, or one for two images."""
        stem = image.stem
        found = [path for name in (f"{stem}_mask", stem) for path in self._by_stem.get(name, ())]
        if len(found) > 1:
            raise ValueError(
                f"image {stem!r} must have one mask, got {some_of([str(path) for path in found])}"
            )
        if not found:
            return None
        owner = self._owners.setdefault(found[0], image)
        if owner != image:
            raise ValueError(f"mask {found[0]} must be of one image, got two: {owner} and {image}")
        return str(found[0])

    def notes(self) -> list[str]:
        unused = [path for paths in self._by_stem.values() for path in paths if path not in self._owners]
        if not unused:
            return []
        names = some_of([path.name for path in unused])
        return [f"{len(unused)} mask(s) in {self._folder} belong to no test image: {names}"]


def pair_masks(
    images: Sequence[Path], folder: Path, truth: Path | None
) -> tuple[list[str | None], list[str]]:
    """For each image below `folder` the mask of its name in the same place below `truth`; and notes."""
    if truth is None:
        return [None] * len(images), []
    known: dict[Path, MaskFolder] = {}
    masks = []
    for path in images:
        below = path.relative_to(folder).parent
        if below not in known:
            known[below] = MaskFolder(truth / below)
        masks.append(known[below].find(path))
    return masks, [note for found in known.values() for note in found.notes()]


def missing_mask_notes(
    samples: Sequence[Sample], where: str, expected: bool, policy: MissingMasks
) -> list[str]:
    """Notes on defective images without a mask, or the error that `policy` asks for. `where` is empty if
    no folder of masks was named.
    """
    lacking = [sample.path for sample in samples if sample.mask_path is None]
    if not lacking:
        return []
    if not expected:
        place = f" ({where})" if where else ""
        return [f"there are no masks{place}: pixel metrics are not defined"]
    message = f"{len(lacking)} defective image(s) have no mask in {where}: {some_of(lacking)}"
    if policy == "raise":
        raise ValueError(f'{message} (missing_masks="exclude" leaves them out of the pixel metrics)')
    return [f"{message}; left out of the pixel metrics"]


def check_missing_masks(policy: str) -> None:
    if policy not in ("raise", "exclude"):
        raise ValueError(f'missing_masks must be "raise" or "exclude", got {policy!r}')
