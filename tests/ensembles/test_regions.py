"""Regions of interest in every detector: what lies outside is neither learned, nor scored, nor seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from support.regions import (
    DETECTORS,
    MASK,
    SIDE,
    padim,
    painted_inside,
    painted_outside,
    patchcore,
    photographs,
    tiled,
)

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.patchcore.scoring import top_count
from ensemblead.images import Region
from ensemblead.kernels.filling import cells_inside, nearest_inside
from ensemblead.kernels.maps import render_maps

pytestmark = pytest.mark.filterwarnings("ignore::ensemblead.common.warnings.ThresholdWarning")

TRAIN, TEST = photographs(8), photographs(2, seed=9)
SLOW = {
    "efficientad",
    "draem",
    "reverse distillation",
    "reweighted",
    "nearest",
    "tiles of backbones",
    "backbones of tiles",
}
SQUARE = [[(8, 10), (50, 10), (50, 40), (8, 40)]]


def fitted(name: str, images: Any = TRAIN, region: Any = MASK) -> Any:
    return DETECTORS[name](region).fit(images)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DETECTORS],
)
def test_what_lies_outside_moves_nothing(name: str, tmp_path: Path) -> None:
    detector = fitted(name)
    found, outside = detector.predict(TEST), detector.predict(painted_outside(TEST))
    for field in ("anomaly_score", "anomaly_map", "is_anomalous"):
        assert np.array_equal(getattr(found, field), getattr(outside, field)), field
    inside = detector.geometry.inside()
    assert not found.anomaly_map[:, ~inside].any()
    seen = detector.predict(painted_inside(TEST)).anomaly_map - found.anomaly_map
    assert np.abs(seen[:, inside]).max() > 0
    # Learned from other surroundings it is the same.
    again = fitted(name, painted_outside(TRAIN))
    assert again.threshold_ == detector.threshold_
    assert np.array_equal(again.predict(TEST).anomaly_map, found.anomaly_map)
    # Saved and loaded, too.
    detector.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert loaded.region == detector.region == Region(MASK)
    assert loaded.threshold_ == detector.threshold_
    for field in ("anomaly_score", "anomaly_map"):
        assert np.array_equal(getattr(loaded.predict(TEST), field), getattr(found, field)), field
    described = json.loads(json.dumps(detector.describe()))
    assert ead.create(described).region == detector.region
    assert "region=Region(3" in repr(loaded)


# Against naive references


def embeddings(detector: Any, images: Any) -> Any:
    """Of photographs whose surroundings are filled by hand: float64 `[B, h, w, D]`."""
    filled = images.reshape(len(images), -1, 3)[:, nearest_inside(MASK).ravel()].reshape(images.shape)
    pixels = torch.from_numpy(filled.transpose(0, 3, 1, 2).copy())
    return detector.embed(detector.network_(detector.network_.normalize(pixels))).double()


def test_patchcore_is_that_of_the_patches_inside() -> None:
    detector = patchcore(coreset_fraction=1.0, region=MASK).fit(TRAIN)
    learned, seen = embeddings(detector, TRAIN), embeddings(detector, painted_inside(TEST))
    cells = torch.from_numpy(cells_inside(MASK, (8, 8)))
    assert 0 < int(cells.sum()) < 64
    rows = learned[:, cells].reshape(-1, learned.shape[-1])
    bank = detector.memory_bank_.rows_.double()
    assert len(bank) == len(torch.unique(rows, dim=0)) <= len(rows)
    assert torch.allclose(torch.cdist(bank, rows).amin(1), torch.zeros(len(bank)).double(), atol=1e-5)
    distances = torch.cdist(seen[:, cells], rows).amin(2) ** 2
    found = detector.predict(painted_inside(TEST))
    count = top_count(int(cells.sum()))
    expected = distances.topk(count, 1).values.mean(1).numpy()
    np.testing.assert_allclose(found.anomaly_score, expected, rtol=1e-4)
    order = torch.from_numpy(cells.numpy().ravel().cumsum() - 1)[nearest_inside(cells.numpy())]
    maps = render_maps(distances[:, order].float(), (SIDE, SIDE)).numpy() * MASK
    np.testing.assert_allclose(found.anomaly_map, maps, rtol=1e-4, atol=1e-4 * maps.max())
    # Leave-one-out, of patches inside alone.
    alone = learned[:, cells]
    others = [
        torch.cdist(alone[i], alone[[j for j in range(8) if j != i]].flatten(0, 1)).amin(1) ** 2
        for i in range(8)
    ]
    expected = torch.stack(others).topk(count, 1).values.mean(1).numpy()
    np.testing.assert_allclose(detector.calibration_.scores, expected, rtol=1e-3)


def test_padim_has_gaussians_inside_alone() -> None:
    detector = padim(region=MASK).fit(TRAIN)
    learned, seen = embeddings(detector, TRAIN), embeddings(detector, TEST)
    cells = torch.from_numpy(cells_inside(MASK, (8, 8)))
    assert detector.gaussians_.num_positions == int(cells.sum())
    mean, centred = learned.mean(0)[cells], (learned - learned.mean(0))[:, cells]
    covariance = torch.einsum("npd,npe->pde", centred, centred) / 7 + 0.01 * torch.eye(8).double()
    off = seen[:, cells] - mean
    distances = torch.einsum("npd,pde,npe->np", off, torch.linalg.inv(covariance), off).sqrt()
    order = torch.from_numpy(cells.numpy().ravel().cumsum() - 1)[nearest_inside(cells.numpy())]
    maps = render_maps(distances[:, order].float(), (SIDE, SIDE)).numpy()
    found = detector.predict(TEST)
    np.testing.assert_allclose(found.anomaly_map, maps * MASK, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.anomaly_score, maps[:, MASK].max(1), rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["topk", "backbones", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fastflow", "tiles"))],
)
def test_statistics_are_of_the_inside(name: str) -> None:
    detector = fitted(name).calibrate(TEST, 0.5)
    values = detector.predict(TEST)
    maps = values.anomaly_map[:, detector.geometry.inside()].astype(np.float64)
    if name != "backbones":  # of which the map's statistics come from a lattice
        assert detector.calibration_.map_mean == pytest.approx(maps.mean(), rel=1e-5, abs=1e-6)
        assert detector.calibration_.map_std == pytest.approx(maps.std(), rel=1e-4)
    pixels = detector.calibration_.pixels
    assert pixels.shape == (2, 1024)
    if name == "topk":  # a map of squared distances has no zeros inside
        assert set(pixels[0]) <= set(values.anomaly_map[0][MASK])
    assert sorted(detector.calibration_.scores) == pytest.approx(sorted(values.anomaly_score))


@pytest.mark.parametrize("make", [padim, pytest.param(tiled, marks=pytest.mark.slow)])
def test_extending_keeps_the_region(make: Any) -> None:
    more = photographs(4, seed=3)
    extended = make(region=MASK).fit(TRAIN).extend(more)
    other = make(region=MASK).fit(TRAIN).extend(painted_outside(more))
    assert np.array_equal(extended.predict(TEST).anomaly_map, other.predict(TEST).anomaly_map)


def test_verify_measures_the_inside() -> None:
    detector = patchcore(region=MASK).fit(TRAIN)
    assert detector.verify(TRAIN).num_rows == 8 * int(cells_inside(MASK, (8, 8)).sum())


# Tiles


def test_tiles_without_any_inside_are_skipped(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:30, :60] = True
    told: list[tuple[str, int, int]] = []
    ensemble = tiled(region=mask)
    ensemble.fit(TRAIN, progress=lambda *what: told.append(what))
    # Of 3 x 3 tiles of 32 at 0, 16 and 32 the last row has nothing.
    assert ensemble.tile_grid_ == (3, 3)
    assert len(ensemble.members_) == 6
    assert max(total for stage, _, total in told if stage == "embed") == 6 * 8
    for number, member in enumerate(ensemble.members_):
        row, column = divmod(number, 3)
        part = mask[16 * row : 16 * row + 32, 16 * column : 16 * column + 32]
        assert member.region == (None if part.all() else Region(part))
    ensemble.save(tmp_path / "model")
    folders = {path.name for path in (tmp_path / "model").iterdir() if path.is_dir()}
    assert folders == {f"tile_{row}_{column}" for row in (0, 1) for column in range(3)}
    loaded = ead.load(tmp_path / "model")
    found = ensemble.predict(painted_inside(TEST))
    assert np.array_equal(loaded.predict(painted_inside(TEST)).anomaly_map, found.anomaly_map)
    # Scores are means over the six, each of which scores as a detector of its own part does.
    values = ensemble.state_.statistics.values
    assert values.shape == (6, 4)
    filled = painted_inside(TEST).reshape(2, -1, 3)[:, nearest_inside(mask).ravel()].reshape(TEST.shape)
    scores = []
    for number, member in enumerate(ensemble.members_):
        row, column = divmod(number, 3)
        tile = filled[:, 16 * row : 16 * row + 32, 16 * column : 16 * column + 32]
        mean, deviation = values[number, :2].tolist()
        scores.append((member.predict(tile).anomaly_score - mean) / deviation)
    np.testing.assert_allclose(found.anomaly_score, np.mean(scores, 0), rtol=1e-4)


def test_first_tile_skipped_and_executors(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    paths = [str(tmp_path / f"{i}.png") for i in range(len(TRAIN))]
    for path, pixels in zip(paths, TRAIN, strict=True):
        Image.fromarray(pixels).save(path)
    polygon = [[(34, 34), (64, 34), (64, 64), (34, 64)]]
    here = tiled(region=polygon).fit(paths)
    assert here.state_.frame.skipped == (0, 1, 2, 3, 6)
    with ThreadPoolExecutor(1) as pool:
        there = tiled(region=polygon).fit(paths, executor=pool, workdir=tmp_path / "work")
    assert here.threshold_ == there.threshold_
    assert np.array_equal(here.predict(TEST).anomaly_map, there.predict(TEST).anomaly_map)
    there.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert np.array_equal(loaded.predict(TEST).anomaly_map, here.predict(TEST).anomaly_map)


# Polygons and sizes


@pytest.mark.parametrize("make", [patchcore, pytest.param(tiled, marks=pytest.mark.slow)])
def test_polygons_are_drawn_on_the_photographs_of_the_fit(make: Any, tmp_path: Path) -> None:
    detector = make(region=SQUARE).fit(TRAIN)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:40, 8:50] = True
    expected = make(region=mask).fit(TRAIN).predict(TEST)
    assert np.array_equal(detector.predict(TEST).anomaly_map, expected.anomaly_map)
    detector.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert np.array_equal(loaded.predict(TEST).anomaly_map, expected.anomaly_map)
    wider = np.concatenate([TRAIN, TRAIN], 2)
    for one in (detector, loaded):
        with pytest.raises(ValueError, match=r"for photographs of 64 x 64 pixels .* got one of 64 x 128"):
            one.predict(wider)
    if make is patchcore:  # another fit may be on others
        assert detector.fit(wider).predict(wider[:1]).anomaly_map.shape == (1, 64, 128)


def test_photographs_of_other_sizes_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for i, size in enumerate([64, 64, 48]):
        Image.fromarray(TRAIN[i, :size]).save(tmp_path / f"{i}.png")
    for region in (MASK, SQUARE):
        with pytest.raises(ValueError, match=r"for photographs of 64 x 64 pixels .* got one of 48 x 64"):
            patchcore(resize=(64, 64), region=region).fit(tmp_path)
    with pytest.raises(ValueError, match="for photographs of 32 x 64"):
        patchcore(region=MASK[:32]).fit(TRAIN)


# Refusals


def test_a_crop_without_any_inside() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4] = True
    with pytest.raises(ValueError, match="nothing of it is left after"):
        patchcore(image_size=32, resize=64, region=mask).fit(TRAIN)


def test_a_region_that_a_method_cannot_score_is_refused_before_training() -> None:
    mask, stages = np.zeros((SIDE, SIDE), bool), list[str]()
    mask[:6, :6] = True
    with pytest.raises(ValueError, match="lies within the border of 16 pixels"):
        DETECTORS["efficientad"](mask).fit(TRAIN, progress=lambda *call: stages.append(call[0]))
    assert "train" not in stages


def test_loaded_weights_go_with_masks_alone(tmp_path: Path) -> None:
    detector = ead.DRAEM(4, resize=None, device="cpu", region=SQUARE)
    with pytest.raises(ValueError, match="load_weights: polygons of a region"):
        detector.load_weights(tmp_path / "none.safetensors")


def test_ensembles_have_one_region() -> None:
    other = np.roll(MASK, 3, axis=0)
    with pytest.raises(ValueError, match="members must inspect the same region"):
        ead.BackboneEnsemble([patchcore(region=MASK), patchcore()])
    with pytest.raises(ValueError, match=r"region is Region\(3.* but that of a PatchCore"):
        ead.BackboneEnsemble([patchcore(region=MASK), patchcore()], region=other)
    with pytest.raises(ValueError, match="has learned already, without it"):
        ead.BackboneEnsemble([patchcore().fit(TRAIN)], region=MASK)
    with pytest.raises(ValueError, match="minmax"):
        ead.BackboneEnsemble([patchcore(), padim()], fusion="minmax", region=MASK)
    with pytest.raises(ValueError, match="shared=False"):
        tiled(region=MASK, shared=True)
    with pytest.raises(ValueError, match="member must have no region"):
        tiled(patchcore(region=MASK))
    assert ead.BackboneEnsemble([patchcore(region=MASK), padim(region=MASK)]).region == Region(MASK)


def test_a_model_of_another_region_is_damaged(tmp_path: Path) -> None:
    known = padim(region=MASK).fit(TRAIN)
    known.region = None  # as if the region were missing in the folder
    known.save(tmp_path / "model")
    with pytest.raises(DamagedModelError, match="must have"):
        ead.load(tmp_path / "model")


def test_drift_is_watched_inside() -> None:
    images = photographs(50, seed=2)
    detector = patchcore(region=MASK).fit(TRAIN)
    monitor, other = (ead.DriftMonitor(detector, regions=2, seed=1) for _ in range(2))
    state = monitor.calibrate(images[:40]).observe(images[40:])
    same = other.calibrate(painted_outside(images[:40])).observe(painted_outside(images[40:]))
    assert not state.alarm
    assert state.evidence == same.evidence
