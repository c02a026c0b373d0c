"""`predict`: names of any kind, results that survive an error, and pictures of any size."""

from __future__ import annotations

import csv
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from PIL import Image
from support.commands import call, call_json

import ensemblead as ead
from ensemblead.cli import pictures
from ensemblead.cli.bars import Bars
from ensemblead.cli.given_images import picture_names
from ensemblead.cli.pictures import PlacedMap, draw_heat_map, overlay, place_back
from ensemblead.cli.predict import PredictRun
from ensemblead.images import Geometry


def draw(path: str | Path, seed: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 110, (48, 48, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, format="PNG")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for i in range(4):
        draw(folder / f"good/{i}.png", i)
    detector = ead.PatchCore(
        "gabor", resize=None, image_size=None, device="cpu", coreset_fraction=0.5, batch_size=2
    )
    detector.fit(folder / "good").save(folder / "model")
    return folder / "model"


def predict(model: Path, images: Path, out: Path) -> dict[str, Any]:
    with Bars() as bars:
        return PredictRun(model, [images], out, maps=True).execute(bars)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def places(*paths: str, root: str = "d") -> list[str]:
    source: Any = SimpleNamespace(paths=[f"{root}/{path}" for path in paths])
    return [place.as_posix() for place in picture_names(source, Path(root))]


class TestNames:
    def test_no_result_is_lost(self, model: Path, tmp_path: Path) -> None:
        names = [b"a.png", b"pr\xfcfung.png", b"pr\xfdfung.png", b"line\nfeed.png", b"carriage\rreturn.png"]
        names += ["検".encode() * 80 + b".png", b'quo"te, comma.png']
        for i, name in enumerate(names):
            draw(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name), i)
        summary = predict(model, tmp_path / "in", tmp_path / "out")
        assert summary["images"] == len(names)
        found = rows(tmp_path / "out/scores.csv")
        expected = {
            os.path.join(tmp_path, "in", name.decode("utf-8", errors="backslashreplace")) for name in names
        }
        assert {row["path"] for row in found} == expected
        assert len(found) == len(names)
        for folder in ("maps", "heat_maps"):
            assert len(list((tmp_path / "out" / folder).iterdir())) == len(names)

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "d").mkdir()
        monkeypatch.chdir(tmp_path)

    def test_the_suffix_goes_where_nothing_collides(self) -> None:
        assert places("x.png", "b/x.png", "y.jpg") == ["x", "b/x", "y"]
        assert places("x.png", "x.bmp") == ["x.png", "x.bmp"]

    def test_two_images_never_share_a_picture(self) -> None:
        assert places("x.jpg", "x.png", "x.png.png") == ["x.jpg", "x.png", "x.png.png"]
        found = places("a\nb.png", "a\rb.png", "a-b.png")
        assert len(set(found)) == 3
        assert "a-b" in found

    def test_a_folder_is_no_picture(self) -> None:
        assert places("x.jpg", "x.png/y.jpg", "x.tiff/y.jpg") == ["x-2", "x.png/y", "x.tiff/y"]

    def test_names_stay_inside(self) -> None:
        for place in places("../secret.png", "../../d/x.png", "/etc/x.png"):
            assert ".." not in Path(place).parts
            assert not Path(place).is_absolute()

    def test_names_are_cut_where_the_suffix_needs_room(self) -> None:
        long = ["検" * 83 + end for end in (".a.png", ".b.png")]
        found = places(*long)
        assert len(set(found)) == 2
        assert max(len(f"{place}.tiff".encode()) for place in found) <= 255


