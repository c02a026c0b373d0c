"""Models of patchcore-inspection, the reference implementation of PatchCore.

A folder has `patchcore_params.pkl` and `nnscorer_search_index.faiss`; that of an ensemble has both files of
every member, with names that begin with `Ensemble-1-3_`, `Ensemble-2-3_` and so on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ensemblead.common.validation import some_of, whole_number
from ensemblead.conversion.definitions import patchcore_inspection
from ensemblead.conversion.plain_pickle import MOST_BYTES, read_plain_pickle
from ensemblead.conversion.source import Converted, check_normalization, give_state, read_bytes
from ensemblead.detectors.patchcore import PatchCore
from ensemblead.memory import MemoryBank
from ensemblead.memory.state import BankState
from ensemblead.networks.zoo import IMAGENET_MEAN, IMAGENET_STD
from ensemblead.search.faiss import read_flat_rows

NAME = "patchcore-inspection"
PARAMETERS, INDEX = "patchcore_params.pkl", "nnscorer_search_index.faiss"
_PREFIX = re.compile(r"Ensemble-(\d+)-(\d+)_")
_KEYS = (
    "backbone.name",
    "layers_to_extract_from",
    "input_shape",
    "pretrain_embed_dimension",
    "target_embed_dimension",
    "patchsize",
    "patchstride",
    "anomaly_scorer_num_nn",
)
# Names by which its backbones.py calls networks that timm knows under another one; it has "efficientnet_b1"
# and others for TensorFlow's weights, while timm's own network of that name is another one. The zoo knows the
# others' aliases.
_BACKBONES = {
    **{name: f"tf_{name}" for name in ("efficientnet_b1", "efficientnet_b3", "efficientnet_b5")},
    **{name: f"tf_{name}" for name in ("efficientnet_b7", "efficientnetv2_m", "efficientnetv2_l")},
    "densenet121": "densenet121.ra_in1k",  # timm's own default; the zoo takes torchvision's weights
    "resnest50": "resnest50d_4s2x40d",
    "resnetv2_50_bit": "resnetv2_50x3_bit",
    "resnetv2_101_bit": "resnetv2_101x3_bit",
    "resnetv2_152_bit": "resnetv2_152x4_bit",
}
# Sizes far beyond what anyone fits; larger ones would fill the memory.
_MOST = {"pretrain_embed_dimension": 1 << 16, "target_embed_dimension": 1 << 16, "patchsize": 15}
_LARGEST_SIDE = 1 << 13
# The resize that its command line has with its image size.
_RESIZE, _IMAGE_SIZE = 256, 224


def read_members(
    folder: Path, *, weights: Any, resize: Any, image_size: Any, device: str | torch.device
) -> list[Converted]:
    """The detectors of a folder, one per member of an ensemble.

    Args:
        weights: as `PatchCore` takes them, one for all, or by member, `{number: weights}`.
        resize: the shorter side before the crop; None: 256 where the crop is 224.
        image_size: must be None: it is in the parameters.
        device: of the detectors.
    """
    if image_size is not None:
        raise ValueError("image_size is in the parameters of a patchcore-inspection model; leave it out")
    prefixes = _prefixes(folder)
    by_member = isinstance(weights, Mapping) and all(isinstance(key, int) for key in weights)
    if by_member and (wrong := [key for key in weights if not 0 <= key < len(prefixes)]):
        raise ValueError(f"weights: the model has members 0 to {len(prefixes) - 1}, got {wrong[0]}")
    members = []
    for number, prefix in enumerate(prefixes):
        own = (weights.get(number) or "default") if by_member else weights
        members.append(_read(folder, prefix, own, resize, device))
    return members


def _prefixes(folder: Path) -> list[str]:
    """What the files of each member begin with; every member must have both files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    names = {path.name for path in folder.iterdir()}
    numbered = {name: match for name in names if (match := _PREFIX.match(name))}
    totals = {int(match[2]) for match in numbered.values()}
    if not totals:
        prefixes = [""]
    elif len(totals) > 1 or {PARAMETERS, INDEX} & names:
        raise ValueError(f"{folder} holds several models; give each a folder of its own")
    else:
        (total,) = totals
        numbers = {int(match[1]) for match in numbered.values()}
        if total > len(names) or not numbers <= set(range(1, total + 1)):
            raise ValueError(f"{folder} holds members that are not 1 to {total} of {total}")
        prefixes = [f"Ensemble-{number}-{total}_" for number in range(1, total + 1)]
    wanted = [prefix + name for prefix in prefixes for name in (PARAMETERS, INDEX)]
    if missing := [name for name in wanted if name not in names]:
        raise FileNotFoundError(f"{folder} lacks {some_of(missing)} of a {NAME} model")
    return prefixes


