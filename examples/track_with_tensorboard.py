"""A suite's results in TensorBoard: metrics per detector and category, maps of the strangest images.

    python examples/track_with_tensorboard.py SUITE.yaml OUT LOG_FOLDER
    tensorboard --logdir LOG_FOLDER

Needs `pip install tensorboard`. Nothing of it is built in: `run` calls hooks, and this file is two of them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ensemblead.evaluation import CellResult, ScoredImage, run


class TensorBoardHooks:
    """One TensorBoard run per cell (a detector on a category); `on_image` and `on_result` go to `run`.

    Args:
        folder: where the logs go.
        most_images: how many maps to keep of a cell: those of the highest scores.
    """

    def __init__(self, folder: Path, most_images: int = 8) -> None:
        self.folder = folder
        self.most_images = most_images
        self._strangest: list[tuple[float, str, np.ndarray]] = []

    def on_image(self, cell: CellResult, image: ScoredImage) -> None:
        """Called for every test image as it is scored."""
        name = f"{image.sample.defect_type}/{Path(image.sample.path).stem}"
        self._strangest.append((image.score, name, image.anomaly_map))
        self._strangest.sort(key=lambda one: one[0], reverse=True)
        del self._strangest[self.most_images :]

    def on_result(self, cell: CellResult) -> None:
        """Called when a cell is done or has failed."""
        strangest, self._strangest = self._strangest, []
        with SummaryWriter(self.folder / cell.detector / cell.dataset / cell.category) as writer:
            if cell.finished is None:
                writer.add_text("failure", str(cell.failure))
                return
            for name, value in asdict(cell.finished.row).items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    writer.add_scalar(name, value)
            for name, (low, high) in cell.finished.details.intervals.items():
                writer.add_scalar(f"{name}/low", low)
                writer.add_scalar(f"{name}/high", high)
            images = cell.finished.details.images
            for kind, label in (("normal", False), ("anomalous", True)):
                scores = [image.score for image in images if image.label is label]
                if scores:
                    writer.add_histogram(f"scores/{kind}", np.array(scores))
            top = max((float(one.max()) for *_, one in strangest), default=0.0)
            for _, name, anomaly_map in strangest:
                writer.add_image(f"maps/{name}", anomaly_map / max(top, 1e-12), dataformats="HW")


def main(suite: str, out: str, logs: str) -> None:
    hooks = TensorBoardHooks(Path(logs))
    run(suite, out, on_image=hooks.on_image, on_result=hooks.on_result)


if __name__ == "__main__":
    main(*sys.argv[1:])
