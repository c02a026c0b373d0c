"""Results by type of defect: which types are found and localised, and which are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ensemblead.evaluation.results import NAN, Details, ImageResult, TypeRow
from ensemblead.metrics import TypeMetrics, rank_scores


def type_rows(images: Sequence[ImageResult], pixels: Mapping[str, TypeMetrics]) -> tuple[TypeRow, ...]:
    """A row for every type that the anomalous images have, sorted; `pixels` by type, where it is known."""
    good = [image.score for image in images if not image.label]
    rows = []
    for kind in sorted({image.defect_type for image in images if image.label}):
        own = [image for image in images if image.label and image.defect_type == kind]
        scores = [*good, *(image.score for image in own)]
        labels = np.arange(len(scores)) >= len(good)
        judged = [image.is_anomalous for image in own if image.is_anomalous is not None]
        found = pixels.get(kind, TypeMetrics())
        row = TypeRow(
            kind,
            num_images=len(own),
            image_auroc=float(rank_scores(scores, labels).area()) if good else NAN,
            pixel_auroc=found.pixel_auroc,
            aupro=found.aupro,
            miss_rate=1.0 - float(np.mean(judged)) if judged else NAN,
            error_bound=found.error,
        )
        rows.append(row)
    return tuple(rows)


def worst_first(types: Iterable[TypeRow]) -> list[TypeRow]:
    """By the lower one of image and pixel AUROC, then by the rate of misses; what has neither AUROC last."""

    def badness(row: TypeRow) -> tuple[float, float, str]:
        known = [value for value in (row.image_auroc, row.pixel_auroc) if not math.isnan(value)]
        missed = 0.0 if math.isnan(row.miss_rate) else row.miss_rate
        return min(known, default=math.inf), -missed, row.defect_type

    return sorted(types, key=badness)


def missed(details: Details, kind: str) -> str:
    """How many images of a type were called normal, of how many that were judged; "" if none was."""
    return count_errors(one for one in details.images if one.label and one.defect_type == kind)


def count_errors(images: Iterable[ImageResult]) -> str:
    """How many images got the wrong verdict, of how many that got one; "" if none did."""
    errors = [image.is_error for image in images if image.is_anomalous is not None]
    return f"{sum(errors):,} of {len(errors):,}" if errors else ""
