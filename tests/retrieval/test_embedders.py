"""Embedders: a vector per image, whatever the batch, from any layer that the weights reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.pictures import draw
from support.tampering import altered

import ensemblead as ead
from ensemblead.common.errors import (
    BackboneUnavailableError,
    DamagedModelError,
    NonFiniteFeaturesError,
    UnreadableImageError,
)

pytest.importorskip("timm")


def _images(count: int = 5, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (count, *size, 3), dtype=np.uint8)


def _embedder(backbone: Any = None, **changes: Any) -> ead.Embedder:
    arguments: dict[str, Any] = {"layer": "second", "device": "cpu", **NATIVE, **changes}
    return ead.Embedder(TinyNet() if backbone is None else backbone, **arguments)


def _grid(images: np.ndarray) -> np.ndarray:
    """What TinyNet's second convolution puts out, float64 `[N, C, H, W]`."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy(((images / 255.0 - mean) / std).transpose(0, 3, 1, 2))
    net = TinyNet().double()
    with torch.no_grad():
        return net.second(torch.relu(net.first(pixels))).numpy()


@pytest.mark.parametrize("pool", ["avg", "max", "gem"])
def test_a_layer_is_pooled_over_its_places(pool: str) -> None:
    images = _images()
    grid = _grid(images).reshape(len(images), 14, -1)
    expected = {
        "avg": grid.mean(2),
        "max": grid.max(2),
        "gem": (np.maximum(grid, 1e-6) ** 3).mean(2) ** (1 / 3),
    }[pool]
    found = _embedder(pool=pool).embed(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_without_a_layer_it_is_timms_output_without_its_head() -> None:
    import timm

    torch.manual_seed(0)
    module = timm.create_model("resnet18", pretrained=False).eval()
    images = _images(3, (64, 64))
    embedder = _embedder(module, layer=None)
    extractor = embedder._frozen.network.extractor
    pixels = extractor.normalize(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(pixels), pre_logits=True)
    found = embedder.embed(images)
    assert found.shape == (3, embedder.dim) == (3, 512)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_gabor_has_no_classifier_so_its_last_layer_is_read() -> None:
    images = _images(3, (64, 64))
    last = _embedder("gabor", layer="layer3")
    found = _embedder("gabor", layer=None)
    assert found.dim == last.dim
    np.testing.assert_array_equal(found.embed(images), last.embed(images))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_changes_rounding_alone(batch_size: int) -> None:
    images = _images()
    expected = _embedder(batch_size=4).embed(images)
    found = _embedder(batch_size=batch_size).embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_batches_come_in_order_with_their_positions() -> None:
    images, steps = _images(), []
    embedder = _embedder(batch_size=2)
    batches = list(embedder.embed_batches(images, progress=lambda *step: steps.append(step)))
    assert [positions.tolist() for positions, _ in batches] == [[0, 1], [2, 3], [4]]
    assert all(positions.dtype == np.int64 and rows.dtype == np.float32 for positions, rows in batches)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in batches]), embedder.embed(images))
    assert steps == [("embed", 2, 5), ("embed", 4, 5), ("embed", 5, 5)]


