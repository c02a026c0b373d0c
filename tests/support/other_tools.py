"""Models as patchcore-inspection and anomalib write them, with a small network and numbers from NumPy.

Nothing here depends on torch's random numbers, so that tests/conversion/record_anomalib.py, which needs
anomalib, fills its models with the same values.
"""

from __future__ import annotations

import enum
import functools
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BACKBONE, LAYERS, SIDE = "resnet10t", ("layer1", "layer2"), 64
CHANNELS, GRID = (64, 128), (16, 16)
IMAGES = np.random.default_rng(7).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
NEIGHBORS, ROWS, DIMENSIONS = 5, 40, 12
_NETWORK = "feature_extractor.feature_extractor."


def numbers(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a network of these names and shapes, under which its features have a fair size."""
    values = {}
    for seed, name in enumerate(sorted(state)):
        shape = tuple(state[name].shape)
        drawn = numbers(shape, seed)
        if name.endswith("num_batches_tracked"):
            values[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if len(shape) == 4:
            drawn *= np.float32((2.0 / np.prod(shape[1:])) ** 0.5)
        else:
            is_scale = name.endswith(("running_var", "weight"))
            drawn = np.abs(drawn) * 0.2 + 0.9 if is_scale else drawn * np.float32(0.1)
        values[name] = torch.from_numpy(drawn.astype(np.float32))
    return values


@functools.cache
def network_state() -> dict[str, torch.Tensor]:
    """The network's weights up to its second layer, as timm's `features_only` names them."""
    timm = pytest.importorskip("timm")
    network = timm.create_model(BACKBONE, features_only=True, out_indices=(1, 2), pretrained=False)
    return filled(network.state_dict())


def bank_rows() -> Any:
    return np.abs(numbers((ROWS, sum(CHANNELS)), 101)) * np.float32(0.7)


def padim_state() -> dict[str, torch.Tensor]:
    positions = GRID[0] * GRID[1]
    spread = numbers((positions, DIMENSIONS, DIMENSIONS), 102)
    inverse = spread @ spread.transpose(0, 2, 1) + 0.1 * np.eye(DIMENSIONS, dtype=np.float32)
    index = np.random.default_rng(103).permutation(sum(CHANNELS))[:DIMENSIONS]
    return {
        "idx": torch.from_numpy(index.astype(np.int64)),
        "gaussian.mean": torch.from_numpy(np.abs(numbers((DIMENSIONS, positions), 104))),
        "gaussian.inv_covariance": torch.from_numpy(inverse.astype(np.float32)),
    }


def model_state(kind: str) -> dict[str, torch.Tensor]:
    """What `PatchcoreModel` or `PadimModel` has as its state dict."""
    own = {"memory_bank": torch.from_numpy(bank_rows())} if kind == "patchcore" else padim_state()
    taps = torch.from_numpy(np.exp(-0.5 * (np.arange(-16, 17) / 4.0) ** 2))
    kernel = torch.outer(taps / taps.sum(), taps / taps.sum()).float()[None, None]
    network = {_NETWORK + name: value for name, value in network_state().items()}
    return {**network, **own, "anomaly_map_generator.blur.kernel": kernel}


def checkpoint(kind: str, **changes: Any) -> dict[str, Any]:
    """What Lightning saves of such a model, as far as it matters here."""
    hyper: dict[str, Any] = {"backbone": BACKBONE, "layers": list(LAYERS), "pre_trained": False}
    if kind == "patchcore":
        hyper |= {"coreset_sampling_ratio": 0.1, "num_neighbors": NEIGHBORS}
    else:
        hyper["n_features"] = DIMENSIONS
    state = {f"model.{name}": value for name, value in model_state(kind).items()}
    post = {"_image_threshold": 60.5, "_pixel_threshold": 50.0, "image_min": 1.0, "image_max": 90.0}
    state |= {f"post_processor.{name}": torch.tensor(value) for name, value in post.items()}
    return {
        "epoch": 0,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "hyper_parameters": hyper,
        "anomalib_components_enabled": {"pre_processor": True, "post_processor": True},
        "anomalib_pre_processor_config": {"transform": transforms(resize([SIDE, SIDE]), normalize())},
        "anomalib_post_processor_config": {
            "enable_normalization": True,
            "enable_thresholding": True,
            "enable_threshold_matching": True,
            "image_sensitivity": 0.5,
        },
        **changes,
    }


def transforms(*steps: Any) -> dict[str, Any]:
    return {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": list(steps)}}


def transform(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"torchvision.transforms.v2.{name}", "init_args": arguments}


def resize(size: Any, **more: Any) -> dict[str, Any]:
    known = {"interpolation": "bilinear", "max_size": None, "antialias": True}
    return transform("Resize", size=size, **(known | more))


def normalize() -> dict[str, Any]:
    return transform("Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], inplace=False)


def precision_type(monkeypatch: pytest.MonkeyPatch, *, by_name: bool = False) -> Any:
    """A class that pickles under the name of anomalib's `PrecisionType`, without anomalib; by the values of
    its members, or by their names, as Python versions differ.
    """

    class PrecisionType(str, enum.Enum):
        FLOAT32 = "float32"

        def __reduce_ex__(self, protocol: Any) -> Any:
            return (getattr, (type(self), self.name)) if by_name else (type(self), (self.value,))

    PrecisionType.__module__, PrecisionType.__qualname__ = "anomalib", "PrecisionType"
    module = types.ModuleType("anomalib")
    module.PrecisionType = PrecisionType  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anomalib", module)
    return PrecisionType.FLOAT32


# patchcore-inspection

PARAMETERS: dict[str, Any] = {
    "backbone.name": BACKBONE,
    "layers_to_extract_from": list(LAYERS),
    "input_shape": (3, SIDE, SIDE),
    "pretrain_embed_dimension": 96,
    "target_embed_dimension": 80,
    "patchsize": 3,
    "patchstride": 1,
    "anomaly_scorer_num_nn": 2,
}


def write_inspection(folder: Path, prefix: str = "", *, seed: int = 105, **changes: Any) -> Path:
    """A model folder of patchcore-inspection; returns it."""
    faiss = pytest.importorskip("faiss")
    folder.mkdir(parents=True, exist_ok=True)
    known = {**PARAMETERS, **changes}
    (folder / f"{prefix}patchcore_params.pkl").write_bytes(pickle.dumps(known, pickle.HIGHEST_PROTOCOL))
    rows = np.abs(numbers((ROWS, PARAMETERS["target_embed_dimension"]), seed)) * np.float32(0.7)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    faiss.write_index(index, str(folder / f"{prefix}nnscorer_search_index.faiss"))
    return folder
