"""Features that predictions carry: of every method and ensemble, from the passes that are made anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from support.descriptions import make_narrow
from support.methods import Epochs
from support.networks import NATIVE, TinyNet
from support.textures import normal_images
from support.tiles import BOTH, SIDE, TRAIN, crops, patchcore, tiled
from support.trained import LAYERS, Pyramid

import ensemblead as ead
from ensemblead.networks import FeatureExtractor


def summary(net: Any, layers: tuple[str, ...], images: np.ndarray) -> np.ndarray:
    """Mean and deviation of every feature map, one image at a time."""
    extractor = FeatureExtractor(net, layers)
    found = []
    for image in images:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        maps = [own[0].double().numpy() for own in extractor(extractor.normalize(pixels))]
        parts = [(own.mean(axis=(1, 2)), own.std(axis=(1, 2))) for own in maps]
        found.append(np.concatenate([value for pair in parts for value in pair]))
    return np.stack(found)


def test_of_one_network() -> None:
    net = TinyNet()
    detector = patchcore(net, batch_size=4, **NATIVE).fit(TRAIN)
    found = detector.predict(BOTH, features=True)
    assert found.features is not None
    assert found.features.dtype == np.float32
    expected = summary(net, ("first", "second"), BOTH)
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-5)
    plain = detector.predict(BOTH)
    assert plain.features is None
    np.testing.assert_array_equal(plain.anomaly_map, found.anomaly_map)


def test_predictions_know_their_images() -> None:
    found = patchcore(**NATIVE).fit(TRAIN).predict(BOTH[[0, 1, 0]], features=True)
    assert found.fingerprints is not None
    assert found.fingerprints.dtype == np.uint64
    assert found.fingerprints[0] == found.fingerprints[2] != found.fingerprints[1]
    assert found.sizes == [(SIDE, SIDE)] * 3
    some = found.take([2, 1])
    assert some.fingerprints is not None
    assert some.features is not None
    assert some.fingerprints.tolist() == found.fingerprints[[2, 1]].tolist()
    both = ead.Predictions.concatenate([some, found])
    assert both.features is not None
    assert both.sizes is not None
    assert (both.features.shape[0], len(both.sizes)) == (5, 5)
    without = ead.Predictions.concatenate([some, ead.Predictions(*list(vars(found).values())[:4])])
    assert (without.features, without.fingerprints, without.sizes) == (None, None, None)


@pytest.mark.parametrize("shared", [False, True])
def test_of_tiles_it_is_their_mean(shared: bool) -> None:
    net = TinyNet()
    ensemble = tiled(patchcore(net, batch_size=5), 24, 24, shared=shared).fit(TRAIN)
    found = ensemble.predict(BOTH, features=True).features
    tiles = crops(BOTH, 24, 24)
    expected = np.mean(
        [summary(net, ("first", "second"), tiles[place]) for place in np.ndindex(2, 2)], axis=0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_of_several_networks_each_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = TinyNet(), TinyNet(1)
    members = [patchcore(nets[0], **NATIVE), patchcore(nets[0], patch_size=1, **NATIVE)]
    ensemble = ead.BackboneEnsemble(
        [*members, patchcore(nets[1], **NATIVE), tiled(patchcore(nets[1]), 24, 24)]
    )
    ensemble.fit(TRAIN)
    run, passes = FeatureExtractor.__call__, list[int]()

    def counted(self: FeatureExtractor, images: Any) -> Any:
        passes.append(len(images))
        return run(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    plain = ensemble.predict(BOTH)
    alone, passes = passes.copy(), passes
    passes.clear()
    found = ensemble.predict(BOTH, features=True)
    assert passes == alone
    np.testing.assert_array_equal(found.anomaly_score, plain.anomaly_score)
    expected = [summary(net, ("first", "second"), BOTH) for net in nets]
    assert found.features is not None
    # Two networks look at whole images, and one of them at tiles, too.
    assert found.features.shape == (len(BOTH), 2 * 24 * 2)
    np.testing.assert_allclose(found.features[:, :48], expected[0], rtol=1e-4, atol=1e-5)


def test_a_method_that_runs_its_network_itself_has_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    make_narrow(monkeypatch)
    images = normal_images(6)
    detector = ead.EfficientAD("small", Pyramid(), LAYERS[1:], steps=2, resize=None, device="cpu").fit(images)
    found = detector.predict(images, features=True).features
    assert found is not None
    assert found.shape == (6, 2 * (6 + 8))
    assert (found.std(axis=0) > 0).any()


def test_without_a_network_there_are_none() -> None:
    detector = Epochs(epochs=1).fit(TRAIN)
    found = detector.predict(BOTH, features=True).features
    assert found is not None
    assert found.shape == (len(BOTH), 0)
