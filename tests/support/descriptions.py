"""Patch description networks that are small, and their weights as files have them."""

from __future__ import annotations

import pytest
import torch
from support.students import fill

from ensemblead.networks import pdn

# In place of the published ones.
NARROW = {
    "small": ((4, 8, 3, True), (4, 8, 3, True), (3, 8, 1, False), (4, None, 0, False)),
    "medium": pdn._LAYERS["medium"],
}
NAMES = {f"conv{number}": f"conv{number}" for number in range(1, 5)}
# What the usual code calls them: by their places.
PLACES = {"conv1": "0", "conv2": "3", "conv3": "6", "conv4": "8"}


def make_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small patch description networks have eight channels inside."""
    monkeypatch.setattr(pdn, "_LAYERS", NARROW)


def named(names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Weights of the small one by a formula, its layers called so."""
    network = pdn.PDN("small")
    fill(network)
    renamed = {}
    for name, tensor in network.state_dict().items():
        layer, kind = name.split(".")
        renamed[f"{names[layer]}.{kind}"] = tensor.clone()
    return renamed
