"""`engine="openvino"`: torch's features, what was learned kept, and clear errors."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import LAYERS, OPTIONS, Normed, Untraceable, detector_of, part_of
from support.methods import Colours
from support.networks import TinyNet
from torch import nn

import ensemblead as ead
from ensemblead.common.errors import EngineError, MissingExtraError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.networks.engines import by_shape, openvino
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Part
from ensemblead.networks.network import FeaturePool
from ensemblead.networks.placement import check_engine, resolve_engine

pytest.importorskip("openvino")
pytest.importorskip("nncf")


# --- features -------------------------------------------------------------------------------------


def test_features_are_those_of_torch_for_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    real = openvino.converted

    def counted(part: Part, images: torch.Tensor) -> Any:
        shapes.append(tuple(images.shape))
        return real(part, images)

    monkeypatch.setattr(openvino, "converted", counted)
    module = Normed()
    plain = ead.FeatureExtractor(module, LAYERS)
    quick = ead.FeatureExtractor(module, LAYERS).run_by("openvino")
    kept: list[torch.Tensor] = []
    for count, height in ((5, 32), (6, 32), (1, 32), (2, 48), (5, 32)):
        given = torch.randn(count, 3, height, 32)
        found = quick(given)
        for one, other in zip(plain(given), found, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
        kept += [found[0], found[0].clone()]
    # Five images are padded to six, and a later pass does not write into what an earlier one gave.
    assert shapes == [(6, 3, 32, 32), (1, 3, 32, 32), (2, 3, 48, 32)]
    for given, copy in zip(kept[::2], kept[1::2], strict=True):
        assert torch.equal(given, copy)
    assert not any(part._forward_hooks for part in module.modules())


class Placed(nn.Module):
    """Adds an embedding of each place, resized to the image's grid, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 4, 9, 9))
        self.out = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.patches(images)
        size = (found.shape[2], found.shape[3])
        places = nn.functional.interpolate(self.places, size, mode="bicubic", antialias=True)
        out: torch.Tensor = self.out(found + places)
        return out


def test_embeddings_of_places_are_resized_as_torch_does() -> None:
    module = Placed()
    given = torch.randn(1, 3, 24, 28)
    (expected,) = ead.FeatureExtractor(module, ["out"])(given)
    (found,) = ead.FeatureExtractor(module, ["out"]).run_by("openvino")(given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_four_shapes_are_kept() -> None:
    engine = openvino.OpenVinoEngine(part_of(Normed()))
    for height in (16, 20, 24, 28, 16, 32):
        engine.run(torch.zeros(1, 3, height, 16))
    assert [key[2] for key in engine._kept] == [24, 28, 16, 32]


@torch.no_grad()
def test_nan_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_shape, "deviation", lambda *_: float("nan"))
    engine = openvino.OpenVinoEngine(part_of(Normed()))
    with pytest.raises(EngineError, match="Normed: NaN in float32, where .*; use engine='torch'"):
        engine.run(torch.rand(1, 3, 16, 16))


