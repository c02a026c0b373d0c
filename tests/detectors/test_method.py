"""Methods as authors write them, alone and in every ensemble: epochs, images held out, seeds, folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.methods import Colours, Epochs, FeatureMeans, MeanFeatures
from support.networks import NATIVE, TinyNet
from support.registry import separate_registry
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.common.errors import NotExportableError
from ensemblead.detectors import Accumulator, Fitted, Method, NormalSample, Run, Scores, Seen, TrainingData
from ensemblead.detectors.running import seen_batches
from ensemblead.images import Images, open_images

SIDE, TILE = 48, 24
TRAIN = normal_images(20, side=SIDE)
HELD_OUT = {5, 15}  # a tenth of twenty
GOOD = normal_images(3, seed=6, side=SIDE)
BAD = with_defects(normal_images(3, seed=5, side=SIDE))[0]
# A dark corner, which a mean of random stripes can tell.
BAD[:, :12, :12] = 0


def patchcore(**options: Any) -> ead.PatchCore:
    return ead.PatchCore(
        "gabor", ("layer1",), **({**NATIVE, "coreset_fraction": 0.1, "device": "cpu"} | options)
    )


def tiled(member: ead.Detector, **options: Any) -> ead.TiledEnsemble:
    return ead.TiledEnsemble(member, TILE, TILE, image_size=SIDE, **options)


def nested(**options: Any) -> ead.BackboneEnsemble:
    inner = ead.BackboneEnsemble([Epochs(**options), patchcore()])
    return ead.BackboneEnsemble([tiled(inner), patchcore()])


FORMS: dict[str, Callable[..., ead.Detector]] = {
    "alone": Epochs,
    "backbones": lambda **options: ead.BackboneEnsemble([Epochs(**options), patchcore()]),
    "tiles": lambda **options: tiled(Epochs(**options)),
    "shared tiles": lambda **options: tiled(Epochs(**options), shared=True),
    "nested": nested,
}


@pytest.fixture(autouse=True)
def trainings() -> Iterator[list[list[list[int]]]]:
    """Of every training the numbers of the images seen, epoch by epoch."""
    Epochs.trainings.clear()
    yield Epochs.trainings
    Epochs.trainings.clear()


def same(found: ead.Predictions, expected: ead.Predictions) -> None:
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)


# Many epochs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("epochs", [1, 5])
def test_every_location_makes_all_epochs(form: str, epochs: int, trainings: list[list[list[int]]]) -> None:
    detector = FORMS[form](epochs=epochs).fit(TRAIN)
    assert len(trainings) == (4 if form in ("tiles", "nested") else 1)
    tiles = 4 if form == "shared tiles" else 1
    expected = sorted(set(range(20)) - HELD_OUT) * tiles
    for training in trainings:
        assert [sorted(epoch) for epoch in training] == [sorted(expected)] * epochs
        # Shuffled, and in each epoch anew.
        assert all(epoch != sorted(epoch) for epoch in training)
        assert len({tuple(epoch) for epoch in training}) == epochs
    assert detector.calibration_.origin == "held_out"
    assert not detector.calibration_.is_guaranteed
    assert len(detector.calibration_.scores) == len(HELD_OUT)
    good, bad = detector.predict(GOOD), detector.predict(BAD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()


@pytest.mark.parametrize("form", FORMS)
def test_images_that_equal_one_held_out_are_held_out(form: str, trainings: list[list[list[int]]]) -> None:
    images = TRAIN.copy()
    images[[9, 13]] = images[5]  # which is held out
    images[3] = images[4]  # neither is
    detector = FORMS[form]().fit(images)
    for epoch in itertools.chain.from_iterable(trainings):
        assert set(epoch) == set(range(20)) - HELD_OUT - {9, 13}
    assert len(detector.calibration_.scores) == len(HELD_OUT)  # copies count once


def test_a_location_learns_what_a_detector_of_its_crops_does() -> None:
    ensemble = tiled(Epochs(), normalization="none", seam_smoothing=False).fit(TRAIN)
    found = ensemble.predict(BAD)
    for member, (y, x) in zip(ensemble.members_, itertools.product((0, TILE), (0, TILE)), strict=True):
        alone = Epochs().fit(np.ascontiguousarray(TRAIN[:, y : y + TILE, x : x + TILE]))
        assert isinstance(member, Epochs)
        torch.testing.assert_close(member.state_.mean, alone.state_.mean)
        np.testing.assert_allclose(member.calibration_.scores, alone.calibration_.scores, rtol=1e-5)
        expected = alone.predict(np.ascontiguousarray(BAD[:, y : y + TILE, x : x + TILE])).anomaly_map
        np.testing.assert_allclose(found.anomaly_map[:, y : y + TILE, x : x + TILE], expected, rtol=1e-4)


def test_neighbours_learn_what_they_would_alone() -> None:
    """A member that learns in one pass takes all images; its statistics are of those the other holds out."""
    first, second = Epochs(), patchcore()
    ead.BackboneEnsemble([first, second]).fit(TRAIN)
    torch.testing.assert_close(first.state_.mean, Epochs().fit(TRAIN).state_.mean)
    alone = patchcore().fit(TRAIN)
    torch.testing.assert_close(second.memory_bank_.rows_, alone.memory_bank_.rows_)
    expected = alone.calibration_.scores[sorted(HELD_OUT)]
    np.testing.assert_allclose(second.calibration_.scores, expected, rtol=1e-4)
    assert first.calibration_.images_sha256 == second.calibration_.images_sha256


@pytest.mark.parametrize("form", FORMS)
def test_the_seed_decides(form: str) -> None:
    # Three are held out: of two, members that disagree make up one score.
    images = normal_images(30, side=SIDE)
    first, second, other = (FORMS[form](seed=seed).fit(images).predict(BAD) for seed in (0, 0, 1))
    same(first, second)
    assert not np.array_equal(first.anomaly_map, other.anomaly_map)


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_it_is_the_same(form: str, tmp_path: Path) -> None:
    detector = FORMS[form](epochs=2).fit(TRAIN)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    same(again.predict(BAD), detector.predict(BAD))
    assert again.calibration_.origin == "held_out"
    assert again.threshold_ == detector.threshold_
    # And it knows what it was fitted on.
    with pytest.raises(ValueError, match="fitted on 20 of them"):
        again.calibrate(TRAIN, 0.1)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_calibrated_as_any_detector(form: str) -> None:
    detector = FORMS[form]().fit(TRAIN)
    before = detector.predict(BAD)
    detector.calibrate(normal_images(30, seed=8, side=SIDE), 0.1)
    assert detector.calibration_.is_guaranteed
    if form in ("alone", "tiles", "shared tiles"):
        np.testing.assert_array_equal(detector.predict(BAD).anomaly_score, before.anomaly_score)


@pytest.mark.parametrize("form", FORMS)
def test_what_learns_in_many_passes_is_not_extended(form: str, trainings: list[list[list[int]]]) -> None:
    detector = FORMS[form]().fit(TRAIN)
    before, count = detector.predict(BAD), len(trainings)
    with pytest.raises(ValueError, match="Epochs cannot be extended, since it learns in many passes: fit"):
        detector.extend(GOOD)
    same(detector.predict(BAD), before)
    assert len(trainings) == count


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_an_interrupt_leaves_the_detector_as_it_was(form: str) -> None:
    detector = FORMS[form](epochs=2).fit(TRAIN)
    before, calibration = detector.predict(BAD), detector.calibration_
    stages: list[str] = []
    others = normal_images(20, seed=7, side=SIDE)
    FORMS[form](epochs=2).fit(others, progress=lambda stage, done, total: stages.append(stage))
    places = {stages.index(stage) for stage in stages} | {len(stages) - 1}
    places |= {len(stages) - 1 - stages[::-1].index(stage) for stage in stages}
    assert "train" in stages
    fresh = FORMS[form](epochs=2)
    for place, fitted in itertools.product(sorted(places), (detector, fresh)):
        calls = itertools.count()

        def stop(*_: Any, calls: Any = calls, place: int = place) -> None:
            if next(calls) == place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted.fit(others, progress=stop)
        assert not fresh.is_fitted
        same(detector.predict(BAD), before)
        assert detector.calibration_ is calibration


@pytest.mark.parametrize("form", ["alone", "tiles"])
@pytest.mark.parametrize("count", [1, 3])
def test_of_one_image_nothing_is_held_out(form: str, count: int, trainings: list[list[list[int]]]) -> None:
    copies = np.repeat(TRAIN[:1], count, 0)
    detector: ead.Detector = Epochs() if form == "alone" else tiled(Epochs(), normalization="none")
    with pytest.warns(UserWarning, match="a single training image, or copies of one, leave nothing to hold"):
        detector.fit(copies)
    assert all(sorted(epoch) == list(range(count)) for epoch in itertools.chain.from_iterable(trainings))
    assert np.isfinite(detector.predict(BAD).anomaly_map).all()


# Without a network


COLOURED: dict[str, Callable[[], ead.Detector]] = {
    "alone": Colours,
    "backbones": lambda: ead.BackboneEnsemble([Colours(), patchcore()]),
    "tiles": lambda: tiled(Colours()),
    "shared tiles": lambda: tiled(Colours(), shared=True),
    "nested": lambda: ead.BackboneEnsemble(
        [tiled(ead.BackboneEnsemble([Colours(), patchcore()])), Colours()]
    ),
}


@pytest.mark.parametrize("form", COLOURED)
def test_a_method_without_a_network_works_everywhere(form: str, tmp_path: Path) -> None:
    detector = COLOURED[form]().fit(TRAIN[:12])
    assert detector.calibration_.origin == "leave_one_out"
    assert len(detector.calibration_.scores) == 12
    assert detector.predict(BAD).anomaly_score.min() > detector.predict(GOOD).anomaly_score.max()
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    same(again.predict(BAD), detector.predict(BAD))
    more = normal_images(4, seed=9, side=SIDE)
    same(again.extend(more).predict(BAD), detector.extend(more).predict(BAD))
    assert len(detector.calibration_.scores) == 16


def test_mean_colours_by_hand() -> None:
    detector = Colours(patch=8).fit(TRAIN[:6])
    grids = TRAIN[:6].astype(float).reshape(6, 6, 8, 6, 8, 3).mean((2, 4))
    np.testing.assert_allclose(detector.state_.total.permute(1, 2, 0).numpy() / 6, grids.mean(0), rtol=1e-12)
    extended = Colours(patch=8).fit(TRAIN[:4]).extend(TRAIN[4:6])
    torch.testing.assert_close(extended.state_.total, detector.state_.total)
    with pytest.raises(AttributeError, match="Colours has no network"):
        _ = detector.network_


# Feature maps as they are


@pytest.mark.parametrize("form", ["alone", "backbones", "tiles"])
def test_a_method_may_read_feature_maps(form: str, tmp_path: Path) -> None:
    net = TinyNet()
    method = FeatureMeans(net, ("first", "second"))
    detector: ead.Detector = method
    if form == "backbones":
        detector = ead.BackboneEnsemble([method, ead.PatchCore(net, ("first",), **NATIVE, device="cpu")])
    elif form == "tiles":
        detector = tiled(method)
    detector.fit(TRAIN)
    assert detector.predict(BAD).anomaly_map.shape == (3, SIDE, SIDE)
    detector.save(tmp_path / "m")
    backbone = [TinyNet(5), TinyNet(5)] if form == "backbones" else TinyNet(5)
    same(ead.load(tmp_path / "m", backbone=backbone).predict(BAD), detector.predict(BAD))


def test_feature_maps_by_hand() -> None:
    detector = FeatureMeans(TinyNet(), ("first", "second")).fit(TRAIN)
    known = np.delete(TRAIN, sorted(HELD_OUT), 0)
    extractor = detector.network_
    maps = extractor(extractor.normalize(torch.from_numpy(known).permute(0, 3, 1, 2)))
    for found, own in zip(detector.state_.means, maps, strict=True):
        torch.testing.assert_close(found, own.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


# What a method must be


@dataclass(frozen=True)
class Nothing:
    """A state."""


def test_a_method_learns_in_one_way() -> None:
    with pytest.raises(TypeError, match="Neither must define either start or train"):

        class Neither(Method):
            State = Nothing

            def scores(self, state: Any, seen: Seen) -> Scores:
                raise NotImplementedError

    with pytest.raises(TypeError, match="Both must define either start or train"):

        class Both(Method):
            State = Nothing

            def start(self, state: Any = None) -> Accumulator:
                raise NotImplementedError

            def train(self, data: TrainingData, run: Run) -> Any:
                raise NotImplementedError

            def scores(self, state: Any, seen: Seen) -> Scores:
                raise NotImplementedError


def test_parameters_are_those_of_the_signature() -> None:
    detector = Epochs(epochs=np.int64(4), batch_size=np.int64(2), image_size=(np.int64(8), 9))
    assert detector.parameters() == {
        "epochs": 4,
        "rate": 0.3,
        "resize": None,
        "image_size": (8, 9),
        "batch_size": 2,
        "holdout": 0.1,
        "seed": 0,
        "device": "cpu",
    }
    assert (type(detector.batch_size), type(detector.parameters()["image_size"][0])) == (int, int)
    with pytest.raises(TypeError, match="batch_size must be a whole number, got 2.5"):
        Epochs(batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(NotExportableError, match="Epochs cannot be exported"):
        detector.graph(None, (32, 32))


# What a method must return


class Grey(Method, abstract=True):
    """A method of which one piece at a time is wrong."""

    State = MeanFeatures
    trained: Any = MeanFeatures((torch.zeros(1),))
    scored: Any = None

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(locals())

    def scores(self, state: Any, seen: Seen) -> Scores:
        grey = seen.pixels.float().mean(1)
        return Scores(grey) if self.scored is None else self.scored(grey)


class Trained(Grey):
    def train(self, data: TrainingData, run: Run) -> Any:
        return self.trained


class Learning:
    """Learns nothing, and returns what it was given."""

    def __init__(self, fitted: Any) -> None:
        self._fitted = fitted

    def add(self, seen: Seen) -> None:
        pass

    def finish(self, run: Run) -> Any:
        return self._fitted


class Summed(Grey):
    fitted: Any = None

    def start(self, state: Any = None) -> Any:
        return Learning(self.fitted)


def sampled() -> NormalSample:
    sample = NormalSample()
    sample.add_grids(None, torch.ones(2, 4, 4), (SIDE, SIDE))
    return sample


STATE = MeanFeatures((torch.zeros(1),))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "Trained.train must return a MeanFeatures, got NoneType"),
        (Fitted(STATE, NormalSample()), "Trained.train must return a MeanFeatures, got Fitted"),
        (
            MeanFeatures((torch.zeros(1), torch.zeros(1, requires_grad=True))),
            r"Trained must learn a state without gradients, got one in state.means\[1\]: detach",
        ),
    ],
)
def test_train_must_return_the_state(state: Any, message: str) -> None:
    detector = Trained()
    detector.trained = state
    with pytest.raises(TypeError, match=message):
        detector.fit(TRAIN)
    assert not detector.is_fitted


@pytest.mark.parametrize(
    ("fitted", "message"),
    [
        (lambda: STATE, r"Summed.start must return an object whose finish returns a Fitted.* got MeanF"),
        (lambda: Fitted(None, sampled()), "the state of Summed's Fitted must be what was learned, got None"),
        (lambda: Fitted(STATE, torch.ones(3)), "the sample of Summed's Fitted must be a NormalSample, got T"),
        (
            lambda: Fitted(STATE, sampled(), warnings=["few"]),
            "the warnings of Summed's Fitted must be a mapping from a kind to a message, got list",
        ),
    ],
)
def test_finish_must_return_fitted(fitted: Any, message: str) -> None:
    detector = Summed()
    detector.fitted = fitted()
    with pytest.raises(TypeError, match=message):
        detector.fit(TRAIN)
    assert not detector.is_fitted


@pytest.mark.parametrize(
    ("scored", "kind", "message"),
    [
        (lambda grey: grey, TypeError, r"Trained.scores must return Scores\(grids\), got Tensor"),
        (lambda grey: Scores(grey.numpy()), TypeError, r"grids must be a tensor \[B, h, w\], got ndarray"),
        (lambda grey: Scores(grey[:, None]), ValueError, r"\[B, h, w\] with B = 2, got shape \(2, 1, 48, 48"),
        (lambda grey: Scores(grey[:1]), ValueError, r"\[B, h, w\] with B = 2, got shape \(1, 48, 48\)"),
        (lambda grey: Scores(grey, grey), ValueError, r"images must be \[B\] with B = 2, got shape"),
    ],
)
def test_scores_must_return_scores(scored: Any, kind: type[Exception], message: str) -> None:
    detector = Trained()
    detector.scored = scored
    with pytest.raises(kind, match=message):
        detector.fit(TRAIN)


@pytest.mark.parametrize("state", [None, Grey, int])
def test_a_method_needs_a_state(state: Any) -> None:
    with pytest.raises(TypeError, match="Stateless.State must be a dataclass of what the method learns, got"):

        class Stateless(Method):
            State = state

            def train(self, data: TrainingData, run: Run) -> Any:
                raise NotImplementedError

            def scores(self, state: Any, seen: Seen) -> Scores:
                raise NotImplementedError


def test_a_constructor_must_call_that_of_method() -> None:
    class Unconstructed(Trained):
        def __init__(self, *, device: str = "cpu") -> None:
            self.device = device

    for act in (Unconstructed().fit, Unconstructed().predict):
        with pytest.raises(
            TypeError, match=r"Unconstructed.__init__ must begin with super\(\).__init__\(loc"
        ):
            act(TRAIN)


def test_a_backbone_needs_layers() -> None:
    class Layerless(Trained):
        def __init__(self, backbone: str = "gabor", *, device: str = "cpu") -> None:
            Method.__init__(self, locals())

    with pytest.raises(TypeError, match="Layerless.__init__ takes backbone and must take layers as well"):
        Layerless()


def test_a_state_of_another_class_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Summed()
    detector.fitted = Fitted({}, sampled())
    detector.fit(TRAIN)
    with pytest.raises(TypeError, match=r"Summed is not registered.*ead\.register\(NAME\)"):
        detector.save(tmp_path / "m")
    separate_registry(monkeypatch)
    ead.register("test-Summed")(Summed)
    with pytest.raises(TypeError, match="the state must be a MeanFeatures, a dataclass, got dict"):
        detector.save(tmp_path / "m")


@pytest.mark.parametrize(
    ("detector", "wrong", "right"),
    [
        (Trained, ("embeddings", "feature_maps"), "pixels"),
        (FeatureMeans, ("pixels", "embeddings"), "feature_maps"),
        (lambda: patchcore(resize=SIDE), ("pixels", "feature_maps"), "embeddings"),
    ],
)
def test_a_method_sees_what_it_asks_for(detector: Any, wrong: tuple[str, ...], right: str) -> None:
    part = detector()
    with Images(open_images(TRAIN[:2])) as images:
        (_, (seen,)) = next(iter(seen_batches([part], images, 2)))
    assert getattr(seen, right) is not None
    assert getattr(seen.rows(slice(1)), right) is not None
    for name in wrong:
        with pytest.raises(TypeError, match=f"{name}: .* sees .*seen.{right}"):
            getattr(seen, name)
