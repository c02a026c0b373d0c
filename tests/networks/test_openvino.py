"""`engine="openvino"` and int8: torch's features, what was learned kept, and clear errors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.networks import TinyNet
from support.tampering import altered, replace_file
from support.textures import normal_images
from torch import nn

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, EngineError, MissingExtraError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.detectors import Method
from ensemblead.detectors.quantizing import _Sample, warn_of_changes
from ensemblead.images import chosen_images, open_images
from ensemblead.networks.engines import openvino
from ensemblead.networks.engines.engine import Part
from ensemblead.networks.network import FeaturePool, Network
from ensemblead.networks.placement import check_engine, resolve_engine

pytest.importorskip("openvino")
pytest.importorskip("nncf")

LAYERS = ("first", "second")
OPTIONS: dict[str, Any] = {
    "image_size": None,
    "resize": None,
    "coreset_fraction": 0.05,
    "batch_size": 4,
    "device": "cpu",
}


class Normed(TinyNet):
    """With a batch norm, which both engines fold, and a layer that writes into what came before it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.norm = nn.BatchNorm2d(10)
        self.norm.running_mean = torch.linspace(-0.5, 0.5, 10)
        self.norm.running_var = torch.linspace(0.5, 2.0, 10)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.second(self.act(self.norm(self.first(images)))))  # type: ignore[no-any-return]


def _detector(module: Any = None, layers: tuple[str, ...] = LAYERS, **options: Any) -> ead.PatchCore:
    return ead.PatchCore(Normed() if module is None else module, layers, **(OPTIONS | options))


def _part(module: nn.Module, precision: str = "float32", dtype: torch.dtype = torch.float32) -> Part:
    return Part(module.eval(), LAYERS, "Normed", torch.device("cpu"), dtype, precision)


@pytest.fixture(scope="module")
def images() -> Any:
    return normal_images(8)


@pytest.fixture(scope="module")
def probe() -> Any:
    made = normal_images(4, 1)
    made[3, 10:30, 10:30] = 255
    return made


@pytest.fixture(scope="module")
def quantized(images: Any) -> ead.PatchCore:
    """A detector that was fitted in float32 and quantized; the tests do not change it."""
    return _detector().fit(images).quantize(images)


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


@torch.no_grad()
def test_four_shapes_are_kept() -> None:
    engine = openvino.OpenVinoEngine(_part(Normed()))
    for height in (16, 20, 24, 28, 16, 32):
        engine.run(torch.zeros(1, 3, height, 16))
    assert [key[2] for key in engine._kept] == [24, 28, 16, 32]


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


def test_int8_of_weights_that_have_changed(images: Any) -> None:
    detector = _detector().fit(images).quantize(images)
    detector.predict(images)
    with torch.no_grad():
        detector.network_.module.first.weight.mul_(2)
    with pytest.raises(EngineError, match="weights of Normed have changed since it was made int8; quantize"):
        detector.predict(images)


def test_sizes_of_batches() -> None:
    sizes = {count: len(openvino._padded(torch.zeros(count, 1))) for count in range(1, 50)}
    assert sorted(set(sizes.values())) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(count <= size <= 1.5 * count for count, size in sizes.items())
    assert openvino._padded(torch.arange(5.0)[:, None]).flatten().tolist() == [0, 1, 2, 3, 4, 4]


@torch.no_grad()
def test_bfloat16_is_rounded_float32() -> None:
    given = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = openvino.EagerEngine(_part(Normed())).run(given)
    part = _part(Normed().to(torch.bfloat16), "bfloat16", torch.bfloat16)
    if "BF16" in openvino.cpu_capabilities():
        found = openvino.OpenVinoEngine(part).run(given.to(torch.bfloat16))
    else:
        with pytest.warns(RuntimeWarning, match="no bfloat16"):
            found = openvino.OpenVinoEngine(part).run(given.to(torch.bfloat16))
    for layer in LAYERS:
        assert found[layer].dtype == torch.bfloat16
        assert 0 < openvino.deviation(found[layer], exact[layer], "bfloat16") < 0.05


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32", "INT8"))
    with pytest.warns(RuntimeWarning, match="no bfloat16 that OpenVINO could use, and Normed is computed in"):
        engine = openvino.OpenVinoEngine(_part(Normed(), "bfloat16"))
    assert engine._hint == "f32"
    assert openvino.OpenVinoEngine(_part(Normed()))._hint == "f32"


