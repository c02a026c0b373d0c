"""FeatureExtractor on small networks: hooks, early end, grids, modes; weights into named networks."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")
from torch import nn  # noqa: E402

from ensemblead.errors import WeightsUnavailableError  # noqa: E402
from ensemblead.features import backbones  # noqa: E402
from ensemblead.features.backbones import load_backbone  # noqa: E402
from ensemblead.features.extractor import FeatureExtractor  # noqa: E402
from ensemblead.features.grids import TokenLayout  # noqa: E402

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Small(nn.Module):
    """Two strided blocks with batch norms and a ReLU in place; `tail` must never run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleDict({"a": nn.Conv2d(4, 6, 3, 2, 1), "b": nn.Conv2d(6, 8, 3, 2, 1)})
        self.twice = nn.Hardtanh(-0.5, 0.5)
        self.tail = Explosive()
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        x = self.twice(self.stem(images))
        x = self.blocks["a"](x)
        x = self.drop(self.twice(x * 3.0))
        return self.tail(self.blocks["b"](x))


class Explosive(nn.Module):
    def forward(self, x):
        raise RuntimeError("the pass should have ended before")


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(0)
    module = Small()
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        module.stem[1].running_var.abs_().add_(0.5)
    return module


def images_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


# Hooks and the end of the pass --------------------------------------------------------------------


def test_layers_come_back_in_the_order_asked_at_any_depth(small):
    images = images_of(2, 3, 32, 48)
    small.eval()
    with torch.no_grad():
        stem = small.stem(images)
        a = small.blocks["a"](small.twice(stem))
        b = small.blocks["b"](small.twice(a * 3.0))
    expected = {"stem": stem, "blocks.a": a, "blocks.b": b}
    for order in [
        ("stem", "blocks.a", "blocks.b"),
        ("blocks.b", "stem", "blocks.a"),
        ("blocks.a",),
        ("stem",),
    ]:
        outputs = FeatureExtractor(small, order)(images)
        assert len(outputs) == len(order)
        for layer, output in zip(order, outputs, strict=True):
            torch.testing.assert_close(output, expected[layer])
            assert output.is_contiguous()
            assert not output.requires_grad


def test_a_layer_inside_another_one(small):
    images = images_of(1, 3, 16, 16)
    outer, inner = FeatureExtractor(small, ("stem", "stem.0"))(images)
    with torch.no_grad():
        torch.testing.assert_close(inner, small.stem[0](images))
    torch.testing.assert_close(outer, FeatureExtractor(small, ("stem",))(images)[0])


def test_what_follows_in_place_does_not_reach_a_layer(small):
    # stem.2 rectifies the output of stem.1 in place.
    before, _ = FeatureExtractor(small, ("stem.1", "blocks.a"))(images_of(1, 3, 16, 16))
    assert before.min() < 0
    torch.testing.assert_close(before, FeatureExtractor(small, ("stem.1",))(images_of(1, 3, 16, 16))[0])


def test_a_layer_called_twice_gives_its_first_output(small):
    images = images_of(1, 3, 16, 16)
    twice, a = FeatureExtractor(small, ("twice", "blocks.a"))(images)
    stem = FeatureExtractor(small, ("stem",))(images)[0]
    torch.testing.assert_close(twice, stem.clamp(-0.5, 0.5))
    assert a.shape[1] == 6


def test_the_module_is_left_as_it_was(small):
    small.train()
    small.stem[1].eval()
    flags = {name: part.training for name, part in small.named_modules()}
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    extractor = FeatureExtractor(small, ("stem", "blocks.b"))
    first = extractor(images_of(2, 3, 16, 16))
    assert extractor.channels(32) == (4, 8)
    assert {name: part.training for name, part in small.named_modules()} == flags
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in small.modules())
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    # Eval mode inside: no dropout, no statistics of the batch.
    for one, other in zip(first, extractor(images_of(2, 3, 16, 16)), strict=True):
        assert torch.equal(one, other)


