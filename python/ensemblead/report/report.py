"""`evaluate` and the `Report` that it returns: results with tables, figures and a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ensemblead.common.files import StrPath, write_atomically
from ensemblead.common.warnings import warn
from ensemblead.datasets.categories import Category, Dataset
from ensemblead.evaluation.measure import Detectors, Options, ScoredImage, measure
from ensemblead.evaluation.results import Results
from ensemblead.report.text import (
    results_document,
    results_markdown,
    rows_csv,
    types_csv,
    write_json,
)

if TYPE_CHECKING:
    from ensemblead.retrieval.index import ImageIndex


class Report(Results):
    """The results of an evaluation, and files made of them.

    Every column of `results.csv` is an attribute: that of the summary row. `report["nut"]` is the row of a
    category.

    Attributes:
        rows: One `Row` per category.
        summary: The only row, or a row "mean": means of metrics and rates over the categories where they are
            defined, sums of counts and seconds.
        details: By category, the `Details` of its row.
        warnings: Warnings for the reader of the numbers, one line each.
        settings: How the evaluation was made.

    Example:
        >>> import ensemblead as ead
        >>> from ensemblead.evaluation import Row
        >>> report = ead.Report([Row("bolt", image_auroc=0.75), Row("nut", image_auroc=1.0)])
        >>> report.image_auroc, report["bolt"].image_auroc
        (0.875, 0.75)
        >>> print(report)
        Report(2 categories, image_auroc=0.8750, pixel_auroc=nan, aupro=nan)
    """

    def to_csv(self, path: StrPath, *, by_type: bool = False) -> None:
        """One line per category and, if there are several, a line "mean"; columns as in `Row`.

        Args:
            by_type: One line per category and type of defect instead; columns `category` and those of
                `TypeRow`.
        """
        if by_type:
            text = types_csv((), (([row.category], self.details_of(row)) for row in self.rows))
        else:
            text = rows_csv(self.all_rows)
        write_atomically(path, text)

    def to_json(self, path: StrPath) -> None:
        """Everything but the curves: rows, intervals, error bounds, image scores, warnings, settings."""
        write_json(path, results_document(self))

    def to_html(self, path: StrPath, *, max_images: int = 300, similar: ImageIndex | None = None) -> None:
        """One file that loads nothing: tables, curves, and a gallery that sorts and filters.

        An image takes 20 to 60 KB with its heat map, smooth ones least, so that 300 take 6 to 18 MB;
        photographs and masks are read again from where they were.

        Args:
            max_images: Of the images that `evaluate` kept (see its `gallery`), how many to show: errors
                first, then normal images with high scores and defective ones with low scores. The page says
                how many were left out.
            similar: An index of normal images, such as
                `ImageIndex.build("bottle/train/good", embedder, "index")`. Beside each finding (an image that
                is defective, or called so) the page then shows the three images of the index that are most
                similar to it, with their cosine similarities.

        Raises:
            ValueError: `max_images` is negative.
        """
        from ensemblead.report.page import write_page

        write_page(self, path, max_images, similar)

    def figures(self, folder: StrPath) -> list[Path]:
        """One PNG per category with ROC, precision-recall and PRO curves and the scores' histogram.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from ensemblead.report.figures import save_curves

        return save_curves(self, folder)

    def to_markdown(self, path: StrPath | None = None, *, intervals: bool = False) -> str:
        """A table of the main columns, and the warnings below it; written to `path` if that is given.

        Args:
            intervals: Put the confidence interval behind every metric that has one.
        """
        text = results_markdown(self, intervals=intervals)
        if path is not None:
            write_atomically(path, text)
        return text


def evaluate(
    detector: Detectors,
    dataset: Dataset | Category,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    memory_limit: int = 2 << 30,
    errors: Literal["raise", "skip"] = "raise",
    gallery: int = 300,
    on_image: Callable[[ScoredImage], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Predict all test images of every category and compute all metrics (see `Row` for their names).

    A mask is resized (nearest neighbour) and cropped as the detector does with the image, and binarised at
    > 0. Metrics that are not defined, because the test set has one class only or no masks, are NaN, with a
    line in `Report.warnings` (all lines are issued as one warning as well); the rest is still given. A
    detector whose `fusion` is "minmax" is fused over the test set and has no threshold then.
    `Report.details` has the types of defects one by one (`TypeRow`).

    Args:
        detector: A fitted detector, used for every category; or one per category, as a mapping by name; or a
            function that is given a `Category` and returns its fitted detector (its time is `fit_seconds`).
        dataset: `MVTecAD`, `VisA`, `Folder`, or one `Category`.
        bootstrap: Replicates for the confidence intervals over images; 0 for none.
        confidence: The probability that an interval is to hold, in (0, 1).
        seed: Of the bootstrap.
        memory_limit: Bytes of pixels per category up to which the pixel metrics are exact (4 bytes a pixel).
            Beyond it their error is bounded and stated in `Report.details`, and a warning says so.
        errors: "raise" stops at a test image that cannot be read; "skip" leaves it out of all metrics, and a
            warning counts such images and names the first. The same holds for training images that are gone
            or whose header cannot be read; `num_train` is without them.
        gallery: How many images per category to keep a small copy of the map of, for `Report.to_html`: errors
            first, then normal images with high scores and defective ones with low scores; 0 for none.
        on_image: Called for every test image as it is scored: to save maps, to draw, to log to a tracker.
        progress: Called with the category's name, the number of images done, and of all.

    Raises:
        ValueError: A category without a detector or without test images, a mask of another size than its
            image or its map, a test image or a mask that cannot be read (UnreadableImageError, naming it;
            masks are not skipped), scores that are not finite, predictions that do not belong to the images
            asked for.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (16, 64, 64, 3), dtype=np.uint8)
        >>> mask = np.zeros((64, 64), np.uint8)
        >>> mask[20:40, 20:40] = 255
        >>> images[14:, mask > 0] = 200
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... )
        >>> def save(image, path):
        ...     path.parent.mkdir(parents=True, exist_ok=True)
        ...     Image.fromarray(image).save(path)
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for i, image in enumerate(images):
        ...         kind = "train/good" if i < 12 else "test/good" if i < 14 else "test/dent"
        ...         save(image, Path(root, kind, f"{i}.png"))
        ...     for i in (14, 15):
        ...         save(mask, Path(root, "ground_truth/dent", f"{i}_mask.png"))
        ...     data = ead.MVTecAD(root)
        ...     report = ead.evaluate(detector.fit(data.train), data, bootstrap=0)
        >>> report.image_auroc
        1.0
    """
    options = Options(bootstrap, confidence, seed, memory_limit, errors, gallery)
    found = measure(detector, dataset, options, on_image=on_image, progress=progress)
    if found.warnings:
        warn("\n".join(found.warnings))
    return Report(found.rows, found.details, found.warnings, found.settings)
