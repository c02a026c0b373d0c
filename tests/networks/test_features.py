"""FeatureExtractor on small networks: hooks, early end, grids, modes."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")
from torch import nn  # noqa: E402

from ensemblead.networks.extractor import FeatureExtractor  # noqa: E402
from ensemblead.networks.grids import TokenLayout  # noqa: E402

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
