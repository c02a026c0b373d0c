"""Pictures of results: curves, score histograms, contact sheets. Needs matplotlib, but no display."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.errors import MissingExtraError
from ensemblead.common.files import StrPath, file_names, valid_text, write_atomically
from ensemblead.datasets.categories import NORMAL
from ensemblead.evaluation.measure import ScoredImage
from ensemblead.evaluation.results import Details, Results, Row
from ensemblead.images import read_image
from ensemblead.report.charts import PRECISION_RECALL, PRO, ROC, Chart, score_edges, scores_by_label

_NORMAL_COLOR, _ANOMALOUS_COLOR, _LINE = "#4c78a8", "#d1495b", "#222222"
_OPACITY = 0.8  # of the last colour of a heat map


class ImageGeometry(Protocol):
    """How images become network input, as `ensemblead.images.Geometry`."""

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]: ...


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('pictures need matplotlib: pip install "ensemblead[cpu]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory, whatever display there is
    return figure


def _save(figure: Any, path: StrPath) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def save_curves(report: Results, folder: StrPath) -> list[Path]:
    """One PNG per category: ROC, precision-recall and PRO curves, and a histogram of the scores.

    Returns:
        The files `<category>.png` in `folder`, in the order of the report. Characters of a name that do not
        belong into a file's become hyphens.
    """
    paths = []
    for row, name in zip(report.rows, file_names([row.category for row in report.rows]), strict=True):
        details = report.details_of(row)
        figure = _figure(10.5, 8.0)
        axes = figure.subplots(2, 2)
        # A name is no formula, whatever its dollar signs.
        figure.suptitle(valid_text(row.category), parse_math=False)
        axes[0, 0].plot([0, 1], [0, 1], ":", color="0.7")
        _draw_curves(axes[0, 0], ROC, row, details, "lower right")
        _draw_curves(axes[0, 1], PRECISION_RECALL, row, details, "lower left")
        if "pro" in details.curves:
            axes[1, 0].axvspan(0, 0.3, color="0.93")
            axes[1, 0].axvline(0.05, color="0.7", ls=":", label=f"area up to 0.05: {row.aupro_005:.4f}")
        _draw_curves(axes[1, 0], PRO, row, details, "lower right")
        _draw_scores(axes[1, 1], row, details)
        path = Path(folder) / f"{name}.png"
        _save(figure, path)
        paths.append(path)
    return paths


def _draw_curves(axis: Any, chart: Chart, row: Row, details: Details, place: str) -> None:
    axis.set(title=chart.title, xlabel=chart.x, ylabel=chart.y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.grid(alpha=0.25)
    for (name, label, column), style in zip(chart.curves, ("-", "--"), strict=False):
        if name in details.curves:
            text = f"{label} {getattr(row, column):.4f}"
            axis.plot(*details.curves[name], style, color=_LINE, label=text)
    _add_legend(axis, place)


def _add_legend(axis: Any, place: str) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc=place, frameon=False)
    else:
        axis.text(0.5, 0.5, "not defined", ha="center", va="center", transform=axis.transAxes)


def _draw_scores(axis: Any, row: Row, details: Details) -> None:
    axis.set(title="Scores", xlabel="anomaly score", ylabel="images")
    scores = scores_by_label(details)
    edges = score_edges(scores[False] + scores[True], row.threshold)
    kinds = ((False, "normal", _NORMAL_COLOR), (True, "anomalous", _ANOMALOUS_COLOR))
    for label, name, color in kinds:
        if scores[label]:
            axis.hist(scores[label], edges, color=color, alpha=0.65, label=f"{name} ({len(scores[label])})")
    if not math.isnan(row.threshold):
        axis.axvline(row.threshold, color=_LINE, label="threshold")
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
    _add_legend(axis, "upper right")


class ContactSheet:
    """Collects scored images for a picture; give it to `evaluate` as `on_image`.

    One line per image: the image as the network sees it, its mask, the heat map over the image on one scale
    for all, and the contour of the decision.

    Args:
        geometry: The detector's, to show images in the frame of the maps.
        per_type: How many images of each defect type to keep (normal ones are a type): the first ones.
        bits: Used bits of 16-bit files, see `read_image`.
    """

    def __init__(self, geometry: ImageGeometry, per_type: int = 3, bits: int | None = None) -> None:
        if per_type < 1:
            raise ValueError(f"per_type must be at least 1, got {per_type}")
        self._geometry = geometry
        self._per_type, self._bits = per_type, bits
        self._kept: dict[tuple[str, str], list[ScoredImage]] = defaultdict(list)

    def __call__(self, image: ScoredImage) -> None:
        kept = self._kept[image.category, image.sample.defect_type]
        if len(kept) < self._per_type:
            kept.append(image)

    def images(self) -> list[ScoredImage]:
        """The kept images: by category, defects before normal images, then by type."""
        keys = sorted(self._kept, key=lambda key: (key[0], key[1] == NORMAL, key[1]))
        return [image for key in keys for image in self._kept[key]]

    def save(
        self,
        path: StrPath,
        pixel_threshold: float = math.nan,
        scale: tuple[float, float] | None = None,
    ) -> None:
        """Write the picture as a PNG.

        Args:
            scale: The values of the first and the last colour; if None, from the median to the largest value
                of the maps shown.
            pixel_threshold: Where the contour is drawn (map >= threshold), such as
                `Report.pixel_f1_threshold`, which is found with the masks in sight; NaN for no contour.

        Raises:
            ValueError: No image was collected.
        """
        images = self.images()
        if not images:
            raise ValueError("there is nothing to draw: no image was collected")
        maps = [image.anomaly_map for image in images]
        low, high = _common_scale(maps) if scale is None else scale
        figure = _figure(8.6, 1.75 * len(images) + 0.7)
        figure.get_layout_engine().set(w_pad=0.1)  # the labels of the lines are at the very edge
        axes = figure.subplots(len(images), 4, squeeze=False)
        for title, axis in zip(("image", "mask", "heat map", "decision"), axes[0], strict=True):
            axis.set_title(title)
        shown = None
        for line, image in zip(axes, images, strict=True):
            shown = self._draw_line(line, image, low, high, pixel_threshold)
        extend = "both" if scale is not None else "neither"
        figure.colorbar(
            shown, ax=axes, shrink=min(1.0, 2.5 / len(images)), label="anomaly map", extend=extend
        )
        _save(figure, path)

    def _draw_line(self, axes: Any, image: ScoredImage, low: float, high: float, threshold: float) -> Any:
        picture = self._geometry.apply(read_image(image.sample.path, bits=self._bits))
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        verdict = {None: "", True: ", called anomalous", False: ", called normal"}[image.is_anomalous]
        name = valid_text("/".join(Path(image.sample.path).parts[-2:]))
        axes[0].set_ylabel(f"{name}\n{image.score:.3g}{verdict}", fontsize=7, parse_math=False)
        axes[0].imshow(picture)
        if image.mask is None:
            axes[1].text(0.5, 0.5, "no mask", ha="center", va="center", transform=axes[1].transAxes)
        else:
            axes[1].imshow(image.mask, cmap="gray", vmin=0, vmax=1)
        axes[2].imshow(picture)
        # The stronger the value, the less of the image shows through.
        opacity = _OPACITY * np.clip((image.anomaly_map - low) / (high - low), 0.0, 1.0)
        shown = axes[2].imshow(image.anomaly_map, cmap="inferno", vmin=low, vmax=high, alpha=opacity)
        axes[3].imshow(picture)
        if image.anomaly_map.min() < threshold <= image.anomaly_map.max():
            axes[3].contour(image.anomaly_map, levels=[threshold], colors=[_ANOMALOUS_COLOR], linewidths=1.5)
        return shown


def _common_scale(maps: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """The range that all maps are shown in: from the median to the largest value of all."""
    low = float(np.median([np.median(values) for values in maps]))
    high = max(float(values.max()) for values in maps)
    return low, high if high > low else low + 1.0