# --- detectors ------------------------------------------------------------------------------------


def test_a_detector_keeps_its_engine_and_learns_the_same(images: Any, probe: Any, tmp_path: Path) -> None:
    module = Normed()
    plain = _detector(module).fit(images)
    quick = _detector(module, engine="openvino").fit(images)
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
    parts = [_detector(module, (layer,), engine="openvino") for layer in LAYERS]
    parts.append(_detector(module, ("first",)))
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
    assert quick.quantize(images).precision == "int8"
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


# --- int8 -----------------------------------------------------------------------------------------


def test_bank_and_threshold_hold_in_int8(images: Any, probe: Any, quantized: ead.PatchCore) -> None:
    plain = _detector().fit(images)
    np.testing.assert_array_equal(quantized.memory_bank_.rows_, plain.memory_bank_.rows_)
    assert quantized.threshold_ == plain.threshold_
    assert (quantized.engine, quantized.precision) == ("openvino", "int8")
    found, expected = quantized.predict(probe), plain.predict(probe)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)
    assert found.is_anomalous.tolist() == [False, False, False, True]
    assert np.abs(found.anomaly_map - expected.anomaly_map).max() > 0


def test_int8_is_saved_as_data_and_loaded(probe: Any, quantized: ead.PatchCore, tmp_path: Path) -> None:
    quantized.save(tmp_path / "m")
    assert (tmp_path / "m" / "quantized.xml").read_bytes().startswith(b"<?xml")
    expected = quantized.predict(probe)
    again = ead.load(tmp_path / "m", backbone=Normed())
    assert again.precision == "int8"
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, expected.anomaly_map)
    again.save(tmp_path / "n")
    third = ead.load(tmp_path / "n", backbone=Normed())
    np.testing.assert_array_equal(third.predict(probe).anomaly_map, expected.anomaly_map)
    exact = ead.load(tmp_path / "m", backbone=Normed(), engine="torch", precision="float32")
    plain = _detector().fit(normal_images(8))
    np.testing.assert_array_equal(exact.predict(probe).anomaly_map, plain.predict(probe).anomaly_map)
    (tmp_path / "m" / "quantized.bin").write_bytes(b"\1" * (tmp_path / "m" / "quantized.bin").stat().st_size)
    with pytest.raises(DamagedModelError, match=r"quantized\.bin was altered"):
        ead.load(tmp_path / "m", backbone=Normed())


def test_int8_is_compared_on_its_probe_and_not_on_defects(
    probe: Any, quantized: ead.PatchCore, tmp_path: Path
) -> None:
    quantized.save(tmp_path / "m")
    wild = np.random.default_rng(0).integers(0, 2, (3, 40, 48, 3), dtype=np.uint8) * 255
    found = ead.load(tmp_path / "m", backbone=Normed()).predict(
        wild
    )  # far beyond the ranges, at another size
    assert found.is_anomalous.all()
    other = _detector(Normed(7)).fit(normal_images(8)).quantize(normal_images(8))._frozen.network.quantized  # type: ignore[union-attr]
    assert other is not None
    replace_file(tmp_path / "m", "quantized.xml", other.graph)
    replace_file(tmp_path / "m", "quantized.bin", other.constants)
    with pytest.raises(EngineError, match=r"other features than torch .* in int8, where 0\.5 is allowed"):
        ead.load(tmp_path / "m", backbone=Normed()).predict(probe)
    replace_file(tmp_path / "m", "quantized.xml", other.graph[:300])
    with pytest.raises(EngineError, match="the int8 network of Normed cannot be read"):
        ead.load(tmp_path / "m", backbone=Normed()).predict(probe)
    for wrong in (
        torch.zeros(1, 3, 8, 8),
        torch.full((1, 3, 8, 8), torch.nan).half(),
        torch.zeros(3, 8).half(),
    ):
        replace_file(tmp_path / "m", "quantized.safetensors", save({"probe": wrong}))
        with pytest.raises(DamagedModelError, match="probe must be"):
            ead.load(tmp_path / "m", backbone=Normed())


