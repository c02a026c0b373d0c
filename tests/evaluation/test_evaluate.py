"""evaluate, with a detector that reads its answers from the drawn images."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.brightness import GEOMETRY, HEIGHT, WIDTH, Brightness, FakePredictions, draw, draw_category

import ensemblead
from ensemblead.common.errors import UnreadableImageError
from ensemblead.evaluation import (
    Category,
    Folder,
    MVTecAD,
    Sample,
    ScoredImage,
    aupro,
    auroc,
    evaluate,
)
from ensemblead.evaluation.results import COLUMNS
from ensemblead.images import read_image, read_mask
from ensemblead.metrics import PixelScores

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def part(tmp_path: Path) -> MVTecAD:
    return MVTecAD(draw_category(tmp_path / "part", 0))


def expected_maps(category: Category) -> tuple[np.ndarray, np.ndarray]:
    maps = np.stack([GEOMETRY.apply(read_image(sample.path))[..., 0] for sample in category.test])
    masks = [
        np.zeros((16, 16), bool) if s.mask_path is None else GEOMETRY.apply_mask(read_mask(s.mask_path))
        for s in category.test
    ]
    return maps.astype(np.float32), np.stack(masks)


def test_every_column_is_the_result_of_its_function(part: MVTecAD) -> None:
    report = evaluate(Brightness(), part, bootstrap=0)
    maps, masks = expected_maps(part.categories[0])
    scores = maps.max(axis=(1, 2))
    labels = np.array([sample.label for sample in part.test])
    assert masks.any(axis=(1, 2)).tolist() == labels.tolist()
    assert report.image_auroc == auroc(scores, labels)
    assert report.pixel_auroc == pytest.approx(auroc(maps, masks), abs=1e-12)
    assert report.anomaly_pixel_auroc == pytest.approx(auroc(maps[labels], masks[labels]), abs=1e-12)
    assert report.aupro == pytest.approx(aupro(maps, masks), abs=1e-12)
    assert report.aupro_005 == pytest.approx(aupro(maps, masks, fpr_limit=0.05), abs=1e-12)
    assert report.aupro_image == pytest.approx(aupro(maps, masks, average="image"), abs=1e-12)
    assert 0.5 < report.image_auroc < 1
    assert report.threshold == 150.0
    assert report.false_alarm_rate == float((scores[~labels] > 150).mean())
    assert report.miss_rate == float((scores[labels] <= 150).mean()) == 0.5
    assert (report.num_train, report.num_normal, report.num_anomalous) == (3, 5, 6)
    assert report.predict_seconds > 0
    assert report.images_per_second == pytest.approx(11 / report.predict_seconds)
    assert math.isnan(report.fit_seconds)
    assert report.peak_memory_mb > 10
    assert report.warnings == ()
    metrics = [name for name in COLUMNS if name.split("_")[0] in ("image", "pixel", "anomaly", "aupro")]
    assert len(metrics) == 13
    assert not any(math.isnan(getattr(report, name)) for name in metrics)


def test_batches_and_missing_paths_make_no_difference(part: MVTecAD) -> None:
    rows = [
        evaluate(Brightness(batch_size=size, named=named), part, bootstrap=0).summary
        for size, named in ((1, True), (4, False), (100, True))
    ]
    for name in COLUMNS[:20]:
        assert len({getattr(row, name) for row in rows}) == 1, name


def test_details_hold_every_image(part: MVTecAD) -> None:
    seen: list[ScoredImage] = []
    steps: list[tuple[str, int, int]] = []
    report = evaluate(
        Brightness(),
        part,
        bootstrap=200,
        on_image=seen.append,
        progress=lambda name, done, total: steps.append((name, done, total)),
    )
    details = report.details["part"]
    assert [image.path for image in details.images] == [sample.path for sample in part.test]
    assert [image.defect_type for image in details.images[-3:]] == ["shiny"] * 3
    assert all(image.is_anomalous for image in details.images[-3:])
    assert details.exact is True
    assert set(details.error_bounds.values()) == {0.0}
    assert set(details.curves) == {"roc", "precision_recall", "pixel_roc", "pixel_precision_recall", "pro"}
    for name, (low, high) in details.intervals.items():
        assert 0 <= low <= getattr(report, name) <= high <= 1, name
    assert len(details.intervals) == 11
    maps, masks = expected_maps(part.categories[0])
    np.testing.assert_array_equal(np.stack([image.anomaly_map for image in seen]), maps)
    np.testing.assert_array_equal(np.stack([image.mask for image in seen if image.mask is not None]), masks)
    assert steps == [("part", index + 1, 11) for index in range(11)]
    assert evaluate(Brightness(), part, bootstrap=200).details["part"].intervals == details.intervals


def test_one_class_only_leaves_the_other_metrics(part: MVTecAD) -> None:
    category = part.categories[0]
    defects = Category("part", category.train, tuple(s for s in category.test if s.label))
    with pytest.warns(UserWarning, match="part: all test images are anomalous: image AUROC"):
        report = evaluate(Brightness(), defects, bootstrap=10)
    assert math.isnan(report.image_auroc)
    assert math.isnan(report.false_alarm_rate)
    assert report.pixel_auroc > 0.5
    assert report.aupro > 0
    assert report.miss_rate == 0.5
    assert len(report.warnings) == 1
    normal = Category("part", category.train, tuple(s for s in category.test if not s.label))
    with pytest.warns(UserWarning, match="part: "):
        report = evaluate(Brightness(), normal)
    assert math.isnan(report.image_auroc)
    assert math.isnan(report.aupro)
    assert report.false_alarm_rate == 0
    assert ["all test images are normal" in line for line in report.warnings] == [True, False]
    assert "there are no defective pixels" in report.warnings[1]


def test_defects_without_a_mask_count_for_the_image_metrics_only(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)
    (root / "ground_truth/shiny/2.png").unlink()
    data = MVTecAD(root, missing_masks="exclude")
    with pytest.warns(UserWarning, match=r"1 defective image\(s\) have no mask"):
        report = evaluate(Brightness(), data, bootstrap=0)
    kept = [index for index, s in enumerate(data.test) if not s.label or s.mask_path]
    maps, masks = expected_maps(data.categories[0])
    assert report.aupro == pytest.approx(aupro(maps[kept], masks[kept]), abs=1e-12)
    assert report.num_anomalous == 6


def test_masks_cropped_away_are_reported(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)
    draw(root / "test/dull/edge.png", 99, (0, 0, 130), root / "ground_truth/dull/edge.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[0, 0] = 1
    Image.fromarray(mask).save(root / "ground_truth/dull/edge.png")
    with pytest.warns(UserWarning, match=r"1 mask\(s\) are empty after resize and crop, .*dull/edge\.png"):
        evaluate(Brightness(), MVTecAD(root), bootstrap=0)


def test_duplicates_of_training_images_are_reported(tmp_path: Path) -> None:
    root = draw_category(tmp_path / "part", 0)
    (root / "test/good/copy.png").write_bytes((root / "train/good/1.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 test image\(s\) are also training images.*good/copy\.png"):
        report = evaluate(Brightness(), MVTecAD(root), bootstrap=0)
    ((train, test),) = report.details["part"].duplicates
    assert (Path(train).name, Path(test).name) == ("1.png", "copy.png")


def test_streaming_beyond_the_memory_limit_is_reported(part: MVTecAD) -> None:
    exact = evaluate(Brightness(), part, bootstrap=0)
    with pytest.warns(UserWarning, match=r"memory_limit=3000: .* may be off by at most"):
        report = evaluate(Brightness(), part, bootstrap=0, memory_limit=3000)
    details = report.details["part"]
    assert details.exact is False
    for name, bound in details.error_bounds.items():
        assert abs(getattr(report, name) - getattr(exact, name)) <= bound + 1e-9, name


def test_several_categories_and_their_mean(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        draw_category(tmp_path / name, 100 * index)
    data = MVTecAD(tmp_path)
    asked: list[str] = []

    def fit(category: Category) -> Brightness:
        asked.append(category.name)
        return Brightness()

    report = evaluate(fit, data, bootstrap=0)
    assert asked == ["a", "b"]
    assert [row.category for row in report.rows] == ["a", "b"]
    assert report.summary.category == "mean"
    assert report.aupro == pytest.approx((report["a"].aupro + report["b"].aupro) / 2)
    assert report.num_anomalous == 12
    assert report.fit_seconds == pytest.approx(report["a"].fit_seconds + report["b"].fit_seconds)
    assert report.images_per_second == pytest.approx(22 / report.predict_seconds)
    assert math.isnan(report.threshold)
    by_name = evaluate({"a": Brightness(), "b": Brightness()}, data, bootstrap=0)
    assert by_name["b"].image_auroc == report["b"].image_auroc
    with pytest.raises(ValueError, match="detector must have every category, got none for b"):
        evaluate({"a": Brightness()}, data)
    with pytest.raises(KeyError, match="no category 'c'; there are a, b"):
        _ = report["c"]


def test_a_mean_over_fewer_categories_is_reported(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        draw_category(tmp_path / name, 100 * index)
    (tmp_path / "b/ground_truth").rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="b: there are no masks"):
        report = evaluate(Brightness(), MVTecAD(tmp_path), bootstrap=0)
    assert report.warnings[-1] == "mean: the pixel metrics are means over 1 of 2 categories"
    assert report.aupro == report["a"].aupro


class Pair:
    """Two members on different scales; fused over the test set."""

    fusion = "minmax"
    geometry = GEOMETRY
    threshold_ = 1.0

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = weights
        self.members = (Brightness(batch_size=4), Brightness(batch_size=4))

    def predict_batches(self, images: Any) -> Iterator[FakePredictions]:
        raise AssertionError("min-max fusion must not ask for fused predictions")
        yield

    def predict_members(self, images: Sequence[str]) -> Iterator[list[FakePredictions]]:
        for first, second in zip(*(member.predict_batches(images) for member in self.members), strict=True):
            second.anomaly_map = -1000.0 + second.anomaly_map[:, ::-1] ** 2
            second.anomaly_score = np.sqrt(second.anomaly_score)
            yield [first, second]


@pytest.mark.parametrize("memory_limit", [2 << 30, 2000])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_minmax_fusion_over_the_test_set(
    part: MVTecAD, memory_limit: int, weights: list[float] | None
) -> None:
    seen: list[ScoredImage] = []
    with pytest.warns(UserWarning, match="the results looked at it"):
        report = evaluate(Pair(weights), part, bootstrap=0, memory_limit=memory_limit, on_image=seen.append)
    maps, _ = expected_maps(part.categories[0])
    scores = maps.max(axis=(1, 2))

    def scaled(values: np.ndarray) -> np.ndarray:
        return (values - values.min()) / (values.max() - values.min())

    share = np.array([0.5, 0.5]) if weights is None else np.array([0.75, 0.25])
    fused = share[0] * scaled(maps) + share[1] * scaled(-1000.0 + maps[:, ::-1] ** 2)
    np.testing.assert_allclose(np.stack([image.anomaly_map for image in seen]), fused, atol=1e-6)
    expected = share[0] * scaled(scores) + share[1] * scaled(np.sqrt(scores))
    np.testing.assert_allclose([image.score for image in seen], expected, atol=1e-6)
    assert math.isnan(report.threshold)
    assert math.isnan(report.miss_rate)
    assert all(image.is_anomalous is None for image in seen)


def test_a_member_that_is_constant_counts_as_zero(part: MVTecAD) -> None:
    class Constant(Pair):
        def predict_members(self, images: Sequence[str]) -> Iterator[list[FakePredictions]]:
            for first, second in super().predict_members(images):
                second.anomaly_map = np.full_like(first.anomaly_map, 7)
                second.anomaly_score = np.full_like(first.anomaly_score, 7)
                yield [first, second]

    seen: list[ScoredImage] = []
    with pytest.warns(UserWarning, match="looked at it"):
        evaluate(Constant(), part, bootstrap=0, on_image=seen.append)
    assert max(image.score for image in seen) == 0.5
    assert max(float(image.anomaly_map.max()) for image in seen) == 0.5


def test_an_ensemble_may_fuse_the_set_by_itself(part: MVTecAD) -> None:
    class Whole(Brightness):
        fusion = "minmax"

        def predict_set(self, images: Sequence[str]) -> FakePredictions:
            time.sleep(0.05)
            (batch,) = Brightness(batch_size=len(images)).predict_batches(images)
            return FakePredictions(
                batch.anomaly_score / 255, batch.anomaly_map / 255, batch.is_anomalous, batch.paths
            )

    with pytest.warns(UserWarning, match="looked at it"):
        report = evaluate(Whole(), part, bootstrap=0)
    assert report.aupro == evaluate(Brightness(), part, bootstrap=0).aupro
    assert max(image.score for image in report.details["part"].images) <= 1
    assert report.predict_seconds >= 0.05
    assert math.isnan(report.threshold)
    assert math.isnan(report.false_alarm_rate)


def test_minmax_needs_the_members(part: MVTecAD) -> None:
    detector = Brightness()
    detector.fusion = "minmax"
    with pytest.raises(TypeError, match='fusion="minmax" must have predict_members or predict_set'):
        evaluate(detector, part)


def test_images_that_the_detector_skips_are_reported(part: MVTecAD) -> None:
    class Skipping(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            return super().predict_batches([path for path in images if Path(path).stem != "2"])

    with pytest.warns(UserWarning, match=r"3 image\(s\) were not predicted, the first is .*dull/2\.png"):
        report = evaluate(Skipping(), part, bootstrap=0)
    assert (report.num_normal, report.num_anomalous) == (4, 4)
    assert len(report.details["part"].images) == 8


def test_unreadable_images_are_named_or_left_out(part: MVTecAD) -> None:
    class Careful(Brightness):
        def predict_batches(
            self, images: Sequence[str], *, errors: str = "raise"
        ) -> Iterator[FakePredictions]:
            assert errors == "skip"
            good = [path for path in images if path != broken]
            return super().predict_batches(good)

    broken = next(sample.path for sample in part.test if sample.label)
    Path(broken).write_bytes(b"\x89PNG no more")
    with pytest.raises(UnreadableImageError, match=f"cannot read image {broken}"):
        evaluate(Careful(), part)
    with pytest.warns(UserWarning, match=rf"1 image\(s\) were not predicted, the first is {broken}"):
        report = evaluate(Careful(), part, bootstrap=0, errors="skip")
    assert (report.num_normal, report.num_anomalous) == (5, 5)
    with pytest.raises(ValueError, match='errors must be "raise" or "skip"'):
        evaluate(Careful(), part, errors="ignore")  # type: ignore[arg-type]


def test_bad_predictions_are_refused(part: MVTecAD) -> None:
    class Shuffled(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            return super().predict_batches(images[::-1])

    class NotFinite(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            for batch in super().predict_batches(images):
                batch.anomaly_score[0] = np.nan
                yield batch

    class HoleInMap(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            for batch in super().predict_batches(images):
                batch.anomaly_map[0, 3, 4] = np.inf
                yield batch

    class OtherFrame(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            for batch in super().predict_batches(images):
                batch.anomaly_map = batch.anomaly_map[:, :-1]
                yield batch

    class Nothing(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            return iter(())

    for kind, message in (
        (Shuffled, r"in the order of the images asked for, got .* out of turn"),
        (NotFinite, r"anomaly_score must be finite, got nan for .*dull/0\.png"),
        (HoleInMap, r"dull/0\.png: anomaly_maps must be finite, got 1 .* inf at index \(3, 4\)"),
        (OtherFrame, r"dull/0\.png must be as large as its mask .* \(16, 16\), got \(15, 16\)"),
        (Nothing, "category part has no readable test images"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(kind(), part)


def test_a_threshold_of_nan_gives_no_verdicts(part: MVTecAD) -> None:
    with pytest.warns(UserWarning, match="threshold is NaN: nothing is called normal or anomalous"):
        report = evaluate(Brightness(threshold=math.nan), part, bootstrap=0)
    assert all(image.is_anomalous is None for image in report.details["part"].images)
    assert math.isnan(report.threshold)
    assert math.isnan(report.false_alarm_rate)
    assert math.isnan(report.miss_rate)
    assert report.details["part"].threshold_source == ""


def test_the_room_is_an_attribute_and_no_module_hides_a_name() -> None:
    line = "import ensemblead; ensemblead.evaluation.run; ensemblead.metrics.auroc; ensemblead.datasets.VisA"
    subprocess.run([sys.executable, "-c", line], check=True)
    rooms = {path.stem for path in Path(ensemblead.evaluation.__file__).parent.glob("*.py")}
    assert rooms.isdisjoint(ensemblead.evaluation.__all__)


def test_bad_arguments_are_refused_before_anything_is_predicted(part: MVTecAD, tmp_path: Path) -> None:
    class Never(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            raise AssertionError("predicted")

    with pytest.raises(ValueError, match="bootstrap must be at least 0, got -1"):
        evaluate(Never(), part, bootstrap=-1)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1.0"):
        evaluate(Never(), part, confidence=1.0)
    nothing: Any = 3
    with pytest.raises(TypeError, match=r"detector must be a detector .* got int"):
        evaluate(nothing, part)
    with pytest.raises(ValueError, match="category x has no test images"):
        evaluate(Never(), Category("x", ("a.png",), ()))
    mask_path = part.test[0].mask_path
    assert mask_path is not None
    Image.fromarray(np.ones((5, 5), np.uint8)).save(mask_path)
    with pytest.raises(ValueError, match=r"mask .*dull/0\.png must be as large as its image"):
        evaluate(Never(), part)


def test_a_single_image_is_enough_for_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "ok/0.png", 0)
    draw(tmp_path / "bad/0.png", 1, (14, 14, 250))
    data = Folder(tmp_path, normal="ok", anomalous="bad")
    with pytest.warns(UserWarning, match=f"{tmp_path.name}: "):
        report = evaluate(Brightness(), data)
    assert report.miss_rate == 0
    assert len(report.warnings) == 4


def test_no_warning_without_reason(part: MVTecAD) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(Brightness(), part, bootstrap=100)


def test_samples_and_metrics_are_plain() -> None:
    assert Sample("a.png", False).defect_type == "good"
    with pytest.raises(ValueError, match="anomaly_maps must be 2-D"):
        PixelScores().add(np.zeros(3))
