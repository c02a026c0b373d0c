"""`quantize` and int8: what was learned holds, files, probes, and clear errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.engines import LAYERS, Normed, Untraceable, detector_of
from support.tampering import altered, replace_file
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, EngineError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.detectors import Method
from ensemblead.detectors.quantizing import _Sample, warn_of_changes
from ensemblead.images import chosen_images, open_images
from ensemblead.networks.engines import openvino
from ensemblead.networks.engines.engine import Part
from ensemblead.networks.network import Network

pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def quantized(images: Any) -> ead.PatchCore:
    """A detector that was fitted in float32 and quantized; the tests do not change it."""
    return detector_of().fit(images).quantize(images)


def test_bank_and_threshold_hold_in_int8(images: Any, probe: Any, quantized: ead.PatchCore) -> None:
    plain = detector_of().fit(images)
    np.testing.assert_array_equal(quantized.memory_bank_.rows_, plain.memory_bank_.rows_)
    assert quantized.threshold_ == plain.threshold_
    assert (quantized.engine, quantized.precision) == ("openvino", "int8")
    found, expected = quantized.predict(probe), plain.predict(probe)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)
    assert found.is_anomalous.tolist() == [False, False, False, True]
    assert np.abs(found.anomaly_map - expected.anomaly_map).max() > 0


def test_ranges_hold_what_a_single_image_has() -> None:
    """Nothing of an image that ranges were read from is cut off, however rare it is."""
    images = normal_images(12)
    images[5] = np.where(np.arange(images.shape[2])[None, :, None] % 16 < 8, 0, 255)
    detector = detector_of().fit(images)
    network = detector._frozen.network
    assert network is not None
    pixels = torch.from_numpy(images[5:6]).permute(0, 3, 1, 2).contiguous()
    given = network.extractor.normalize(pixels)
    expected = detector.network_(given)
    detector.quantize(images)
    for own, exact in zip(detector.network_(given), expected, strict=True):
        assert float((own - exact).norm() / exact.norm()) < 0.1


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
    plain = detector_of().fit(normal_images(8))
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
    other = detector_of(Normed(7)).fit(normal_images(8)).quantize(normal_images(8))._frozen.network.quantized  # type: ignore[union-attr]
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
    fitted = detector_of().fit(images)
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
    ensemble = ead.BackboneEnsemble([detector_of(module, (layer,)) for layer in LAYERS]).fit(images)
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
    member = detector_of(layers=("first",))
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
    again = detector_of().fit(images).quantize(images)
    again.quantize(images)
    np.testing.assert_array_equal(again.predict(probe).anomaly_map, quantized.predict(probe).anomaly_map)


# --- bad input ------------------------------------------------------------------------------------


def test_int8_before_quantize(images: Any) -> None:
    with pytest.raises(EngineError, match=r"Normed is not quantized; fit in float32, then call quantize"):
        detector_of(engine="openvino", precision="int8").fit(images)
    with pytest.raises(
        ValueError, match="precision must be float32, bfloat16 or float16 with engine='torch'"
    ):
        detector_of(precision="int8")
    with pytest.raises(ValueError, match="got 'int8'"):
        ead.DRAEM(precision="int8")


def test_int8_of_too_few_layers(images: Any, quantized: ead.PatchCore) -> None:
    made = quantized._frozen.network.quantized  # type: ignore[union-attr]
    assert made is not None
    other = Part(Normed(), ("norm",), "Normed", torch.device("cpu"), torch.float32, "int8", made)
    with pytest.raises(EngineError, match="quantized for first, second, without norm"):
        openvino.OpenVinoEngine(other)


def test_int8_by_another_engine_is_refused() -> None:
    with pytest.raises(
        ValueError, match="precision must be float32, bfloat16 or float16 with engine='torch'"
    ):
        Network(ead.FeatureExtractor("gabor", ("layer1",)), "cpu", "int8")
    for engine in ("eager", "folded"):
        with pytest.raises(ValueError, match=f"engine '{engine}' does not compute in int8"):
            ead.FeatureExtractor("gabor", ("layer1",)).run_by(engine, "int8")


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


def test_bad_calls_of_quantize(images: Any) -> None:
    with pytest.raises(ead.EnsembleADError, match="cannot quantize: this PatchCore is not fitted"):
        detector_of().quantize(images)
    fitted = detector_of().fit(images)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        fitted.quantize(images, max_images=0)
    half = detector_of(precision="bfloat16").fit(images)
    with pytest.raises(ValueError, match="needs networks in float32, but Normed is in bfloat16"):
        half.quantize(images)
    untraceable = detector_of(Untraceable()).fit(images)
    with pytest.raises(EngineError, match="not while traced"):
        untraceable.quantize(images)
    assert untraceable.precision == "auto"
    untraceable.predict(images)


def test_what_fails_in_int8_leaves_the_detector_as_it_was(
    images: Any, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of other sizes than that which `quantize` compares are compiled after it."""
    detector = detector_of(batch_size=3).fit(images)
    expected = detector.predict(probe)
    real = openvino.of_shape

    def failing(*given: Any) -> Any:
        if given[-1][0] == 3:
            raise EngineError("not for three")
        return real(*given)

    monkeypatch.setattr(openvino, "of_shape", failing)
    with pytest.raises(EngineError, match="not for three"):
        detector.quantize(images)
    assert (detector.engine, detector.precision) == ("torch", "auto")
    np.testing.assert_array_equal(detector.predict(probe).anomaly_map, expected.anomaly_map)


def test_the_key_names_engine_and_precision(quantized: ead.PatchCore) -> None:
    extractor = ead.FeatureExtractor("gabor", ("layer1",))
    keys = {Network(extractor, "cpu", engine=engine).key for engine in ("torch", "openvino")}
    assert len(keys) == 2
    network = quantized._frozen.network  # type: ignore[union-attr]
    assert network.key != network.by_torch().key
