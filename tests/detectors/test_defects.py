"""A bank of known defects: which patches it has, and what it does to scores, by the definition in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from support.networks import NATIVE, TinyNet
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.warnings import ThresholdWarning

Doubles = npt.NDArray[np.float64]
GOOD = normal_images(24, side=32)
BAD, MASKS = with_defects(normal_images(4, seed=3, side=32))
PROBE = np.concatenate(
    [normal_images(4, seed=7, side=32), with_defects(normal_images(4, seed=8, side=32))[0]]
)
CELL = 4  # pixels of a side: 32 pixels in 8 cells


def _detector(**options: Any) -> ead.PatchCore:
    defaults: dict[str, Any] = {**NATIVE, "coreset_size": 60, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore(TinyNet(), ("second", "first"), **(defaults | options))


def _write(images: Any, folder: Path, ending: str = "") -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(np.asarray(image, dtype=np.uint8)).save(folder / f"{number}{ending}.png")
    return folder


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`defects` and `defect_masks` in MVTec AD's layout."""
    root = tmp_path_factory.mktemp("product")
    images = _write(BAD, root / "test/blot")
    return {"defects": images, "defect_masks": _write(255 * MASKS, root / "ground_truth/blot", "_mask")}


@pytest.fixture(scope="module")
def plain() -> ead.PatchCore:
    return _detector().fit(GOOD)


@pytest.fixture(scope="module")
def fitted(defects: dict[str, Path]) -> ead.PatchCore:
    return _detector(**defects).fit(GOOD)


def _embedded(detector: ead.PatchCore, images: Any) -> Doubles:
    """[N, cells, D]"""
    extractor = detector.network_
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        found = detector.embed(extractor(extractor.normalize(pixels)))
    assert isinstance(found, torch.Tensor)
    return found.flatten(1, 2).numpy().astype(np.float64)


def _nearest(queries: Doubles, rows: Any, metric: str, count: int = 1) -> Doubles:
    """The mean distance to so many nearest rows, in the unit of the scores."""
    squared = ((queries[:, None] - np.asarray(rows, dtype=np.float64)) ** 2).sum(2)
    squared.sort(axis=1)
    unit = {"l2": squared, "cosine": 0.5 * squared, "root": np.sqrt(squared)}[metric]
    return np.asarray(unit[:, :count].mean(1))


def _covered() -> npt.NDArray[np.bool_]:
    """[N, cells], by the rule for masks."""
    shares = MASKS.reshape(len(MASKS), 8, CELL, 8, CELL).mean((2, 4)).reshape(len(MASKS), -1)
    assert (shares.max(1) >= 0.5).all()
    return np.asarray(shares >= 0.5)