@torch.no_grad()
def test_weights_that_change_are_seen() -> None:
    module = Normed()
    plain = ead.FeatureExtractor(module, LAYERS)
    quick = ead.FeatureExtractor(module, LAYERS).run_by("openvino")
    given = torch.rand(2, 3, 16, 16)
    before = quick(given)[0]
    module.first.weight.mul_(2)  # in place
    torch.testing.assert_close(quick(given)[0], plain(given)[0], rtol=1e-4, atol=1e-5)
    module.second = nn.Conv2d(10, 14, 3, 2, 1)  # another tensor
    torch.testing.assert_close(quick(given)[1], plain(given)[1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(quick(given)[0], before)


@torch.no_grad()
def test_values_that_are_exchanged_and_parts_that_are_added_are_seen() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(), nn.ReLU())
    plain = ead.FeatureExtractor(module, ["2"])
    quick = ead.FeatureExtractor(module, ["2"]).run_by("openvino")
    given = torch.rand(2, 3, 16, 16)
    quick(given)
    module[0].weight.data = 3 * module[0].weight.data
    torch.testing.assert_close(quick(given), plain(given), rtol=1e-4, atol=1e-5)
    module[1].append(nn.Conv2d(4, 4, 1))
    torch.testing.assert_close(quick(given), plain(given), rtol=1e-4, atol=1e-5)


def test_int8_of_weights_that_have_changed(images: Any) -> None:
    detector = detector_of().fit(images).quantize(images)
    detector.predict(images)
    with torch.no_grad():
        detector.network_.module.first.weight.mul_(2)
    with pytest.raises(EngineError, match="weights of Normed have changed since it was made int8; quantize"):
        detector.predict(images)


def test_sizes_of_batches() -> None:
    sizes = {count: len(by_shape.padded_batch(torch.zeros(count, 1))) for count in range(1, 50)}
    assert sorted(set(sizes.values())) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(count <= size <= 1.5 * count for count, size in sizes.items())
    assert by_shape.padded_batch(torch.arange(5.0)[:, None]).flatten().tolist() == [0, 1, 2, 3, 4, 4]


@torch.no_grad()
def test_bfloat16_is_rounded_float32() -> None:
    given = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = EagerEngine(part_of(Normed())).run(given)
    part = part_of(Normed().to(torch.bfloat16), "bfloat16", torch.bfloat16)
    if "BF16" in openvino.cpu_capabilities():
        found = openvino.OpenVinoEngine(part).run(given.to(torch.bfloat16))
    else:
        with pytest.warns(RuntimeWarning, match="no bfloat16"):
            found = openvino.OpenVinoEngine(part).run(given.to(torch.bfloat16))
    for layer in LAYERS:
        assert found[layer].dtype == torch.bfloat16
        assert 0 < by_shape.deviation(found[layer], exact[layer], "bfloat16") < 0.05


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32", "INT8"))
    with pytest.warns(RuntimeWarning, match="no bfloat16 that OpenVINO could use, and Normed is computed in"):
        engine = openvino.OpenVinoEngine(part_of(Normed(), "bfloat16"))
    assert engine._hint == "f32"
    assert openvino.OpenVinoEngine(part_of(Normed()))._hint == "f32"


# --- detectors ------------------------------------------------------------------------------------


def test_a_detector_keeps_its_engine_and_learns_the_same(images: Any, probe: Any, tmp_path: Path) -> None:
    module = Normed()
    plain = detector_of(module).fit(images)
    quick = detector_of(module, engine="openvino").fit(images)
    np.testing.assert_allclose(
        quick.predict(probe).anomaly_map, plain.predict(probe).anomaly_map, rtol=1e-3, atol=1e-4
    )
    assert quick._clone().engine == "openvino"
    quick.save(tmp_path / "quick")
    again = ead.load(tmp_path / "quick", backbone=Normed(3))
    assert (again.engine, again.precision) == ("openvino", "auto")
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, quick.predict(probe).anomaly_map)
    # A model that was fitted with torch runs by the other engine, and back.
    plain.save(tmp_path / "plain")
    other = ead.load(tmp_path / "plain", backbone=Normed(3), engine="openvino")
    np.testing.assert_array_equal(other.predict(probe).is_anomalous, plain.predict(probe).is_anomalous)
    back = ead.load(tmp_path / "quick", backbone=Normed(3), engine="torch")
    assert back.engine == "torch"


def test_one_network_by_two_engines_is_two(images: Any) -> None:
    module = Normed()
    parts = [detector_of(module, (layer,), engine="openvino") for layer in LAYERS]
    parts.append(detector_of(module, ("first",)))
    pool = FeaturePool([(part._frozen.network, part.geometry) for part in parts])
    assert len(pool._extractors) == 2


def test_auto_is_openvino_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert resolve_engine("auto", "auto", cpu, compile=False) == "openvino"
    assert resolve_engine("auto", "auto", cpu, compile=True) == "torch"
    assert resolve_engine("auto", "auto", gpu, compile=False) == "torch"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert resolve_engine("auto", "auto", cpu, compile=False) == "torch"


def test_the_teacher_of_a_trained_detector(images: Any, probe: Any) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "resize": None, "device": "cpu"}
    plain = ead.FastFlow(Normed(), LAYERS, **options).fit(images)
    quick = ead.FastFlow(Normed(), LAYERS, engine="openvino", **options).fit(images)
    quick._state = plain.state_  # the same flows
    found, expected = quick.predict(probe), plain.predict(probe)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)  # of eight images one may change sides
        quick.quantize(images)
    assert quick.precision == "int8"
    assert np.abs(quick.predict(probe).anomaly_map - expected.anomaly_map).max() > 0


