"""Ensembles over tiles: every number against separate detectors on crops, joined by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.networks import TinyNet
from support.sources import Counted, Listed
from support.textures import normal_images
from support.tiles import BAD, BOTH, GOOD, MASKS, SIDE, TRAIN, crops, patchcore, tiled

import ensemblead as ead
from ensemblead.ensembles import tile_merging
from ensemblead.ensembles.tile_frame import TileFrame
from ensemblead.ensembles.tile_merging import FLOOR
from ensemblead.images import spool
from ensemblead.networks import FeatureExtractor


def _pooled(stds: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(stds))))


def _by_hand(
    images: npt.NDArray[np.uint8], tile: Any, stride: Any, edge: Any, score: str, normalization: str
) -> tuple[Any, Any, Any, list[ead.PatchCore]]:
    """Joined scores and maps of BOTH-like images, joined leave-one-out scores, and the detectors."""
    train, test = (crops(each, tile, stride, edge) for each in (TRAIN_AT[images.shape[1:3]], images))
    detectors = [
        patchcore(image_size=None, resize=None).fit(np.ascontiguousarray(tiles))
        for row in train
        for tiles in row
    ]
    stats = [detector.calibration_ for detector in detectors]
    score_floor = FLOOR * _pooled([c.score_std for c in stats])
    map_floor = FLOOR * _pooled([c.map_std for c in stats])
    scores, maps, left_out = [], [], []
    places = [np.ascontiguousarray(tiles) for row in test for tiles in row]
    for tiles, detector, c in zip(places, detectors, stats, strict=True):
        found = detector.predict(tiles)
        s, m, out = found.anomaly_score, found.anomaly_map, c.scores
        if normalization == "tile":
            deviation = max(score_floor, c.score_std)
            s, out = (s - c.score_mean) / deviation, (out - c.score_mean) / deviation
            m = (m - c.map_mean) / max(map_floor, c.map_std)
        scores.append(s)
        maps.append(m)
        left_out.append(out)
    reduce = np.mean if score == "mean" else np.max
    stacked = np.stack(maps).reshape(*train.shape[:2], len(images), 1, *train.shape[3:5]).astype(np.float32)
    joined = ead.untile(stacked, images.shape[1:3], stride, edge=edge)[:, 0]
    return reduce(scores, 0), joined, reduce(left_out, 0), detectors


WIDE = normal_images(7, side=56)[:, :41]
TRAIN_AT = {(SIDE, SIDE): TRAIN, (41, 56): WIDE}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "tile", "stride", "edge"),
    [
        (BOTH, 24, 12, "flush"),
        (BOTH, 24, 24, "flush"),
        (BOTH, SIDE, SIDE, "flush"),
        (WIDE[:4, ::-1].copy(), (24, 20), (16, 15), "flush"),
        (WIDE[:4, ::-1].copy(), (24, 20), (16, 15), "pad"),
    ],
    ids=["overlap", "abutting", "one tile", "rectangular and flush", "rectangular and padded"],
)
@pytest.mark.parametrize(("score", "normalization"), [("mean", "tile"), ("max", "none")])
def test_it_equals_separate_detectors_joined_by_hand(
    images: npt.NDArray[np.uint8], tile: Any, stride: Any, edge: Any, score: str, normalization: str
) -> None:
    scores, maps, left_out, detectors = _by_hand(images, tile, stride, edge, score, normalization)
    options = {"score": score, "normalization": normalization, "image_size": images.shape[1:3], "edge": edge}
    ensemble = tiled(None, tile, stride, seam_smoothing=False, **options)
    ensemble.fit(TRAIN_AT[images.shape[1:3]])
    assert len(ensemble.members_) == len(detectors) == np.prod(ensemble.tile_grid_)
    for member, alone in zip(ensemble.members_, detectors, strict=True):
        torch.testing.assert_close(member.memory_bank_.rows_, alone.memory_bank_.rows_)
        np.testing.assert_allclose(member.calibration_.scores, alone.calibration_.scores, rtol=1e-4)
    found = ensemble.predict(images)
    np.testing.assert_allclose(found.anomaly_score, scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.anomaly_map, maps, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ensemble.calibration_.scores, left_out, rtol=1e-3, atol=1e-4)
    smooth = tiled(None, tile, stride, **options).fit(TRAIN_AT[images.shape[1:3]]).predict(images)
    expected = ead.smooth_seams(found.anomaly_map, tile, stride, edge=edge)
    np.testing.assert_allclose(smooth.anomaly_map, expected, rtol=1e-4, atol=1e-4)


def test_normalizing_the_image_leaves_the_order_alone() -> None:
    plain, whole = (tiled(normalization=kind).fit(TRAIN) for kind in ("none", "image"))
    raw, found, c = plain.predict(BOTH), whole.predict(BOTH), plain.calibration_
    expected = (raw.anomaly_score - c.score_mean) / c.score_std
    np.testing.assert_allclose(found.anomaly_score, expected, rtol=1e-3)
    expected = (raw.anomaly_map - c.map_mean) / c.map_std
    np.testing.assert_allclose(found.anomaly_map, expected, rtol=1e-3, atol=1e-3)
    assert whole.calibration_.score_mean == pytest.approx(0, abs=1e-4)
    assert whole.calibration_.map_std == pytest.approx(1, rel=1e-4)
    np.testing.assert_array_equal(found.is_anomalous, raw.is_anomalous)


def test_it_finds_defects() -> None:
    ensemble = tiled().fit(TRAIN)
    good, bad = ensemble.predict(GOOD), ensemble.predict(BAD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()
    assert bad.is_anomalous.all()
    assert bad.anomaly_map[MASKS].mean() > 5 * bad.anomaly_map[~MASKS].mean()


@pytest.mark.parametrize(("size", "tile", "stride"), [((7, 9), (3, 4), (2, 3)), ((6, 6), (6, 6), (1, 1))])
@pytest.mark.parametrize("edge", ["flush", "pad"])
def test_tiles_are_cut_as_the_kernel_does(
    size: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int], edge: Any
) -> None:
    images = torch.randint(
        0, 255, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    frame = TileFrame(size, tile, stride, edge)
    expected = ead.tile(images, tile, stride, edge=edge).flatten(0, 1)
    assert len(frame) == len(expected)
    for number, tiles in enumerate(expected):
        torch.testing.assert_close(frame.cut(images, number), tiles)


def test_a_defect_at_the_edge_is_seen_as_anywhere() -> None:
    """Tiles that overhang would learn the black edge, beside which all else is small."""
    wide = normal_images(9, side=60)
    good, spoiled = wide[:8], wide[8:].copy()
    spoiled[:, 54:60, 54:60] = 20
    inside = wide[8:].copy()
    inside[:, 4:10, 4:10] = 20
    ensemble = tiled(None, 24, 24, image_size=60).fit(good)
    assert ensemble.tile_grid_ == (3, 3)
    at_the_edge, elsewhere = (ensemble.predict(image).anomaly_map.max() for image in (spoiled, inside))
    assert at_the_edge > 0.2 * elsewhere


# Memory


@pytest.mark.parametrize(
    ("memory", "spool_to_disk", "reads"),
    [
        (spool.MEMORY_BYTES, True, 7),
        (0, True, 7),
        (0, False, 7 + 9 * 7),
        (3 * 3 * SIDE**2, False, 7 + 9 * 4),
    ],
)
def test_wherever_images_are_kept_the_same_is_learned(
    memory: int, spool_to_disk: bool, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiled().fit(TRAIN)
    shown: list[int] = []
    run = FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor) -> list[torch.Tensor]:
        shown.append(len(images))
        return run(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    monkeypatch.setattr(spool, "MEMORY_BYTES", memory)
    if not spool_to_disk:
        monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    images, stages = Counted(TRAIN), []
    ensemble = tiled()
    ensemble.fit(images, progress=lambda *told: stages.append(told))
    # Nine locations, and every tile seen once.
    assert images.reads == reads
    assert sum(shown) == 7 * 9
    assert max(shown) <= ensemble.member.batch_size
    read = [done for stage, done, total in stages if stage == "embed" and total == 7 * 9]
    assert read[-1] == 7 * 9
    assert read == sorted(read)
    for member, other in zip(ensemble.members_, whole.members_, strict=True):
        torch.testing.assert_close(member.memory_bank_.rows_, other.memory_bank_.rows_)
    found, expected = ensemble.predict(BOTH), whole.predict(BOTH)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ensemble.calibration_.scores, whole.calibration_.scores, rtol=1e-3, atol=1e-4)
    done: dict[str, list[int]] = {}
    for stage, count, total in stages:
        done.setdefault(stage, []).append(count)
        assert count <= total
    assert done["calibrate"] == sorted(set(done["calibrate"]))  # batch by batch
    assert done["calibrate"][-1] == 7 * 9
    assert done["join"] == list(range(1, 8))


def test_resized_images_count_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    images = Counted(TRAIN)
    ensemble = tiled(memory_budget=8 * 3 * SIDE**2)
    ensemble.fit(images)
    # A quarter of the budget, two images, is kept; nine locations decode the others again.
    assert images.reads == 7 + 9 * 5
    expected = tiled().fit(TRAIN).predict(BAD)
    np.testing.assert_allclose(ensemble.predict(BAD).anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)


def test_a_location_is_fitted_even_beyond_the_budget() -> None:
    ensemble = tiled(memory_budget=1).fit(TRAIN)
    expected = tiled().fit(TRAIN).predict(BAD)
    np.testing.assert_allclose(ensemble.predict(BAD).anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_do_not_matter(batch_size: int) -> None:
    expected = tiled().fit(TRAIN).predict(BOTH)
    ensemble = tiled(patchcore(batch_size=batch_size)).fit(TRAIN)
    # About a batch of tiles: 64 hold seven images of nine.
    assert ensemble.batch_size == {1: 1, 5: 1, 64: 7}[batch_size]
    found = ensemble.predict(BOTH)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-3)


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(tiled().fit(TRAIN).predict(BOTH))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0].anomaly_map, found[1].anomaly_map, rtol=1e-3, atol=1e-3)


# What varies from location to location


def test_a_location_where_nothing_varies_does_not_shout() -> None:
    def framed(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        images = images.copy()
        images[:, :24, :24] = 200
        return images

    ensemble = tiled(None, 24, 24).fit(framed(TRAIN))
    calibrations = [member.calibration_ for member in ensemble.members_]
    assert calibrations[0].score_std <= calibrations[0].rounding
    assert min(c.score_std for c in calibrations[1:]) > 0
    calm = framed(GOOD)
    found = ensemble.predict(calm)
    assert np.isfinite(found.anomaly_map).all()
    # Of the seven training images all count, although one image's patches stand for all in the corner.
    assert len(ensemble.calibration_.scores) == 7
    noisy = calm.copy()
    noisy[:, :24, :24] += np.random.default_rng(0).integers(0, 2, (3, 24, 24, 3), dtype=np.uint8)
    after = ensemble.predict(noisy)
    assert after.anomaly_score.max() < found.anomaly_score.max() + 1
    # A defect there is still one.
    noisy[:, 6:14, 6:14] = 20
    assert ensemble.predict(noisy).anomaly_map[:, 4:16, 4:16].max() > 10
    assert ensemble.predict(noisy).is_anomalous.all()


def _padim() -> ead.PaDiM:
    return ead.PaDiM(TinyNet(), ("first", "second"), num_dimensions=4, batch_size=4, device="cpu")


def _all_rows(net: int = 0, **options: Any) -> ead.PatchCore:
    return patchcore(TinyNet(net), coreset_fraction=1, **options)


WITHOUT_VARIATION = {
    "max": _all_rows,
    "topk": lambda: _all_rows(score="topk"),
    "reweighted": lambda: _all_rows(score="reweighted"),
    "padim": _padim,
    "fused": lambda: ead.BackboneEnsemble([_all_rows(), _all_rows(1)]),
    "fused roots": lambda: ead.BackboneEnsemble([_all_rows(score="reweighted"), _all_rows(1)]),
    "largest of roots": lambda: ead.BackboneEnsemble([_padim(), _all_rows(1)], fusion="max"),
}


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["tile", "image"])
@pytest.mark.parametrize("kind", WITHOUT_VARIATION)
@pytest.mark.parametrize("woven", [False, True])
def test_images_without_any_variation_leave_the_members_unit(
    normalization: str, kind: str, woven: bool
) -> None:
    # Copies of one image, which are left out together; or images that are alike once they are resized.
    sides = range(SIDE, SIDE + 5)
    alike = Listed([TRAIN[0]] * 5 if woven else [np.full((s, s, 3), 90, dtype=np.uint8) for s in sides])
    member = WITHOUT_VARIATION[kind]
    copies = pytest.warns(UserWarning, match="training image(, or copies of one,)? can")
    with (
        pytest.warns(UserWarning, match="the scores and maps of the tiles do not vary between the training"),
        copies if woven else nullcontext(),
    ):
        ensemble = tiled(member(), normalization=normalization).fit(alike)
    assert not ensemble.predict(alike).is_anomalous.any()
    with copies if woven else nullcontext():
        plain = tiled(member(), normalization="none").fit(alike).predict(BAD)
    found = ensemble.predict(BAD)
    assert found.is_anomalous.all()
    np.testing.assert_allclose(found.anomaly_score, plain.anomaly_score, rtol=1e-4)
    np.testing.assert_allclose(found.anomaly_map, plain.anomaly_map, rtol=1e-4, atol=1e-4)
    # Distances between this network's features, squared and not; PaDiM's are tens of deviations of 0.1.
    assert plain.anomaly_score.max() < 1000


@pytest.mark.parametrize("fusion", ["calibrated", "max"])
def test_members_without_any_variation_are_fused_in_their_unit(fusion: str) -> None:
    flat = np.full((5, SIDE, SIDE, 3), 90, dtype=np.uint8)
    sizes: dict[str, Any] = {"image_size": None, "resize": None}
    members = [_all_rows(score="reweighted", **sizes), _all_rows(1, **sizes)]
    copies = "no training image can be scored without its own"
    with pytest.warns(UserWarning, match=copies):
        ensemble = ead.BackboneEnsemble(members, fusion=fusion).fit(flat)
    with pytest.warns(UserWarning, match=copies):
        alone = _all_rows(**sizes).fit(flat)
    assert ensemble.predict(BAD).is_anomalous.all()
    assert ensemble.predict(BAD).anomaly_score.max() < 1000
    nested = ead.BackboneEnsemble([ensemble, ead.BackboneEnsemble([alone])])
    assert nested.predict(BAD).anomaly_score.max() < 1000


def test_the_floor_is_a_share_of_the_pooled_deviation() -> None:
    given = torch.tensor([[1.0, 0.0, 2.0, 3.0], [1.0, 4.0, 2.0, 3.0]])
    values = tile_merging.TileStatistics.floored(given).values
    assert values[:, 1].tolist() == pytest.approx([FLOOR * 8**0.5, 4.0])
    assert values[:, 3].tolist() == [3.0, 3.0]
    # Of the mean a thousandth at least, and where that is more than all there is, 1.
    given = torch.tensor([[3000.0, 0.0, 2.0, 1e-4], [1.0, 4.0, 2.0, 0.0]])
    values = tile_merging.TileStatistics.floored(given).values
    assert values[:, 1].tolist() == pytest.approx([3.0, 4.0])
    assert values[:, 3].tolist() == [1.0, 1.0]
    assert tile_merging.unvaried(given) == ["maps"]


# One member for all locations


def test_a_shared_member_learns_all_tiles() -> None:
    ensemble = tiled(shared=True, normalization="none", seam_smoothing=False).fit(TRAIN)
    (member,) = ensemble.members_
    tiles = crops(TRAIN, 24, 12).transpose(2, 0, 1, 3, 4, 5).reshape(-1, 24, 24, 3)
    alone = patchcore(image_size=None, resize=None).fit(np.ascontiguousarray(tiles))
    torch.testing.assert_close(member.memory_bank_.rows_, alone.memory_bank_.rows_)
    places = [np.ascontiguousarray(t) for row in crops(BOTH, 24, 12) for t in row]
    found = [alone.predict(tiles) for tiles in places]
    said = ensemble.predict(BOTH)
    expected = np.mean([p.anomaly_score for p in found], 0)
    np.testing.assert_allclose(said.anomaly_score, expected, rtol=1e-3)
    maps = np.stack([p.anomaly_map for p in found]).reshape(3, 3, 6, 1, 24, 24)
    np.testing.assert_allclose(said.anomaly_map, ead.untile(maps, SIDE, 12)[:, 0], rtol=1e-3, atol=1e-4)
    assert said.is_anomalous.tolist() == [False] * 3 + [True] * 3
    assert len(ensemble.calibration_.scores) == 7


def test_a_shared_member_leaves_out_whole_images() -> None:
    # Every tile of an image equals the others of it: with any of them in the bank its distance would be 0.
    colours = np.random.default_rng(0).integers(0, 255, (6, 1, 1, 3), dtype=np.uint8)
    flat = np.broadcast_to(colours, (6, SIDE, SIDE, 3)).copy()
    ensemble = tiled(patchcore(coreset_fraction=0.5), 24, 24, shared=True, normalization="none").fit(flat)
    assert ensemble.calibration_.scores.min() > 1e-3


def test_a_shared_member_holds_what_the_budget_allows() -> None:
    one = 4 * 9 * 12 * 12 * 24  # an image's tiles, embedded
    ensemble = tiled(shared=True, memory_budget=3 * 3 * one).fit(TRAIN)
    # Every third of seven images; and a single one, which does not vary.
    with pytest.warns(UserWarning, match="do not vary .*memory_budget lets one be .* larger memory_budget"):
        assert len(tiled(shared=True, memory_budget=1).fit(TRAIN).calibration_.scores) == 1
    assert len(ensemble.calibration_.scores) == 3
    assert ensemble.predict(BOTH).is_anomalous[3:].all()