def test_hooks_and_flags_are_put_back_after_an_error(small):
    small.train()
    extractor = FeatureExtractor(small, ("unused",))
    with pytest.raises(RuntimeError, match="should have ended before"):
        extractor(images_of(1, 3, 16, 16))
    assert small.training
    assert not any(part._forward_hooks for part in small.modules())


def test_the_networks_own_handlers_do_not_swallow_the_end():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            try:
                return self.conv(x)
            except Exception:
                raise AssertionError("swallowed") from None

    assert FeatureExtractor(Careful(), ("conv",))(images_of(1, 3, 8, 8))[0].shape == (1, 2, 8, 8)


def test_a_layer_never_called_is_an_error():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x)

    with pytest.raises(
        ValueError, match=r"layers: \['idle'\] exist in Idle but its forward pass never calls"
    ):
        FeatureExtractor(Idle(), ("conv", "idle"))(images_of(1, 3, 8, 8))


def test_threads_do_not_catch_each_others_outputs(small):
    small.eval()
    extractors = [FeatureExtractor(small, ("stem",)), FeatureExtractor(small, ("blocks.b",))]
    inputs = [images_of(1, 3, 16, 16), images_of(1, 3, 32, 32) * 2.0]
    expected = [extractor(x)[0] for extractor, x in zip(extractors, inputs, strict=True)]
    wrong: list[object] = []

    def work(k: int) -> None:
        for _ in range(60):
            try:
                (output,) = extractors[k](inputs[k])
                if output.shape != expected[k].shape or not torch.equal(output, expected[k]):
                    wrong.append((k, output.shape))
            except BaseException as error:
                wrong.append((k, error))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_compiled_module_is_run_as_written(small):
    compiled = torch.compile(small, backend="eager")
    images = images_of(1, 3, 16, 16)
    expected = FeatureExtractor(small, ("stem", "blocks.a"))(images)
    got = FeatureExtractor(compiled, ("stem", "blocks.a"))(images)
    small.blocks["a"].compile(backend="eager")
    again = FeatureExtractor(small, ("stem", "blocks.a"))(images)
    for reference, one, other in zip(expected, got, again, strict=True):
        assert torch.equal(reference, one)
        assert torch.equal(reference, other)


# What is asked for --------------------------------------------------------------------------------


def test_wrong_layers_are_refused(small):
    with pytest.raises(ValueError, match=r"Small has no layer 'block\.a'; did you mean one of blocks\.a"):
        FeatureExtractor(small, ("block.a",))
    with pytest.raises(ValueError, match=r"no layer 'zzz'; did you mean one of stem, blocks, twice"):
        FeatureExtractor(small, ("zzz",))
    with pytest.raises(
        TypeError, match=r"layers must be a sequence of names, got one string; write \('stem',\)"
    ):
        FeatureExtractor(small, "stem")
    with pytest.raises(ValueError, match="layers must not be empty"):
        FeatureExtractor(small, ())
    with pytest.raises(ValueError, match="layers must differ"):
        FeatureExtractor(small, ("stem", "stem"))


