"""Tiles at several scales: against ensembles of one scale over resized images, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.textures import normal_images
from support.tiles import BAD, BOTH, GOOD, SIDE, TRAIN, patchcore, tiled
from support.units import Inline, draw_images

import ensemblead as ead
from ensemblead.config.registry import create, describe
from ensemblead.deploy.graph import DetectorGraph
from ensemblead.detectors import one_pass
from ensemblead.ensembles.checks.drawing import drawn_size
from ensemblead.ensembles.tile_pyramid import TilePyramid, checked_scales
from ensemblead.images import Geometry
from ensemblead.kernels.maps import resize_maps

SCALES = (1.0, 0.5)
# One tile at the scale .5, and nine at 1.
HALF = SIDE // 2


def halved(images: Any) -> Any:
    pictures = [Image.fromarray(image).resize((HALF, HALF), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.fixture(scope="module")
def both() -> ead.TiledEnsemble:
    return tiled(scales=SCALES, shared=True).fit(TRAIN)


@pytest.mark.parametrize(("shared", "score"), [(False, "max"), (True, "mean")])
def test_it_is_the_mean_of_ensembles_of_one_scale(shared: bool, score: Any) -> None:
    options = {"shared": shared, "score": score, "normalization": "none"}
    ensemble = tiled(scales=SCALES, **options).fit(TRAIN)
    whole = tiled(**options).fit(TRAIN)
    small = tiled(image_size=HALF, **options).fit(halved(TRAIN))
    alone = [*whole.members_, *small.members_]
    assert len(ensemble.members_) == (2 if shared else 10)
    for member, one in zip(ensemble.members_, alone, strict=True):
        torch.testing.assert_close(member.memory_bank_.rows_, one.memory_bank_.rows_)  # type: ignore[attr-defined]
    assert (ensemble.tile_grid_, ensemble.tile_grids_) == ((3, 3), ((3, 3), (1, 1)))
    found, parts = ensemble.predict(BOTH), (whole.predict(BOTH), small.predict(halved(BOTH)))
    scores = np.mean([part.anomaly_score for part in parts], 0)
    maps = [resize_maps(torch.from_numpy(part.anomaly_map), (SIDE, SIDE)).numpy() for part in parts]
    np.testing.assert_allclose(found.anomaly_score, scores, rtol=1e-4)
    np.testing.assert_allclose(found.anomaly_map, np.mean(maps, 0), rtol=1e-4, atol=1e-5)
    left_out = np.mean([one.calibration_.scores for one in (whole, small)], 0)
    np.testing.assert_allclose(ensemble.calibration_.scores, left_out, rtol=1e-4)


def test_one_scale_is_what_it_was() -> None:
    plain, given = (tiled(stride=24, **options).fit(TRAIN) for options in ({}, {"scales": [1]}))
    np.testing.assert_array_equal(plain.predict(BOTH).anomaly_map, given.predict(BOTH).anomaly_map)
    assert given.threshold_ == plain.threshold_
    assert "scales" not in repr(given)
    assert "scales=[1.0, 0.5]" in repr(tiled(scales=SCALES))


def test_a_single_scale_may_be_another() -> None:
    ensemble = tiled(scales=(0.5,), shared=True).fit(TRAIN)
    small = tiled(image_size=HALF, shared=True).fit(halved(TRAIN))
    found = ensemble.predict(BOTH)
    assert found.anomaly_map.shape == (len(BOTH), SIDE, SIDE)
    np.testing.assert_allclose(found.anomaly_score, small.predict(halved(BOTH)).anomaly_score, rtol=1e-3)
    assert ensemble.predict(BAD).anomaly_score.min() > ensemble.predict(GOOD).anomaly_score.max()


def test_saved_described_and_extended(both: ead.TiledEnsemble, tmp_path: Path) -> None:
    expected = both.predict(BOTH)
    both.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").rglob("*")} >= {"member", "scale1_member"}
    loaded = ead.load(tmp_path / "model", backbone=both.member.backbone)  # type: ignore[attr-defined]
    assert isinstance(loaded, ead.TiledEnsemble)
    assert loaded.scales == SCALES
    np.testing.assert_array_equal(loaded.predict(BOTH).anomaly_map, expected.anomaly_map)
    loaded.extend(normal_images(2, seed=40, side=SIDE))
    assert (loaded.predict(BOTH).anomaly_score <= expected.anomaly_score + 1e-4).all()
    plain = ead.TiledEnsemble(ead.PatchCore("gabor"), 24, 12, image_size=SIDE, scales=SCALES)
    assert create(describe(plain)).scales == SCALES


@pytest.mark.parametrize("spool", ["on", "off"])
def test_wherever_images_are_kept_the_same_is_learned(
    both: ead.TiledEnsemble, spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spool == "off":
        monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    # Nothing of the images stays in memory, but all of the embeddings.
    monkeypatch.setattr(ead.TiledEnsemble, "spool_bytes", 0)
    other = tiled(patchcore(both.member.backbone), scales=SCALES, shared=True).fit(TRAIN)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(other.predict(BOTH).anomaly_map, both.predict(BOTH).anomaly_map)
    assert other.threshold_ == both.threshold_


def test_all_scales_give_statistics_of_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = tiled(scales=SCALES, shared=True, normalization="none")
    whole = ensemble.fit(TRAIN).calibration_
    # Of nine tiles of an image fewer can be held than of one.
    monkeypatch.setattr(one_pass, "most_held", lambda parts, seen, total, tiles: 27 // tiles)
    few = ensemble.fit(TRAIN).calibration_
    assert few.positions == (0, 3, 6)
    np.testing.assert_allclose(few.scores, whole.scores[[0, 3, 6]], rtol=1e-5)


def test_members_that_pass_apart_give_statistics_of_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [patchcore(), patchcore(augment="brightness"), patchcore(seed=1)]
    monkeypatch.setattr(one_pass, "HELD_IMAGES", 2)
    # Of three members that pass together, or one by one.
    monkeypatch.setattr(one_pass, "most_held", lambda parts, *_: 12 // len(parts))
    ensemble = tiled(ead.BackboneEnsemble(members), 24, 24).fit(TRAIN)
    assert ensemble.calibration_.positions == (0, 2, 4, 6)
    counts = [len(part.calibration_.scores) for one in ensemble.members_ for part in one._parts()]
    assert counts == [4] * 12


def test_batches_do_not_matter(both: ead.TiledEnsemble) -> None:
    found = both.predict(BOTH)
    for image, score, own in zip(BOTH, found.anomaly_score, found.anomaly_map, strict=True):
        alone = both.predict(image[None])
        np.testing.assert_allclose(alone.anomaly_score, score, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(alone.anomaly_map[0], own, rtol=1e-3, atol=1e-2)


def test_a_region() -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, 30:] = True
    ensemble = tiled(None, 24, 24, scales=SCALES, region=mask).fit(TRAIN)
    # Of the four tiles at the scale 1 two have a part of it, and so has the one at .5.
    assert ensemble.state_.frame.skipped == (0, 2)
    assert ensemble.state_.frame.numbers == (1, 3, 4)
    assert len(ensemble.members_) == 3
    found = ensemble.predict(BOTH)
    assert (found.anomaly_map[:, ~mask] == 0).all()
    changed = BOTH.copy()
    changed[:, ~mask] = 0
    np.testing.assert_allclose(ensemble.predict(changed).anomaly_score, found.anomaly_score, rtol=1e-5)
    with pytest.raises(ValueError, match="region goes with shared=False"):
        tiled(scales=SCALES, region=mask, shared=True)


def test_locations_of_all_scales_on_an_executor(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 6, SIDE)

    def made() -> ead.TiledEnsemble:
        member = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.1, batch_size=4, device="cpu")
        return ead.TiledEnsemble(member, 24, 24, image_size=SIDE, scales=SCALES)

    alone = made().fit(paths)

    def interrupt(number: int) -> None:
        if number == 1:
            raise RuntimeError("struck")

    with pytest.raises(ead.EnsembleADError):
        made().fit(paths, executor=Inline(interrupt, workers=2), workdir=tmp_path / "work", retries=0)
    executor = Inline(workers=2)
    apart = made().fit(paths, executor=executor, workdir=tmp_path / "work")
    assert executor.given == 2  # of five locations those that were missing
    np.testing.assert_array_equal(apart.predict(BOTH).anomaly_map, alone.predict(BOTH).anomaly_map)
    assert apart.threshold_ == alone.threshold_


def test_an_interrupted_fit_changes_nothing(both: ead.TiledEnsemble) -> None:
    ensemble = tiled(scales=SCALES, shared=True)
    stages: list[tuple[str, int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append((stage, done, total))
        if stage == "embed" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensemble.fit(TRAIN, progress=stop)
    assert not ensemble.is_fitted
    assert stages[0][2] == 2 * 9 * len(TRAIN)  # two scales as long as the first each


@pytest.mark.parametrize(
    "options", [{"stride": 24}, {"shared": True, "normalization": "image", "score": "max"}]
)
def test_its_graph_computes_the_same(options: dict[str, Any]) -> None:
    ensemble = tiled(scales=(0.75, 1.0), **options).fit(TRAIN)
    graph = DetectorGraph(ensemble, (SIDE, SIDE), resized=False).eval()
    with torch.no_grad():
        scores, maps, anomalous = graph(torch.from_numpy(BOTH))
    found = ensemble.predict(BOTH)
    np.testing.assert_allclose(scores, found.anomaly_score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(maps, found.anomaly_map, rtol=1e-3, atol=2e-3)
    np.testing.assert_array_equal(anomalous, found.is_anomalous)


@pytest.mark.parametrize("scale", [0.5, 0.3, 1.7])
def test_images_are_scaled_alike_in_fit_and_predict(scale: float) -> None:
    size = (41, 56)
    images = normal_images(2, side=56)[:, :41]
    geometry = Geometry(None, None, scale=scale)
    expected = np.stack([geometry.apply(image) for image in images]).transpose(0, 3, 1, 2)
    pyramid = TilePyramid.of(size, (1.0, scale), (8, 8), (8, 8), "flush")
    first, second = pyramid.scaled(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert tuple(first.shape[2:]) == size
    np.testing.assert_array_equal(second, expected)
    assert tuple(second.shape[2:]) == geometry.output_size(*size) == pyramid.levels[1].image_size


def test_numbers_of_tiles() -> None:
    pyramid = TilePyramid.of((48, 48), (1.0, 0.5), (16, 16), (16, 16), "flush")
    assert (pyramid.count, pyramid.place(8), pyramid.place(9)) == (13, (0, 8), (1, 0))
    assert pyramid.groups(True) == (tuple(range(9)), tuple(range(9, 13)))
    assert pyramid.without((3, 10)).numbers == (0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 12)
    assert pyramid.without((3, 10)).skipped == (3, 10)
    assert (pyramid.window(12).top, pyramid.window(12).left) == (8, 8)
    with pytest.raises(ValueError, match="there are 13 tiles, got the number 13"):
        pyramid.place(13)


@pytest.mark.parametrize(
    ("scales", "kind", "message"),
    [
        (0.5, TypeError, r"scales must be a list of numbers, got 0\.5"),
        ("1", TypeError, "scales must be a list of numbers, got '1'"),
        ((), ValueError, "scales must be 1 to 8 numbers, got 0"),
        (tuple(1 + i / 10 for i in range(9)), ValueError, "scales must be 1 to 8 numbers, got 9"),
        ((1, 0), ValueError, r"scales\[1\] must be positive and finite, got 0"),
        ((1, -0.5), ValueError, r"scales\[1\] must be positive and finite, got -0\.5"),
        ((float("nan"),), ValueError, r"scales\[0\] must be finite, got nan"),
        ((1, float("inf")), ValueError, r"scales\[1\] must be finite, got inf"),
        ((True,), TypeError, r"scales\[0\] must be a number, got True"),
        (("1",), TypeError, r"scales\[0\] must be a number, got '1'"),
        ((1, 0.5, 1.0), ValueError, "scales must differ from each other, got 1, 0.5, 1"),
        ((1, 8), ValueError, "scales must be at most 4, got 8"),
        (
            (1, 0.4),
            ValueError,
            "scales: 0.4 leaves no whole tile, for it makes images of 48 x 48 pixels 19 x 19, and tiles have "
            "24 x 24; the smallest scale that works is 0.5",
        ),
    ],
)
def test_what_is_refused(scales: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        tiled(scales=scales)


def test_native_images_are_refused_when_they_are_seen() -> None:
    ensemble = tiled(image_size=None, scales=(1, 0.45))
    with pytest.raises(ValueError, match=r"scales: 0\.45 leaves no whole tile, .* works is 0\.5"):
        ensemble.fit(TRAIN)


@pytest.mark.parametrize(("size", "smallest"), [((48, 30), 0.8), ((49, 48), 0.5), ((31, 31), 0.7742)])
def test_the_smallest_scale_works(size: tuple[int, int], smallest: float) -> None:
    with pytest.raises(ValueError, match=f"the smallest scale that works is {smallest:g}$"):
        TilePyramid.of(size, (smallest - 0.001,), (24, 24), (24, 24), "flush")
    assert TilePyramid.of(size, (smallest,), (24, 24), (24, 24), "flush").count >= 1


def test_the_check_draws_images_that_every_scale_can_cut() -> None:
    ensemble = tiled(image_size=None, scales=(0.75, 2))
    assert drawn_size(ensemble._parts()) == (48, 48)  # a tile and a stride, at the scale .75
    assert ensemble.plan().frame_for((48, 48)).levels[0].grid == (2, 2)


def test_numpy_numbers_are_numbers() -> None:
    assert checked_scales([np.float32(0.5), np.int64(1)]) == (0.5, 1.0)