def test_quantize_says_how_many_verdicts_change(
    images: Any, quantized: ead.PatchCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "ensemblead.detectors.detector.warn_of_changes", lambda *given: seen.extend(given[1:])
    )
    fitted = _detector().fit(images)
    before = fitted.predict(images).anomaly_score
    after = fitted.quantize(images).predict(images).anomaly_score
    np.testing.assert_array_equal(seen[0], before)
    np.testing.assert_array_equal(seen[1], after)
    below, above = 0.9 * quantized.threshold_, 1.1 * quantized.threshold_
    with pytest.warns(ThresholdWarning, match="in int8 2 of the 3 images that quantize has seen are on the"):
        warn_of_changes(quantized, torch.tensor([below, below, above]), torch.tensor([below, above, below]))
    warn_of_changes(quantized, torch.tensor([below]), torch.tensor([below]))


def test_int8_of_other_weights_is_not_used(images: Any, quantized: ead.PatchCore, tmp_path: Path) -> None:
    quantized.save(tmp_path / "m")

    def change(state: dict[str, Any]) -> None:
        state["network"]["quantized"]["weights"] = "0" * 64

    with pytest.warns(UserWarning, match="int8 network of other weights, which is not used; call quantize"):
        loaded = ead.load(altered(tmp_path / "m", tmp_path / "n", change), backbone=Normed())
    with pytest.raises(EngineError, match="Normed is not quantized; fit in float32"):
        loaded.predict(images)
    for number, given in enumerate(
        ({"layers": ["first"], "weights": 3, "images": 8}, [], {"layers": "first"})
    ):
        copy = altered(
            tmp_path / "m", tmp_path / str(number), lambda s, g=given: s["network"].update(quantized=g)
        )
        with pytest.raises(DamagedModelError):
            ead.load(copy, backbone=Normed())


def test_members_of_one_network_share_one_int8_pass(images: Any, probe: Any, tmp_path: Path) -> None:
    module = Normed()
    ensemble = ead.BackboneEnsemble([_detector(module, (layer,)) for layer in LAYERS]).fit(images)
    before = ensemble.predict(probe)
    ensemble.quantize(images)
    first, second = (member._frozen.network for member in ensemble.members)  # type: ignore[attr-defined]
    assert first.key == second.key
    assert first.quantized.layers == LAYERS
    found = ensemble.predict(probe)
    np.testing.assert_array_equal(found.is_anomalous, before.is_anomalous)
    ensemble.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=[module, module])
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, found.anomaly_map)


def test_tiles_are_quantized_by_what_they_see(images: Any, probe: Any, tmp_path: Path) -> None:
    member = _detector(layers=("first",))
    tiled = ead.TiledEnsemble(member, tile_size=32, stride=32, image_size=None).fit(images)
    before = tiled.predict(probe)
    tiled.quantize(images, max_images=5)
    found = tiled.predict(probe)
    assert np.abs(found.anomaly_map - before.anomaly_map).max() > 0
    tiled.save(tmp_path / "m")
    assert len(list((tmp_path / "m").rglob("quantized.xml"))) == 1
    again = ead.load(tmp_path / "m", backbone=Normed())
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, found.anomaly_map)


