"""PatchCore(foreground="auto"): the object found in images, and patches outside that count for nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.networks import NATIVE, TinyNet

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, NotExportableError
from ensemblead.detectors.patchcore.foreground import MOST_IMAGES, Foreground, find_foreground

SIDE = 64  # pixels: a grid of 32 x 32 patches of the first layer
CELL = 2


def discs(count: int, seed: int = 0, move: int = 4) -> np.ndarray:
    """A striped disc on a plain ground, each image with its own place and noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(97, 103, (count, SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    for image in images:
        top, left = SIDE // 2 + rng.integers(-move, move + 1, 2)
        disc = (y - top) ** 2 + (x - left) ** 2 < 16**2
        stripes = 150 + 60 * ((x - left) // 3 % 2)[..., None] + rng.integers(-8, 8, images.shape[1:])
        image[disc] = stripes[disc]
    return images.astype(np.uint8)


def textures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(80, 160, (count, SIDE, SIDE, 3)).astype(np.uint8)


def painted(images: np.ndarray, top: int, left: int, side: int = 5) -> np.ndarray:
    """The same with a coloured square."""
    spoiled = images.copy()
    spoiled[:, top : top + side, left : left + side] = (250, 20, 20)
    return spoiled


def detector(**options: Any) -> ead.PatchCore:
    given: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"}
    given["foreground"] = "auto"
    return ead.PatchCore(TinyNet(), ("first", "second"), **(given | options))


@pytest.fixture(scope="module")
def fitted() -> ead.PatchCore:
    return detector().fit(discs(16))


def embeddings(of: ead.PatchCore, images: np.ndarray) -> torch.Tensor:
    network = of.network_
    found = of.embed(network(network.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))))
    return found if isinstance(found, torch.Tensor) else found[0]


# Finding


def naive_masks(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The rule of `find_foreground` and `Foreground.cells` in float64 loops; embeddings `[N, h, w, D]`."""

    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def object_of(values: np.ndarray) -> np.ndarray:
        return (unit(values) - mean) @ direction > cut

    def grown(mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        closed = np.array(
            [
                [
                    mask[y, x]
                    or (
                        mask[y, : x + 1].any()
                        and mask[y, x:].any()
                        and mask[: y + 1, x].any()
                        and mask[y:, x].any()
                    )
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
        return np.array(
            [
                [closed[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any() for x in range(width)]
                for y in range(height)
            ]
        )

    def touching(mask: np.ndarray, start: np.ndarray) -> np.ndarray:
        pieces, count = ndimage.label(mask, np.ones((3, 3)))
        kept = [n for n in range(1, count + 1) if start[pieces == n].any()]
        return np.isin(pieces, kept) if kept else mask

    rows = unit(train).reshape(-1, train.shape[-1])
    mean = rows.mean(0)
    direction = np.linalg.svd(rows - mean, full_matrices=False)[2][0]
    along = ((rows - mean) @ direction).reshape(train.shape[:3])
    edge, inner = max(1, SIDE // CELL // 16), SIDE // CELL // 4
    rim = np.ones(along.shape[1:], dtype=bool)
    rim[edge:-edge, edge:-edge] = False
    if along[:, inner:-inner, inner:-inner].mean() < along[:, rim].mean():
        direction, along = -direction, -along
    ordered = np.sort(along.ravel())
    within = [
        ordered[:n].var() * n + ordered[n:].var() * (len(ordered) - n) for n in range(1, len(ordered), 7)
    ]
    near = 1 + 7 * int(np.argmin(within))
    splits = range(max(1, near - 7), min(len(ordered), near + 8))
    best = min(splits, key=lambda n: ordered[:n].var() * n + ordered[n:].var() * (len(ordered) - n))
    cut = ordered[best - 1 : best + 1].mean()
    middle = np.zeros_like(rim)
    middle[inner:-inner, inner:-inner] = True
    usual = touching(np.mean([grown(mask) for mask in along > cut], axis=0) >= 0.5, middle)
    return np.array([grown(touching(mask, usual)) | usual for mask in object_of(test)])


def test_the_mask_is_that_of_a_naive_reference(fitted: ead.PatchCore) -> None:
    train, test = embeddings(fitted, discs(6)), embeddings(fitted, discs(3, seed=5))
    foreground, reason = find_foreground(train)
    assert foreground is not None, reason
    expected = naive_masks(train.numpy(), test.numpy())
    assert np.array_equal(foreground.cells(test).cells.numpy(), expected)
    assert 0.15 < expected.mean() < 0.6


def test_the_object_and_its_cell_around_are_inspected_and_nothing_far_from_it(fitted: ead.PatchCore) -> None:
    (image,) = discs(1, seed=3, move=0)
    (inspected,) = fitted.predict(image[None]).anomaly_map > 0
    y, x = np.mgrid[:SIDE, :SIDE]
    apart = np.hypot(y - SIDE // 2, x - SIDE // 2)
    assert inspected[apart < 15].all()
    assert not inspected[apart > 28].any()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (textures(8), "no object on a background"),
        (np.full((8, SIDE, SIDE, 3), 90, dtype=np.uint8), "no object on a background"),
        (discs(8)[:, 20:44, 20:44], "no object on a background"),  # the disc's inside alone
    ],
    ids=["texture", "constant", "fills the frame"],
)
def test_images_without_an_object_keep_all(images: np.ndarray, reason: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_it = detector().fit(images)
        without = detector(foreground=None).fit(images)
    assert sum(reason in str(one.message) for one in caught) == 1
    assert with_it.foreground_ is None
    assert torch.equal(with_it.memory_bank_.rows_, without.memory_bank_.rows_)
    test = painted(images[:2], 4, 4)
    ours, theirs = with_it.predict(test), without.predict(test)
    assert np.array_equal(ours.anomaly_score, theirs.anomaly_score)
    assert np.array_equal(ours.anomaly_map, theirs.anomaly_map)
    assert with_it.threshold_ == without.threshold_


def test_an_image_in_which_there_is_no_object_is_inspected_whole(fitted: ead.PatchCore) -> None:
    foreground = fitted.foreground_
    assert foreground is not None
    nothing = replace(foreground, threshold=2.0)  # no vector of length 1 goes so far
    assert nothing.cells(embeddings(fitted, discs(2))).cells.all()


def test_small_grids_and_equal_patches_show_no_object() -> None:
    assert find_foreground(torch.rand(4, 2, 8, 5))[1] == "2 x 8 patches have no middle"
    assert find_foreground(torch.ones(4, 8, 8, 5))[1] == "all patches are alike"


def test_the_same_images_in_another_order_give_the_same_object() -> None:
    images = discs(MOST_IMAGES + 4)
    ours, theirs = (
        detector(coreset_size=60, coreset_fraction=0.01).fit(one) for one in (images, images[::-1])
    )
    assert ours.foreground_ is not None
    assert theirs.foreground_ is not None
    assert torch.equal(ours.foreground_.direction, theirs.foreground_.direction)
    assert ours.foreground_.threshold == theirs.foreground_.threshold


# Counting for nothing


def alike(ours: ead.Predictions, theirs: ead.Predictions, of: ead.Detector) -> bool:
    moved = of.calibration_.rounding
    return bool(
        np.abs(ours.anomaly_score - theirs.anomaly_score).max() <= moved
        and np.abs(ours.anomaly_map - theirs.anomaly_map).max() <= moved
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "max"},
        {"score": "reweighted"},
        {"banks": "per_layer"},
        {"metric": "cosine"},
        {"position_radius": 2},
    ],
    ids=lambda one: "-".join(map(str, one.values())) or "default",
)
def test_a_defect_in_the_background_changes_nothing_and_one_on_the_object_does(
    options: dict[str, Any],
) -> None:
    found = detector(**options).fit(discs(16))
    images = discs(3, seed=7)
    good = found.predict(images)
    outside = found.predict(painted(images, 0, 0, side=3))
    inside = found.predict(painted(images, 30, 30))
    assert alike(outside, good, found)
    assert (inside.anomaly_score > good.anomaly_score + found.calibration_.rounding).all()
    assert not outside.anomaly_map[:, :8, :8].any()
    everything = detector(**{**options, "foreground": None}).fit(discs(16))
    with_it, without = (
        everything.predict(one).anomaly_map for one in (painted(images, 0, 0, side=3), images)
    )
    assert (with_it[:, :4, :4] > without[:, :4, :4] + everything.calibration_.rounding).all()


def test_what_lies_outside_is_not_learned(fitted: ead.PatchCore) -> None:
    everything = detector(foreground=None).fit(discs(16))
    cells = fitted.foreground_.cells(embeddings(fitted, discs(16)))  # type: ignore[union-attr]
    assert len(fitted.memory_bank_) == int(int(cells.counts.sum()) * 0.05)
    assert len(fitted.memory_bank_) < len(everything.memory_bank_)
    rows = cells.take(embeddings(fitted, discs(16)))
    apart = torch.cdist(fitted.memory_bank_.rows_.double(), rows.double()).amin(1)
    assert float(apart.max()) < 1e-5


def test_an_image_scores_by_the_largest_hundredth_of_its_object(fitted: ead.PatchCore) -> None:
    patches = embeddings(fitted, discs(3, seed=4))
    cells = fitted.foreground_.cells(patches)  # type: ignore[union-attr]
    scores = fitted.predict(discs(3, seed=4)).anomaly_score
    for image in range(3):
        own = patches[image][cells.cells[image]].double()
        squared = torch.cdist(own, fitted.memory_bank_.rows_.double()).amin(1).square()
        count = max(1, int(len(own) * 0.01))
        expected = float(squared.topk(count).values.mean())
        assert scores[image] == pytest.approx(expected, rel=1e-4, abs=fitted.calibration_.rounding)


def test_a_missing_part_is_seen_where_the_object_usually_is(fitted: ead.PatchCore) -> None:
    images = discs(2, seed=9, move=0)
    missing = images.copy()
    missing[:, 18:32, 18:32] = np.random.default_rng(0).integers(97, 103, (14, 14, 3))  # ground, to the rim
    ours, theirs = fitted.predict(missing), fitted.predict(images)
    assert (ours.anomaly_score > theirs.anomaly_score).all()
    assert (ours.anomaly_map[:, 20:30, 20:30] > 0).all()


# Together with all else


def test_predictions_do_not_depend_on_the_batch(fitted: ead.PatchCore) -> None:
    images = painted(discs(5, seed=2), 30, 30)
    together = fitted.predict(images)
    alone = [fitted.predict(images[i : i + 1]) for i in range(5)]
    for i, one in enumerate(alone):
        assert abs(one.anomaly_score[0] - together.anomaly_score[i]) <= fitted.calibration_.rounding
        assert np.array_equal(one.anomaly_map[0] == 0, together.anomaly_map[i] == 0)


@pytest.mark.parametrize("options", [{}, {"banks": "per_layer"}, {"position_radius": 2}], ids=str)
def test_saved_and_loaded_it_predicts_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    found = detector(**options).fit(discs(16))
    images = discs(3, seed=6)
    for half in (False, True):
        found.save(tmp_path / f"model{half}", half=half)
        again = ead.load(tmp_path / f"model{half}", backbone=TinyNet())
        assert isinstance(again, ead.PatchCore)
        assert again.foreground == "auto"
        before, after = found.predict(images), again.predict(images)
        np.testing.assert_allclose(after.anomaly_score, before.anomaly_score, rtol=2e-2 if half else 1e-6)
        assert np.array_equal(before.anomaly_map == 0, after.anomaly_map == 0)


def test_a_saved_direction_of_another_length_is_refused(tmp_path: Path) -> None:
    found = detector().fit(discs(16))
    assert found.foreground_ is not None
    shorter = replace(found.foreground_, direction=found.foreground_.direction[:-1].clone())
    found._state = replace(found.state_, foreground=shorter)
    found.save(tmp_path / "model")
    with pytest.raises(DamagedModelError, match="direction must be"):
        ead.load(tmp_path / "model", backbone=TinyNet())


def test_a_foreground_refuses_what_it_never_has() -> None:
    good = Foreground(torch.ones(3), 0.5, torch.ones(2, 2, dtype=torch.bool))
    for wrong, message in (
        ({"direction": torch.ones(3, 1)}, "direction"),
        ({"direction": torch.tensor([1.0, float("nan"), 0.0])}, "direction must be finite"),
        ({"usual": torch.ones(2, 2)}, "usual"),
        ({"usual": torch.ones(0, 2, dtype=torch.bool)}, "usual"),
        ({"threshold": float("nan")}, "threshold"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **wrong)


@pytest.mark.parametrize("banks", ["joint", "per_layer"])
def test_extend_learns_objects_alone_by_the_same_rule(banks: Any) -> None:
    found = detector(banks=banks).fit(discs(16))
    before = found.foreground_
    assert before is not None
    counts = [bank._num_added for bank in found.memory_banks_]
    more = discs(4, seed=11)
    found.extend(more)
    assert found.foreground_ is before
    added = [bank._num_added - n for bank, n in zip(found.memory_banks_, counts, strict=True)]
    assert added[0] == int(before.cells(embeddings(found, more)).counts.sum())
    good = found.predict(discs(2, seed=12))
    assert alike(found.predict(painted(discs(2, seed=12), 0, 0, side=3)), good, found)


def test_calibrate_takes_scores_as_predict_gives_them(fitted: ead.PatchCore) -> None:
    found = detector().fit(discs(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images
        found.calibrate(discs(6, seed=20), false_alarm_rate=0.2)
    expected = found.predict(discs(6, seed=20)).anomaly_score
    np.testing.assert_allclose(np.sort(found.calibration_.scores), np.sort(expected), rtol=1e-5)


def test_contamination_judges_images_by_their_objects() -> None:
    images = discs(20)
    images[[3, 11]] = painted(images[[3, 11]], 28, 28, side=9)
    images[5] = painted(images[5:6], 0, 0)[0]  # beside the object: not odd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images that decide the threshold
        found = detector(contamination=0.1).fit(images)
    assert sorted(one.index for one in found.left_out_) == [3, 11]


def test_verify_covers_objects_alone(fitted: ead.PatchCore) -> None:
    for found in (fitted, detector(position_radius=2).fit(discs(16))):
        coverage = found.verify(discs(16))
        again = found.verify(painted(discs(16), 0, 0, side=3))
        assert again.num_rows == coverage.num_rows
        assert again.radius == pytest.approx(coverage.radius, abs=1e-3)


def test_members_of_an_ensemble_have_an_object_each() -> None:
    members = [detector(), detector(score="max")]
    ensemble = ead.BackboneEnsemble(members).fit(discs(16))
    images = discs(2, seed=8)
    good, outside = ensemble.predict(images), ensemble.predict(painted(images, 0, 0, side=3))
    np.testing.assert_allclose(outside.anomaly_score, good.anomaly_score, rtol=1e-4, atol=1e-4)
    assert not good.anomaly_map[:, :8, :8].any()
    assert good.anomaly_map[:, 28:36, 28:36].all()


# Refusals


def test_what_does_not_go_with_it_is_refused(fitted: ead.PatchCore) -> None:
    with pytest.raises(ValueError, match="foreground must be"):
        detector(foreground="always")
    mask = np.ones((SIDE, SIDE), dtype=bool)
    with pytest.raises(ValueError, match="give one of them"):
        detector(region=mask)
    with pytest.raises(ValueError, match="give one of them"):
        ead.BackboneEnsemble([detector()], region=mask)
    with pytest.raises(ValueError, match="a tile may hold either"):
        ead.TiledEnsemble(detector(), tile_size=32, stride=32, image_size=SIDE)
    with pytest.raises(ValueError, match="holds fewer: give memory_budget="):
        detector(memory_budget=200_000).fit(discs(16))
    with pytest.raises(NotExportableError, match="patch by patch"):
        fitted.graph(fitted.state_, (SIDE, SIDE))
    with pytest.raises(TypeError, match="foreground"):
        ead.PaDiM("gabor", foreground="auto")  # type: ignore[call-arg]


@pytest.mark.slow
def test_it_keeps_all_promises_but_those_of_tiles_and_regions() -> None:
    common: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.1, "device": "cpu"}
    kept = [
        ead.check_detector(ead.PatchCore("gabor", ("layer1",), foreground=one, **common))
        for one in (None, "auto")
    ]
    missing = {"works_in_tiles", "works_shared_by_tiles", "works_nested", "inspects_its_region"}
    assert kept[1] == [name for name in kept[0] if name not in missing]
