"""All that can be exported beside PatchCore: the same scores, maps and verdicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
import torch
from support.exports import assert_same, exported
from support.networks import NATIVE, TinyNet
from support.textures import normal_images
from torch import nn

import ensemblead as ead
from ensemblead.deploy.graph import DetectorGraph
from ensemblead.deploy.tiles import seam_mask
from ensemblead.ensembles.tile_frame import TileFrame

SIDE = 64
PYRAMID = ("one", "two", "three")
CPU: dict[str, Any] = {"resize": None, "device": "cpu"}
TRAINED: dict[str, Any] = {**CPU, "steps": 2, "batch_size": 4}


class Pyramid(nn.Module):
    """Three layers, each of half the grid of the one before: 16, 8 and 4 for 64 pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one = nn.Conv2d(3, 6, 5, 4, 2)
        self.two = nn.Conv2d(6, 8, 3, 2, 1)
        self.three = nn.Conv2d(8, 10, 3, 2, 1)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(images).relu()).relu())  # type: ignore[no-any-return]


def patchcore(seed: int = 0, **options: Any) -> ead.PatchCore:
    given = NATIVE | {"coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"} | options
    return ead.PatchCore(TinyNet(seed), ("first", "second"), **given)


def padim(**options: Any) -> ead.PaDiM:
    return ead.PaDiM(TinyNet(), ("first", "second"), **CPU, **options)


DETECTORS: dict[str, Callable[[], Any]] = {
    "padim": lambda: padim(num_dimensions=20),
    "padim without the first layer": lambda: padim(num_dimensions=2, seed=3),
    "calibrated": lambda: ead.BackboneEnsemble([patchcore(), padim(num_dimensions=8)], weights=[1, 2]),
    "max": lambda: ead.BackboneEnsemble([patchcore(), patchcore(2, resize=(48, 48))], fusion="max"),
    "mean of one network": lambda: ead.BackboneEnsemble(
        [patchcore(), padim(num_dimensions=8)], fusion="mean"
    ),
    "tiles": lambda: ead.TiledEnsemble(patchcore(), 40, 24, image_size=SIDE),
    "padded tiles": lambda: ead.TiledEnsemble(
        patchcore(), (32, 28), (28, 28), image_size=(56, 60), edge="pad", score="max", normalization="image"
    ),
    "shared tiles of an ensemble": lambda: ead.TiledEnsemble(
        ead.BackboneEnsemble([patchcore(), patchcore(2)]),
        32,
        image_size=SIDE,
        stride=32,
        shared=True,
        normalization="none",
        seam_smoothing=False,
    ),
    "tiles and whole": lambda: ead.BackboneEnsemble(
        [patchcore(), ead.TiledEnsemble(patchcore(), 32, 24, image_size=SIDE)]
    ),
    "reverse distillation": lambda: ead.ReverseDistillation(Pyramid(), PYRAMID, **TRAINED),
    "fastflow": lambda: ead.FastFlow(Pyramid(), PYRAMID, flow_steps=3, **TRAINED),
    "efficientad": lambda: ead.EfficientAD("small", "pdn_small", ("conv4",), weights=None, **TRAINED),
    "gabor": lambda: ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.05, image_size=None, **CPU),
}


@pytest.fixture(scope="module")
def images() -> Any:
    return normal_images(6, side=SIDE)


@pytest.fixture(scope="module")
def probe() -> Any:
    made = normal_images(10, 1, side=SIDE)
    made[8:, 10:30, 10:30] = np.array([255, 0])[:, None, None, None]
    return made


# The others take a minute.
QUICK = ("padim", "calibrated", "max", "tiles")
CASES = [
    pytest.param(name, format, marks=() if name in QUICK and format == "openvino" else pytest.mark.slow)
    for name in DETECTORS
    for format in ("openvino", "onnx")
]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_every_detector(tmp_path: Path, images: Any, probe: Any, name: str, format: str) -> None:
    detector = DETECTORS[name]().fit(images)
    expected = detector.predict(probe)
    found = exported(detector, tmp_path / "out", probe, format=format)
    assert_same(found.predict(probe), expected)


@pytest.mark.slow
def test_tiles_of_resized_images_in_int8(tmp_path: Path, images: Any, probe: Any) -> None:
    pytest.importorskip("nncf")
    detector = ead.TiledEnsemble(patchcore(), 32, 32, image_size=SIDE).fit(images).quantize(images)
    found = exported(detector, tmp_path / "out", probe, input="resized", precision="int8")
    assert_same(found.predict(probe), detector.predict(probe), 5e-3)


@pytest.mark.slow
def test_efficientad_with_another_network(tmp_path: Path, images: Any, probe: Any) -> None:
    detector = ead.EfficientAD("small", TinyNet(), ("second",), **TRAINED)
    with pytest.raises(ValueError, match="the first must have stride 8"):
        detector.fit(images)
    detector = ead.EfficientAD("small", Pyramid(), ("two", "three"), **TRAINED).fit(images)
    found = exported(detector, tmp_path / "out", probe)
    assert_same(found.predict(probe), detector.predict(probe))
    pytest.importorskip("nncf")
    detector.quantize(images)
    with pytest.raises(ValueError, match="precision='int8': a method that runs its network itself"):
        detector.export(tmp_path / "int8", verify=probe, precision="int8")


def test_members_of_one_network_share_its_pass(images: Any) -> None:
    network = ead.FeatureExtractor(TinyNet(), ("first", "second")).module
    members = [
        ead.PatchCore(network, (layer,), **NATIVE, coreset_fraction=0.05, device="cpu")
        for layer in ("first", "second")
    ]
    graph = DetectorGraph(ead.BackboneEnsemble(members).fit(images), (SIDE, SIDE), resized=True)
    assert [one.layers for one in graph.passes] == [("first", "second")]


@pytest.mark.parametrize("edge", ["flush", "pad"])
def test_seams_are_those_of_the_kernel(edge: Any) -> None:
    frame = TileFrame((50, 41), (20, 16), (13, 16), edge)
    maps = np.random.default_rng(0).random((1, 50, 41), dtype=np.float32)
    smooth = ead.smooth_seams(maps, frame.tile_size, frame.stride, edge=edge)
    np.testing.assert_array_equal(seam_mask(frame), (smooth != maps)[0])


class Tokens(nn.Module):
    """A network whose layer puts out tokens, the first of which belongs to no place."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 8, 8)
        self.block = nn.Linear(12, 12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.convolution(images).flatten(2).transpose(1, 2)
        return self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_tokens(tmp_path: Path, images: Any, probe: Any, format: str) -> None:
    torch.manual_seed(0)
    detector = ead.PatchCore(Tokens(), ("block",), **NATIVE, coreset_fraction=0.1, device="cpu").fit(images)
    assert_same(
        exported(detector, tmp_path / "out", probe, format=format).predict(probe), detector.predict(probe)
    )
