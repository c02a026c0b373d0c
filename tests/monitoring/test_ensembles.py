"""Ensembles are watched as single detectors are, in all streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from support.networks import TinyNet
from support.textures import normal_images
from support.tiles import SIDE, TRAIN, patchcore, tiled

import ensemblead as ead


def members() -> list[ead.PatchCore]:
    options: dict[str, Any] = {"resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}
    return [ead.PatchCore("gabor", patch_size=size, **options) for size in (1, 3)]


def tiles() -> ead.TiledEnsemble:
    return tiled(patchcore(), 24, 24)


@pytest.mark.parametrize(
    ("make", "options"),
    [(lambda: ead.BackboneEnsemble(members()), {}), (tiles, {"backbone": TinyNet()})],
    ids=["backbones", "tiles"],
)
def test_an_ensemble_is_watched(make: Callable[[], Any], options: dict[str, Any], tmp_path: Path) -> None:
    ensemble = make().fit(TRAIN)
    normal = normal_images(80, seed=3, side=SIDE)
    watching = ead.DriftMonitor(ensemble, regions=2).calibrate(normal[:50])
    assert watching.streams_ == ("score", "embedding", "regions")
    assert not watching.observe(normal[50:60]).alarm
    changed = normal[60:].copy()
    changed[:, :24, :24] = np.minimum(changed[:, :24, :24].astype(int) + 60, 255)
    state = watching.observe(changed)
    assert state.alarm
    assert state.since is not None
    assert abs(state.since - 10) <= 2
    assert (0.0, 0.0, 24.0, 24.0) in state.moved
    assert state.score_ratio is None  # scores are standardised
    assert state.advice in ("extend", "refit")
    watching.save(tmp_path / "state")
    ensemble.save(tmp_path / "model")
    again = ead.load(tmp_path / "state", detector=ead.load(tmp_path / "model", **options))
    assert repr(again.state_) == repr(state)