class Failing:
    """A model's `predict_batches` that fails, or falsifies, from the second batch on."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change = change
        self.inner = ead.PatchCore.predict_batches

    def __call__(self, detector: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(self.inner(detector, *arguments, **options)):
            if number:
                self.change(batch)
            yield batch


class TestResultsSurvive:
    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        for i in range(5):
            draw(tmp_path / f"in/{i}.png", i)
        return tmp_path / "in"

    def fail(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
        failing = Failing(change)
        monkeypatch.setattr(
            ead.PatchCore,
            "predict_batches",
            lambda detector, *given, **options: failing(detector, *given, **options),
        )

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")])
    def test_rows_are_written_as_they_come(
        self,
        model: Path,
        images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        def change(_: Any) -> None:
            assert len(rows(tmp_path / "out/scores.partial.csv")) == 2
            raise error

        (tmp_path / "out").mkdir()
        (tmp_path / "out/scores.csv").write_text("an earlier one")
        self.fail(monkeypatch, change)
        with (
            pytest.warns(UserWarning, match=r"2 images were scored .* in .*scores\.partial\.csv"),
            pytest.raises(type(error)),
        ):
            predict(model, images, tmp_path / "out")
        assert [Path(row["path"]).name for row in rows(tmp_path / "out/scores.partial.csv")] == [
            "0.png",
            "1.png",
        ]
        assert (tmp_path / "out/scores.csv").read_text() == "an earlier one"

    @pytest.mark.parametrize("name", ["anomaly_score", "anomaly_map"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_is_no_normal_verdict(
        self,
        model: Path,
        images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        value: float,
    ) -> None:
        def change(batch: Any) -> None:
            getattr(batch, name)[0] = value

        self.fail(monkeypatch, change)
        with (
            pytest.warns(UserWarning, match="2 images were scored"),
            pytest.raises(ValueError, match=rf"{name} must be finite, got NaN or infinity for .*2\.png"),
        ):
            predict(model, images, tmp_path / "out")
        assert not (tmp_path / "out/scores.csv").exists()

    def test_a_threshold_that_is_nan_is_refused(
        self, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ead.PatchCore, "threshold_", property(lambda _: float("nan")))
        with pytest.raises(ValueError, match="the threshold of .*model is NaN"):
            predict(model, images, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_pictures_that_cannot_be_written_do_not_stop_the_scoring(
        self, model: Path, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/heat_maps").write_text("in the way")
        with pytest.raises(
            OSError, match=r"pictures of 5 image\(s\) could not be written.*all scores are in"
        ):
            predict(model, images, tmp_path / "out")
        assert len(rows(tmp_path / "out/scores.csv")) == 5
        assert len(list((tmp_path / "out/maps").iterdir())) == 5


class TestBlocks:
    @pytest.mark.parametrize("size", [(50, 70), (1, 400), (400, 1)])
    @pytest.mark.parametrize("block", [1, 7, 64, 1000])
    def test_blocks_make_the_same_picture(
        self, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], block: int
    ) -> None:
        rng = np.random.default_rng(0)
        geometry = Geometry(resize=(30, 40), crop=(20, 30))
        values = rng.random((20, 30), dtype=np.float32)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        whole = place_back(values, geometry, size)
        assert np.isfinite(whole).any()
        expected = overlay(image, whole, (0.2, 0.7))
        monkeypatch.setattr(pictures, "_BLOCK", block)
        np.testing.assert_array_equal(place_back(values, geometry, size), whole)
        draw_heat_map(image, PlacedMap(values, geometry, size), (0.2, 0.7))
        np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize("size", [(3000, 3000), (1, 4_000_000), (4_000_000, 1)])
    def test_memory_does_not_grow_with_the_image(self, size: tuple[int, int]) -> None:
        image = np.zeros((*size, 3), np.uint8)
        placed = PlacedMap(np.ones((8, 8), np.float32), Geometry(resize=(8, 8), crop=None), size)
        overlay(image[:1, :1], placed.values(slice(0, 1), slice(0, 1)), (0.0, 1.0))  # loads the colours
        tracemalloc.start()
        try:
            draw_heat_map(image, placed, (0.0, 1.0))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20


class TestThreshold:
    def test_verdicts_follow_it(self, model: Path, tmp_path: Path) -> None:
        for i in range(4):
            draw(tmp_path / f"in/{i}.png", 20 + i)
        measured = predict(model, tmp_path / "in", tmp_path / "before")
        assert measured["threshold_origin"] == "leave_one_out"
        scores = sorted(one["anomaly_score"] for one in measured["predictions"])
        chosen = (scores[1] + scores[2]) / 2
        arguments = ("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--threshold", chosen)
        summary = call_json(*arguments)
        assert (summary["threshold"], summary["threshold_origin"]) == (chosen, "user")
        assert summary["anomalous"] == 2
        assert 0 < summary["false_alarm_rate"] <= 1
        assert summary["color_scale"] == measured["color_scale"]
        written = rows(tmp_path / "out" / "scores.csv")
        assert [row["is_anomalous"] for row in written].count("True") == 2
        assert {float(row["threshold"]) for row in written} == {chosen}
        assert "set by the user" in call(*arguments).stdout
        assert ead.load(model).calibration_.threshold_origin == "leave_one_out"  # the model is as it was

    @pytest.mark.parametrize("value", ["nan", "inf", "1e39"])
    def test_what_is_no_threshold(self, value: str, model: Path, tmp_path: Path) -> None:
        outcome = call(
            "predict", model, model.parent / "good", "--out", tmp_path / "out", "--threshold", value
        )
        assert outcome.exit_code == 2
        assert "threshold must be finite" in outcome.stderr
        assert not (tmp_path / "out").exists()
