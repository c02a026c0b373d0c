"""Named networks and their weights: names, files, state dicts, published weights without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

from ensemblead.common.errors import WeightsUnavailableError  # noqa: E402
from ensemblead.networks import zoo  # noqa: E402
from ensemblead.networks.extractor import FeatureExtractor  # noqa: E402
from ensemblead.networks.zoo import load_backbone  # noqa: E402

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def images_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library", "found", "tag"),
    [
        ("wideresnet50", "timm", "wide_resnet50_2", "tv_in1k"),
        ("wideresnet101", "timm", "wide_resnet101_2", "tv_in1k"),
        ("resnext101", "timm", "resnext101_32x8d", "tv_in1k"),
        ("densenet201", "timm", "densenet201", "tv_in1k"),
        ("resnet50.a1_in1k", "timm", "resnet50", "a1_in1k"),
        ("squeezenet1_1", "torchvision", "squeezenet1_1", "IMAGENET1K_V1"),
        ("alexnet", "torchvision", "alexnet", "IMAGENET1K_V1"),
    ],
)
def test_names(name, library, found, tag):
    entry = zoo._look_up(name)
    assert (entry.library, entry.name, entry.tag) == (library, found, tag)


def test_unknown_names_and_tags():
    with pytest.raises(
        ValueError, match="'resnet1O1' is known neither to timm nor to torchvision; did you mean resnet101"
    ):
        load_backbone("resnet1O1", None)
    with pytest.raises(ValueError, match=r"'resnet18\.nope': no weights of that tag; there are .*tv_in1k"):
        load_backbone("resnet18.nope", None)
    with pytest.raises(TypeError, match=r"weights must be .* got int"):
        load_backbone("resnet18", 3)


def test_configuration_is_the_weights_own():
    _, info = load_backbone("vit_tiny_patch16_224", None)
    assert info.mean == info.std == (0.5, 0.5, 0.5)
    assert info.input_size == 224
    module, info = load_backbone("squeezenet1_1", None)
    assert (info.mean, info.std, info.input_size) == (*IMAGENET, 224)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    module, _ = load_backbone("vit_tiny_patch16_224", None)
    assert FeatureExtractor(module, ("blocks.0",)).mean == (0.5, 0.5, 0.5)


def test_random_weights_follow_their_seed_alone():
    state = torch.get_rng_state()
    first, info = load_backbone("squeezenet1_1", None, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, _ = load_backbone("squeezenet1_1", None, seed=3)
    other, _ = load_backbone("squeezenet1_1", None, seed=4)
    one, two, three = (module.features[0].weight for module in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert info.source == {"kind": "state", "name": "squeezenet1_1", "tag": "IMAGENET1K_V1", "seed": 3}
    json.dumps(info.source)


# Weights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squeezenet():
    return load_backbone("squeezenet1_1", None, seed=11)[0].state_dict()


LAYERS = ("features.3", "features.5")


def same_features(extractor, state):
    reference = FeatureExtractor("squeezenet1_1", LAYERS, weights=state)
    images = images_of(1, 3, 64, 64)
    for output, expected in zip(extractor(images), reference(images), strict=True):
        torch.testing.assert_close(output, expected)


def test_weights_from_files(tmp_path, squeezenet):
    from safetensors.torch import save_file

    # Only what is run, as some files hold it; and with names as DataParallel and training scripts leave them.
    run = {name: tensor for name, tensor in squeezenet.items() if int((name + ".99").split(".")[1]) <= 5}
    run = {name: tensor for name, tensor in run.items() if name.startswith("features")}
    save_file(run, tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {"module." + name: t for name, t in run.items()}, "epoch": 3}, tmp_path / "w.pth"
    )
    for file in ("w.safetensors", "w.pth"):
        extractor = FeatureExtractor("squeezenet1_1", LAYERS, weights=tmp_path / file)
        same_features(extractor, squeezenet)
        assert extractor.source["kind"] == "file"
        assert extractor.source["path"] == str(tmp_path / file)
        assert len(extractor.source["sha256"]) == 64
        json.dumps(extractor.source)
    half = {name: tensor.half() for name, tensor in squeezenet.items()}
    extractor = FeatureExtractor("squeezenet1_1", LAYERS, weights=half)
    assert extractor.dtype == torch.float32
    same_features(extractor, {name: tensor.float() for name, tensor in half.items()})


def test_weights_may_lack_only_what_is_not_run(squeezenet):
    lacking = {name: tensor for name, tensor in squeezenet.items() if not name.startswith("features.4.")}
    extractor = FeatureExtractor("squeezenet1_1", ("features.3",), weights=lacking)
    assert {name.split(".")[1] for name in extractor.state_dict()} == {"0", "3"}
    with pytest.raises(
        ValueError, match=r"lacks 6 tensors needed for .*features\.5.*: features\.4\.expand1x1\.bias"
    ):
        FeatureExtractor("squeezenet1_1", LAYERS, weights=lacking)


def test_state_dict_brings_the_network_back(squeezenet):
    extractor = FeatureExtractor("squeezenet1_1", LAYERS, weights=squeezenet)
    assert extractor.source["kind"] == "state"
    state = extractor.state_dict()
    assert set(state) < set(squeezenet)
    same_features(FeatureExtractor("squeezenet1_1", LAYERS, weights=state), squeezenet)


@pytest.mark.slow
def test_parts_that_are_read_without_being_called_are_needed():
    # nn.MultiheadAttention reads out_proj.weight itself; the hook of out_proj never fires.
    extractor = FeatureExtractor("vit_b_16", ("encoder.layers.encoder_layer_0",), weights=None)
    names = set(extractor.state_dict())
    assert "encoder.layers.encoder_layer_0.self_attention.out_proj.weight" in names
    assert "class_token" in names
    assert not any("encoder_layer_1." in name or name.startswith("heads") for name in names)


def test_batch_counters_may_lack():
    module, _ = load_backbone("resnet10t", None)
    state = {name: t for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert FeatureExtractor("resnet10t", ("layer2",), weights=state).channels(64) == (128,)


def test_weights_of_another_network_are_refused(tmp_path, squeezenet):
    with pytest.raises(ValueError, match=r"has names that SqueezeNet does not know: features\.99\.w"):
        load_backbone("squeezenet1_1", {**squeezenet, "features.99.w": torch.zeros(1)})
    changed = {**squeezenet, "features.0.weight": torch.zeros(64, 3, 5, 5)}
    message = r"features\.0\.weight \(64, 3, 5, 5\) for \(64, 3, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        load_backbone("squeezenet1_1", changed)
    # A classifier of one's own is never run.
    own_head = {**squeezenet, "classifier.1.weight": torch.zeros(7, 512, 1, 1), "fc.bias": torch.zeros(7)}
    assert FeatureExtractor("squeezenet1_1", LAYERS, weights=own_head).channels(64) == (128, 128)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*gone\.pth"):
        load_backbone("squeezenet1_1", tmp_path / "gone.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_weight_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=f"cannot read .*{name}"):
        load_backbone("squeezenet1_1", tmp_path / name)


def test_weight_files_run_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"features.0.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"cannot read .*w\.pth"):
        load_backbone("squeezenet1_1", tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_mappings_that_are_no_state_dict_are_refused():
    with pytest.raises(ValueError, match="an empty mapping"):
        load_backbone("squeezenet1_1", {})
    with pytest.raises(ValueError, match="'epoch' is int"):
        load_backbone("squeezenet1_1", {"epoch": 3})


# Published weights without a network --------------------------------------------------------------


def test_default_weights_offline_say_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("Name or service not known")

    class Session:
        head = staticmethod(unreachable)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_a, **_k: None)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name, full, place in [
        ("resnet18", "resnet18.tv_in1k", "timm/resnet18.tv_in1k/resolve/main/model.safetensors"),
        ("squeezenet1_1", "squeezenet1_1.IMAGENET1K_V1", r"models/squeezenet1_1-\w+\.pth"),
    ]:
        message = rf"{full} .*Name or service.* from https://\S+{place}, and pass weights=PATH"
        with pytest.raises(WeightsUnavailableError, match=message):
            load_backbone(name)


@pytest.mark.slow
def test_default_weights_in_the_hubs_offline_mode(tmp_path):
    import subprocess
    import sys

    code = (
        "from ensemblead.networks.zoo import load_backbone\n"
        "from ensemblead.common.errors import WeightsUnavailableError\n"
        "try: load_backbone('resnet10t.c3_in1k')\n"
        "except WeightsUnavailableError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "pass weights=PATH" in done.stdout, done.stderr


def test_default_weights_come_from_the_cache_without_asking(monkeypatch, tmp_path):
    import huggingface_hub
    from safetensors.torch import save_file

    state = load_backbone("resnet10t.c3_in1k", None, seed=5)[0].state_dict()
    save_file(state, tmp_path / "model.safetensors")

    def asked(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_a, **_k: str(tmp_path / "model.safetensors")
    )
    monkeypatch.setattr(huggingface_hub, "get_session", asked)
    module, info = load_backbone("resnet10t.c3_in1k")
    assert info.source == {"kind": "zoo", "name": "resnet10t", "tag": "c3_in1k"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_names_without_published_weights_say_so():
    with pytest.raises(
        WeightsUnavailableError, match=r"no weights are published for resnet14t_none; pass weights=PATH"
    ):
        zoo._build_pretrained(zoo._Zoo("timm", "resnet14t_none", ""))


# Real weights, where a path is given --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("resnet18", ("layer2", "layer3"), (128, 256)),
        ("densenet169", ("features.denseblock2", "features.denseblock3"), (512, 1280)),
        ("squeezenet1_1", ("features.5", "features.8"), (128, 256)),
    ],
)
def test_real_weights(name, layers, channels):
    folder = os.environ.get("ENSEMBLEAD_WEIGHTS_DIR")
    if not folder:
        pytest.skip("ENSEMBLEAD_WEIGHTS_DIR is not set")
    extractor = FeatureExtractor(name, layers, weights=Path(folder) / f"{name}.safetensors")
    outputs = extractor(extractor.normalize((images_of(1, 3, 64, 64) * 255).byte()))
    assert tuple(output.shape[1] for output in outputs) == channels
    assert all(torch.isfinite(output).all() and output.std() > 0.01 for output in outputs)
