"""`ensemblead layers`: what can be tapped, and the layers that `fit` takes without -le."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("typer")

from support.commands import call, call_json
from support.textures import normal_images

import ensemblead as ead
from ensemblead.cli.options import build_detector, layers_per_member, options_of, typed_options
from ensemblead.config.documents import Source


def test_layers_and_defaults() -> None:
    found = call_json("layers", "resnet18")
    assert found["backbone"] == "resnet18"
    assert found["image_size"] == [224, 224]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["layer2"] == {
        "name": "layer2",
        "channels": 128,
        "stride": 8,
        "grid": [28, 28],
        "default": True,
        "default_of": ["EfficientAD", "FastFlow", "PaDiM", "PatchCore", "ReverseDistillation"],
    }
    assert [name for name, layer in layers.items() if layer["default"]] == ["layer2", "layer3"]
    assert layers["layer1"]["default_of"] == ["FastFlow", "PaDiM", "ReverseDistillation"]
    assert "layer2.0.conv1" not in layers
    nested = call_json("layers", "resnet18", "--all", "--image-size", "64x96")
    assert {"name": "layer2.0.conv1", "channels": 128, "stride": 8, "grid": [8, 12]}.items() <= next(
        layer for layer in nested["layers"] if layer["name"] == "layer2.0.conv1"
    ).items()


def test_table() -> None:
    outcome = call("layers", "gabor", "--image-size", 64)
    assert outcome.exit_code == 0
    rows = [line.split() for line in outcome.stdout.splitlines()]
    assert ["layer1", "42", "4", "16", "x", "16", "FastFlow,", "PaDiM,", "ReverseDistillation"] in rows
    assert "PatchCore" in outcome.stdout


def test_transformers() -> None:
    outcome = call("layers", "vit_small_patch14_dinov2", "--image-size", 230)
    assert outcome.exit_code == 2
    assert "224 x 224 or 238 x 238 would do; sides must be multiples of 14" in outcome.stderr
    assert "NAME:normed" in call("layers", "vit_tiny_patch16_224").stdout
    found = call_json("layers", "vit_b_16")
    assert not found["normed"]
    assert [layer["name"] for layer in found["layers"] if layer["default"]] == [
        "encoder.layers.encoder_layer_5",
        "encoder.layers.encoder_layer_8",
    ]
    assert call_json("layers", "beit_base_patch16_384")["image_size"] == [384, 384]


def test_a_preset_of_tokens_is_fitted(tmp_path: Path) -> None:
    for i, image in enumerate(normal_images(3)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    options = ["--preset", "anomaly_dino", "--weights", "none", "--resize", "28x28", "--device", "cpu"]
    outcome = call("fit", tmp_path, "--model", tmp_path / "model", *options)
    assert outcome.exit_code == 0, outcome.stderr
    said = " ".join(outcome.stderr.split())
    assert "anomaly_dino needs DINOv2 weights of ViT-S/14" in said
    assert "Without: the foreground mask by principal components" in said
    # Two by two patches of three images in four quarter turns: at 45 degrees none shows the image alone.
    assert len(ead.load(tmp_path / "model").memory_bank_) == 48


def test_unknown() -> None:
    outcome = call("layers", "resnet1O1")
    assert outcome.exit_code == 2
    assert "did you mean resnet101" in outcome.stderr
    assert call("layers", "resnet18", "--image-size", "none").exit_code == 2
    found = call_json("layers", "hrnet_w18_small")
    assert found["layers"]
    assert not any(layer["default"] for layer in found["layers"])
    assert "no default is known" in found["no_default"]


def test_fit_without_layers(tmp_path: Path) -> None:
    made = build_detector(typed_options({}, backbone=["densenet121"]))
    assert isinstance(made, ead.PatchCore)
    assert made.layers == ("features.denseblock2", "features.denseblock3")
    outcome = call("fit", tmp_path, "--model", tmp_path / "m", "-h")
    assert "ensemblead layers NAME" in " ".join(outcome.stdout.replace("│", " ").split())
    (tmp_path / "a.png").write_bytes(b"")
    outcome = call("fit", tmp_path, "--model", tmp_path / "m", "-b", "hrnet_w18_small")
    assert outcome.exit_code == 2
    assert "-le LAYER with layers that `ensemblead layers hrnet_w18_small` lists" in outcome.stderr


def test_auto_by_name() -> None:
    assert layers_per_member(["auto"], ["a"]) == [None]
    assert layers_per_member(["0.auto", "1.x"], ["a", "b"]) == [None, ["x"]]
    made = build_detector(options_of(Source({"method": "padim", "backbone": "gabor", "layers": "auto"})))
    assert isinstance(made, ead.PaDiM)
    assert made.layers == ("layer1", "layer2", "layer3")
    assert ead.create({"type": "PatchCore", "backbone": "gabor", "layers": "auto"}).layers == (
        "layer2",
        "layer3",
    )


def test_saved_models_hold_names(tmp_path: Path) -> None:
    import numpy as np

    images = np.random.default_rng(0).integers(90, 110, (8, 64, 64, 3), dtype=np.uint8)
    detector = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu")
    assert detector.describe()["layers"] == ["layer2", "layer3"]
    detector.fit(images).save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert isinstance(loaded, ead.PatchCore)
    assert loaded.layers == detector.layers == ("layer2", "layer3")
    assert loaded.describe() == detector.describe()
