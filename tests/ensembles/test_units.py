"""Fits on executors: the same bits as in one process, found again, and refused before work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.methods import Colours, Epochs
from support.networks import TinyNet
from support.textures import normal_images
from support.units import SIZES, Inline, assert_same, draw_images, logged, trapped

pytest.importorskip("torch")
import torch

import ensemblead as ead
from ensemblead.common.errors import PartialFitError
from ensemblead.detectors import one_pass

SEEN = normal_images(3, seed=9, side=32)


def core(**options: Any) -> ead.PatchCore:
    options = {"coreset_fraction": 0.3, "batch_size": 4, **SIZES, **options}
    return ead.PatchCore("gabor", ("layer1",), **options)


def padim(**options: Any) -> ead.PaDiM:
    options = {"num_dimensions": 4, "batch_size": 3, **SIZES, **options}
    return ead.PaDiM("gabor", ("layer2",), **options)


def both() -> ead.BackboneEnsemble:
    return ead.BackboneEnsemble([core(), padim()])


def tiled(member: ead.Detector, **options: Any) -> ead.TiledEnsemble:
    return ead.TiledEnsemble(member, 16, 16, **({"image_size": 32} | options))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder)
    return folder


def fitted(make: Callable[[], Any], images: Any, **options: Any) -> tuple[Any, set[str]]:
    """A new detector, and what its fit warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        detector = make().fit(images, **options)
    return detector, {f"{one.category.__name__}: {one.message}" for one in caught}


MAKERS: dict[str, Callable[[], ead.Detector]] = {
    "members": both,
    "one": lambda: ead.BackboneEnsemble([core()]),
    "nested": lambda: ead.BackboneEnsemble([both(), core(seed=1)], fusion="mean", weights=[1, 3]),
    "auto": lambda: ead.BackboneEnsemble([core(resize="auto", coreset_fraction=0.001), padim(resize="auto")]),
    "trained": lambda: ead.BackboneEnsemble([Epochs(), core()]),
    "tiles": lambda: tiled(core()),
    "tiles of two": lambda: tiled(both(), normalization="image", score="max"),
    "tiles of their own size": lambda: tiled(Colours(), image_size=None, normalization="none"),
    "trained tiles": lambda: tiled(Epochs()),
    "a fifth held out": lambda: ead.BackboneEnsemble([Epochs(holdout=0.2), core()]),
    "tiles trained on all": lambda: tiled(Epochs(holdout=0)),
    "tiles and a member": lambda: ead.BackboneEnsemble([tiled(padim()), core(resize=32)]),
}


SLOW = ("auto", "tiles of two", "tiles and a member")