# Scores


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ({}, "l2"),
        ({"score": "max", "num_neighbors": 3}, "l2"),
        ({"metric": "cosine"}, "cosine"),
        ({"score": "reweighted", "reweight_neighbors": 1}, "root"),
    ],
)
def test_scores_and_statistics_are_those_of_the_definition(
    defects: dict[str, Path], options: dict[str, Any], metric: str
) -> None:
    detector = _detector(**defects, **options).fit(GOOD)
    bank, known = detector.memory_bank_, detector.memory_bank_.defects_
    assert known is not None
    embedded = _embedded(detector, BAD)
    rows = embedded[_covered()]
    np.testing.assert_allclose(known.rows, rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(known.images, np.nonzero(_covered())[0])
    count = detector.num_neighbors

    def score(image: Doubles, own: Any) -> float:
        a, b = _nearest(image, own, metric, count), _nearest(image, rows, metric)
        # Of the 64 patches the largest hundredth is one.
        return float((a + np.maximum(0, a - b)).max())

    expected = [score(one, bank.rows_) for one in _embedded(detector, PROBE)]
    found = detector.predict(PROBE)
    np.testing.assert_allclose(found.anomaly_score, expected, rtol=1e-3, atol=1e-5)
    owners = bank.images_.numpy()
    alone = [score(one, bank.rows_[owners != i]) for i, one in enumerate(_embedded(detector, GOOD))]
    np.testing.assert_allclose(detector.calibration_.scores, alone, rtol=1e-3, atol=1e-5)


def test_only_patches_near_a_defect_score_higher(plain: ead.PatchCore, fitted: ead.PatchCore) -> None:
    before, after = plain.predict(PROBE), fitted.predict(PROBE)
    np.testing.assert_array_equal(fitted.memory_bank_.rows_, plain.memory_bank_.rows_)
    assert (after.anomaly_score[4:] > 1.3 * before.anomaly_score[4:]).all()
    assert (after.anomaly_map >= before.anomaly_map).all()
    assert (after.anomaly_score <= 2 * before.anomaly_score * (1 + 1e-6)).all()
    assert fitted.learned_["defect_rows"] == int(_covered().sum())
    assert "defect_rows" not in plain.learned_


def test_without_masks_the_oddest_patches_are_taken(plain: ead.PatchCore, defects: dict[str, Path]) -> None:
    paths = [defects["defects"] / "2.png", defects["defects"] / "0.png"]
    detector = _detector(defects=paths).fit(GOOD)
    known = detector.memory_bank_.defects_
    assert known is not None
    limit = plain.calibration_.pixel_threshold()
    embedded = _embedded(plain, BAD[[2, 0]])
    apart = np.stack([_nearest(one, plain.memory_bank_.rows_, "l2") for one in embedded])
    chosen = (apart > limit) | (apart == apart.max(1, keepdims=True))
    assert 2 < chosen.sum() < chosen.size / 2
    np.testing.assert_allclose(known.rows, embedded[chosen], rtol=1e-5, atol=1e-6)


def test_of_an_image_below_the_threshold_the_oddest_patch_is_taken(tmp_path: Path) -> None:
    odd = normal_images(1, seed=9, side=32)
    detector = _detector(defects=_write(odd, tmp_path / "odd")).fit(GOOD)
    known = detector.memory_bank_.defects_
    assert known is not None
    assert len(known) == 1
    apart = _nearest(_embedded(detector, odd)[0], detector.memory_bank_.rows_, "l2")
    np.testing.assert_allclose(known.rows[0], _embedded(detector, odd)[0, apart.argmax()], rtol=1e-5)


def test_without_a_threshold_the_oddest_patches_alone_are_taken(defects: dict[str, Path]) -> None:
    """A single training image cannot be scored without its own rows."""
    with pytest.warns(ThresholdWarning, match="no training image can be scored"):
        detector = _detector(defects=defects["defects"]).fit(GOOD[:1])
    known = detector.memory_bank_.defects_
    assert known is not None
    assert known.images.tolist() == [0, 1, 2, 3]


def test_masks_are_found_by_name(defects: dict[str, Path], fitted: ead.PatchCore) -> None:
    """A data set's folders, and paths with the folder of all masks, or of those of one type."""
    root = defects["defects"].parents[1]
    paths = sorted(defects["defects"].iterdir())
    expected = fitted.memory_bank_.defects_
    for images, masks in (
        (root / "test", root / "ground_truth"),
        (paths, root / "ground_truth"),
        (paths, defects["defect_masks"]),
        (paths, sorted(defects["defect_masks"].iterdir())),
    ):
        found = _detector(defects=images, defect_masks=masks).fit(GOOD).memory_bank_.defects_
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.rows, expected.rows, rtol=0, atol=0)


def test_defects_of_twelve_bits_are_read_as_the_images_of_the_fit(tmp_path: Path) -> None:
    """The defect itself uses ten, and has its patch in the bank of defects, so that this counts twice."""
    grey = normal_images(13, side=32)[..., 0].astype(np.uint16)
    (tmp_path / "good").mkdir()
    for number, image in enumerate(grey[:12]):
        Image.fromarray(16 * image).save(tmp_path / f"good/{number}.png")
    dark = tmp_path / "dark.png"
    Image.fromarray(2 * grey[12]).save(dark)
    with pytest.warns(UserWarning, match="12"):
        plain = _detector().fit(tmp_path / "good")
    with pytest.warns(UserWarning, match="12"):
        found = _detector(defects=[dark]).fit(tmp_path / "good")
    twice = 2 * plain.predict(dark).anomaly_score
    np.testing.assert_allclose(found.predict(dark).anomaly_score, twice, rtol=1e-4)