def _read(folder: Path, prefix: str, weights: Any, resize: Any, device: Any) -> Converted:
    parameters, index = folder / (prefix + PARAMETERS), folder / (prefix + INDEX)
    given = read_plain_pickle(read_bytes(parameters, MOST_BYTES), str(parameters))
    known = _parameters(given, str(parameters))
    rows = read_flat_rows(read_bytes(index), str(index))
    size, target = known["size"], known["target_embed_dimension"]
    if rows.shape[1] != target:
        raise ValueError(
            f"{index} has rows of {rows.shape[1]} dimensions, but target_embed_dimension in {parameters} is "
            f"{target}"
        )
    neighbors = known["anomaly_scorer_num_nn"]
    if neighbors > len(rows):
        raise ValueError(f"{parameters} asks for {neighbors} neighbours, but {index} has {len(rows)} rows")
    notes = []
    if resize is None:
        if size != (_IMAGE_SIZE, _IMAGE_SIZE):
            raise ValueError(
                f"resize must be given: {parameters} has the input size {size[0]} x {size[1]}, and not the "
                "resize before the crop"
            )
        resize = _RESIZE
        notes.append(
            f"resize {_RESIZE} before the crop to {size[0]}: the default of patchcore-inspection, since its "
            "files do not state it"
        )
    name = known["backbone.name"]
    detector = PatchCore(
        _BACKBONES.get(name, name),
        known["layers_to_extract_from"],
        weights=weights,
        resize=resize,
        image_size=size[0] if size[0] == size[1] else size,
        patch_size=known["patchsize"],
        pretrain_dim=known["pretrain_embed_dimension"],
        target_dim=target,
        num_neighbors=neighbors,
        score="max",
        precision="float32",
        device=device,
    ).load_networks()
    check_normalization(detector, NAME, IMAGENET_MEAN, IMAGENET_STD)
    notes.append(f"weights of {name}: {_described(detector)}; the files do not hold them")
    if neighbors > 1:
        notes.append(
            f"scores are the mean over {neighbors} neighbours, as when it was fitted; {NAME} takes one "
            "neighbour when it loads these files, since its load knows anomaly_scorer_num_nn by another name"
        )
    bank = bank_of(detector, rows, str(index))
    give_state(detector, bank, None)
    definition = patchcore_inspection(
        rows, known["patchsize"], known["pretrain_embed_dimension"], target, neighbors
    )
    return Converted(detector, definition, norm_of(bank), True, tuple(notes))


def _parameters(given: Any, what: str) -> dict[str, Any]:
    """The parameters, checked, with `size` for the input's height and width."""
    if not isinstance(given, dict) or set(given) != set(_KEYS):
        got = some_of(sorted(given), 10) if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{what} must hold the parameters {', '.join(_KEYS)}, got {got}")
    known = dict(given)
    for key in _KEYS[3:]:
        known[key] = _limited(f"{key} in {what}", known[key], _MOST.get(key))
    if known["patchstride"] != 1:
        raise ValueError(f"patchstride in {what} must be 1, got {known['patchstride']}")
    layers, shape = known["layers_to_extract_from"], known["input_shape"]
    if not isinstance(known["backbone.name"], str):
        raise ValueError(f"backbone.name in {what} must be a text, got {known['backbone.name']!r}")
    is_list = isinstance(layers, (list, tuple))
    if not is_list or not layers or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"layers_to_extract_from in {what} must be names of layers, got {layers!r}")
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"input_shape in {what} must be (3, height, width), got {shape!r}")
    known["size"] = tuple(_limited(f"input_shape in {what}", side, _LARGEST_SIDE) for side in shape[1:])
    return known


def _limited(name: str, value: Any, most: int | None) -> int:
    number = whole_number(name, value, 1)
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")
    return number


def bank_of(detector: PatchCore, rows: Any, what: str) -> MemoryBank:
    """A memory bank of these rows; of which images they are is not known."""
    tensor = torch.as_tensor(rows).to(detector.network_.device)
    try:
        state = BankState(
            rows=tensor,
            images=torch.full((len(tensor),), -1, dtype=torch.int64),
            projection=None,
            radius=0.0,
            num_added=len(tensor),
        )
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return MemoryBank.from_state(detector.new_bank().parameters(), state)


def norm_of(bank: MemoryBank) -> float:
    """The root of the mean squared norm of a bank's rows."""
    return math.sqrt(float(torch.linalg.vector_norm(bank.rows_, dim=1).double().square().mean()))


def _described(detector: PatchCore) -> str:
    """Where a network's weights come from."""
    source = detector.network_.source
    tag = f"{source.get('name')}.{source.get('tag')}" if source.get("tag") else source.get("name")
    kinds = {"zoo": f"the published ones of {tag}", "file": f"{source.get('path')}", "state": "those given"}
    return "random" if "seed" in source else kinds[source["kind"]]
