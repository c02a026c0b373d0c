"""`compile=True`: the same features, the same model, and an error where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import TinyNet
from support.textures import normal_images
from torch import nn

import ensemblead as ead
from ensemblead.common.errors import CompilationError, EnsembleADError
from ensemblead.networks.network import FeaturePool

OPTIONS: dict[str, Any] = {"image_size": None, "resize": None, "coreset_fraction": 0.05, "batch_size": 4}


class Branching(nn.Module):
    """Writes into what a layer has put out, and has a part behind the layers that images of 64 do not fit."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.body = TinyNet(seed)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(14, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.body.first(images)
        second = self.body.second(self.act(first))
        out: torch.Tensor = self.head(self.act(second))
        return out


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules given to `torch.compile`, which traces them as always and leaves the machine code out."""
    given: list[Any] = []
    real = torch.compile

    def compile_(module: Any) -> Any:
        given.append(module)
        return real(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_)
    torch._dynamo.reset()
    return given


def _detector(module: nn.Module, **options: Any) -> ead.PatchCore:
    return ead.PatchCore(module, ("body.first", "body.second"), **(OPTIONS | {"device": "cpu"} | options))


@pytest.mark.slow
def test_features_are_those_of_the_network_as_written(compiled: list[Any]) -> None:
    module = Branching()
    plain = ead.FeatureExtractor(module, ("body.first", "body.second"))
    quick = ead.FeatureExtractor(module, ("body.second", "body.first")).compile()
    for batch in (3, 5, 1, 2):
        images = torch.randn(batch, 3, 64, 64)
        for a, b in zip(plain(images), reversed(quick(images)), strict=True):
            torch.testing.assert_close(a, b)
    assert len(compiled) == 1
    # The caller's module has no hooks, and shares its tensors with the compiled one.
    assert not any(part._forward_hooks for part in module.modules())
    assert compiled[0].network.body.first.weight is module.body.first.weight
    # What comes behind the last layer is not computed.
    module.head.weight.data = torch.empty(2, 14, 3, 3)
    assert torch.isfinite(quick(torch.randn(2, 3, 64, 64))[0]).all()


def test_a_layer_that_does_not_fit_is_named_before_anything_is_compiled(compiled: list[Any]) -> None:
    class Pair(Branching):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body.first(images)  # type: ignore[no-any-return]

    extractor = ead.FeatureExtractor(Pair(), ("body.first", "body.second")).compile()
    with pytest.raises(ValueError, match=r"layers: \['body.second'\] exist in Pair but its forward pass"):
        extractor(torch.randn(2, 3, 64, 64))
    assert compiled == []


def test_a_detector_keeps_it_through_everything(compiled: list[Any], tmp_path: Path) -> None:
    images, probe = normal_images(6), normal_images(3, 1)
    detector = _detector(Branching(), compile=True).fit(images)
    expected = _detector(Branching()).fit(images)
    np.testing.assert_allclose(
        detector.predict(probe).anomaly_map, expected.predict(probe).anomaly_map, rtol=1e-4, atol=1e-5
    )
    assert len(compiled) == 1
    assert detector._clone().compile
    assert detector._clone().network_ is detector.network_
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=Branching(3))
    assert isinstance(again, ead.PatchCore)
    assert again.compile
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, detector.predict(probe).anomaly_map)
    assert len(compiled) == 2


def test_members_share_one_compiled_pass_call_after_call(compiled: list[Any]) -> None:
    module = Branching()
    members = [
        ead.PatchCore(module, (layer,), **OPTIONS, device="cpu", compile=True)
        for layer in ("body.first", "body.second")
    ]
    ensemble = ead.BackboneEnsemble(members).fit(normal_images(6))
    ensemble.predict(normal_images(2, 1))
    assert len(compiled) == 1
    # One that is compiled and one that is not are two networks.
    plain = ead.PatchCore(module, ("body.first",), **OPTIONS, device="cpu")
    pool = FeaturePool([(leaf._frozen.network, leaf.geometry) for leaf in (members[0], plain)])
    assert len(pool._extractors) == 2


def test_what_cannot_be_compiled_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: Any) -> Any:
        raise RuntimeError("torch.compile is not supported on Python 9.9")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(
        CompilationError, match=r"cannot compile Branching \(.*Python 9\.9\); use compile=False"
    ):
        _detector(Branching(), compile=True).fit(normal_images(2))

    def broken(module: Any) -> Any:
        def call(images: torch.Tensor) -> Any:
            raise RuntimeError("\n  no compiler found\nat length")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(EnsembleADError, match=r"\(no compiler found\)"):
        _detector(Branching(), compile=True).fit(normal_images(2))

    def full(module: Any) -> Any:
        def call(images: torch.Tensor) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        _detector(Branching(), compile=True).fit(normal_images(2))


def test_only_yes_or_no() -> None:
    with pytest.raises(TypeError, match="compile must be a bool, got 'max-autotune'"):
        ead.PatchCore("gabor", compile="max-autotune")


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # torch's advice to use them
def test_on_a_gpu_for_good(cuda_torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # In TF32, rounded elsewhere by another graph, features would differ enough for another coreset.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images, probe = normal_images(6), normal_images(3, 1)
    quick = _detector(Branching(), device="cuda", precision="float32", compile=True).fit(images)
    plain = _detector(Branching(), device="cuda", precision="float32").fit(images)
    np.testing.assert_allclose(
        quick.predict(probe).anomaly_map, plain.predict(probe).anomaly_map, rtol=1e-2, atol=1e-3
    )