def test_images_that_cannot_be_read_are_left_out_or_raised(tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{i}.png", (32, 32)) for i in range(5)]
    paths[1].write_bytes(b"no picture")
    paths[4].unlink()
    embedder, errors, steps = _embedder(batch_size=2), [], []
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        embedder.embed(paths)
    batches = list(
        embedder.embed_batches(
            paths,
            on_error=lambda *error: errors.append(error),
            progress=lambda *step: steps.append(step),
        )
    )
    assert [positions.tolist() for positions, _ in batches] == [[0, 2], [3]]
    assert [(place, type(error)) for place, error in errors] == [
        (1, UnreadableImageError),
        (4, FileNotFoundError),
    ]
    assert steps[-1] == ("embed", 5, 5)
    expected = embedder.embed([paths[place] for place in (0, 2, 3)])
    found = np.concatenate([rows for _, rows in batches])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_what_on_error_raises_ends_the_pass(tmp_path: Path) -> None:
    draw(tmp_path / "a.png").write_bytes(b"no picture")

    def refuse(position: int, error: Exception) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(_embedder().embed_batches(tmp_path, on_error=refuse))
    with pytest.raises(TypeError, match="on_error must be a function or None, got 'skip'"):
        _embedder().embed_batches(tmp_path, on_error="skip")  # type: ignore[arg-type]


def test_weights_that_end_at_the_layer(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    module = timm.create_model("resnet18", pretrained=False).eval()
    state = {name: x for name, x in module.state_dict().items() if not name.startswith(("layer4", "fc"))}
    path = tmp_path / "cut.safetensors"
    save_file(state, path)
    images = _images(2, (32, 32))
    found = _embedder("resnet18", layer="layer3", weights=path)
    whole = _embedder(module, layer="layer3").embed(images)
    np.testing.assert_allclose(found.embed(images), whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    with pytest.raises(ValueError, match=r"lacks .* needed for the input of fc: .*; an earlier layer may do"):
        _embedder("resnet18", layer=None, weights=path).embed(images)
    # Saved, it needs the file, or brings what its layer needs.
    found.save(tmp_path / "named")
    found.save(tmp_path / "whole", include_backbone=True)
    path.unlink()
    np.testing.assert_array_equal(ead.load(tmp_path / "whole").embed(images), found.embed(images))
    with pytest.raises(BackboneUnavailableError, match="no longer at"):
        ead.load(tmp_path / "named")


@pytest.mark.parametrize(
    "embedder",
    [
        _embedder("gabor", layer="layer2", pool="gem", batch_size=3),
        _embedder("gabor", layer=None, resize=40, image_size=(32, 24)),
        _embedder("squeezenet1_1", layer="features.3", pool="max", weights=None, seed=4),
        _embedder("mobilenetv3_small_050", layer=None, weights=None, resize=(40, 32)),
    ],
    ids=["layer", "no layer", "torchvision", "classifier"],
)
def test_saved_and_described(embedder: ead.Embedder, tmp_path: Path) -> None:
    images = _images(3, (48, 64))
    expected = embedder.embed(images)
    embedder.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model", device="cpu")
    assert repr(loaded) == repr(embedder)
    assert loaded.dim == embedder.dim == expected.shape[1]
    np.testing.assert_array_equal(loaded.embed(images), expected)
    np.testing.assert_array_equal(ead.create(embedder.describe()).embed(images), expected)


def test_a_module_is_saved_with_its_weights(tmp_path: Path) -> None:
    embedder, images = _embedder(), _images()
    embedder.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model", backbone=TinyNet(seed=5))
    np.testing.assert_array_equal(loaded.embed(images), embedder.embed(images))
    with pytest.raises(BackboneUnavailableError, match="which only the caller can build"):
        ead.load(tmp_path / "model")
    with pytest.raises(ValueError, match="backbone of a Embedder cannot be described"):
        embedder.describe()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["network"].update(layers=["layer1", "layer2"]),
        lambda state: state["network"].update(layers=["layer1"]),
        lambda state: state["network"].update(pooling="max"),
        lambda state: state["network"].pop("pooling"),
        lambda state: state["parameters"].update(pool="median"),
        lambda state: state["parameters"].pop("device"),
        lambda state: state.update(network=None),
    ],
)
def test_a_folder_that_states_no_embedder_is_damaged(change: Any, tmp_path: Path) -> None:
    _embedder("gabor", layer="layer2").save(tmp_path / "model")
    with pytest.raises(DamagedModelError):
        ead.load(altered(tmp_path / "model", tmp_path / "other", change))


def test_one_line() -> None:
    embedder = ead.Embedder("gabor", layer="layer2", pool="gem")
    assert repr(embedder) == "Embedder(backbone='gabor', layer='layer2', pool='gem')"
    assert "\n" not in repr(_embedder())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"pool": "gme"},
            ValueError,
            "pool must be one of avg, max, gem, token, got 'gme'; did you mean gem?",
        ),
        ({"layer": None, "pool": "gem"}, ValueError, "pool='gem' goes with a layer"),
        ({"layer": ["layer1"]}, TypeError, r"layer must be a name or None, got \['layer1'\]"),
        ({"resize": "auto"}, ValueError, "resize must be .* got 'auto': an embedder is not fitted"),
        ({"resize": 0}, ValueError, "resize must be a positive int"),
        ({"resize": 64, "image_size": 128}, ValueError, r"crop \(128, 128\) does not fit"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"device": "gpu"}, ValueError, "device must be"),
        ({"precision": "double"}, ValueError, "precision must be"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"compile": 1}, TypeError, "compile must be a bool"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _embedder("gabor", **{"layer": "layer2", **arguments})


def test_layers_and_heads_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="has no layer 'layer7'; did you mean one of layer"):
        _embedder("gabor", layer="layer7").embed(_images())
    with pytest.raises(ValueError, match="has no classifier whose input could be read; name a layer"):
        _ = _embedder(layer=None).dim
    with pytest.raises(ValueError, match="has no class token"):
        _embedder(pool="token").embed(_images())


def test_values_that_are_not_finite() -> None:
    net = TinyNet()
    net.second.weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteFeaturesError, match="TinyNet put out NaN or infinity in float32"):
        _embedder(net).embed(_images())


def test_a_detector_is_asked_for_where_one_is_needed(tmp_path: Path) -> None:
    from ensemblead.cli.models import load_model

    _embedder("gabor", layer="layer2").save(tmp_path / "model")
    with pytest.raises(TypeError, match="holds a saved Embedder, which is no detector"):
        load_model(tmp_path / "model")


def test_configurations_and_methods_are_of_detectors() -> None:
    from ensemblead.cli.options import options_of
    from ensemblead.config.documents import Source
    from ensemblead.config.names import detector_names, registered_names
    from ensemblead.suites.suite import Suite

    description = {"type": "Embedder", "backbone": "gabor"}
    with pytest.raises(ValueError, match="type must be a detector, got 'Embedder'"):
        options_of(Source(description, "model.json"))
    with pytest.raises(ValueError, match="type must be a detector, got 'Embedder'"):
        Suite.parse({"detectors": [description], "datasets": [{"type": "MVTecAD", "root": "data"}]})
    others = {"Embedder", "EmbeddingEnsemble", "DriftMonitor"}
    assert set(registered_names()) - set(detector_names()) == others
