"""anomalib's side of bench_peers.py, run by a Python that has anomalib 2.

The model is fitted by anomalib's own engine and data module, without its validation. Images go one at a time
through the transform of its training and evaluation, and its network. The option `openvino` exports the model
as a part of the fit, and predicts by anomalib's inferencer; what it exports resizes without antialiasing. The
threshold is that of the best F1 on the *labelled test images*: so its module for MVTec AD does by default.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.models import MHPatchcore, Patchcore
from lightning.pytorch import seed_everything
from peers_cell import Found, Task, load_weights, run
from torchvision.transforms.v2.functional import to_dtype, to_image

MODELS = {"PatchCore": Patchcore, "MH-PatchCore": MHPatchcore}


class Anomalib:
    """The option `model` chooses one; the others are its own."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        seed_everything(0)
        options = dict(task.options)
        self._crop = options.pop("crop", None)
        self._threads = task.threads if options.pop("openvino", False) else None
        self._exported: OpenVINOInferencer | None = None
        os.chdir(Path(task.out).parent)  # its inferencer keeps a cache where it stands
        kind = MODELS[options.pop("model")]
        self._model = kind(backbone=task.network, layers=list(task.layers), pre_trained=False, **options)
        load_weights(self._model.model.feature_extractor.feature_extractor, task.weights)
        category = Path(task.category)
        defects = [path.name for path in sorted((category / "test").iterdir()) if path.name != "good"]
        # Its module for MVTec AD reads PNG alone. Workers would be further threads.
        self._images = Folder(
            category.name,
            root=category,
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir=[f"test/{name}" for name in defects],
            num_workers=0,
        )

    def fit(self) -> None:
        with tempfile.TemporaryDirectory(prefix="ensemblead-") as folder:
            engine = Engine(
                default_root_dir=folder,
                accelerator="cpu",
                limit_val_batches=0,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            engine.fit(model=self._model, datamodule=self._images)
            self._model.eval()
            if self._threads is not None:
                # One image at a time, of any size; with a free number of images the graph takes two alone.
                axes = {"dynamic_axes": {"input": {2: "height", 3: "width"}}}
                graph = self._model.to_openvino(folder, onnx_kwargs=axes)
                config = {"INFERENCE_NUM_THREADS": self._threads}
                self._exported = OpenVINOInferencer(graph, device="CPU", config=config)

    def predict_file(self, path: str) -> Found:
        if self._exported is not None:
            return _plain(self._exported.predict(path))
        return self._predict(read_image(path, as_tensor=True))

    def predict_pixels(self, pixels: np.ndarray[Any, Any]) -> Found:
        if self._exported is not None:
            return _plain(self._exported.predict(pixels))
        return self._predict(to_dtype(to_image(pixels), torch.float32, scale=True))

    def _predict(self, image: torch.Tensor) -> Found:
        with torch.inference_mode():
            found = self._model.model(self._model.pre_processor.transform(image[None]))
        return _plain(found)

    def verdicts(self, scores: np.ndarray[Any, Any], labels: Sequence[bool]) -> list[bool]:
        """By the threshold that its default validation would choose, on the test images themselves."""
        metric = F1AdaptiveThreshold(fields=["pred_score", "gt_label"])
        given = torch.from_numpy(scores.astype(np.float32))
        metric.update(SimpleNamespace(pred_score=given, gt_label=torch.tensor(labels)))
        return [bool(one) for one in given > metric.compute()]

    def facts(self) -> dict[str, Any]:
        version = importlib.metadata.version("anomalib")
        return {"version": version, "resize": (256, 256), "crop": self._crop}


def _plain(found: Any) -> Found:
    return float(np.asarray(found.pred_score).item()), np.asarray(found.anomaly_map).squeeze()


if __name__ == "__main__":
    run(Anomalib)
