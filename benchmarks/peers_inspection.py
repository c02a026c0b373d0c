"""patchcore-inspection's side of bench_peers.py; the checkout is of amazon-science/patchcore-inspection.

Its files are used as they are. Its loader asks torchvision for an argument that is gone. So the network is
made here and given to it, in evaluation mode: by its own loader it would be in training mode for one image of
ones, which moves the statistics of batch norm. The batch size is that of its command, 2. Its data are read
without worker processes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from peers_cell import Found, Task, load_weights, run
from PIL import Image

RESIZE, CROP = 256, 224
NEVER_RUN = ("layer4.", "features.denseblock4.", "features.transition3.", "features.norm5.")


class Inspection:
    """The settings of its README; the option `share` is that of the coreset."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        source = Path(task.checkout) / "src"
        sys.path.insert(0, str(source))
        import patchcore.common
        import patchcore.patchcore
        import patchcore.sampler
        from patchcore.datasets.mvtec import DatasetSplit, MVTecDataset

        self._files = [source / "patchcore" / f"{name}.py" for name in ("patchcore", "common", "sampler")]
        network = torchvision.models.get_model(task.network, weights=None).eval()
        load_weights(network, task.weights, NEVER_RUN)
        network.name, network.seed = task.network, None
        np.random.seed(0)  # noqa: NPY002 - its coreset draws starting points from the global state
        torch.manual_seed(0)  # of its projection
        device = torch.device("cpu")
        self._detector = patchcore.patchcore.PatchCore(device)
        self._detector.load(
            backbone=network,
            layers_to_extract_from=list(task.layers),
            device=device,
            input_shape=(3, CROP, CROP),
            pretrain_embed_dimension=1024,
            target_embed_dimension=1024,
            patchsize=3,
            anomaly_score_num_nn=1,
            featuresampler=patchcore.sampler.ApproximateGreedyCoresetSampler(task.options["share"], device),
            nn_method=patchcore.common.FaissNN(False, task.threads),
        )
        category = Path(task.category)
        images = MVTecDataset(
            str(category.parent), category.name, resize=RESIZE, imagesize=CROP, split=DatasetSplit.TRAIN
        )
        self._transform = images.transform_img
        self._images = torch.utils.data.DataLoader(images, batch_size=2, shuffle=False, num_workers=0)

    def fit(self) -> None:
        self._detector.fit(self._images)

    def predict_file(self, path: str) -> Found:
        return self._predict(Image.open(path).convert("RGB"))

    def predict_pixels(self, pixels: np.ndarray[Any, Any]) -> Found:
        return self._predict(Image.fromarray(pixels))

    def _predict(self, image: Image.Image) -> Found:
        scores, maps = self._detector.predict(self._transform(image)[None])
        return float(scores[0]), maps[0]

    def verdicts(self, scores: np.ndarray[Any, Any], labels: Sequence[bool]) -> None:
        """It has no threshold."""

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in self._files)).hexdigest()
        return {"version": f"sources {digest[:12]}", "resize": RESIZE, "crop": CROP}


if __name__ == "__main__":
    run(Inspection)