def test_a_mask_smaller_than_half_a_cell_gives_the_cell_it_covers_most(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[13:15, 16:18] = mask[15, 15] = 255  # of the cells (3, 4) and (3, 3)
    detector = _detector(
        defects=_write(BAD[:1], tmp_path / "bad"), defect_masks=_write([mask], tmp_path / "masks")
    ).fit(GOOD)
    known = detector.memory_bank_.defects_
    assert known is not None
    np.testing.assert_allclose(known.rows, _embedded(detector, BAD[:1])[0, [3 * 8 + 4]], rtol=1e-5)


def test_patches_within_the_noise_add_nothing(tmp_path: Path) -> None:
    """With a bank of all patches, those of a training image that was changed elsewhere."""
    changed = GOOD[:1].copy()
    changed[:, 0, 0] = 255
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[16:28, 16:28] = 255
    given = {"defects": _write(changed, tmp_path / "bad"), "defect_masks": _write([mask], tmp_path / "masks")}
    options: dict[str, Any] = {"coreset_size": None, "coreset_fraction": 1.0}
    with pytest.raises(ValueError, match="no patch of the 1 images differs from normal ones"):
        _detector(**given, **options).fit(GOOD[:6])
    mask[:8, :8] = 255
    Image.fromarray(mask).save(tmp_path / "masks/0.png")
    known = _detector(**given, **options).fit(GOOD[:6]).memory_bank_.defects_
    assert known is not None
    # Of 13 patches that are covered, those that the changed pixel has moved.
    assert 1 <= len(known) <= 4


# With other parameters


def test_places_do_not_matter_to_defects(defects: dict[str, Path]) -> None:
    """The same defects two cells away, of which one is hardest at its rim."""
    moved = np.roll(BAD, (8, 8), (1, 2))
    options = {"position_radius": 1, "coreset_size": 300}
    detector, without = _detector(**defects, **options).fit(GOOD), _detector(**options).fit(GOOD)
    assert detector.memory_bank_.places_ is not None
    more = detector.predict(moved).anomaly_score / without.predict(moved).anomaly_score
    assert (more[[0, 1, 3]] > 1.5).all()


def test_a_region_holds_for_defects(defects: dict[str, Path]) -> None:
    region = np.zeros((32, 32), dtype=bool)
    region[:, :20] = True
    detector = _detector(**defects, region=region).fit(GOOD)
    known = detector.memory_bank_.defects_
    assert known is not None
    columns = np.nonzero(_covered())[1] % 8
    assert (columns < 5).sum() == 4
    # Image 2 has no cell inside that is covered by half, and gives the one that is covered most.
    assert len(known) == 5
    assert set(known.images.tolist()) == {0, 1, 2, 3}
    assert not detector.predict(PROBE).anomaly_map[:, :, 20:].any()
    with pytest.raises(ValueError, match="nothing of what .* marks lies where images are inspected"):
        _detector(**defects, region=~region & (np.arange(32) >= 28)).fit(GOOD)


def test_an_image_that_a_robust_fit_leaves_out_may_be_a_known_defect(defects: dict[str, Path]) -> None:
    mixed = np.concatenate([GOOD, BAD[:2]])
    with pytest.raises(ValueError, match=r"defects: 2 of the normal images .*image 24 equals .*0\.png"):
        _detector(**defects).fit(mixed)
    detector = _detector(**defects, contamination="auto").fit(mixed)
    assert sorted(one.index for one in detector.left_out_) == [24, 25]
    assert detector.memory_bank_.defects_ is not None


def test_members_of_an_ensemble_learn_them(defects: dict[str, Path]) -> None:
    def ensemble(**options: Any) -> ead.BackboneEnsemble:
        return ead.BackboneEnsemble([_detector(**options), _detector(metric="cosine", **options)])

    found = ensemble(**defects).fit(GOOD)
    alone = _detector(**defects, metric="cosine").fit(GOOD)
    expected, member = alone.memory_bank_.defects_, found.members[1].memory_bank_.defects_  # type: ignore[attr-defined]
    torch.testing.assert_close(member.rows, expected.rows)  # type: ignore[union-attr]
    later = ensemble().fit(GOOD)
    before = later.threshold_
    with pytest.warns(ThresholdWarning, match="call calibrate"):
        later.learn_defects(*defects.values())
    np.testing.assert_allclose(
        later.members[1].predict(PROBE).anomaly_score, found.members[1].predict(PROBE).anomaly_score
    )
    assert later.threshold_ == before
    assert [step.action for step in later.history_] == ["fit", "learn_defects"]
    padim = ead.PaDiM(TinyNet(), ("second", "first"), num_dimensions=5, device="cpu", **NATIVE)
    with pytest.raises(ValueError, match="no member is a PatchCore"):
        ead.BackboneEnsemble([padim, padim._clone()]).learn_defects(*defects.values())


def test_what_has_no_single_bank_refuses(defects: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="banks=.per_layer. leave it None"):
        _detector(**defects, banks="per_layer")
    with pytest.raises(ValueError, match="member: defects must be None, for it sees tiles"):
        ead.TiledEnsemble(_detector(**defects), 16, 16, image_size=32)
    layers = _detector(banks="per_layer").fit(GOOD)
    with pytest.raises(ValueError, match="go with one bank"):
        layers.learn_defects(defects["defects"])


@pytest.mark.slow
def test_all_promises_but_those_of_tiles(tmp_path: Path) -> None:
    pixels = np.full((2, 40, 40, 3), 60, dtype=np.uint8)
    pixels[:, 10:20, 10:20] = np.array([200, 250])[:, None, None, None]
    options: dict[str, Any] = {"resize": (40, 40), "coreset_fraction": 0.1, "device": "cpu"}
    without = set(ead.check_detector(ead.PatchCore("gabor", ("layer1",), **options)))
    detector = ead.PatchCore("gabor", ("layer1",), defects=_write(pixels, tmp_path / "bad"), **options)
    lacking = without - set(ead.check_detector(detector))
    assert lacking == {"works_in_tiles", "works_shared_by_tiles", "works_nested"}


# Kept, and learned later


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_needs_no_images(fitted: ead.PatchCore, tmp_path: Path, half: bool) -> None:
    bad, masks = _write(BAD, tmp_path / "bad"), _write(255 * MASKS, tmp_path / "masks")
    detector = _detector(defects=bad, defect_masks=masks).fit(GOOD)
    detector.save(tmp_path / "model", half=half)
    shutil.rmtree(bad)
    found: Any = ead.load(tmp_path / "model", backbone=TinyNet())
    assert (found.defects, found.defect_masks) == (str(bad), str(masks))
    tolerance = 2e-3 if half else 0
    for name in ("rows", "images", "contents"):
        one, other = (getattr(each.memory_bank_.defects_, name) for each in (found, detector))
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        found.predict(PROBE).anomaly_score, fitted.predict(PROBE).anomaly_score, rtol=10 * tolerance
    )


