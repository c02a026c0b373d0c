"""Record what anomalib 2 makes of the models of support/other_tools.py; run by hand, in its environment:

    PYTHONPATH=tests python tests/conversion/record_anomalib.py

Writes anomalib.npz beside itself: of four images the scores, and every fifth row and column of the maps.
"""

from __future__ import annotations

from pathlib import Path

import anomalib
import numpy as np
import torch
from anomalib.models import Padim, Patchcore
from support.other_tools import BACKBONE, DIMENSIONS, IMAGES, LAYERS, NEIGHBORS, SIDE, model_state

SHARED = {"backbone": BACKBONE, "layers": list(LAYERS), "pre_trained": False}


def outputs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "padim":
        model = Padim(n_features=DIMENSIONS, **SHARED)
    else:
        model = Patchcore(num_neighbors=NEIGHBORS if kind == "patchcore" else 1, **SHARED)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255.0
    state = model_state("padim" if kind == "padim" else "patchcore")
    module = model.model.eval()
    for name in ("memory_bank", "gaussian.mean", "gaussian.inv_covariance"):
        if name in state:  # empty until a fit
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], state[name])
    module.load_state_dict(state)
    with torch.no_grad():
        found = module(model.configure_pre_processor((SIDE, SIDE)).transform(pixels))
    return found.pred_score.flatten().numpy(), found.anomaly_map[:, 0, ::5, ::5].numpy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded: dict[str, np.ndarray] = {"version": np.array(anomalib.__version__)}
    for kind in ("patchcore", "patchcore_of_one", "padim"):
        recorded[f"{kind}_scores"], recorded[f"{kind}_maps"] = outputs(kind)
    np.savez_compressed(Path(__file__).with_name("anomalib.npz"), **recorded)
