"""How far the noise of a network in half precision moves scores, and verdicts at a threshold beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.textures import normal_images
from support.trained import LAYERS, Pyramid

import ensemblead as ead
from ensemblead.networks.noise import relative_noise

SIDE = 32
pytestmark = pytest.mark.usefixtures("one_thread")


def wide(seed: int = 0) -> Pyramid:
    """Of so few channels as `Pyramid` has by itself, noise may turn a position's features to any side."""
    return Pyramid(seed, (32, 48, 64))


def alike(count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 6, (count, SIDE, SIDE, 3))
    return np.clip(normal_images(1, side=SIDE) + noise, 0, 255).astype(np.uint8)


TRAIN, FRESH, BAD = alike(40, 0), alike(10, 1), alike(6, 2)
BAD[:, 8:24, 8:24] = (60, 30, 40)


@pytest.fixture(scope="module", params=["ReverseDistillation", "FastFlow"])
def detector(request: pytest.FixtureRequest) -> Any:
    options: dict[str, Any] = {"steps": 60, "batch_size": 4, "resize": None, "device": "cpu"}
    if request.param == "FastFlow":
        options |= {"flow_steps": 2, "learning_rate": 0.01}
    return getattr(ead, request.param)(wide(), LAYERS, precision="bfloat16", **options).fit(TRAIN)


def test_other_kernels_move_scores_by_less_than_is_stated(
    detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = detector.predict(TRAIN).anomaly_score
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    moved = np.abs(detector.predict(TRAIN).anomaly_score - before)
    assert moved.max() <= detector.calibration_.rounding


def test_it_is_a_small_part_of_the_largest_normal_score(detector: Any) -> None:
    """Twice the bound of the network, in each method's unit, would hide what deviates by less."""
    largest = np.abs(detector.calibration_.scores).max()
    assert detector.calibration_.rounding <= 0.5 * relative_noise(torch.bfloat16) * largest * 1.001
    assert detector.predict(BAD).is_anomalous.all()


def test_calibrate_takes_the_margin_of_the_precision_it_scores_in(detector: Any, tmp_path: Path) -> None:
    """That of the fit, in another precision, may be a thousandth of the noise, or a thousand times it."""
    detector.save(tmp_path / "model")
    exact = ead.load(tmp_path / "model", backbone=wide(), precision="float32").calibrate(FRESH, 0.1)
    exact.save(tmp_path / "exact")
    half = ead.load(tmp_path / "exact", backbone=wide(), precision="bfloat16")
    assert half.calibration_.rounding == exact.calibration_.rounding
    half.calibrate(FRESH, 0.1)
    for one, dtype in ((exact, torch.float32), (half, torch.bfloat16)):
        share = relative_noise(dtype) * float(np.abs(one.calibration_.scores).max())
        assert 0.2 * share < one.calibration_.rounding < 0.6 * share


def test_a_tiled_ensemble_of_them_finds_defects() -> None:
    """A deviation that was taken for rounding left scores undivided, and none was high enough."""
    member = ead.ReverseDistillation(
        wide(), LAYERS, precision="bfloat16", steps=60, batch_size=4, device="cpu"
    )
    ensemble = ead.TiledEnsemble(member, tile_size=SIDE, stride=SIDE, image_size=2 * SIDE)
    train, bad = (np.concatenate([np.concatenate([own] * 2, 1)] * 2, 2) for own in (TRAIN, BAD))
    noise = np.random.default_rng(3).integers(-8, 9, train.shape)
    ensemble.fit(np.clip(train.astype(int) + noise, 0, 255).astype(np.uint8))
    assert ensemble.predict(bad).is_anomalous.all()
