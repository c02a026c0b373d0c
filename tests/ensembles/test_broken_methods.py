"""`ead.check_detector` catches broken methods by the name of the promise that they break."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from support.checked_methods import (
    BlindToItsRegion,
    CellMeans,
    LinearAutoencoder,
    Means,
    MeansAccumulator,
    Weights,
)
from support.registry import separate_registry

import ensemblead as ead
from ensemblead.common.errors import DetectorCheckError
from ensemblead.detectors import Fitted, Scores, Seen
from ensemblead.ensembles.check import CHECKS
from ensemblead.store import states


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    ead.register("CellMeans")(CellMeans)
    ead.register("LinearAutoencoder")(LinearAutoencoder)


def test_every_check_has_a_promise_and_a_broken_method() -> None:
    assert {name for name, _ in BROKEN} | {"nan_is_refused"} == set(CHECKS)


BROKEN: list[tuple[str, type[Any]]] = [("inspects_its_region", BlindToItsRegion)]


def breaks(check: str) -> Any:
    """The class is a method that this check must catch."""

    def enter(cls: type[Any]) -> type[Any]:
        BROKEN.append((check, cls))
        return cls

    return enter


@breaks("parameters_are_kept")
class ParameterChanged(CellMeans):
    def __init__(self, *, gain: float = 2.0, device: str = "cpu") -> None:
        super().__init__(gain=gain, device=device)
        self.gain = gain * 2


@breaks("parameters_are_kept")
class ParameterForgotten(CellMeans):
    def __init__(self, *, strength: float = 2.0, device: str = "cpu") -> None:
        super().__init__(device=device)

    def _clone(self) -> Any:
        return type(self)(device=self.device)


@breaks("construction_is_light")
class DrawsInConstructor(CellMeans):
    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.offset = random.random()


@breaks("construction_is_light")
class LoadsInConstructor(ead.PaDiM):
    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__("gabor", ("layer1",), device=device, resize=32, image_size=None)
        self.load_networks()

    def _clone(self) -> Any:
        return type(self)(device=self.device)


@breaks("description_is_inverse")
class DescribesLess(CellMeans):
    def describe(self) -> dict[str, Any]:
        return {name: value for name, value in super().describe().items() if name != "device"}


@breaks("unfitted_is_refused")
class PredictsUnfitted(CellMeans):
    def predict(self, images: Any, **options: Any) -> Any:
        if self.is_fitted:
            return super().predict(images, **options)
        return ead.Predictions(
            np.zeros(1, np.float32), np.zeros((1, 2, 2), np.float32), np.zeros(1, bool), [None]
        )


@breaks("fit_returns_the_detector")
class ReturnsNothing(CellMeans):
    def fit(self, images: Any, **options: Any) -> Any:
        super().fit(images, **options)


@breaks("predictions_have_their_form")
class DoubleScores(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids, torch.ones(len(seen), dtype=torch.float64))


@breaks("predictions_have_their_form")
class InfiniteScores(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids, torch.full((len(seen),), float("inf")))

    def start(self, state: Means | None = None) -> Any:
        return MeansAccumulator(CellMeans(device="cpu"), state)


@breaks("predictions_keep_the_order")
class ReversesBatches(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids.flip(0))


@breaks("defects_are_seen")
class Blind(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        grids = super().scores(state, seen).grids
        return Scores(grids, torch.ones(len(seen)))


@breaks("input_stays_unchanged")
class ChangesInput(CellMeans):
    def fit(self, images: Any, **options: Any) -> Any:
        if isinstance(images, np.ndarray):
            images[0] = 0
        return super().fit(images, **options)


@breaks("global_random_state_stays")
class SeedsGlobally(LinearAutoencoder):
    def train(self, data: Any, run: Any) -> Weights:
        np.random.seed(self.seed)  # noqa: NPY002
        return super().train(data, run)


@breaks("seed_decides")
class DrawsGlobally(LinearAutoencoder):
    def train(self, data: Any, run: Any) -> Weights:
        learned = super().train(data, run)
        return Weights(learned.encoder, learned.decoder, learned.mean + 0.3 * torch.rand(len(learned.mean)))


@breaks("images_are_independent")
class LooksAtTheBatch(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        grids = super().scores(state, seen).grids
        return Scores(grids / (grids.amax() + 1e-3))


class LastBatchAccumulator(MeansAccumulator):
    """Averages over the last batch alone."""

    def add(self, seen: Seen) -> None:
        self.count, self.total = 0, torch.zeros(2, dtype=torch.float64)
        super().add(seen)

    def finish(self, run: Any) -> Fitted:
        self.parts.clear()
        self.sampled = [(number, row) for number, row in self.sampled[-1:]]
        self.parts[self.sampled[0][0]] = (0, torch.zeros(2, dtype=torch.float64))
        return super().finish(run)


@breaks("batch_size_does_not_matter")
class LearnsLastBatch(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return LastBatchAccumulator(self, state)


@breaks("threads_do_not_matter")
class CountsThreads(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids * torch.get_num_threads())


@breaks("saved_models_are_equal")
class LearnsBesideItsState(LinearAutoencoder):
    offset: float = 0.0

    def train(self, data: Any, run: Any) -> Weights:
        self.offset = 1.0
        return super().train(data, run)

    def scores(self, state: Weights, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids + self.offset)


@breaks("incomplete_states_are_refused")
class SavesAnything(CellMeans):
    def save(self, path: Any, include_backbone: bool = False) -> None:
        try:
            super().save(path, include_backbone)
        except TypeError:
            Path(path).mkdir()


class ForgetfulAccumulator(MeansAccumulator):
    """Starts over when it should extend, while the detector says that scores only fall."""

    def __init__(self, method: CellMeans, state: Means | None) -> None:
        super().__init__(method, None)


@breaks("extending_keeps_what_is_known")
class ForgetsInExtend(CellMeans):
    extending_lowers_scores = True  # type: ignore[assignment]

    def start(self, state: Means | None = None) -> Any:
        return ForgetfulAccumulator(self, state)


@breaks("extending_keeps_what_is_known")
class ExtendsByName(CellMeans):
    def extend(self, images: Any, **options: Any) -> Any:
        return self


@breaks("failure_changes_nothing")
class KeepsHalfAFit(LinearAutoencoder):
    def train(self, data: Any, run: Any) -> Weights:
        if self._state is not None:
            self._state = Weights(*(torch.zeros_like(value) for value in vars(self._state).values()))
        return super().train(data, run)


@dataclass
class MutableMeans:
    count: int
    total: Any


class InPlaceAccumulator(MeansAccumulator):
    """Adds to the tensor of the state that it was given."""

    def add(self, seen: Seen) -> None:
        known = self.total
        super().add(seen)
        self.total = known.copy_(self.total)


@breaks("failure_changes_nothing")
class ExtendsInPlace(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return InPlaceAccumulator(self, state)


@breaks("calibration_needs_fresh_images")
class ForgetsItsImages(CellMeans):
    @property
    def _fingerprints(self) -> Any:
        return np.empty(0, np.uint64)


@breaks("progress_ends_at_its_total")
class CountsFromZero(LinearAutoencoder):
    def train(self, data: Any, run: Any) -> Weights:
        learned = super().train(data, run)
        run.progress("train", self.epochs - 1, self.epochs)
        return learned


@breaks("bad_images_are_refused")
class SwallowsErrors(CellMeans):
    def fit(self, images: Any, **options: Any) -> Any:
        try:
            return super().fit(images, **options)
        except (TypeError, ValueError):
            return self


@breaks("unreadable_files_are_skipped")
class HidesSkipped(CellMeans):
    @property
    def skipped_(self) -> Any:
        return []

    @skipped_.setter
    def skipped_(self, skipped: Any) -> None:
        pass


@breaks("works_beside_others")
@breaks("works_nested")
class PreparesInFit(CellMeans):
    def fit(self, images: Any, **options: Any) -> Any:
        self.offset = torch.ones(1)
        return super().fit(images, **options)

    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(super().scores(state, seen).grids + self.offset)


class SharedAccumulator(MeansAccumulator):
    """Sums up what all methods of the class learn."""

    everything: tuple[int, Any] = (0, None)

    def add(self, seen: Seen) -> None:
        super().add(seen)
        SharedAccumulator.everything = (self.count, self.total)


@breaks("works_in_tiles")
class SharesByClass(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return SharedAccumulator(self, state)

    def scores(self, state: Means, seen: Seen) -> Scores:
        return super().scores(Means(*SharedAccumulator.everything), seen)


class OneRowPerImage(MeansAccumulator):
    """Takes rows of one number for one image, of which the last is as good as any."""

    def finish(self, run: Any) -> Fitted:
        rows = dict(self.sampled)
        self.count, self.total, self.parts = 0, torch.zeros(2, dtype=torch.float64), {}
        self.sampled = []
        for number, row in rows.items():
            self.add(Seen(row.values, row.size, (number,), (True,)))
        return super().finish(run)


@breaks("works_shared_by_tiles")
class OneTilePerImage(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return OneRowPerImage(self, state)


class KnownAccumulator(MeansAccumulator):
    """Scores images as they are, without leaving them out."""

    def finish(self, run: Any) -> Fitted:
        self.parts = dict.fromkeys(self.parts, (0, torch.zeros(2, dtype=torch.float64)))
        return super().finish(run)


@breaks("statistics_leave_one_out")
class LeavesNothingOut(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return KnownAccumulator(self, state)


class RowsAccumulator(MeansAccumulator):
    """Takes every row for an image of its own, copies of one too."""

    rows: int = 0

    def add(self, seen: Seen) -> None:
        numbers = tuple(range(self.rows, self.rows + len(seen)))
        self.rows += len(seen)
        super().add(replace(seen, numbers=numbers))


@breaks("statistics_leave_copies_out")
class KnowsCopies(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return RowsAccumulator(self, state)


class AddingAccumulator(MeansAccumulator):
    """Adds up in the tensor of the state that it was given, at the end."""

    def __init__(self, method: CellMeans, state: Means | None) -> None:
        super().__init__(method, state)
        self.known = None if state is None else state.total

    def finish(self, run: Any) -> Fitted:
        if self.known is not None:
            self.total = self.known.add_(self.total - self.known)
        return super().finish(run)


@breaks("extending_leaves_the_state")
class AddsInPlace(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return AddingAccumulator(self, state)


@breaks("extending_forgets_nothing")
class StartsOver(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return MeansAccumulator(self, None)


class SilentAccumulator(MeansAccumulator):
    """Warns of nothing."""

    def finish(self, run: Any) -> Fitted:
        return replace(super().finish(run), warnings={})


@breaks("one_image_is_enough")
class SilentOfOneImage(CellMeans):
    def start(self, state: Means | None = None) -> Any:
        return SilentAccumulator(self, state)


@breaks("parameters_are_kept")
class WithoutDevice(CellMeans):
    def __init__(self, *, gain: float = 1.0) -> None:
        super().__init__(gain=gain, device="cpu")


@breaks("global_random_state_stays")
class SeedsTorch(LinearAutoencoder):
    def train(self, data: Any, run: Any) -> Weights:
        torch.manual_seed(self.seed)
        return super().train(data, run)


@breaks("defects_are_seen")
class TurnedRound(CellMeans):
    def scores(self, state: Means, seen: Seen) -> Scores:
        return Scores(-super().scores(state, seen).grids)


@pytest.mark.parametrize(("check", "method"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_broken_methods_are_caught(check: str, method: type[Any]) -> None:
    ead.register(method.__name__)(method)
    device = {} if method is WithoutDevice else {"device": "cpu"}
    with pytest.raises(DetectorCheckError, match=f"{method.__name__} fails {check}. Promised: .* Seen: "):
        ead.check_detector(method(**device), checks=[check])


def test_nan_that_passes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_finite", lambda tensor, path: tensor)
    with pytest.raises(DetectorCheckError, match="fails nan_is_refused"):
        ead.check_detector(CellMeans(device="cpu"), checks=["nan_is_refused"])


def test_the_first_broken_promise_ends_the_checks() -> None:
    ead.register("Blind")(Blind)
    passed: list[str] = []
    with pytest.raises(DetectorCheckError, match="fails defects_are_seen"):
        ead.check_detector(Blind(device="cpu"), progress=lambda name, done, total: passed.append(name))
    assert passed == list(CHECKS[: CHECKS.index("defects_are_seen")])
