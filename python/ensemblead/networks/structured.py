"""Networks of saved models that are built of their structure, without the package that they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.files import sha256_of
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.reaching import reached
from ensemblead.networks.structure import build
from ensemblead.networks.weights import load_weights, read_weights, require_loaded
from ensemblead.networks.zoo import BackboneInfo, given_weights
from ensemblead.store import FolderReader

STRUCTURE_FILE = "network.json"
_MOST_FILLED = 2**30  # values without weights: a classifier's are far below


def structure_document(extractor: FeatureExtractor, stored: bool) -> bytes | None:
    """A network's structure as a file of a saved model; None for a network that has none.

    Args:
        stored: whether the model has the weights as well. If it has not, the file names the one on this
            machine that published weights lie in, with its hash, so that they are found again without their
            package.
    """
    description = extractor.description()
    if description is None:
        return None
    content: dict[str, Any] = {"input_size": extractor.input_size, "network": description}
    if not stored and extractor.source["kind"] == "zoo" and _has_weights(extractor, extractor.file):
        content["file"], content["sha256"] = extractor.file, sha256_of(str(extractor.file))
    return json.dumps(content, allow_nan=False).encode()


def _has_weights(extractor: FeatureExtractor, path: str | None) -> bool:
    """Whether a file has the network's tensors by the names that they have in it."""
    if path is None or not os.path.isfile(path):
        return False
    state = read_weights(path)
    return all(
        name in state and torch.equal(state[name].to(tensor), tensor)
        for name, tensor in extractor.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def extractor_of_structure(
    reader: FolderReader,
    source: dict[str, Any],
    layers: Sequence[str],
    options: Mapping[str, Any],
    weights: Any,
    from_folder: bool,
) -> FeatureExtractor | None:
    """The network of a saved model; None where it has no structure, or needs published weights that are no
    longer where they lay, or no longer the same.

    Args:
        weights: those of the folder if `from_folder`, else a path, a state dict, or "default" for published.

    Raises DamagedModelError for a structure that was never written, ValueError for weights that do not fit.
    """
    if not reader.has(STRUCTURE_FILE):
        return None
    with reader.as_damage():
        content = _read(reader.data(STRUCTURE_FILE))
        description, side, path = content["network"], content["input_size"], content.get("file")
        digest = content.get("sha256")
        if type(side) not in (int, type(None)) or not {type(path), type(digest)} <= {str, type(None)}:
            raise ValueError(f"{STRUCTURE_FILE} cannot state {side!r}, {path!r} and {digest!r}")
        # Networks that share published weights may be asked for each other's layers, so those stay whole.
        module = _built(description, layers, whole=not from_folder)
    if isinstance(weights, str) and weights == "default":
        if path is None or not os.path.isfile(path) or sha256_of(path) != digest:
            return None
        own, what, state = source, path, read_weights(path)
        if not _has_all(_built(description, layers), state):
            return None
    else:
        state, given = given_weights(weights)
        own = source if from_folder else {**given, "name": source["name"], "tag": source["tag"]}
        what = str(given.get("path", "the state dict given"))
    if not from_folder and isinstance(weights, Mapping):
        state = {name: tensor.clone() for name, tensor in state.items()}  # the caller's may yet change
    missing = load_weights(module, state, what, assign=True)
    if from_folder:
        require_loaded(missing, missing, tuple(layers), what)
    with reader.as_damage():
        _fill(module)
    info = BackboneInfo(
        source["name"], tuple(options["mean"]), tuple(options["std"]), side, dict(own), missing, path
    )
    return FeatureExtractor.of(module, info, layers, options["pooling"], description)


def _read(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError(f"{STRUCTURE_FILE} is nested too deeply") from error
    if type(content) is not dict or not {"network", "input_size"} <= content.keys():
        raise ValueError(f"{STRUCTURE_FILE} states no network")
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{STRUCTURE_FILE} has {text}, which is no number")


def _built(description: Any, layers: Sequence[str], *, whole: bool = False) -> nn.Module:
    """The network as far as `layers`, or all of it. Raises ValueError for what was never written."""
    try:
        short = reached(description, layers)
        return build(description if whole else short)
    except (LookupError, RuntimeError, AssertionError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{STRUCTURE_FILE} describes no network: {error}") from error


def _has_all(needed: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether published weights have, by these names, what the layers need."""
    return all(
        name in state and state[name].shape == tensor.shape
        for name, tensor in needed.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def _fill(module: nn.Module) -> None:
    """Zeros for the tensors that are still without values: no pass to the layers reads them.

    Raises ValueError where these would take more memory than any network's.
    """
    count = sum(one.numel() for one in module.state_dict().values() if one.is_meta)
    if count > _MOST_FILLED:
        raise ValueError(f"{STRUCTURE_FILE} states {count} values that no file has")
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                zeros = torch.zeros_like(parameter, device="cpu")
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = torch.zeros_like(buffer, device="cpu")
