"""`compare` and the `Comparison` that it returns: two detectors on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensemblead.common.files import StrPath, csv_line, write_atomically
from ensemblead.evaluation.comparing import Compared, ComparedDetector, ComparedImage, compare_detectors
from ensemblead.evaluation.measure import Options
from ensemblead.report.text import write_json

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

_COLUMNS = tuple(column.name for column in fields(ComparedImage))


class Comparison:
    """Two detectors on the same images.

    Attributes:
        data: the outcome, a `Compared`: `.images`, `.changed`, `.old`, `.new`, `.notes`.
    """

    def __init__(self, data: Compared) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Comparison({len(self.data.images)} images, {len(self.data.changed)} changed verdicts)"

    def to_csv(self, path: StrPath) -> Path:
        """One line per image, columns as in `ComparedImage`, and `changed`; what is not known is empty."""
        lines = [csv_line([*_COLUMNS, "changed"])]
        for image in self.data.images:
            cells = [_cell(getattr(image, name)) for name in _COLUMNS]
            lines.append(csv_line([*cells, str(image.is_changed)]))
        return write_atomically(path, "".join(lines))

    def to_json(self, path: StrPath) -> None:
        """Everything but the maps."""
        write_json(path, comparison_document(self.data))

    def to_html(self, path: StrPath) -> Path:
        """One file that loads nothing: both models, scores against each other, metrics, and the images whose
        verdict changes, with the maps of both.

        Photographs are read again from where they were; one that is gone is left out, with a warning.
        """
        from ensemblead.report.comparison_page import write_comparison_page

        return write_comparison_page(self.data, path)


def compare(
    old: Detector,
    new: Detector,
    data: Any,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    gallery: int = 60,
    errors: Literal["raise", "skip"] = "raise",
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Compare two detectors on the same images: a model and the one that is to take its place.

    Scores of two detectors have no common unit. Beside them stands where each lies between the median of its
    detector's normal images (-1) and its threshold (0).

    Args:
        old, new: Fitted detectors.
        data: Images in any form that `predict` takes; or, with ground truth, `MVTecAD`, `VisA`, `Folder` or a
            `Category`, of one category: then metrics stand side by side, too.
        bootstrap, confidence, seed: Of the metrics' intervals, as for `evaluate`.
        gallery: Of how many images whose verdict changes the maps are kept for the page; those that change
            most. They are predicted a second time. 0 for none.
        errors: "raise" stops at an image that cannot be read; "skip" leaves it out.
        progress: Called with "old" or "new", how many images are done, and how many there are.

    Raises ValueError for a data set of several categories, without images, or that neither detector can
    score; for fusion="minmax", which scores sets alone; and NotFittedError.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (14, 64, 64, 3), dtype=np.uint8)
        >>> old = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... ).fit(images[:12])
        >>> new = ead.create(old.describe()).fit(images[:12])
        >>> new.threshold_ = 0.0
        >>> found = ead.compare(old, new, images[12:])
        >>> len(found.data.changed), [image.new_verdict for image in found.data.changed]
        (2, [True, True])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found.to_html(f"{folder}/page.html").read_text().count("<svg") > 0
        True
    """
    for name, detector in (("old", old), ("new", new)):
        if not hasattr(detector, "predict_batches"):
            raise TypeError(f"{name} must be a fitted detector, got {type(detector).__name__}")
    options = Options(bootstrap, confidence, seed, errors=errors, gallery=gallery)
    return Comparison(compare_detectors(old, new, data, options, progress))


def comparison_document(data: Compared) -> dict[str, Any]:
    """The outcome in JSON's types."""
    return {
        "num_images": len(data.images),
        "num_changed": len(data.changed),
        "has_truth": data.has_truth,
        "mended": data.mended if data.has_truth else None,
        "broken": data.broken if data.has_truth else None,
        "chance": data.chance,
        "notes": list(data.notes),
        "old": _document(data.old),
        "new": _document(data.new),
        "changed": [one.path for one in data.changed],
        "images": [{**asdict(one), "changed": one.is_changed} for one in data.images],
    }


def _document(side: ComparedDetector) -> dict[str, Any]:
    return {
        "name": side.name,
        "threshold": side.threshold,
        "threshold_source": side.threshold_source,
        "metrics": None if side.row is None else asdict(side.row),
        "intervals": dict(side.intervals),
        "history": [asdict(step) for step in side.history],
        "checksum": side.checksum,
    }


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
