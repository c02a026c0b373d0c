"""What a data set is: categories of images to fit on and to test on."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ensemblead.errors import UnreadableImageError
from ensemblead.images import upright_size

NORMAL = "good"  # the defect type of images without a defect


@dataclass(frozen=True)
class Sample:
    """One test image. `label` is True if it is anomalous; `defect_type` is "good" if it is not."""

    path: str
    label: bool
    defect_type: str = NORMAL
    mask_path: str | None = None


@dataclass(frozen=True)
class Category:
    """One kind of object: normal images to fit on, and images to test on.

    Attributes:
        name: The category's name, as it appears in results.
        train: Paths of normal images, sorted.
        test: The test images, sorted by path.
        ignored: How many files beside the images were left out because they are no images by their suffix.
        notes: What a reader of the results should know, one line each.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[Sample, ...]
    ignored: int = 0
    notes: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[Category, ...]:
        """Itself alone: a category is a data set of one."""
        return (self,)

    def duplicates(self) -> list[tuple[str, Sample]]:
        """Pairs of a training file and a test image whose bytes are equal (sizes first, then SHA-256)."""
        by_size: dict[int, list[str]] = defaultdict(list)
        for path in self.train:
            by_size[os.path.getsize(path)].append(path)
        shared = [sample for sample in self.test if os.path.getsize(sample.path) in by_size]
        sizes = {os.path.getsize(sample.path) for sample in shared}
        by_hash = {_sha256(path): path for size in sizes for path in reversed(by_size[size])}
        hashed = ((sample, by_hash.get(_sha256(sample.path))) for sample in shared)
        return [(path, sample) for sample, path in hashed if path is not None]

    def check_masks(self, errors: Literal["raise", "skip"] = "raise") -> None:
        """Read the headers of all test images that have a mask, and of the masks.

        Args:
            errors: "skip" passes over test images whose header cannot be read.

        Raises:
            ValueError: A mask is not as large as its image, turned upright as EXIF says; both are named.
            UnreadableImageError: A mask, or with "raise" an image, whose header cannot be read.
        """
        for sample in self.test:
            if sample.mask_path is None:
                continue
            size = upright_size(sample.mask_path)
            try:
                expected = upright_size(sample.path)
            except (UnreadableImageError, FileNotFoundError):
                if errors == "raise":
                    raise
                continue
            if size != expected:
                raise ValueError(
                    f"mask {sample.mask_path} must be as large as its image: "
                    f"it is {size[0]} x {size[1]}, {sample.path} is {expected[0]} x {expected[1]} (H x W)"
                )


class Dataset:
    """Any number of categories. With exactly one, its `train` and `test` are here as well."""

    def __init__(self, name: str, categories: Sequence[Category]) -> None:
        self.name = name
        self.categories = tuple(categories)

    def __len__(self) -> int:
        return len(self.categories)

    def __repr__(self) -> str:
        parts = (f"{c.name}: {len(c.train)} train, {len(c.test)} test" for c in self.categories)
        return f"{type(self).__name__}({'; '.join(parts)})"

    def _only(self, attribute: str) -> Category:
        if len(self.categories) != 1:
            names = ", ".join(category.name for category in self.categories)
            raise ValueError(
                f"{attribute} belongs to one category and {self.name} has {len(self)} ({names}): "
                f"give category=... or use .categories"
            )
        return self.categories[0]

    @property
    def train(self) -> tuple[str, ...]:
        """Paths of the normal training images of the only category."""
        return self._only("train").train

    @property
    def test(self) -> tuple[Sample, ...]:
        """Test images of the only category."""
        return self._only("test").test

    @property
    def ignored(self) -> int:
        """Files that are no images, over all categories."""
        return sum(category.ignored for category in self.categories)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on all categories."""
        return tuple(note for category in self.categories for note in category.notes)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