class TestTheSameBits:
    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MAKERS]
    )
    def test_as_in_one_process(self, name: str, images: Path, tmp_path: Path) -> None:
        make, executor = MAKERS[name], Inline(workers=2)
        expected, warned = fitted(make, images)
        found, also = fitted(make, images, executor=executor, workdir=tmp_path)
        assert_same(found, expected, SEEN)
        assert also == warned
        # What was learned can be saved, and is found again.
        found.save(tmp_path / "model")
        loaded = ead.load(tmp_path / "model").predict(SEEN)
        np.testing.assert_array_equal(loaded.anomaly_score, expected.predict(SEEN).anomaly_score)
        given = executor.given
        again, also = fitted(make, images, executor=executor, workdir=tmp_path)
        assert executor.given == given
        assert_same(again, expected, SEEN)
        assert also == warned

    def test_of_a_worker_in_another_thread(self, images: Path, tmp_path: Path) -> None:
        expected = both().fit(images)
        with ThreadPoolExecutor(2) as executor:
            assert_same(both().fit(images, executor=executor, workdir=tmp_path), expected, SEEN)

    @pytest.mark.parametrize("make", [both, lambda: tiled(both())])
    def test_where_memory_decides_which_images_are_scored(
        self, make: Callable[[], Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Of two members together eight images are held; of one alone it would be all.
        monkeypatch.setattr(one_pass, "HELD_IMAGES", 4)
        monkeypatch.setattr(one_pass, "most_held", lambda parts, *_: 16 // len(parts))
        expected = make().fit(images)
        found = make().fit(images, executor=Inline(), workdir=tmp_path)
        assert len(expected.calibration_.scores) == 8
        assert_same(found, expected, SEEN)

    def test_images_that_cannot_be_read(self, tmp_path: Path) -> None:
        draw_images(tmp_path / "in")
        for number in (0, 5):
            (tmp_path / f"in/{number}.png").write_bytes(b"no image")
        for make in (both, lambda: tiled(core())):
            expected, warned = fitted(make, tmp_path / "in", errors="skip")
            found, also = fitted(
                make, tmp_path / "in", errors="skip", executor=Inline(), workdir=tmp_path / "work"
            )
            assert_same(found, expected, SEEN)
            assert also == warned
            assert any("left out 2 of 12 images" in message for message in also)
            with pytest.raises(ead.EnsembleADError, match="cannot"):
                make().fit(tmp_path / "in", executor=Inline(), workdir=tmp_path / "work")

    def test_the_size_of_tiles_is_that_of_the_first_image_that_can_be_read(self, tmp_path: Path) -> None:
        """Of a truncated one the header can be read, and it may have another size."""
        paths = draw_images(tmp_path / "in")
        draw_images(tmp_path / "large", 1, side=64)
        Path(paths[0]).write_bytes((tmp_path / "large/0.png").read_bytes()[:3000])

        def make() -> ead.TiledEnsemble:
            return tiled(core(), image_size=None)

        expected, _ = fitted(make, paths, errors="skip")
        found, _ = fitted(make, paths, errors="skip", executor=Inline(), workdir=tmp_path / "work")
        assert_same(found, expected, SEEN)

    def test_a_bank_that_makes_predict_slow_is_warned_of(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ensemblead.detectors.patchcore.accumulator._SLOW", 1.0)
        _, warned = fitted(both, images)
        assert any(message.startswith("SlowPredictWarning: ") for message in warned)
        for _ in range(2):  # on a worker, and by what it has kept
            assert fitted(both, images, executor=Inline(), workdir=tmp_path)[1] == warned

    def test_a_region_is_drawn_on_the_images_of_this_fit(self, images: Path, tmp_path: Path) -> None:
        """Not on those of the fit before, which were smaller."""
        draw_images(tmp_path / "large", side=64)
        square = [[(0, 0), (32, 0), (32, 32), (0, 32)]]
        one, other = (tiled(core(), region=square).fit(images) for _ in range(2))
        assert len(one.members_) == 4
        found = one.fit(tmp_path / "large", executor=Inline(), workdir=tmp_path / "work")
        assert len(found.members_) == 1
        assert_same(found, other.fit(tmp_path / "large"), normal_images(3, seed=9, side=64))

    def test_an_image_that_decides_the_threshold_is_named(self, tmp_path: Path) -> None:
        from PIL import Image

        draw_images(tmp_path / "in", 24)
        Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(tmp_path / "in/7.png")
        expected, warned = fitted(both, tmp_path / "in")
        found, also = fitted(both, tmp_path / "in", executor=Inline(), workdir=tmp_path / "work")
        assert_same(found, expected, SEEN)
        assert found.calibration_.deciding_names == (str(tmp_path / "in/7.png"),)
        assert also == warned
        assert any("decide" in message for message in also)


class TestResuming:
    def test_a_changed_image_is_learned(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in")
        executor = Inline()
        both().fit(paths, executor=executor, workdir=tmp_path / "work")
        both().fit(paths, executor=executor, workdir=tmp_path / "work")
        assert executor.given == 2
        draw_images(tmp_path / "in", seed=3)
        found = both().fit(paths, executor=executor, workdir=tmp_path / "work")
        assert executor.given == 4
        assert_same(found, both().fit(paths), SEEN)

    def test_a_member_more(self, images: Path, tmp_path: Path) -> None:
        executor = Inline()
        both().fit(images, executor=executor, workdir=tmp_path)
        three = ead.BackboneEnsemble([core(), padim(), padim(seed=5)])
        three.fit(images, executor=executor, workdir=tmp_path)
        assert executor.given == 3

    def test_a_worker_that_fails_once(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "trap1").touch()
        found = trapped(tmp_path, "error").fit(images, executor=Inline(), workdir=tmp_path / "work")
        assert logged(tmp_path) == ["0 begun", "0 ended", "1 begun", "1 begun", "1 ended"]
        assert_same(found, trapped(tmp_path).fit(images), SEEN)

    def test_a_worker_that_fails_for_good(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "trap0").touch()
        ensemble = trapped(tmp_path, "error")
        with pytest.raises(PartialFitError, match="1 of 2 .* missing: member0-test-trapped. RuntimeError"):
            ensemble.fit(images, executor=Inline(), workdir=tmp_path / "work", retries=0)
        assert not ensemble.is_fitted
        assert len(list((tmp_path / "work").iterdir())) == 2  # the list of images, and member 1
        ensemble.fit(images, executor=Inline(), workdir=tmp_path / "work", retries=0)
        assert logged(tmp_path) == ["0 begun", "1 begun", "1 ended", "0 begun", "0 ended"]

    def test_locations_that_are_done_stay_done(self, images: Path, tmp_path: Path) -> None:
        """A range of locations that fails in its middle goes on there."""
        from ensemblead.ensembles import tile_learning

        done: list[int] = []
        location = tile_learning.TiledLearning.location

        def counted(learning: Any, number: int) -> Any:
            if number == 2 and 2 not in done:
                done.append(2)
                raise OSError("away")
            done.append(number)
            return location(learning, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tile_learning.TiledLearning, "location", counted)
            found = tiled(core()).fit(images, executor=Inline(), workdir=tmp_path)
        assert done == [0, 1, 2, 2, 3]
        assert_same(found, tiled(core()).fit(images), SEEN)

    def test_interrupted(self, images: Path, tmp_path: Path) -> None:
        def press(number: int) -> None:
            if number == 1:
                raise KeyboardInterrupt

        ensemble = both()
        with pytest.raises(KeyboardInterrupt):
            ensemble.fit(images, executor=Inline(press), workdir=tmp_path)
        assert not ensemble.is_fitted
        executor = Inline()
        assert_same(ensemble.fit(images, executor=executor, workdir=tmp_path), both().fit(images), SEEN)
        assert executor.given == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_worker_that_is_lost_around_the_record(self, when: str, images: Path, tmp_path: Path) -> None:
        """A result and its record take their name at once: there is nothing in between."""
        from ensemblead.store import saving

        rename, calls = os.rename, []

        def lost(source: Any, target: Any) -> None:
            calls.append(target)
            if when == "after" or len(calls) > 1:
                rename(source, target)
            if len(calls) == 1:
                raise BrokenPipeError("the worker is gone")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving.os, "rename", lost)
            found = both().fit(images, executor=Inline(), workdir=tmp_path)
        # After it, the unit counts as done, whatever became of the worker's answer.
        assert len(calls) == (3 if when == "before" else 2)
        assert_same(found, both().fit(images), SEEN)

    def test_two_callers_in_one_folder(self, images: Path, tmp_path: Path) -> None:
        """The second one begins while the first one's work is under way, and both end alike."""
        others: list[Any] = []

        def meanwhile(number: int) -> None:
            if number == 0:
                others.append(both().fit(images, executor=Inline(), workdir=tmp_path))

        executor = Inline(meanwhile)
        own = both().fit(images, executor=executor, workdir=tmp_path)
        assert_same(own, others[0], SEEN)
        assert executor.given == 2  # given, and found there

    def test_progress(self, images: Path, tmp_path: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        tiled(core()).fit(
            images,
            executor=Inline(workers=4),
            workdir=tmp_path,
            progress=lambda *step: seen.append(step),
        )
        units = [step for step in seen if step[0] == "units"]
        assert units[0] == ("units", 0, 4)
        assert units[-1] == ("units", 4, 4)
        assert ("join", 12, 12) in seen


class TestRefusals:
    def test_an_image_that_changes_meanwhile(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in")

        def touch(number: int) -> None:
            os.utime(paths[3], (number, number))

        for make in (both, lambda: tiled(core())):
            with pytest.raises(ValueError, match=r"3\.png was changed since the caller looked at it"):
                make().fit(paths, executor=Inline(touch), workdir=tmp_path / "work")

    def test_an_image_that_changes_while_it_is_learned(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = draw_images(tmp_path / "in")
        start = Colours.start

        def touching(method: Colours, state: Any = None) -> Any:
            os.utime(paths[3], (0, 0))
            return start(method, state)

        monkeypatch.setattr(Colours, "start", touching)
        ensemble = ead.BackboneEnsemble([Colours()])
        with pytest.raises(ValueError, match=r"3\.png was changed while it was learned"):
            ensemble.fit(paths, executor=Inline(), workdir=tmp_path / "work")
        assert os.listdir(tmp_path / "work") == [
            name for name in os.listdir(tmp_path / "work") if name.startswith("images.")
        ]

    def test_an_image_that_a_worker_cannot_read(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in")
        with pytest.raises(FileNotFoundError, match=r"4\.png: every worker must see the images"):
            both().fit(paths, executor=Inline(lambda number: os.unlink(paths[4])), workdir=tmp_path / "work")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"executor": Inline()}, ValueError, "executor= needs workdir="),
            ({"workdir": "work"}, ValueError, "workdir goes with executor="),
            ({"executor": 3, "workdir": "work"}, TypeError, "executor must have a submit"),
            (
                {"executor": Inline(), "workdir": "work", "checkpoint": "c"},
                ValueError,
                "checkpoint goes with",
            ),
            (
                {"executor": Inline(), "workdir": "work", "retries": -1},
                ValueError,
                "retries must be at least",
            ),
        ],
    )
    def test_arguments(
        self, options: dict[str, Any], error: type[Exception], message: str, images: Path, tmp_path: Path
    ) -> None:
        options = {**options, **({"workdir": tmp_path} if "workdir" in options else {})}
        for ensemble in (both(), tiled(core())):
            with pytest.raises(error, match=message):
                ensemble.fit(images, **options)

    def test_a_file_where_the_folder_should_be(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "work").touch()
        with pytest.raises(NotADirectoryError, match="workdir must be a folder, got the file .*work"):
            both().fit(images, executor=Inline(), workdir=tmp_path / "work")

    def test_images_in_memory(self, tmp_path: Path) -> None:
        for ensemble in (both(), tiled(core())):
            with pytest.raises(ValueError, match="executor= needs files that every worker can read"):
                ensemble.fit(normal_images(4, side=32), executor=Inline(), workdir=tmp_path)

    def test_what_plain_values_do_not_describe(self, images: Path, tmp_path: Path) -> None:
        net = TinyNet()
        module = ead.PatchCore(net, ("first",), **SIZES)
        weights = ead.PatchCore("resnet18", ("layer2",), weights={"a": torch.zeros(1)}, **SIZES)
        for member, what in ((module, "backbone"), (weights, "weights")):
            with pytest.raises(TypeError, match=rf"members\[1\]: executor= needs .*{what}"):
                ead.BackboneEnsemble([core(), member]).fit(images, executor=Inline(), workdir=tmp_path)
        with pytest.raises(TypeError, match="member: executor= needs .*backbone"):
            tiled(module).fit(images, executor=Inline(), workdir=tmp_path)

    def test_fitted_members(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"members\[1\] is fitted already"):
            ead.BackboneEnsemble([core(), padim().fit(images)]).fit(
                images, executor=Inline(), workdir=tmp_path
            )
        part = ead.BackboneEnsemble([padim(), core().fit(images)])
        with pytest.raises(ValueError, match=r"members\[0\] is fitted already"):
            ead.BackboneEnsemble([part, core()]).fit(images, executor=Inline(), workdir=tmp_path)

    def test_one_detector_for_all_tiles(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="with shared=True all of a scale have one detector"):
            tiled(core(), shared=True).fit(images, executor=Inline(), workdir=tmp_path)

    def test_members_that_see_different_parts_of_an_image(self, images: Path, tmp_path: Path) -> None:
        ensemble = ead.BackboneEnsemble([core(), core(image_size=16)])
        with pytest.raises(ValueError, match="members must look at the same part of an image"):
            ensemble.fit(images, executor=Inline(), workdir=tmp_path)