def test_the_seed_decides_which_images_are_drawn() -> None:
    names = [f"{number}.png" for number in range(50)]
    source = open_images(normal_images(1).repeat(50, 0))
    source.paths = list(names)
    drawn = [chosen_images(source, 5, seed).paths for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == [name for name in names if name in drawn[0]]
    assert chosen_images(source, 50, 0) is source
    kept = []
    for seed in (0, 0, 1):
        sample = _Sample(4, seed)
        for start in range(0, 40, 8):
            sample.add(torch.arange(start, start + 8.0)[:, None])
        kept.append([int(image) for image in sample.images])
    assert kept[0] == kept[1] != kept[2]
    assert len(set(kept[0])) == 4


@pytest.mark.slow
def test_quantizing_twice_comes_to_the_same(images: Any, probe: Any, quantized: ead.PatchCore) -> None:
    again = _detector().fit(images).quantize(images)
    again.quantize(images)
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, quantized.predict(probe).anomaly_map)


# --- bad input ------------------------------------------------------------------------------------


def test_openvino_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, images: Any) -> None:
    plain = _detector().fit(images)
    monkeypatch.setitem(sys.modules, "openvino", None)
    install = r"pip install \"\.\[openvino\]\""
    with pytest.raises(MissingExtraError, match=f"engine='openvino' needs openvino, .*{install}"):
        _detector(engine="openvino").fit(images)
    with pytest.raises(MissingExtraError, match=f"quantize needs openvino, .*{install}"):
        plain.quantize(images)
    with pytest.raises(MissingExtraError, match="precision='int8' needs openvino"):
        _detector(engine="auto", precision="int8").fit(images)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match="quantize needs nncf"):
        plain.quantize(images)
    assert (plain.engine, plain.precision) == ("torch", "auto")


def test_int8_before_quantize(images: Any) -> None:
    with pytest.raises(EngineError, match=r"Normed is not quantized; fit in float32, then call quantize"):
        _detector(engine="openvino", precision="int8").fit(images)
    with pytest.raises(
        ValueError, match="precision must be float32, bfloat16 or float16 with engine='torch'"
    ):
        _detector(precision="int8")
    with pytest.raises(ValueError, match="got 'int8'"):
        ead.DRAEM(precision="int8")


def test_int8_of_too_few_layers(images: Any, quantized: ead.PatchCore) -> None:
    made = quantized._frozen.network.quantized  # type: ignore[union-attr]
    assert made is not None
    other = Part(Normed(), ("norm",), "Normed", torch.device("cpu"), torch.float32, "int8", made)
    with pytest.raises(EngineError, match="quantized for first, second, without norm"):
        openvino.OpenVinoEngine(other)


def test_openvino_and_a_gpu() -> None:
    with pytest.raises(ValueError, match="are for CPUs, and device is 'cuda:0'; use device='cpu'"):
        resolve_engine("openvino", "auto", torch.device("cuda", 0), compile=False)
    with pytest.raises(ValueError, match="are for CPUs, and device is 'cuda'"):
        check_engine("openvino", "cuda", compile=False)
    elsewhere = ead.FeatureExtractor(Normed().to("meta"), LAYERS).run_by("openvino")
    with pytest.raises(ValueError, match="'openvino' has no float32 on meta"):
        elsewhere(torch.zeros(1, 3, 8, 8, device="meta"))


def test_int8_by_another_engine_is_refused() -> None:
    with pytest.raises(
        ValueError, match="precision must be float32, bfloat16 or float16 with engine='torch'"
    ):
        Network(ead.FeatureExtractor("gabor", ("layer1",)), "cpu", "int8")
    for engine in ("eager", "folded"):
        with pytest.raises(ValueError, match=f"engine '{engine}' does not compute in int8"):
            ead.FeatureExtractor("gabor", ("layer1",)).run_by(engine, "int8")


