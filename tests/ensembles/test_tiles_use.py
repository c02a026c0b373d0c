"""Ensembles over tiles as detectors: composed, kept, extended, calibrated, interrupted, misused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks import TinyNet
from support.sources import Counted
from support.textures import normal_images
from support.tiles import BAD, BOTH, GOOD, MASKS, SIDE, TRAIN, patchcore, tiled

import ensemblead as ead
from ensemblead.calibration import conformal_threshold
from ensemblead.cli.pictures import overlay, place_back
from ensemblead.common.errors import (
    BackboneUnavailableError,
    DamagedModelError,
    NotFittedError,
    UnreadableImageError,
)
from ensemblead.evaluation.gallery import color_scale
from ensemblead.images import spool
from ensemblead.networks import FeatureExtractor

FEW: dict[str, Any] = {"tile": 24, "stride": 24}  # four tiles


def same(found: ead.Predictions, expected: ead.Predictions) -> None:
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)


# Composed


@pytest.mark.slow
def test_a_member_may_be_an_ensemble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = TinyNet()
    members = [patchcore(net), patchcore(net, patch_size=1), patchcore(TinyNet(1))]
    shown: list[int] = []
    run = FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor) -> list[torch.Tensor]:
        shown.append(len(images))
        return run(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    ensemble = tiled(ead.BackboneEnsemble(members, weights=[1, 1, 2]), **FEW).fit(TRAIN)
    # Two networks for three members, each tile once.
    assert sum(shown) == 2 * 7 * 4
    shown.clear()
    found = ensemble.predict(BOTH)
    assert sum(shown) == 2 * 6 * 4
    assert found.is_anomalous.tolist() == [False] * 3 + [True] * 3
    # By hand: an ensemble fitted on every location's crops.
    native = {"image_size": None, "resize": None}
    train, test = (np.ascontiguousarray(images[:, :24, 24:]) for images in (TRAIN, BOTH))
    alone = ead.BackboneEnsemble(
        [patchcore(net, **native), patchcore(net, patch_size=1, **native), patchcore(TinyNet(1), **native)],
        weights=[1, 1, 2],
    ).fit(train)
    corner = ensemble.members_[1]
    np.testing.assert_allclose(corner.calibration_.scores, alone.calibration_.scores, rtol=1e-3, atol=1e-3)
    raw = tiled(ead.BackboneEnsemble(members, weights=[1, 1, 2]), **FEW)
    raw = ead.TiledEnsemble(raw.member, 24, 24, image_size=SIDE, normalization="none", seam_smoothing=False)
    maps = raw.fit(TRAIN).predict(BOTH).anomaly_map[:, :24, 24:]
    np.testing.assert_allclose(maps, alone.predict(test).anomaly_map, rtol=1e-3, atol=1e-3)
    ensemble.save(tmp_path / "m")
    # One network per member of one location.
    assert len(list((tmp_path / "m").rglob("backbone.safetensors"))) == 3
    modules = [TinyNet(9), TinyNet(9), TinyNet(9)]
    same(ead.load(tmp_path / "m", backbone=modules).predict(BOTH), found)


@pytest.mark.parametrize("shared", [False, True])
def test_a_member_may_be_padim(shared: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_dimensions": 4, "batch_size": 4, "device": "cpu"}
    train = normal_images(20, side=SIDE)
    member = ead.PaDiM(TinyNet(), ("first", "second"), **options)
    plain: dict[str, Any] = {"normalization": "none", "seam_smoothing": False}
    ensemble = tiled(member, shared=shared, memory_budget=1, **plain, **FEW).fit(train)
    if not shared:
        corner = ead.PaDiM(TinyNet(), ("first", "second"), image_size=None, resize=None, **options)
        corner.fit(np.ascontiguousarray(train[:, 24:, :24]))
        np.testing.assert_allclose(
            ensemble.members_[2].calibration_.scores, corner.calibration_.scores, rtol=1e-2
        )
        maps = corner.predict(np.ascontiguousarray(BOTH[:, 24:, :24])).anomaly_map
        found = ensemble.predict(BOTH).anomaly_map[:, 24:, :24]
        np.testing.assert_allclose(found, maps, rtol=1e-2, atol=1e-2)
    ensemble.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=TinyNet(5))
    same(again.predict(BOTH), ensemble.predict(BOTH))
    more = normal_images(4, seed=8, side=SIDE)
    same(again.extend(more).predict(BOTH), ensemble.extend(more).predict(BOTH))


@pytest.mark.slow
def test_it_may_be_a_member(tmp_path: Path) -> None:
    net = TinyNet()
    options: dict[str, Any] = {"resize": (32, 32), "image_size": None, "device": "cpu"}
    whole = ead.PatchCore(net, ("first",), **options, coreset_fraction=0.05)
    parts = tiled(
        patchcore(net), memory_budget=4 * TRAIN.nbytes
    )  # needs further passes, its neighbour does not
    source = Counted(TRAIN)
    ensemble = ead.BackboneEnsemble([whole, parts]).fit(source)
    assert source.reads == 7
    found = ensemble.predict(BOTH)
    assert found.anomaly_map.shape == (6, 32, 32)
    assert found.is_anomalous.tolist() == [False] * 3 + [True] * 3
    alone = tiled(patchcore(net)).fit(TRAIN)
    np.testing.assert_allclose(
        parts.predict(BAD).anomaly_map, alone.predict(BAD).anomaly_map, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(parts.calibration_.scores, alone.calibration_.scores, rtol=1e-3, atol=1e-3)
    assert (
        parts.calibration_.images_sha256 == whole.calibration_.images_sha256
    )  # so that they are fused image by image
    ensemble.extend(normal_images(3, seed=8, side=SIDE))
    assert len(ensemble.calibration_.scores) == 10
    fresh = normal_images(20, seed=9, side=SIDE)
    ensemble.calibrate(fresh, 0.1)
    assert ensemble.calibration_.is_guaranteed
    assert ensemble.threshold_ == pytest.approx(
        conformal_threshold(ensemble.predict(fresh).anomaly_score, 0.1)[0], rel=1e-3
    )
    ensemble.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=[TinyNet(3), TinyNet(3)])
    same(again.predict(BOTH), ensemble.predict(BOTH))
    (_, said) = next(ensemble.predict_members(BAD[:1]))
    np.testing.assert_array_equal(said.anomaly_score, parts.predict(BAD[:1]).anomaly_score)


@pytest.mark.slow
def test_ensembles_over_the_same_tiles_look_at_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = TinyNet(), TinyNet(1)
    fused = ead.BackboneEnsemble([patchcore(net), patchcore(other)])
    padim = ead.PaDiM(net, ("first",), num_dimensions=4, batch_size=3, device="cpu")
    parts = [
        tiled(patchcore(net), score="max"),
        tiled(patchcore(net, resize=None), **FEW),  # other tiles
        patchcore(net, resize=SIDE, image_size=None),
        tiled(fused, shared=True),
        tiled(padim, normalization="image"),
    ]
    ensemble = ead.BackboneEnsemble([parts[0], ead.BackboneEnsemble(parts[1:4]), parts[4]]).fit(TRAIN)
    alone = [part.predict(BOTH) for part in parts]
    shown: list[tuple[int, ...]] = []
    run = FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor) -> list[torch.Tensor]:
        shown.append((len(images), id(self.module)))
        return run(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    (first, nested, last) = next(ensemble.predict_members(BOTH))
    looks = {module: sum(n for n, own in shown if own == id(module)) for module in (net, other)}
    count = len(first)  # of images in a batch
    # Nine tiles for three ensembles, four for another, and the image; of the other network nine for one.
    assert looks == {net: count * (9 + 4 + 1), other: count * 9}
    for said, expected in ((first, alone[0]), (last, alone[4])):
        np.testing.assert_allclose(said.anomaly_score, expected.anomaly_score[:count], rtol=1e-4)
        np.testing.assert_allclose(said.anomaly_map, expected.anomaly_map[:count], rtol=1e-3, atol=1e-4)
    scores = [
        part.calibration_.standardize_scores(torch.from_numpy(own.anomaly_score)).numpy()
        for part, own in zip(parts[1:4], alone[1:4], strict=True)
    ]
    np.testing.assert_allclose(nested.anomaly_score, np.mean(scores, 0)[:count], rtol=1e-3)


def test_members_inside_and_outside_of_tiles_share_networks(tmp_path: Path) -> None:
    torch.save(_squeezenet().state_dict(), tmp_path / "w.pth")
    options: dict[str, Any] = {"weights": tmp_path / "w.pth", "coreset_fraction": 0.05, "device": "cpu"}
    whole = ead.PatchCore("squeezenet1_1", ("features.3",), resize=64, image_size=64, **options)
    inner = ead.PatchCore("squeezenet1_1", ("features.5",), **options)
    ensemble = ead.BackboneEnsemble([whole, ead.TiledEnsemble(inner, 48, 48, image_size=96)])
    ensemble.fit(normal_images(3, side=96))
    assert len({id(one.network.extractor.module) for one in ensemble._networks()}) == 1


def _squeezenet() -> torch.nn.Module:
    import torchvision

    module: torch.nn.Module = torchvision.models.squeezenet1_1(weights=None)
    return module


# Kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"normalization": "image"}, {"normalization": "none"}]
)
def test_saved_and_loaded_it_is_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    ensemble = tiled(None, (24, 20), (16, 20), score="max", **options).fit(TRAIN)
    ensemble.save(tmp_path / "m")
    assert len(list((tmp_path / "m").rglob("backbone.safetensors"))) == 1
    again = ead.load(tmp_path / "m", backbone=TinyNet(5))
    same(again.predict(BOTH), ensemble.predict(BOTH))
    assert again.parameters() == ensemble.parameters()
    assert again.threshold_ == ensemble.threshold_
    assert len({id(one.network.extractor.module) for one in again._networks()}) == 1
    more = normal_images(4, seed=8, side=SIDE)
    same(again.extend(more).predict(BOTH), ensemble.extend(more).predict(BOTH))
    # A loaded one can be fitted anew, and then saved over the old.
    again.fit(TRAIN[:5]).save(tmp_path / "m")
    fresh = ead.load(tmp_path / "m", backbone=TinyNet(5))
    same(fresh.predict(BOTH), again.predict(BOTH))


def test_weights_are_reread_or_stored_once(tmp_path: Path) -> None:
    torch.save(_squeezenet().state_dict(), tmp_path / "w.pth")
    member = ead.PatchCore(
        "squeezenet1_1", ("features.3",), weights=tmp_path / "w.pth", coreset_fraction=0.05, device="cpu"
    )
    ensemble = ead.TiledEnsemble(member, 48, 48, image_size=96).fit(normal_images(3, side=96))
    expected = ensemble.predict(normal_images(2, seed=3, side=96))
    ensemble.save(tmp_path / "lean")
    ensemble.save(tmp_path / "whole", include_backbone=True)
    assert not list((tmp_path / "lean").rglob("backbone.safetensors"))
    assert len(list((tmp_path / "whole").rglob("backbone.safetensors"))) == 1
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(BackboneUnavailableError, match="no longer at"):
        ead.load(tmp_path / "lean")
    for again in (ead.load(tmp_path / "whole"), ead.load(tmp_path / "lean", weights=tmp_path / "moved.pth")):
        same(again.predict(normal_images(2, seed=3, side=96)), expected)
    with pytest.raises(BackboneUnavailableError, match=r"is a part of the model in .*whole"):
        ead.load(tmp_path / "whole" / "tile_0_1")


def test_a_damaged_location_is_noticed(tmp_path: Path) -> None:
    tiled(**FEW).fit(TRAIN).save(tmp_path / "m")
    bank = tmp_path / "m" / "tile_1_0" / "learned.safetensors"
    data = bytearray(bank.read_bytes())
    data[-1] ^= 1
    bank.write_bytes(bytes(data))
    with pytest.raises(DamagedModelError, match=r"tile_1_0/learned\.safetensors was altered"):
        ead.load(tmp_path / "m", backbone=TinyNet())
    bank.parent.rename(tmp_path / "gone")
    with pytest.raises(DamagedModelError, match="tile_1_0"):
        ead.load(tmp_path / "m", backbone=TinyNet())


# Extended and calibrated: in the units of the fit


def test_extend_reaches_all_locations_and_keeps_the_unit() -> None:
    ensemble = tiled(memory_budget=1).fit(TRAIN)
    statistics = ensemble._fitted().statistics
    sizes = [len(member.memory_bank_) for member in ensemble.members_]
    known = ensemble.calibration_.scores
    other = 255 - normal_images(5, seed=4, side=SIDE)
    before = ensemble.predict(255 - GOOD)
    source = Counted(other)
    ensemble.extend(source)
    assert source.reads == 5  # a budget of a byte keeps them in a file
    assert all(len(m.memory_bank_) > size for m, size in zip(ensemble.members_, sizes, strict=True))
    assert before.is_anomalous.all()
    assert ensemble.predict(255 - GOOD).anomaly_score.max() < before.anomaly_score.min()
    assert ensemble._fitted().statistics is statistics
    np.testing.assert_array_equal(ensemble.calibration_.scores[:7], known)
    assert len(ensemble.calibration_.scores) == 12


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["tile", "image", "none"])
def test_calibrate_takes_the_threshold_of_the_joined_score(normalization: str) -> None:
    ensemble = tiled(normalization=normalization, **FEW).fit(TRAIN)
    before = ensemble.predict(BOTH)
    fresh = normal_images(30, seed=8, side=SIDE)
    scores = ensemble.predict(fresh).anomaly_score
    ensemble.calibrate(fresh, 0.1)
    assert ensemble.calibration_.is_guaranteed
    np.testing.assert_allclose(ensemble.calibration_.scores, scores, rtol=1e-3, atol=1e-5)
    assert ensemble.threshold_ == pytest.approx(conformal_threshold(scores, 0.1)[0], rel=1e-3)
    # Scores are what they were: the guarantee is exact.
    after = ensemble.predict(BOTH)
    np.testing.assert_array_equal(after.anomaly_score, before.anomaly_score)
    # More memory only lowers them, so that it holds on.
    ensemble.extend(normal_images(5, seed=12, side=SIDE))
    assert ensemble.threshold_ == pytest.approx(conformal_threshold(scores, 0.1)[0], rel=1e-3)
    assert (ensemble.predict(BOTH).anomaly_score <= before.anomaly_score + 1e-4).all()


@pytest.mark.slow
def test_a_failed_or_interrupted_fit_changes_nothing() -> None:
    ensemble = tiled(memory_budget=1, **FEW).fit(TRAIN)
    before, members = ensemble.predict(BOTH), ensemble.members_
    stages: list[tuple[str, int, int]] = []
    tiled(memory_budget=1, **FEW).fit(TRAIN[:4], progress=lambda *told: stages.append(told))
    kinds = {stage for stage, _, _ in stages}
    assert kinds == {"embed", "select", "calibrate", "join"}
    last = [max(i for i, (stage, _, _) in enumerate(stages) if stage == kind) for kind in kinds]
    first = [min(i for i, (stage, _, _) in enumerate(stages) if stage == kind) for kind in kinds]
    for place, again in itertools.product({*first, *last}, ("fit", "extend")):
        calls = itertools.count()

        def stop(*_: Any, calls: Any = calls, place: int = place) -> None:
            if next(calls) == place:
                raise KeyboardInterrupt

        try:
            getattr(ensemble, again)(GOOD if again == "extend" else TRAIN[:4], progress=stop)
        except KeyboardInterrupt:
            same(ensemble.predict(BOTH), before)
            assert ensemble.members_ == members
        else:  # an extension has no coreset to tell of, and is over sooner
            assert again == "extend"
            ensemble = tiled(memory_budget=1, **FEW).fit(TRAIN)
            before, members = ensemble.predict(BOTH), ensemble.members_


# Images


def test_images_of_any_size_are_squashed_and_maps_fit_them(tmp_path: Path) -> None:
    for i, (image, size) in enumerate(zip(BAD, ((60, 70), (48, 48), (100, 50)), strict=True)):
        Image.fromarray(image).resize(size).save(tmp_path / f"{i}.png")
    ensemble = tiled(image_size=(SIDE, 40), **FEW).fit(TRAIN)
    found = ensemble.predict(tmp_path)
    assert found.anomaly_map.shape == (3, SIDE, 40)
    assert ensemble.geometry.apply_mask(np.ones((50, 100))).shape == (SIDE, 40)
    placed = place_back(found.anomaly_map[2], ensemble.geometry, (50, 100))
    assert np.isfinite(placed).all()
    assert overlay(np.zeros((50, 100, 3), np.uint8), placed, color_scale(ensemble)).shape == (50, 100, 3)


def test_native_size() -> None:
    wide = normal_images(5, side=60)[:, :44]
    ensemble = tiled(image_size=None, **FEW).fit(wide)
    assert ensemble.tile_grid_ == (2, 3)
    assert ensemble.predict(wide).anomaly_map.shape == (5, 44, 60)
    with pytest.raises(ValueError, match=r"fitted for, \(44, 60\) with 2 x 3 tiles, got \(48, 48\)"):
        ensemble.predict(BAD)
    with pytest.raises(ValueError, match=r"one size .* here \(44, 60\), but image 0 has \(48, 48\)"):
        ensemble.extend(TRAIN)

    class Mixed(Counted):
        def __getitem__(self, index: int) -> Any:
            return self.images[index][: 44 if index < 3 else 40]

    with pytest.raises(ValueError, match=r"one size .* here \(44, 60\), but image 3 has \(40, 60\)"):
        tiled(image_size=None, **FEW).fit(Mixed(wide))
    # A new fit may be of another size.
    assert ensemble.fit(TRAIN).predict(BAD).anomaly_map.shape == (3, SIDE, SIDE)


def test_unreadable_images_are_left_out_of_all_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
    monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    for i, image in enumerate(TRAIN):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    ensemble = tiled(memory_budget=1, **FEW)
    with pytest.raises(UnreadableImageError, match=r"2\.png"):
        ensemble.fit(tmp_path)
    assert not ensemble.is_fitted
    with pytest.warns(UserWarning, match=r"left out 1 of 7 images .*2\.png"):
        ensemble.fit(tmp_path, errors="skip")
    assert [image.index for image in ensemble.skipped_] == [2]
    expected = tiled(**FEW).fit(np.delete(TRAIN, 2, axis=0))
    np.testing.assert_allclose(
        ensemble.predict(BAD).anomaly_map, expected.predict(BAD).anomaly_map, rtol=1e-3, atol=1e-3
    )
    assert len(ensemble.calibration_.scores) == 6

    def lose(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("embed", 6):  # all images of the first location
            (tmp_path / "6.png").unlink()

    said = r"6\.png \(an earlier pass of this fit has read it.* fit again\)"
    with pytest.raises(FileNotFoundError, match=said):
        ensemble.fit(tmp_path, errors="skip", progress=lose)


def test_one_image_warns_and_works() -> None:
    with (
        pytest.warns(UserWarning, match="the scores of the tiles do not vary .*, after extend too"),
        pytest.warns(UserWarning, match="no training image can be scored"),
    ):
        ensemble = tiled(**FEW).fit(TRAIN[:1])
    assert ensemble.predict(BAD).anomaly_score.max() < 100  # squared distances, as the members give them
    assert np.isfinite(ensemble.predict(BAD).anomaly_map).all()
    assert ensemble.predict(BAD).is_anomalous.all()


def test_it_is_evaluated_as_any_detector(tmp_path: Path) -> None:
    for i, image in enumerate(TRAIN):
        _write(tmp_path / f"train/good/{i}.png", image)
    for i, (good, bad, mask) in enumerate(zip(GOOD, BAD, MASKS, strict=True)):
        _write(tmp_path / f"test/good/{i}.png", good)
        _write(tmp_path / f"test/blot/{i}.png", bad)
        _write(tmp_path / f"ground_truth/blot/{i}_mask.png", mask.astype(np.uint8) * 255)
    dataset = ead.MVTecAD(tmp_path)
    ensemble = tiled().fit(dataset.categories[0].train)
    report = ead.evaluate(ensemble, dataset, bootstrap=0)
    assert report.image_auroc == 1
    assert report.pixel_auroc > 0.95
    assert report.summary.false_alarm_rate == 0


def _write(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# Misused


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: tiled(None, 64, 32),
            ValueError,
            r"tile_size must not exceed the image, got tile_size \(64, 64\)",
        ),
        (lambda: tiled(None, 24, 0), ValueError, r"stride must be at least 1, got \(0, 0\)"),
        (lambda: tiled(None, 24, (8, 25)), ValueError, r"stride must not exceed tile_size .* \(8, 25\)"),
        (lambda: tiled(None, 24, 25, image_size=None), ValueError, "stride must not exceed tile_size"),
        (lambda: tiled(None, 0, 0), ValueError, "tile_size must be at least 1"),
        (lambda: tiled(None, 24.0, 12), TypeError, "tile_size must be an int or a pair"),
        (lambda: tiled(image_size=-1), ValueError, "image_size must be at least 1, got -1"),
        (lambda: tiled(image_size=(48, 0)), ValueError, r"image_size must be at least 1, got \(48, 0\)"),
        (lambda: tiled(None, 0, 0, image_size=None), ValueError, "tile_size must be at least 1"),
        (lambda: tiled(image_size="512"), TypeError, "image_size must be an int or a pair"),
        (lambda: tiled(score="sum"), ValueError, "score must be one of mean, max, got 'sum'"),
        (lambda: tiled(normalization="minmax"), ValueError, "normalization must be one of tile, image, none"),
        (lambda: tiled(shared=1), TypeError, "shared must be True or False, got 1"),
        (lambda: tiled(memory_budget=0), ValueError, "memory_budget must be at least 1"),
        (lambda: tiled("resnet18"), TypeError, "member must be a detector, got str"),
        (lambda: tiled(tiled()), ValueError, "member must not be a TiledEnsemble or contain one"),
        (
            lambda: tiled(ead.BackboneEnsemble([patchcore(), tiled()])),
            ValueError,
            "member must not be a TiledEnsemble or contain one",
        ),
        (
            lambda: tiled(ead.BackboneEnsemble([patchcore()], fusion="minmax")),
            ValueError,
            "scales over an evaluated set",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_fitted_members_and_unfitted_ensembles_are_refused() -> None:
    member = patchcore(resize=None, image_size=None).fit(TRAIN[:3])
    with pytest.raises(ValueError, match="member must be unfitted, .* this PatchCore has learned already"):
        tiled(member)
    ensemble = tiled()
    for use in (
        lambda: ensemble.predict(BAD),
        lambda: ensemble.calibration_,
        lambda: ensemble.members_,
        lambda: ensemble.tile_grid_,
        lambda: ensemble.save("nowhere"),
    ):
        with pytest.raises(NotFittedError, match="this TiledEnsemble is not fitted"):
            use()


def test_images_smaller_than_a_tile_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tile_size must not exceed the image, .* image size \(48, 48\)"):
        tiled(None, 64, 32, image_size=None).fit(TRAIN)
