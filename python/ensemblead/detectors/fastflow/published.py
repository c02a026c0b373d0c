"""Flows that gathierry/FastFlow or anomalib has trained, by the names of either."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ensemblead.detectors.fastflow.flow import Flows, Plan, empty_flows
from ensemblead.detectors.training.published import WeightFile

_FLOWS = ("fast_flow_blocks.", "nf_flows.")
_NORMS = {"norm_weight": "weight", "norm_bias": "bias"}
_PARTS = {"scale": "global_scale", "offset": "global_offset", "permutation": "w_perm"}
_CONVOLUTIONS = {"conv1": "subnet.0", "conv2": "subnet.2"}


def published_flows(file: WeightFile, plan: Plan) -> Flows:
    """Flows of a plan. Raises ValueError for a file that does not fit."""
    prefix = file.prefix(*_FLOWS)
    flows = empty_flows(plan)
    own = flows.state_dict()
    theirs = {name: _name(name, prefix) for name in own}
    wanted = {theirs[name]: _shape(name, tensor.shape) for name, tensor in own.items()}
    # The inverse permutation, which follows from the other.
    found = file.read(wanted, "a FastFlow", lambda name: name.endswith(".w_perm_inv"))
    tensors = {name: _value(name, found[theirs[name]], theirs[name], file) for name in own}
    flows.load_state_dict(tensors, assign=True)
    return flows


def _name(own: str, prefix: str) -> str:
    """What both codes call a tensor of the flows."""
    _, number, *place = own.split(".")
    if place[0] in _NORMS:
        return f"norms.{number}.{_NORMS[place[0]]}"
    _, step, part, *kind = place
    inner = f"{_CONVOLUTIONS[part]}.{kind[0]}" if kind else _PARTS[part]
    return f"{prefix}{number}.module_list.{step}.{inner}"


def _shape(own: str, shape: Sequence[int]) -> tuple[int, ...]:
    """That of the tensor there, by that of ours."""
    last = own.rpartition(".")[2]
    if last in _NORMS:
        height, width, channels = shape
        return channels, height, width
    if last == "permutation":
        return (*shape, *shape, 1, 1)
    return (1, *shape, 1, 1) if last in _PARTS else tuple(shape)


def _value(own: str, tensor: torch.Tensor, name: str, file: WeightFile) -> torch.Tensor:
    """Our tensor, by that of the file."""
    last = own.rpartition(".")[2]
    if last in _NORMS:
        return tensor.permute(1, 2, 0).contiguous()
    if last == "permutation":
        matrix = tensor[:, :, 0, 0]
        permutation = matrix.argmax(1)
        if not torch.equal(matrix, torch.eye(len(matrix))[permutation]):  # else it is no choice of channels
            raise ValueError(f"weights: {file.path}: {name} must be the matrix of a permutation")
        return permutation
    return tensor.flatten() if last in _PARTS else tensor
