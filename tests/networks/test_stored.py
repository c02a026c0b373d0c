"""Descriptions of networks that no saved model has: refused as damage, each with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ensemblead import store
from ensemblead.common.errors import DamagedModelError
from ensemblead.config.registry import register
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.network import Network
from ensemblead.networks.stored import network_from_store

pytest.importorskip("timm")


@register("test_stored.Holder")
class Holder:
    """Saves a network and nothing else, with values of its description replaced."""

    def __init__(self, network: Network, changes: dict[str, Any], tensors: dict[str, Any] | None) -> None:
        self.network, self.changes, self.tensors = network, changes, tensors

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        state = self.network.to_store(writer)
        if self.tensors is not None:
            writer.tensors("backbone.safetensors", self.tensors)
        for name, value in self.changes.items():
            if name in ("source",) and isinstance(value, dict):
                state["source"] = {**state["source"], **value}
            else:
                state[name] = value
        return {"network": state}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> Network:
        return network_from_store(reader, reader.state["network"], "cpu", "float32")


def _network() -> Network:
    return Network(FeatureExtractor("squeezenet1_1", ("features.3",), weights=None), "cpu", "float32")


def _again(
    folder: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None, **options: Any
) -> Network:
    store.save(Holder(_network(), changes, tensors), folder)
    network: Network = store.load(folder, **options)
    return network


def test_there_and_back(tmp_path: Path) -> None:
    network = _again(tmp_path / "m", {})
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    first, second = _network().extractor, network.extractor
    assert torch.equal(first(first.normalize(pixels))[0], second(second.normalize(pixels))[0])
    assert network.extractor.source == _network().extractor.source
    pooled = _again(tmp_path / "v", {"pooling": "avg"})
    assert pooled.extractor(pooled.extractor.normalize(pixels))[0].shape == (1, 128)
    assert pooled.key != network.key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 3}, "source cannot be 3"),
        ({"source": {"kind": "cloud"}}, "source cannot be"),
        ({"source": {"kind": ["zoo"]}}, "source cannot be"),
        ({"source": {"kind": "zoo", "tag": 5}}, "source cannot be"),
        ({"source": {"kind": "zoo", "name": ""}}, "source cannot be"),
        ({"source": {"kind": "zoo", "name": "gabor"}}, "source cannot be"),
        ({"source": {"kind": "file", "path": "x", "sha256": "0"}}, "source cannot be"),
        ({"source": {"kind": "file", "path": "a\0b", "sha256": "0" * 64}}, "source cannot be"),
        ({"source": {"kind": "file", "path": ["x"], "sha256": "0" * 64}}, "source cannot be"),
        ({"source": {"kind": "file"}}, "lacks 'path'"),
        ({"source": {"seed": "1"}}, "seed must be a whole number, got '1'"),
        ({"source": {"kind": "gabor"}}, "no weights to store"),
        ({"stored": False}, "must be stored with it"),
        ({"stored": 1}, "stored must be true or false, got 1"),
        ({"borrowed": "yes"}, "borrowed must be true or false, got 'yes'"),
        ({"layers": []}, r"layers must be names, got \[\]"),
        ({"layers": "features.3"}, "layers must be names"),
        ({"layers": ["features.3", 4]}, "layers must be names"),
        ({"layers": ["features.3", "features.3"]}, "layers must differ"),
        ({"mean": [0.5, 0.5]}, r"mean must be three numbers, got \[0.5, 0.5\]"),
        ({"mean": [0.5, 0.5, True]}, "mean must be three numbers"),
        ({"mean": [0.5, 0.5, 1e300]}, "mean must be three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "std must be positive"),
        ({"std": None}, "std must be three numbers, got None"),
        ({"pooling": "mean"}, "pooling must be one of avg, max, gem, token, got 'mean'"),
        ({"pooling": {}}, "pooling must be"),
    ],
)
def test_descriptions_that_lie(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedModelError, match=message):
        _again(tmp_path / "m", changes)


def test_weights_that_lie(tmp_path: Path) -> None:
    good = _network().extractor.state_dict()
    name = "features.0.weight"
    for i, (value, message) in enumerate(
        [
            (torch.full_like(good[name], torch.nan), f"{name} has NaN"),
            (torch.zeros(1, 2), f"other shapes than SqueezeNet: {name}"),
        ]
    ):
        with pytest.raises(DamagedModelError, match=message):
            _again(tmp_path / str(i), {}, {**good, name: value})
    with pytest.raises(DamagedModelError, match="names that SqueezeNet does not know: other"):
        _again(tmp_path / "m", {}, {**good, "other": torch.zeros(1)})
    with pytest.raises(DamagedModelError, match=r"lacks 1 tensors needed for .*: features\.0\.weight"):
        _again(tmp_path / "n", {}, {key: value for key, value in good.items() if key != name})


def test_a_borrowed_network_that_is_not_lent(tmp_path: Path) -> None:
    network = _network()
    store.save(Holder(network, {"borrowed": True}, None), tmp_path / "m")
    assert store.load(tmp_path / "m", networks=iter([network])) is network
    with pytest.raises(DamagedModelError, match="the model around it does not have"):
        store.load(tmp_path / "m", networks=iter([]))


def test_a_modules_weights_with_nan(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1))
    network = Network(FeatureExtractor(module, ("0",)), "cpu", "float32")
    module[0].bias.data[0] = torch.nan
    store.save(Holder(network, {}, None), tmp_path / "m")
    with pytest.raises(DamagedModelError, match=r"0\.bias has NaN"):
        store.load(tmp_path / "m", backbone=nn.Sequential(nn.Conv2d(3, 2, 1)))
