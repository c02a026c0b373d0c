"""Every image has a result of its own or an error of its own."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from support.serving import encoded
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import ImageTooLargeError, NonFiniteFeaturesError, UnreadableImageError
from ensemblead.images import EncodedImage, read_image
from ensemblead.service import scoring
from ensemblead.service.answers import describe_result
from ensemblead.service.batching import Model
from ensemblead.service.page import page_of
from ensemblead.service.results import Results
from ensemblead.service.scoring import Scored, check_servable, score_each
from ensemblead.service.watching import Watch, WatchSettings


def images_of(files: list[tuple[str, bytes]]) -> list[EncodedImage]:
    return [EncodedImage(name, data) for name, data in files]


def test_results_are_those_of_predict(
    detector: Any, pixels: np.ndarray, files: list[tuple[str, bytes]]
) -> None:
    found = score_each(detector, images_of(files))
    exact = detector.predict(pixels)
    for number, one in enumerate(found):
        assert isinstance(one, Scored)
        assert one.score == exact.anomaly_score[number]
        assert one.is_anomalous == exact.is_anomalous[number] == (number >= 2)
        assert one.size == (64, 64)
        np.testing.assert_array_equal(one.anomaly_map, exact.anomaly_map[number])


def test_a_bad_image_is_left_out_of_its_batch(
    detector: Any, pixels: np.ndarray, files: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    """The others are predicted together as if it were not there, and nothing is warned of."""
    bad, gone = EncodedImage("bad", b"none"), EncodedImage("cut", files[0][1][:-40])
    found = score_each(detector, [bad, *images_of(files), gone])
    assert isinstance(found[0], UnreadableImageError)
    assert isinstance(found[-1], UnreadableImageError)
    exact = detector.predict(pixels).anomaly_score
    assert [one.score for one in found[1:-1] if isinstance(one, Scored)] == exact.tolist()
    assert isinstance(score_each(detector, [bad])[0], UnreadableImageError)
    assert isinstance(score_each(detector, [tmp_path / "gone.png"])[0], FileNotFoundError)


def test_too_many_pixels(detector: Any, files: list[tuple[str, bytes]]) -> None:
    (error,) = score_each(detector, images_of(files[:1]), max_pixels=64 * 64 - 1)
    assert isinstance(error, ImageTooLargeError)


def test_images_of_several_sizes(detector: Any) -> None:
    small, large = (normal_images(1, side=side)[0] for side in (64, 80))
    found = score_each(detector, images_of([("a", encoded(small)), ("b", encoded(large))]))
    alone = [detector.predict(one[None]).anomaly_score[0] for one in (small, large)]
    assert [one.score for one in found if isinstance(one, Scored)] == alone


def test_an_image_that_the_crop_does_not_fit_into() -> None:
    detector = ead.PatchCore("gabor", resize=None, image_size=64, device="cpu", coreset_fraction=0.1)
    detector.fit(normal_images(6))
    good, small = normal_images(2, seed=3), np.zeros((40, 40, 3), np.uint8)
    first, error, last = score_each(
        detector, images_of([("a", encoded(good[0])), ("b", encoded(small)), ("c", encoded(good[1]))])
    )
    assert isinstance(first, Scored)
    assert isinstance(last, Scored)
    assert isinstance(error, ValueError)
    assert "crop" in str(error)


def test_a_score_that_is_not_finite_is_an_error(detector: Any) -> None:
    whole = np.zeros((2, 2), np.float32)
    for score, values in ((np.nan, whole), (1.0, whole + np.inf)):
        assert isinstance(scoring._checked(Scored(score, True, values, (2, 2))), NonFiniteFeaturesError)


def test_what_cannot_be_served(detector: Any) -> None:
    assert check_servable(detector) is detector
    with pytest.raises(ead.EnsembleADError, match="not fitted"):
        check_servable(ead.PatchCore("gabor", device="cpu"))
    other = ead.PatchCore("gabor", resize=None, image_size=None, device="cpu").fit(normal_images(8))
    ensemble = ead.BackboneEnsemble([detector, other], fusion="minmax")
    with pytest.raises(ValueError, match="minmax"):
        check_servable(ensemble)


def test_a_model_without_a_threshold(
    detector: Any, files: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some converted ones are: JSON has no infinity."""
    monkeypatch.setattr(type(detector), "threshold_", property(lambda self: math.inf))
    outcome = Model(detector, {}), score_each(detector, images_of(files[:1]))[0]
    assert describe_result("a", outcome, "none")["threshold"] is None
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(files[0][1])
    with Results(tmp_path / "out", str(tmp_path / "images")) as results:
        settings = WatchSettings(settle=0.01, once=True)
        Watch(detector, tmp_path / "images", results, settings, model="m").run(threading.Event())
    assert json.loads((tmp_path / "out/results.jsonl").read_text())["threshold"] is None


def test_a_page_of_a_model_without_statistics(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(detector: Any) -> tuple[float, float]:
        raise ValueError("the model has no statistics of normal images")

    assert '"scale": [' in page_of(Model(detector, {}))
    monkeypatch.setattr("ensemblead.service.page.color_scale", unknown)
    assert '"scale": null' in page_of(Model(detector, {}))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a threshold by few images
def test_an_ensemble(detector: Any, files: list[tuple[str, bytes]]) -> None:
    """Over tiles; the page has its name."""
    member = ead.PatchCore("gabor", resize=None, image_size=None, device="cpu", coreset_fraction=0.2)
    ensemble = ead.TiledEnsemble(member, tile_size=48, stride=16, image_size=64).fit(normal_images(6))
    found = score_each(ensemble, images_of(files))
    exact = ensemble.predict(np.stack([read_image(image) for image in images_of(files)]))
    assert [one.score for one in found if isinstance(one, Scored)] == exact.anomaly_score.tolist()
    assert page_of(Model(ensemble, {"detector": "TiledEnsemble"})).count("TiledEnsemble") >= 1