def test_embedders_too(images: Any) -> None:
    options: dict[str, Any] = {"layer": "second", "resize": None, "image_size": None, "device": "cpu"}
    module = Normed()
    plain = ead.Embedder(module, **options)
    quick = ead.Embedder(module, engine="openvino", **options)
    expected = plain.embed(images)
    np.testing.assert_allclose(quick.embed(images), expected, rtol=1e-4, atol=1e-5)
    assert quick.quantize(images).precision == "int8"
    found = quick.embed(images)
    apart = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < apart < 0.1
    assert "precision='int8'" in repr(quick)


# --- bad input ------------------------------------------------------------------------------------


def test_openvino_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, images: Any) -> None:
    plain = detector_of().fit(images)
    monkeypatch.setitem(sys.modules, "openvino", None)
    install = r"pip install \"\.\[openvino\]\""
    with pytest.raises(MissingExtraError, match=f"engine='openvino' needs openvino, .*{install}"):
        detector_of(engine="openvino").fit(images)
    with pytest.raises(MissingExtraError, match=f"quantize needs openvino, .*{install}"):
        plain.quantize(images)
    with pytest.raises(MissingExtraError, match="precision='int8' needs openvino"):
        detector_of(engine="auto", precision="int8").fit(images)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match="quantize needs nncf"):
        plain.quantize(images)
    assert (plain.engine, plain.precision) == ("torch", "auto")


def test_openvino_and_a_gpu() -> None:
    with pytest.raises(ValueError, match="are for CPUs, and device is 'cuda:0'; use device='cpu'"):
        resolve_engine("openvino", "auto", torch.device("cuda", 0), compile=False)
    with pytest.raises(ValueError, match="are for CPUs, and device is 'cuda'"):
        check_engine("openvino", "cuda", compile=False)
    elsewhere = ead.FeatureExtractor(Normed().to("meta"), LAYERS).run_by("openvino")
    with pytest.raises(ValueError, match="'openvino' has no float32 on meta"):
        elsewhere(torch.zeros(1, 3, 8, 8, device="meta"))


def test_load_says_where_engine_and_precision_do_nothing(images: Any, tmp_path: Path) -> None:
    Colours(batch_size=4).fit(images).save(tmp_path / "colours")
    with pytest.warns(RuntimeWarning, match="networks that read images, and Colours has none"):
        ead.load(tmp_path / "colours", engine="openvino")
    own = ead.DRAEM(4, steps=1, batch_size=4, resize=None, device="cpu").fit(images)
    own.save(tmp_path / "own")
    loaded = ead.load(tmp_path / "own", engine="openvino", precision="bfloat16")
    assert (loaded.engine, loaded.precision) == ("openvino", "bfloat16")
    with pytest.raises(
        ValueError, match="engine must be one of torch, openvino, cuda-graph, auto, got 'openvin'"
    ):
        ead.load(tmp_path / "own", engine="openvin")
    with pytest.raises(ValueError, match="got 'int8': no network is frozen here"):
        ead.load(tmp_path / "own", precision="int8")
    ead.PatchCore("gabor", ("layer1",), **OPTIONS).fit(images).save(tmp_path / "gabor")
    for wrong in ({"engine": ""}, {"precision": ""}):
        with pytest.raises(ValueError, match="must be"):
            ead.load(tmp_path / "gabor", **wrong)


def test_engines_that_there_are_not() -> None:
    with pytest.raises(
        ValueError, match="engine must be one of torch, openvino, cuda-graph, auto, got 'openvin'; did you"
    ):
        detector_of(engine="openvin")
    with pytest.raises(ValueError, match="compile=True goes with engine='torch'"):
        detector_of(engine="openvino", compile=True)


class Changed(TinyNet):
    """Computes something else when it is traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * 1.5 if torch.jit.is_tracing() else images)


def test_networks_that_cannot_be_converted(images: Any) -> None:
    with pytest.raises(EngineError, match=r"cannot run Untraceable as far as first, second \(not while trac"):
        detector_of(Untraceable(), engine="openvino").fit(images)
    with pytest.raises(EngineError, match=r"other features than torch for layer 'first' of Changed: off by"):
        detector_of(Changed(), engine="openvino").fit(images)


def test_a_graph_of_other_weights_is_noticed(monkeypatch: pytest.MonkeyPatch, images: Any) -> None:
    real = openvino.converted
    monkeypatch.setattr(openvino, "converted", lambda part, given: real(part_of(Normed(7)), given))
    with pytest.raises(EngineError, match=r"off by [0-9.]+ of them in float32, where 0\.0001 is allowed"):
        detector_of(engine="openvino").fit(images)