def test_rows_have_the_type_of_the_bank(defects: dict[str, Path], fitted: ead.PatchCore) -> None:
    detector = _detector(**defects, bank_dtype="float16").fit(GOOD)
    known = detector.memory_bank_.defects_
    assert known is not None
    assert known.rows.dtype == torch.float16
    expected = fitted.predict(PROBE).anomaly_score
    np.testing.assert_allclose(detector.predict(PROBE).anomaly_score, expected, rtol=0.02)


def test_extend_keeps_them_and_refuses_their_images(defects: dict[str, Path]) -> None:
    detector = _detector(**defects).fit(GOOD[:16])
    with pytest.raises(ValueError, match=r"1 of the normal images .*image 1 equals a known defect"):
        detector.extend(np.stack([GOOD[20], BAD[3]]))
    detector.extend(GOOD[16:])
    known, rows = detector.memory_bank_.defects_, detector.memory_bank_.rows_
    assert known is not None
    bad = _embedded(detector, BAD)
    a, b = (_nearest(bad[0], own, "l2") for own in (rows, known.rows))
    expected = float((a + np.maximum(0, a - b)).max())
    assert detector.predict(BAD[:1]).anomaly_score[0] == pytest.approx(expected, rel=1e-3)


def test_defects_learned_later_are_those_of_a_fit(
    plain: ead.PatchCore, fitted: ead.PatchCore, defects: dict[str, Path]
) -> None:
    detector = _detector().fit(GOOD)
    before = detector.state_
    images, masks = (sorted(folder.iterdir()) for folder in defects.values())
    with pytest.warns(ThresholdWarning, match="scores of normal images .* may have risen"):
        detector.learn_defects(images[:1], masks[:1])
    assert before.defects_ is None
    with pytest.warns(ThresholdWarning), pytest.warns(UserWarning, match="1 of the images are known"):
        detector.learn_defects(images, defects["defect_masks"])
    found, expected = detector.memory_bank_.defects_, fitted.memory_bank_.defects_
    assert found is not None
    assert expected is not None
    for name in ("rows", "images", "contents"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert detector.threshold_ == plain.threshold_
    with pytest.raises(ValueError, match="all 4 are known defects already"):
        detector.learn_defects(images)


def test_a_guarantee_ends_with_defects_learned_later(tmp_path: Path, defects: dict[str, Path]) -> None:
    detector = _detector().fit(GOOD[:12]).calibrate(GOOD[12:], 0.1)
    with pytest.warns(ThresholdWarning):
        detector.learn_defects(defects["defects"])
    assert not detector.calibration_.is_guaranteed
    with pytest.raises(ValueError, match=r"1 of the defects were learned as normal images .*0\.png"):
        detector.learn_defects(_write(GOOD[:1], tmp_path / "good"))


def test_parameters_are_plain(defects: dict[str, Path]) -> None:
    paths = sorted(defects["defects"].iterdir())
    detector = ead.PatchCore("gabor", defects=paths, defect_masks=defects["defect_masks"])
    twin: Any = ead.create(detector.describe())
    assert twin.defects == tuple(map(str, paths))
    assert twin.defect_masks == str(defects["defect_masks"])
    many = ead.PatchCore("gabor", defects=[f"defect{i}.png" for i in range(100)])
    assert len(repr(many)) < 200


# Bad input


def _changed(folder: Path, target: Path, name: str, content: Any) -> Path:
    shutil.copytree(folder, target)
    if isinstance(content, bytes):
        (target / name).write_bytes(content)
    else:
        Image.fromarray(content).save(target / name)
    return target


def test_masks_that_do_not_fit(defects: dict[str, Path], tmp_path: Path) -> None:
    images, masks = defects["defects"], defects["defect_masks"]
    for number, (content, error, message) in enumerate(
        (
            (np.full((16, 32), 255, np.uint8), ValueError, "has 16 x 32 pixels .*, and its image .* 32 x 32"),
            (np.zeros((32, 32), np.uint8), ValueError, r"1_mask\.png has no pixel that is not black"),
            (b"no image", UnreadableImageError, r"1_mask\.png"),
        )
    ):
        wrong = _changed(masks, tmp_path / str(number), "1_mask.png", content)
        with pytest.raises(error, match=message):
            _detector(defects=images, defect_masks=wrong).fit(GOOD[:4])
    (wrong / "1_mask.png").unlink()
    with pytest.raises(ValueError, match=r"has no mask of 1 images, such as .*1\.png"):
        _detector(defects=images, defect_masks=wrong).fit(GOOD[:4])
    with pytest.raises(FileNotFoundError, match="defect_masks: no such folder"):
        _detector(defects=images, defect_masks=tmp_path / "none").fit(GOOD[:4])


def test_images_that_cannot_be_had(defects: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="defects: images: no image files in"):
        _detector(defects=tmp_path / "empty").fit(GOOD[:4])
    with pytest.raises(FileNotFoundError, match="defects: no such image"):
        _detector(defects=tmp_path / "none").fit(GOOD[:4])
    wrong = _changed(defects["defects"], tmp_path / "bad", "1.png", b"no image")
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        _detector(defects=wrong).fit(GOOD[:4])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"defects": 3}, TypeError, "defects must be a folder, a list of paths or None, got int"),
        ({"defects": []}, ValueError, "defects must not be empty"),
        ({"defects": ""}, ValueError, "defects must not be an empty path"),
        ({"defects": ["a.png", 3]}, TypeError, r"defects\[1\] must be a path, got 3"),
        ({"defect_masks": "masks"}, ValueError, "defect_masks are of defects, and defects is None"),
        ({"defects": ["a.png"], "defect_masks": ["a.png", "b.png"]}, ValueError, "2 masks and 1 paths"),
        ({"defects": "bad", "defect_masks": ["a.png"]}, ValueError, "1 masks and the folder bad"),
    ],
)
def test_parameters_that_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _detector(**options)
