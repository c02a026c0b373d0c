"""PatchCore with position_radius: patches are compared with rows from near their own place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ensemblead as ead
from ensemblead.memory.places import grid_places

SIDE = 64  # pixels; a grid of 8 x 8 patches
CELL = 8


def _images(count: int, seed: int = 0) -> np.ndarray:
    """Left half smooth, right half striped, with a little noise."""
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 108, (count, SIDE, SIDE, 3)).astype(np.uint8)
    images[:, :, SIDE // 2 :: 4] = 200
    images[:, :, SIDE // 2 + 1 :: 4] = 200
    return images


def _detector(**options: Any) -> ead.PatchCore:
    given = {"coreset_fraction": 0.3, "position_radius": 1, "batch_size": 4, **options}
    return ead.PatchCore("gabor", resize=None, device="cpu", **given)


def _fitted(images: np.ndarray, **options: Any) -> ead.PatchCore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images and rows
        return _detector(**options).fit(images)


@pytest.fixture(scope="module")
def detector() -> ead.PatchCore:
    return _fitted(_images(10))


def _patches(detector: ead.PatchCore, images: np.ndarray) -> torch.Tensor:
    """Embeddings `[B, 8, 8, D]`."""
    network = detector.network_
    return detector.embed(network(network.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))))


def _by_hand(detector: ead.PatchCore, patches: torch.Tensor, k: int = 1) -> np.ndarray:
    """Mean squared distance to the k nearest rows among those within the least radius that holds k."""
    bank = detector.memory_bank_
    rows, places = bank.rows_.double().numpy(), bank.places_
    assert places is not None
    out = np.empty(patches.shape[:3])
    for image, y, x in np.ndindex(*out.shape):
        apart = np.abs(places.numpy() - (y, x)).max(1)
        radius = max(detector.position_radius or 0, np.sort(apart)[k - 1])
        inside = rows[apart <= radius]
        squared = ((inside - patches[image, y, x].double().numpy()) ** 2).sum(1)
        out[image, y, x] = np.sort(squared)[:k].mean()
    return out


@pytest.mark.parametrize(("radius", "k"), [(0, 1), (1, 1), (2, 3)])
def test_scores_are_of_rows_near_the_patch(radius: int, k: int) -> None:
    detector = _fitted(_images(6), position_radius=radius, num_neighbors=k, coreset_fraction=0.15)
    patches = torch.rand(
        2, 8, 8, detector.memory_bank_.rows_.shape[1], generator=torch.Generator().manual_seed(1)
    )
    found = detector._scoring.scores(detector.memory_bank_, patches).grids
    np.testing.assert_allclose(found.numpy(), _by_hand(detector, patches, k), rtol=1e-5)


def test_a_normal_patch_in_the_wrong_place_is_anomalous(detector: ead.PatchCore) -> None:
    free = _fitted(_images(10), position_radius=None)
    swapped = np.roll(_images(1, seed=3), SIDE // 2, axis=2)  # stripes where none belong
    inside = {
        name: one._scoring.scores(one.memory_bank_, _patches(one, swapped)).grids[0, 2:6, [1, 6]]
        for name, one in (("near", detector), ("free", free))
    }
    assert bool((inside["near"] > 1.5 * inside["free"]).all())
    assert detector.predict(swapped).anomaly_score[0] > detector.threshold_


def test_every_place_has_rows_of_its_own(detector: ead.PatchCore) -> None:
    """The selection covers every square of position_radius + 1 cells."""
    places = detector.memory_bank_.places_
    assert places is not None
    squares = {tuple(place) for place in (places // 2).tolist()}
    assert len(squares) == 16
    assert detector.memory_bank_.certificate_ is not None


def test_leave_one_out_leaves_out_rows_near_the_patch_as_well(detector: ead.PatchCore) -> None:
    """A training image scored without its own rows is what the rest of the bank says of it, by hand."""
    bank = detector.memory_bank_
    patches = bank.rows_[:1].expand(64, -1).reshape(1, 8, 8, -1)
    image = int(bank.images_[0])
    without = detector._scoring.scores(bank, patches, [image]).grids
    kept = (bank.images_ != image).numpy()
    rows, places = bank.rows_.double().numpy()[kept], np.asarray(bank.places_)[kept]
    for y, x in np.ndindex(8, 8):
        apart = np.abs(places - (y, x)).max(1)
        inside = rows[apart <= max(1, apart.min())]
        expected = ((inside - patches[0, y, x].double().numpy()) ** 2).sum(1).min()
        assert float(without[0, y, x]) == pytest.approx(expected, rel=1e-5)


def test_batches_and_order_do_not_matter(detector: ead.PatchCore) -> None:
    images = _images(5, seed=7)
    together = detector.predict(images).anomaly_score
    for i in range(5):
        np.testing.assert_allclose(detector.predict(images[i : i + 1]).anomaly_score, together[i], rtol=1e-4)
    again = _fitted(_images(10)[::-1])
    assert torch.equal(again.memory_bank_.rows_, detector.memory_bank_.rows_)


def test_saved_and_loaded(detector: ead.PatchCore, tmp_path: Path) -> None:
    images = _images(3, seed=5)
    detector.save(tmp_path / "model")
    again = ead.load(tmp_path / "model")
    assert again.position_radius == 1
    assert again.memory_bank_.grid == (8, 8)
    np.testing.assert_array_equal(again.predict(images).anomaly_score, detector.predict(images).anomaly_score)
    again.extend(_images(2, seed=9))
    assert len(again.memory_bank_) >= len(detector.memory_bank_)


def test_extend_brings_rows_of_new_looks_to_their_place(detector: ead.PatchCore) -> None:
    bright = _images(4, seed=11)
    bright[:, 24:32, 8:16] = 250
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extended = _fitted(_images(10)).extend(bright)
    places = extended.memory_bank_.places_
    assert places is not None
    assert (np.diff(places.numpy() @ [1000, 1]) >= 0).all()
    assert extended.predict(bright[:1]).anomaly_score[0] < 0.1 * detector.predict(bright[:1]).anomaly_score[0]
    elsewhere = _images(1, seed=12)
    elsewhere[:, 24:32, 40:48] = 250
    assert extended.predict(elsewhere).anomaly_score[0] > 5 * extended.predict(bright[:1]).anomaly_score[0]


@pytest.mark.parametrize("score", ["max", "reweighted"])
def test_other_scores(score: Any) -> None:
    detector = _fitted(_images(6), score=score)
    image = _images(2, seed=3)
    image[1, 16:24, 8:16] = 255
    scores = detector.predict(image).anomaly_score
    assert np.isfinite(scores).all()
    assert scores[1] > 2 * scores[0]


def test_rows_that_come_in_groups_keep_their_places() -> None:
    """A memory budget that makes groups of them."""
    images = _images(12)
    detector = _fitted(images, coreset_fraction=0.05, memory_budget=800_000)
    bank = detector.memory_bank_
    whole = _fitted(images, coreset_fraction=0.05).memory_bank_
    assert len(bank) == len(whole)
    assert bank.places_ is not None
    # A row of the bank is a patch at the place that it names.
    patches = _patches(detector, images)
    for row, place in zip(bank.rows_, bank.places_.tolist(), strict=True):
        there = patches[:, place[0], place[1]]
        assert float((there - row).abs().amax(1).min()) < 1e-3


def test_verify_measures_by_place(detector: ead.PatchCore) -> None:
    found = detector.verify(_images(10))
    assert found.radius == pytest.approx(detector.memory_bank_.radius_, rel=1e-3)
    moved = _images(10)[:, :, ::-1]  # normal patches, all in other places
    assert detector.verify(np.ascontiguousarray(moved)).radius > 2 * found.radius


def test_members_of_ensembles_and_tiles() -> None:
    images = _images(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = ead.BackboneEnsemble([_detector(), _detector(position_radius=None)]).fit(images)
        tiles = {"tile_size": 32, "stride": 32, "image_size": SIDE}
        tiled = ead.TiledEnsemble(_detector(), **tiles).fit(images)
        shared = ead.TiledEnsemble(_detector(), **tiles, shared=True).fit(images)
    assert np.isfinite(both.predict(images[:1]).anomaly_score).all()
    assert np.isfinite(tiled.predict(images[:1]).anomaly_score).all()
    # Places are those in the tile.
    assert np.isfinite(shared.predict(images[:1]).anomaly_score).all()
    assert shared.members_[0].memory_bank_.grid == (4, 4)


def test_images_of_another_size_are_refused(detector: ead.PatchCore) -> None:
    with pytest.raises(ValueError, match=r"one grid .* position_radius=1: it is \(8, 8\), but .* \(12, 8\)"):
        detector.predict(np.zeros((1, 96, 64, 3), np.uint8))

    class Sizes(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, item: int) -> torch.Tensor:
            return torch.zeros(3, 64 + 32 * (item // 2), 64, dtype=torch.uint8) + item

    with pytest.raises(ValueError, match="set resize="):
        _detector(batch_size=1).fit(Sizes())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"position_radius": -1}, ValueError, "position_radius must be at least 0, got -1"),
        ({"position_radius": 70_000}, ValueError, "position_radius must be below 4096, .* got 70000"),
        ({"position_radius": 1.5}, TypeError, r"position_radius must be a whole number, got 1\.5"),
        ({"position_radius": True}, TypeError, "position_radius must be a whole number, got True"),
        ({"index": "ivf"}, ValueError, 'position_radius=1 needs index="flat"; "ivf"'),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _detector(**options)


def test_the_bank_asks_for_places() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    bank = ead.MemoryBank(0.5, position_radius=1)
    with pytest.raises(ValueError, match="places must go with position_radius, which is 1; got none"):
        bank.add(rows)
    with pytest.raises(ValueError, match=r"places must be \[64, 2\], got shape \(63, 2\)"):
        bank.add(rows, places=np.zeros((63, 2), int))
    with pytest.raises(ValueError, match="cells of 0 to 4095 in y and x, got 5000"):
        bank.add(rows, places=np.full((64, 2), 5000))
    with pytest.raises(TypeError, match="places must be whole numbers, got float64"):
        bank.add(rows, places=np.zeros((64, 2)))
    bank.add(rows, places=grid_places(1, 8, 8))
    bank.fit()
    with pytest.raises(ValueError, match="places must go with position_radius, which is 1; got none"):
        bank.search(rows)
    with pytest.raises(ValueError, match="places must go with position_radius, which is None; got some"):
        ead.MemoryBank().add(rows, places=grid_places(1, 8, 8))
    with pytest.raises(ValueError, match="position_radius=None does not go with a state that has places"):
        ead.MemoryBank.from_state({}, bank.state())
