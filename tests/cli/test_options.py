"""Options of several networks at once, as the command line and configuration files give them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")


import ensemblead as ead
from ensemblead.cli.options import (
    DetectorOptions,
    build_detector,
    layers_per_member,
    parse_size,
    weights_per_member,
)


class TestMembers:
    def test_layers(self) -> None:
        assert layers_per_member(["layer1"], ["a"]) == [("layer1",)]
        assert layers_per_member(["0.layer1"], ["a"]) == [("layer1",)]
        assert layers_per_member(["1.features.denseblock2", "0.b"], ["x", "y"]) == [
            ("b",),
            ("features.denseblock2",),
        ]
        assert layers_per_member(None, ["a", "b"]) == [("layer2", "layer3")] * 2
        with pytest.raises(ValueError, match="numbered 0 to 1"):
            layers_per_member(["2.layer1"], ["a", "b"])
        with pytest.raises(ValueError, match=r"backbone 1 \(b\) has no layer"):
            layers_per_member(["0.layer1"], ["a", "b"])

    def test_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("0.safetensors", "w.pth"):
            Path(name).touch()
        assert weights_per_member(["0.safetensors"], 1) == {0: "0.safetensors"}
        assert weights_per_member(["0.w.pth"], 1) == {0: "w.pth"}
        assert weights_per_member(["1.w.pth", "0.none"], 2) == {1: "w.pth", 0: None}
        with pytest.raises(ValueError, match="twice"):
            weights_per_member(["1.w.pth", "1.none"], 2)
        with pytest.raises(ValueError, match=r"I\.PATH"):
            weights_per_member(["w.pth"], 2)

    def test_sizes(self) -> None:
        assert (parse_size("resize", "256"), parse_size("resize", "12x34")) == (256, (12, 34))
        assert parse_size("resize", "none") is None

    def test_the_missions_ensemble_in_both_forms(self) -> None:
        here = build_detector(DetectorOptions(preset="mission", device="cpu"))
        backbones = ["wideresnet101", "resnext101", "densenet201"]
        layers = [f"{i}.{layer}" for i in (0, 1) for layer in ("layer2", "layer3")]
        layers += ["2.features.denseblock2", "2.features.denseblock3"]
        spelled = build_detector(
            DetectorOptions(backbone=backbones, layers=layers, resize="366", image_size="320", device="cpu")
        )
        there = ead.BackboneEnsemble.mission(device="cpu")
        assert isinstance(here, ead.BackboneEnsemble)
        assert isinstance(spelled, ead.BackboneEnsemble)
        for one, other, third in zip(here.members, there.members, spelled.members, strict=True):
            assert isinstance(one, ead.PatchCore)
            assert isinstance(other, ead.PatchCore)
            assert isinstance(third, ead.PatchCore)
            assert one.parameters() == other.parameters() == third.parameters()
            assert one.layers == other.layers == third.layers
            assert one.backbone == other.backbone
            assert (one.resize, one.image_size, one.target_dim) == (366, 320, 384)
        with pytest.raises(ValueError, match=r"one per backbone \(3\), got 1"):
            ead.BackboneEnsemble.mission(weights=[None])
