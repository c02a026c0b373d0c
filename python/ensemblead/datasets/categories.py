"""Categories of images to fit on and to test on, of which data sets consist."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.files import sha256_of
from ensemblead.config.names import explain_unknown_keywords
from ensemblead.images import read_image, upright_size
from ensemblead.images.decode import check_ordinary_file

T = TypeVar("T")
Errors: TypeAlias = Literal["raise", "skip"]

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
        train: Paths of normal images, sorted; none in a data set to test on alone.
        test: The test images, sorted by path.
        ignored: How many files beside the images were left out: of other types, hidden, no ordinary files.
        notes: Lines that a reader of the results should know.
        searched: Folders in which images were looked for, with all folders below them.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[Sample, ...]
    ignored: int = 0
    notes: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Category({self.name!r}: {len(self.train)} train, {len(self.test)} test)"

    @property
    def categories(self) -> tuple[Category, ...]:
        """Itself alone: a category is a data set of one."""
        return (self,)

    @property
    def folders(self) -> frozenset[str]:
        """The real paths of the folders that were searched for images, and of those that hold them."""
        holding = {os.path.dirname(path) for path in (*self.train, *(sample.path for sample in self.test))}
        return frozenset(map(os.path.realpath, holding.union(self.searched)))

    def duplicates(self, errors: Errors = "raise") -> list[tuple[str, Sample]]:
        """Pairs of a training file and a test image whose bytes are equal (sizes first, then SHA-256).

        Args:
            errors: "skip" passes over files that are gone or cannot be read; "raise" raises
                FileNotFoundError or UnreadableImageError, naming the file.
        """
        by_size: dict[int, list[str]] = defaultdict(list)
        for path in self.train:
            size = file_fact(os.path.getsize, path, errors)
            if size is not None:
                by_size[size].append(path)
        sized = [(sample, file_fact(os.path.getsize, sample.path, errors)) for sample in self.test]
        shared = [(sample, size) for sample, size in sized if size in by_size]
        hashed = [(sample, file_fact(sha256_of, sample.path, errors)) for sample, _ in shared]
        known = [path for size in {size for _, size in shared if size is not None} for path in by_size[size]]
        by_hash = {file_fact(sha256_of, path, errors): path for path in reversed(known)}
        by_hash.pop(None, None)
        pairs = ((by_hash.get(digest), sample) for sample, digest in hashed)
        return [(path, sample) for path, sample in pairs if path is not None]

    def unreadable(self) -> list[str]:
        """Training files that are gone, or whose header cannot be read: `duplicates` passes over them with
        "skip", and a fit leaves them out.
        """
        return [path for path in self.train if not _has_header(path)]

    def check_masks(self, errors: Errors = "raise") -> None:
        """Read the headers of all test images that have a mask, and of the masks.

        Args:
            errors: "skip" passes over test images that cannot be read.

        Raises:
            ValueError: A mask is not as large as its image, turned upright as EXIF says; both are named.
            UnreadableImageError: A mask, or with "raise" an image, whose header cannot be read.
        """
        for sample in self.test:
            if sample.mask_path is None:
                continue
            size = upright_size(sample.mask_path, "mask")
            try:
                expected = upright_size(sample.path)
            except (UnreadableImageError, FileNotFoundError):
                if errors == "raise":
                    raise
                continue
            # A damaged header may state any size.
            if size != expected and (errors == "raise" or _is_readable(sample.path)):
                raise ValueError(
                    f"mask {sample.mask_path} must be as large as its image: "
                    f"it is {size[0]} x {size[1]}, {sample.path} is {expected[0]} x {expected[1]} (H x W)"
                )


class Dataset:
    """Any number of categories. With exactly one, its `train` and `test` are here as well."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            explain_unknown_keywords(cls)

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
    def folders(self) -> frozenset[str]:
        """The real paths of the folders that were searched for images, and of those that hold them."""
        return frozenset[str]().union(*(category.folders for category in self.categories))

    @property
    def ignored(self) -> int:
        """Files that are no images, over all categories."""
        return sum(category.ignored for category in self.categories)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on all categories."""
        return tuple(note for category in self.categories for note in category.notes)


def file_fact(find: Callable[[str], T], path: str, errors: Errors, what: str = "image") -> T | None:
    """`find(path)` of an image file; None for one that is gone or cannot be read, if those are skipped.

    Raises FileNotFoundError or UnreadableImageError, as decoding it would, if they are not; `what` names
    the kind of file in them.
    """
    try:
        check_ordinary_file(path, what)
        return find(path)
    except (OSError, UnreadableImageError) as error:
        if errors == "skip":
            return None
        if isinstance(error, UnreadableImageError):
            raise
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"no such {what}: {path}") from None
        raise UnreadableImageError(f"cannot read {what} {path}: {error}") from error


def _has_header(path: str) -> bool:
    try:
        upright_size(path)
    except (UnreadableImageError, FileNotFoundError, MemoryError):
        return False
    return True


def _is_readable(path: str) -> bool:
    try:
        read_image(path, bits=16)
    except (UnreadableImageError, FileNotFoundError, MemoryError):
        return False
    return True