def test_wrong_backbones_are_refused(small):
    with pytest.raises(ValueError, match="a module brings its own"):
        FeatureExtractor(small, ("stem",), weights={"a": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"backbone must be a name or a torch\.nn\.Module, got int"):
        FeatureExtractor(5, ("stem",))
    with pytest.raises(ValueError, match="std must be positive"):
        FeatureExtractor(small, ("stem",), std=(0.1, 0.0, 0.1))
    with pytest.raises(ValueError, match="mean must be three numbers"):
        FeatureExtractor(small, ("stem",), mean=(0.1, 0.0))


def test_wrong_images_are_refused(small):
    extractor = FeatureExtractor(small, ("stem",))
    with pytest.raises(TypeError, match=r"must be a float tensor, normalised .*got torch\.uint8"):
        extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got shape \(3, 8, 8\)"):
        extractor(torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match=r"images must be uint8, got torch\.float32"):
        extractor.normalize(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="image_size must be positive"):
        extractor.grid(0)


def test_attributes_of_a_module(small):
    extractor = FeatureExtractor(small, ["blocks.b", "stem"])
    assert extractor.name == "Small"
    assert extractor.layers == ("blocks.b", "stem")
    assert (extractor.mean, extractor.std) == IMAGENET
    assert extractor.input_size is None
    assert extractor.source == {"kind": "module"}
    assert extractor.module is small
    assert extractor.channels(32) == (8, 4)
    assert extractor.grid(32) == (4, 4)
    assert extractor.grid((32, 64)) == (4, 8)
    other = FeatureExtractor(small, ("stem",), mean=(0, 0, 0), std=(1, 1, 1))
    assert (other.mean, other.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_with_layers_shares_the_network(small):
    extractor = FeatureExtractor(small, ("stem",), mean=(0.1, 0.2, 0.3))
    other = extractor.with_layers(("blocks.b", "stem"))
    assert other.module is small
    assert other.mean == extractor.mean
    assert extractor.layers == ("stem",)
    assert other.channels(32) == (8, 4)
    assert extractor.channels(32) == (4,)
    with pytest.raises(ValueError, match="no layer 'stam'"):
        extractor.with_layers(("stam",))


def test_normalize(small):
    pixels = torch.randint(
        0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    extractor = FeatureExtractor(small, ("stem",), mean=(0.5, 0.25, 0.0), std=(0.1, 0.5, 1.0))
    mean, std = torch.tensor([0.5, 0.25, 0.0]), torch.tensor([0.1, 0.5, 1.0])
    expected = (pixels.double() / 255.0 - mean[:, None, None]) / std[:, None, None]
    got = extractor.normalize(pixels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    half = extractor.to("cpu", torch.bfloat16).normalize(pixels)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, expected.to(torch.bfloat16), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_precision_and_layout(small, dtype, channels_last):
    images = images_of(2, 3, 32, 32)
    expected = FeatureExtractor(small, ("stem", "blocks.b"))(images)
    extractor = FeatureExtractor(small, ("stem", "blocks.b"))
    assert extractor.to("cpu", dtype, channels_last=channels_last) is extractor
    assert extractor.dtype == dtype
    assert extractor.device == torch.device("cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for output, reference in zip(extractor(images), expected, strict=True):
        assert output.dtype == dtype
        assert output.is_contiguous(memory_format=layout)
        torch.testing.assert_close(output.float(), reference, rtol=0.05, atol=0.05)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point type, got torch\.int8"):
        extractor.to("cpu", torch.int8)


# Tokens -------------------------------------------------------------------------------------------


def numbered(rows: int, columns: int, prefix: int) -> torch.Tensor:
    """Tokens `[1, T, 2]`, their places in channel 0 and 1; leading ones are -1."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    return torch.cat([torch.full((prefix, 2), -1.0), places])[None]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("image_size", "grid"), [((224, 224), (14, 14)), ((160, 320), (10, 20)), ((96, 64), (6, 4))]
)
def test_tokens_return_to_their_places(known, prefix, image_size, grid):
    module = nn.Identity()
    if known:
        module.num_prefix_tokens = prefix
    output = TokenLayout(module).to_grid(numbered(*grid, prefix), "blocks.1", image_size)
    assert output.shape == (1, 2, *grid)
    assert torch.equal(output[0, 0], torch.arange(grid[0])[:, None].expand(grid).float())
    assert torch.equal(output[0, 1], torch.arange(grid[1])[None].expand(grid).float())


def test_tokens_of_rounded_grids():
    # 100 x 150 in patches of 16, padded: 7 x 10.
    module = nn.Identity()
    module.num_prefix_tokens = 1
    assert TokenLayout(module).to_grid(numbered(7, 10, 1), "x", (100, 150)).shape == (1, 2, 7, 10)
    # Before the class token is joined the tokens have no leading one.
    assert TokenLayout(module).to_grid(numbered(14, 14, 0), "x", (224, 224)).shape == (1, 2, 14, 14)
    # A network inside another one is asked as well.
    assert TokenLayout(nn.Sequential(module)).prefix_tokens == 1


def test_channels_in_front_or_behind():
    layout = TokenLayout(nn.Identity())
    assert layout.to_grid(torch.zeros(2, 7, 7, 96), "x", (224, 224)).shape == (2, 96, 7, 7)
    assert layout.to_grid(torch.zeros(2, 96, 7, 7), "x", (224, 224)).shape == (2, 96, 7, 7)
    assert layout.to_grid(torch.zeros(2, 7, 14, 96), "x", (224, 448)).shape == (2, 96, 7, 14)
    assert layout.to_grid(torch.zeros(2, 96, 7, 14), "x", (224, 448)).shape == (2, 96, 7, 14)
    assert layout.to_grid(torch.zeros(2, 27, 27, 128), "x", (224, 224)).shape == (2, 128, 27, 27)
    both = torch.rand(1, 9, 9, 9)
    assert torch.equal(layout.to_grid(both, "x", (72, 72)), both)
    swin = nn.Identity()
    swin.output_fmt = "NHWC"
    assert torch.equal(TokenLayout(swin).to_grid(both, "x", (72, 72)), both.permute(0, 3, 1, 2))
    assert TokenLayout(swin).to_grid(torch.zeros(2, 96, 7, 7), "x", (224, 224)).shape == (2, 96, 7, 7)


def test_outputs_without_a_grid_are_refused():
    layout = TokenLayout(nn.Identity())
    with pytest.raises(
        ValueError, match="'x' gives a tuple, not one tensor of features; name a layer inside"
    ):
        layout.to_grid((torch.zeros(1),), "x", (8, 8))
    with pytest.raises(ValueError, match=r"'x' gives shape \(2, 512\), which has no grid"):
        layout.to_grid(torch.zeros(2, 512), "x", (8, 8))
    with pytest.raises(ValueError, match=r"'x' gives 99 tokens, which no grid of the image's aspect 224:224"):
        layout.to_grid(torch.zeros(2, 99, 8), "x", (224, 224))


@pytest.mark.parametrize(
    ("name", "layers", "size", "shapes"),
    [
        ("vit_tiny_patch16_224", ("blocks.1", "patch_embed"), (64, 96), [(192, 4, 6), (192, 4, 6)]),
        ("swin_tiny_patch4_window7_224", ("layers.1", "layers.0"), (224, 224), [(192, 28, 28), (96, 56, 56)]),
        ("densenet121", ("features.denseblock2",), (64, 64), [(512, 8, 8)]),
        ("squeezenet1_1", ("features.5", "features.3"), (64, 64), [(128, 7, 7), (128, 15, 15)]),
    ],
)
def test_real_architectures(name, layers, size, shapes):
    extractor = FeatureExtractor(name, layers, weights=None)
    outputs = extractor(images_of(1, 3, *size))
    assert [tuple(output.shape[1:]) for output in outputs] == shapes
    assert extractor.grid(size) == shapes[0][1:]


# Names and weights --------------------------------------------------------------------------------


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
    zoo = backbones._look_up(name)
    assert (zoo.library, zoo.name, zoo.tag) == (library, found, tag)


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
        ValueError, match=r"lacks 6 tensors that .*features\.5.* need: features\.4\.expand1x1\.bias"
    ):
        FeatureExtractor("squeezenet1_1", LAYERS, weights=lacking)


def test_state_dict_brings_the_network_back(squeezenet):
    extractor = FeatureExtractor("squeezenet1_1", LAYERS, weights=squeezenet)
    assert extractor.source["kind"] == "state"
    state = extractor.state_dict()
    assert set(state) < set(squeezenet)
    same_features(FeatureExtractor("squeezenet1_1", LAYERS, weights=state), squeezenet)


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
    for name, full in [("resnet18", "resnet18.tv_in1k"), ("squeezenet1_1", "squeezenet1_1.IMAGENET1K_V1")]:
        with pytest.raises(WeightsUnavailableError, match=rf"{full} .*Name or service.*pass weights=PATH"):
            load_backbone(name)


def test_default_weights_in_the_hubs_offline_mode(tmp_path):
    import subprocess
    import sys

    code = (
        "from ensemblead.features.backbones import load_backbone\n"
        "from ensemblead.errors import WeightsUnavailableError\n"
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
        backbones._build_pretrained(backbones._Zoo("timm", "resnet14t_none", ""))


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