def test_load_says_where_engine_and_precision_do_nothing(images: Any, tmp_path: Path) -> None:
    own = ead.DRAEM(4, steps=1, batch_size=4, resize=None, device="cpu").fit(images)
    own.save(tmp_path / "own")
    with pytest.warns(RuntimeWarning, match="engine='openvino' is for frozen networks, and DRAEM has none"):
        loaded = ead.load(tmp_path / "own", engine="openvino", precision="bfloat16")
    assert loaded.precision == "bfloat16"
    with pytest.raises(ValueError, match="engine must be one of torch, openvino, auto, got 'openvin'"):
        ead.load(tmp_path / "own", engine="openvin")
    with pytest.raises(ValueError, match="to load an int8 model for torch, give precision='float32' too"):
        ead.load(tmp_path / "own", precision="int8")
    ead.PatchCore("gabor", ("layer1",), **OPTIONS).fit(images).save(tmp_path / "gabor")
    for wrong in ({"engine": ""}, {"precision": ""}):
        with pytest.raises(ValueError, match="must be"):
            ead.load(tmp_path / "gabor", **wrong)


def test_engines_that_there_are_not() -> None:
    with pytest.raises(
        ValueError, match="engine must be one of torch, openvino, auto, got 'openvin'; did you"
    ):
        _detector(engine="openvin")
    with pytest.raises(ValueError, match="compile=True goes with engine='torch'"):
        _detector(engine="openvino", compile=True)


@dataclass(frozen=True)
class Nothing:
    """What `Bare` learns."""


class Bare(Method):
    """A method of one's own, whose constructor has no `engine`."""

    State = Nothing

    def __init__(self, backbone: Any, layers: Any, *, precision: str = "auto") -> None:
        super().__init__(locals())

    def start(self, state: Any = None) -> Any:
        return None

    def scores(self, state: Any, seen: Any) -> Any:
        return None


def test_a_method_without_the_parameter_can_be_int8_all_the_same() -> None:
    assert Bare("gabor", ("layer1",)).engine == "torch"
    assert Bare("gabor", ("layer1",), precision="int8").engine == "openvino"


class Untraceable(TinyNet):
    """Refuses to be traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not while traced")
        return super().forward(images)


class Changed(TinyNet):
    """Computes something else when it is traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images * 1.5 if torch.jit.is_tracing() else images)


def test_networks_that_cannot_be_converted(images: Any) -> None:
    with pytest.raises(EngineError, match=r"cannot run Untraceable as far as first, second \(not while trac"):
        _detector(Untraceable(), engine="openvino").fit(images)
    with pytest.raises(EngineError, match=r"other features than torch for layer 'first' of Changed: off by"):
        _detector(Changed(), engine="openvino").fit(images)


def test_a_graph_of_other_weights_is_noticed(monkeypatch: pytest.MonkeyPatch, images: Any) -> None:
    real = openvino.converted
    monkeypatch.setattr(openvino, "converted", lambda part, given: real(_part(Normed(7)), given))
    with pytest.raises(EngineError, match=r"off by [0-9.]+ of them in float32, where 0\.0001 is allowed"):
        _detector(engine="openvino").fit(images)


def test_bad_calls_of_quantize(images: Any) -> None:
    with pytest.raises(ead.EnsembleADError, match="cannot quantize: this PatchCore is not fitted"):
        _detector().quantize(images)
    fitted = _detector().fit(images)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        fitted.quantize(images, max_images=0)
    half = _detector(precision="bfloat16").fit(images)
    with pytest.raises(ValueError, match="needs networks in float32, but Normed is in bfloat16"):
        half.quantize(images)
    untraceable = _detector(Untraceable()).fit(images)
    with pytest.raises(EngineError, match="not while traced"):
        untraceable.quantize(images)
    assert untraceable.precision == "auto"
    untraceable.predict(images)


def test_the_key_names_engine_and_precision(quantized: ead.PatchCore) -> None:
    extractor = ead.FeatureExtractor("gabor", ("layer1",))
    keys = {Network(extractor, "cpu", engine=engine).key for engine in ("torch", "openvino")}
    assert len(keys) == 2
    network = quantized._frozen.network  # type: ignore[union-attr]
    assert network.key != network.by_torch().key
