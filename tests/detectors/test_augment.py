"""PatchCore(augment=...): what is learned of changed copies, and that they never vouch for their image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.textures import normal_images
from support.units import Inline, draw_images

import ensemblead as ead
from ensemblead.images import AS_IS, Augmented, Geometry, Images, Tiles, Turn, Window, open_images
from ensemblead.images.changes import ANGLES, FACTORS, Copy
from ensemblead.kernels.inside import Inside

Pixels = npt.NDArray[np.uint8]
SIDE = 32


def stripes(count: int, *, turned: bool = False, any_way: bool = False, seed: int = 0) -> Pixels:
    """Stripes across, on their side, or every which way, with noise: uint8 `[count, 32, 32, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    images = []
    for _ in range(count):
        angle = rng.uniform(0, 2 * np.pi) if any_way else turned * np.pi / 2
        along = np.cos(angle) * y + np.sin(angle) * x
        wave = 120 + 60 * np.sin(along * 1.1 + rng.uniform(0, 2 * np.pi))
        images.append(wave[..., None] + rng.normal(0, 3, (SIDE, SIDE, 3)))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def detector(**options: Any) -> ead.PatchCore:
    given: dict[str, Any] = {**NATIVE, "coreset_fraction": 1.0, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore(TinyNet(), ("second", "first"), **(given | options))


def fitted(images: Any, **options: Any) -> ead.PatchCore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images
        return detector(**options).fit(images)


def embedded(one: ead.PatchCore, images: Pixels) -> torch.Tensor:
    network = one.network_
    found = one.embed(network(network.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))))
    assert isinstance(found, torch.Tensor)
    return found


def same_rows(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two sets of rows `[..., D]` are equal but for rounding."""
    apart = torch.cdist(*(rows.flatten(0, -2).double() for rows in (found, expected)))
    return max(float(apart.min(axis).values.max()) for axis in (0, 1)) < 1e-4


class TestWhatIsLearned:
    def test_brightness(self) -> None:
        images = stripes(2)
        found = fitted(images, augment="brightness")
        copies = [np.rint(images * factor).clip(0, 255).astype(np.uint8) for factor in FACTORS]
        assert same_rows(found.memory_bank_.rows_, embedded(found, np.concatenate(copies)))

    def test_rotations_without_their_mirrored_corners(self) -> None:
        images = stripes(2)
        found = fitted(images, augment="rotations")
        expected = []
        for angle in ANGLES:
            copies = [Turn(angle).of(image.transpose(2, 0, 1)).transpose(1, 2, 0) for image in images]
            # A patch of 4 x 4 pixels counts where all of them show the photograph.
            reached = Turn(angle).reached(np.ones((SIDE, SIDE), dtype=bool))
            cells = reached.reshape(8, 4, 8, 4).all(axis=(1, 3))
            expected.append(embedded(found, np.stack(copies))[:, torch.from_numpy(cells)].flatten(0, 1))
        assert same_rows(found.memory_bank_.rows_, torch.cat(expected))
        # 64 patches of each quarter turn, fewer of the others.
        own = (found.memory_bank_.images_ == 0).sum().item()
        assert 4 * 64 < own < 8 * 64

    def test_of_a_region_what_lies_inside_alone(self) -> None:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[:16, 8:24] = True
        images = stripes(2)
        images[:, ~mask] = 255
        found = fitted(images, augment="rotations", region=mask)
        plain = fitted(images, region=mask)
        bank = found.memory_bank_
        assert bool((bank.images_ == 0).sum() > (plain.memory_bank_.images_ == 0).sum())
        # The half turn of the region shows none of its upper part where the region was; what was filled in
        # outside of it, which looks like nothing inside, is not learned.
        inside = Inside(mask)
        filled = found.geometry.region
        assert filled is not None
        kept = []
        for image in images:
            planes = filled.filled(image).transpose(2, 0, 1)
            for angle in ANGLES:
                turn = Turn(angle)
                copy = turn.of(planes).transpose(1, 2, 0)
                cells = turn.reached(mask).reshape(8, 4, 8, 4).all(axis=(1, 3)).ravel()
                if not angle:
                    cells = np.zeros(64, dtype=bool)
                    cells[inside.places((8, 8), torch.device("cpu")).numpy()] = True
                kept.append(embedded(found, copy[None])[0].flatten(0, 1)[torch.from_numpy(cells)])
        assert same_rows(bank.rows_, torch.cat(kept))

    def test_with_a_bank_per_layer(self) -> None:
        found = fitted(stripes(3), augment="rotations", banks="per_layer", metric="cosine")
        fine, coarse = (len(bank) for bank in reversed(found.memory_banks_))
        assert fine > coarse > 3 * 64
        assert {bank.augment_ for bank in found.memory_banks_} == {("rotations",)}

    def test_of_objects(self) -> None:
        images = np.full((4, SIDE, SIDE, 3), 230, dtype=np.uint8)
        images[:, 8:24, 8:24] = stripes(4, any_way=True)[:, 8:24, 8:24]
        plain = fitted(images, foreground="auto")
        assert plain.foreground_ is not None
        found = fitted(images, foreground="auto", augment="rotations")
        assert found.foreground_ is not None
        assert torch.equal(found.foreground_.direction, plain.foreground_.direction)
        assert len(found.memory_bank_) > len(plain.memory_bank_)

    def test_the_order_of_images_does_not_matter(self) -> None:
        images = stripes(5, any_way=True)
        one, other = (
            fitted(some, augment=("rotations", "brightness"), coreset_fraction=0.05, batch_size=1)
            for some in (images, images[::-1])
        )
        assert torch.equal(one.memory_bank_.rows_, other.memory_bank_.rows_)


class TestLeaveOneOut:
    @pytest.mark.parametrize("augment", ["rotations", "brightness", ("rotations", "brightness")])
    def test_an_image_is_scored_without_its_copies(self, augment: Any) -> None:
        images = stripes(4, any_way=True)
        found = fitted(images, augment=augment)
        bank = found.memory_bank_
        assert sorted(set(bank.images_.tolist())) == [0, 1, 2, 3]
        assert len(found.calibration_.scores) == 4
        for i, patches in enumerate(embedded(found, images)):
            others = bank.rows_[bank.images_ != i].double()
            squared = torch.cdist(patches.flatten(0, 1).double(), others).min(1).values.square()
            assert float(found.calibration_.scores[i]) == pytest.approx(float(squared.max()), rel=1e-4)
        # Not what a bank with the copies would say, which is next to nothing.
        assert found.threshold_ > 10 * float(found.predict(images).anomaly_score.max())

    def test_equal_images_are_left_out_together(self) -> None:
        images = stripes(3, any_way=True)
        twice = fitted(np.concatenate([images, images[:1]]), augment="rotations")
        once = fitted(images, augment="rotations")
        np.testing.assert_allclose(twice.calibration_.scores, once.calibration_.scores, rtol=1e-4)

    def test_odd_images_go_with_their_copies(self) -> None:
        good = normal_images(14, side=SIDE)
        bad = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
        found = fitted(np.concatenate([good, bad]), augment="brightness", contamination="auto")
        assert sorted(one.index for one in found.left_out_) == [14, 15]
        assert set(found.memory_bank_.images_.tolist()) == set(range(14))

    def test_copies_have_no_fingerprints(self) -> None:
        images = stripes(3, any_way=True)
        found = fitted(images, augment="rotations")
        assert len(found._fingerprints) == 3
        found.predict(np.rot90(images, axes=(1, 2)).copy())
        assert found.known_ == []


class TestWhatItDoes:
    def test_turned_products_are_normal(self) -> None:
        across, on_their_side = stripes(6), stripes(3, turned=True, seed=9)
        assert fitted(across).predict(on_their_side).is_anomalous.all()
        assert not fitted(across, augment="rotations").predict(on_their_side).is_anomalous.any()

    def test_brighter_products_are_nearer(self) -> None:
        images = stripes(6)
        brighter = np.rint(stripes(3, seed=9) * 1.15).clip(0, 255).astype(np.uint8)
        plain, found = (fitted(images, augment=name).predict(brighter) for name in (None, "brightness"))
        assert (found.anomaly_score < plain.anomaly_score).all()


class TestAuto:
    def test_turns_only_what_comes_in_all_directions(self) -> None:
        every, one = fitted(stripes(8, any_way=True), augment="auto"), fitted(stripes(8), augment="auto")
        assert (every.augment_, one.augment_) == (("rotations",), ())
        assert "augment='auto'" in repr(every)
        assert "augmented by rotations" in repr(every)
        assert "not augmented" in repr(one)
        plain, turned = (fitted(stripes(8, any_way=True), augment=name) for name in (None, "rotations"))
        assert torch.equal(every.memory_bank_.rows_, turned.memory_bank_.rows_)
        assert torch.equal(one.memory_bank_.rows_, fitted(stripes(8)).memory_bank_.rows_)
        assert len(plain.memory_bank_) < len(turned.memory_bank_)

    def test_says_what_it_measured(self) -> None:
        told: list[tuple[str, bool]] = []

        class Progress:
            def __call__(self, stage: str, done: int, total: int) -> None:
                assert done <= total

            def note(self, text: str, stays: bool) -> None:
                told.append((text, stays))

        detector(augment="auto").fit(stripes(8), progress=Progress())
        assert len(told) == 1
        assert "rotations are left out" in told[0][0]

    def test_of_one_image_nothing_is_known(self) -> None:
        with (
            pytest.warns(UserWarning, match="compares turned images with others, and there is one alone"),
            pytest.warns(UserWarning, match="no training image can be scored without"),
        ):
            found = detector(augment="auto").fit(stripes(1))
        assert found.augment_ == ()

    def test_images_that_are_equal_where_they_are_inspected(self) -> None:
        images = stripes(2)
        images[1, 8:24, 8:24] = images[0, 8:24, 8:24]
        # Upright each is found in the other, turned it is not.
        assert fitted(images, augment="auto", image_size=16).augment_ == ()

    def test_the_choice_is_saved_and_extended_by(self, tmp_path: Path) -> None:
        found = fitted(stripes(6, any_way=True), augment="auto")
        found.save(tmp_path / "model")
        again = ead.load(tmp_path / "model", backbone=TinyNet())
        assert again.augment_ == ("rotations",)
        assert "augmented by rotations" in repr(again)
        # These alone would not be turned.
        more = stripes(3, seed=5)
        count = len(again.memory_bank_)
        again.extend(more)
        assert again.augment_ == ("rotations",)
        new = again.memory_bank_.images_[count:]
        assert set(new.tolist()) == {6, 7, 8}
        assert again.predict(stripes(2, turned=True, seed=7)).anomaly_score.max() < again.threshold_

    def test_a_region_that_no_turn_leaves_in_place(self) -> None:
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[:8, :8] = True
        with pytest.warns(UserWarning, match="no patch is inspected in all turns"):
            found = detector(augment="auto", region=mask).fit(stripes(4))
        assert found.augment_ == ()


class TestInEnsembles:
    def test_beside_members_that_are_not_augmented(self) -> None:
        images = stripes(5, any_way=True)
        members = [detector(augment="rotations"), detector(), detector(augment="auto")]
        ead.BackboneEnsemble(members).fit(images)
        for member, augment in zip(members, ("rotations", None, "rotations"), strict=True):
            alone = fitted(images, augment=augment)
            assert torch.equal(member.memory_bank_.rows_, alone.memory_bank_.rows_)
            np.testing.assert_array_equal(member.calibration_.scores, alone.calibration_.scores)

    @pytest.mark.parametrize(("shared", "scales"), [(False, [1.0]), (True, [1.0, 0.5])])
    def test_of_tiles(self, shared: bool, scales: list[float]) -> None:
        images = stripes(4, any_way=True)
        member = detector(augment="rotations")
        ensemble = ead.TiledEnsemble(member, 16, 16, image_size=SIDE, shared=shared, scales=scales)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ensemble.fit(images)
        tile = images[:, :16, :16].copy()
        first = ensemble.members_[0]
        assert first.augment_ == ("rotations",)
        alone = fitted(tile, augment="rotations")
        own = first.memory_bank_.rows_
        apart = torch.cdist(alone.memory_bank_.rows_.double(), own.double()).min(1).values
        assert float(apart.max()) < 1e-4
        assert (len(own) > len(alone.memory_bank_)) == shared
        assert len(ensemble.calibration_.scores) == 4
        assert {one.augment_ for one in ensemble.members_} == {("rotations",)}

    def test_tiles_of_squashed_photographs_are_turned_as_these(self) -> None:
        geometry = Geometry((32, 32), None, scale=0.5)
        with Images(open_images(stripes(1)[:, :, :16]), [geometry]) as data:
            tiles = Tiles(data, [(geometry, Window(0, 0, 8, 8))])
            (upright, turned) = Augmented(tiles, [Copy(), Copy(90)]).batches([AS_IS], 1)
        assert not upright.turns
        assert turned.turns == {AS_IS: (Turn(90, 0.5),)}

    def test_of_tiles_at_two_scales(self) -> None:
        ensemble = ead.TiledEnsemble(
            detector(augment="rotations"), 16, 16, image_size=SIDE, scales=(1.0, 0.5), shared=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ensemble.fit(stripes(4, any_way=True))
        assert {member.augment_ for member in ensemble.members_} == {("rotations",)}

    def test_black_margins_are_not_turned(self) -> None:
        with pytest.raises(ValueError, match='edge="pad" leaves some with black margins'):
            ead.TiledEnsemble(detector(augment="auto"), 16, 16, image_size=SIDE, edge="pad")
        ead.TiledEnsemble(detector(augment="brightness"), 16, 16, image_size=SIDE, edge="pad")

    def test_on_workers(self, tmp_path: Path) -> None:
        draw_images(tmp_path / "images")

        def made() -> ead.BackboneEnsemble:
            options: dict[str, Any] = {"resize": (24, 24), "coreset_size": 60, "device": "cpu"}
            names: Any = (None, "auto", "brightness")
            return ead.BackboneEnsemble([ead.PatchCore("gabor", augment=name, **options) for name in names])

        here = made().fit(tmp_path / "images")
        there = made().fit(tmp_path / "images", executor=Inline(), workdir=tmp_path / "work")
        for one, other in zip(here.members, there.members, strict=True):
            assert one.augment_ == other.augment_
            assert torch.equal(one.memory_bank_.rows_, other.memory_bank_.rows_)
        assert here.threshold_ == there.threshold_


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augment": "rotation"},
            "augment must be one of rotations, brightness, auto, got 'rotation'; did you",
        ),
        ({"augment": ["auto"]}, "augment must be one of rotations, brightness, got 'auto'"),
        ({"augment": []}, r"augment must be names of different changes, or None for none, got \[\]"),
        ({"augment": ["rotations", "rotations"]}, "names of different changes"),
        (
            {"augment": {"brightness"}},
            "augment must be one of rotations, brightness, auto, got {'brightness'}",
        ),
        ({"augment": 3}, "augment must be one of rotations, brightness, auto, got 3"),
        (
            {"augment": "rotations", "position_radius": 1},
            "augment='rotations' turns images, and with position_",
        ),
        ({"augment": "auto", "position_radius": 1}, "products that turn need position_radius=None"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(**options)


def test_brightness_goes_with_places() -> None:
    found = fitted(stripes(4), augment="brightness", position_radius=1)
    assert found.memory_bank_.places_ is not None
    assert len(found.memory_bank_) == 3 * 4 * 64


def test_images_of_several_sizes() -> None:
    wide = np.concatenate([stripes(1, seed=4)] * 2, axis=2)[0]
    images = [stripes(1)[0], wide]
    with pytest.raises(ValueError, match=r"images of a batch must have one size.*batch_size=1"):
        _ = fitted_of(images, batch_size=4)
    found = fitted_of(images, batch_size=1)
    assert set(found.memory_bank_.images_.tolist()) == {0, 1}


def fitted_of(images: list[Pixels], **options: Any) -> ead.PatchCore:
    from PIL import Image

    return fitted([Image.fromarray(image) for image in images], augment="rotations", **options)


def test_coverage_certifies_nothing_of_copies() -> None:
    images = stripes(4)
    found = fitted(images, augment="rotations", coreset_fraction=0.1)
    assert found.verify(images).certificate is None
    assert fitted(images, coreset_fraction=0.1).verify(images).certificate is not None
