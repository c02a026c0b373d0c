"""`DriftMonitor`: a detector's scores, features and maps against what they were, image by image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblead import store
from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import one_of, whole_number
from ensemblead.common.warnings import warn
from ensemblead.config.registry import register
from ensemblead.detectors import Detector, Predictions
from ensemblead.images import open_images
from ensemblead.monitoring.betting import STREAMS, Ranks, after_bets, begun, online_ranks, watched_streams
from ensemblead.monitoring.kept import Calibrated, Kept, Observed, identity, precision_of
from ensemblead.monitoring.state import DriftState
from ensemblead.monitoring.summary import summarised
from ensemblead.monitoring.watching import Watched, named, new_places
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state

if TYPE_CHECKING:
    from typing_extensions import Self

FEWEST = 40


@register("DriftMonitor")
class DriftMonitor:
    """Watches whether images are still like those that a detector was fitted and calibrated for.

    Each image's score, its features and its map's largest values by cell get the p-value of their rank among
    all images before (online conformal prediction). Test martingales bet against the p-values being uniform,
    and their capital is the evidence. Evidence of 1/p raises an alarm. Streams, and cells of the image, share
    it: the evidence of several is the largest of theirs, divided by their number.

    What is promised: for exchangeable images, as independent ones from an unchanged line are, the probability
    that there is *ever* an alarm, however long it runs, is at most `false_alarm_probability` (Ville). What is
    not: parts that come in runs (batches of material, day and night) are not exchangeable, and a change of
    run may be taken for drift. Calibrate with images of several runs, or observe every tenth image.

    The same image is observed once. One that comes again, or that the detector has learned, is left out and
    counted (`DriftState.repeated`), with a warning: a camera that repeats its last picture shows here.

    Args:
        detector: a fitted detector or ensemble.
        streams: what to watch: "score", "embedding" (mean and deviation over the grid of every layer that the
            detector's networks compute while they score; no pass is made for it), "regions". A detector
            without networks has no "embedding": it is left out then, with a warning; see `streams_`.
        regions: cells per side of the image.
        false_alarm_probability: of ever raising an alarm without a change.
        mean_run_length: instead, on average at least so many images without a change until an alarm
            (Shiryaev-Roberts). For lines that run long: changes are then found as soon after a long calm
            as at first, and false alarms come now and then.
        seed: of the random numbers that settle ties.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (112, 32, 32, 3), dtype=np.uint8)
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu"
        ... ).fit(images[:12])
        >>> monitor = ead.DriftMonitor(detector, regions=2).calibrate(images[12:72])
        >>> monitor.observe(images[72:92]).alarm
        False
        >>> state = monitor.observe(images[92:] // 2 + 60)
        >>> state.alarm, 18 <= state.since <= 22
        (True, True)
    """

    def __init__(
        self,
        detector: Detector,
        *,
        streams: Sequence[str] = STREAMS,
        regions: int = 4,
        false_alarm_probability: float = 0.01,
        mean_run_length: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(detector, Detector):
            raise TypeError(f"detector must be a detector, got {type(detector).__name__}")
        if not detector.is_fitted:
            raise NotFittedError(f"detector: this {type(detector).__name__} is not fitted; call fit first")
        self._set_up(streams, regions, false_alarm_probability, mean_run_length, seed)
        self.detector: Detector | None = detector

    def _set_up(
        self,
        streams: Sequence[str],
        regions: int,
        false_alarm_probability: float,
        mean_run_length: int | None,
        seed: int,
    ) -> None:
        if isinstance(streams, str) or not streams:
            raise ValueError(f"streams must be one or more of {', '.join(STREAMS)}, got {streams!r}")
        chosen = [one_of("streams", stream, STREAMS) for stream in streams]
        self.streams = tuple(stream for stream in STREAMS if stream in chosen)
        self.regions = whole_number("regions", regions, 1)
        probability = false_alarm_probability
        if isinstance(probability, bool) or not isinstance(probability, (int, float)):
            raise TypeError(f"false_alarm_probability must be a number, got {probability!r}")
        if not 0 < probability < 1:
            raise ValueError(f"false_alarm_probability must be between 0 and 1, got {probability}")
        self.false_alarm_probability = float(probability)
        self.mean_run_length = (
            None if mean_run_length is None else whole_number("mean_run_length", mean_run_length, 2)
        )
        self.seed = whole_number("seed", seed, 0)
        self._kept: Kept | None = None
        self._ranks: Ranks | None = None
        self._known: set[int] = set()

    # What it has found

    @property
    def level(self) -> float:
        """log10 of the evidence that raises an alarm."""
        if self.mean_run_length is None:
            return -math.log10(self.false_alarm_probability)
        # One statistic alone reaches its mean run length N on average after N images at the earliest. Several
        # that share 2 N have done so after t images with a probability of at most t / (2 N), by Doob's
        # inequality; so the mean is N at least.
        alone = len(self.streams) == 1 and (self.streams[0] != "regions" or self.regions == 1)
        return math.log10(self.mean_run_length * (1 if alone else 2))

    @property
    def is_calibrated(self) -> bool:
        """Whether images can be observed."""
        return self._kept is not None

    @property
    def streams_(self) -> tuple[str, ...]:
        """The streams that are watched, once calibrated."""
        return watched_streams(self._calibrated().calibrated)

    @property
    def state_(self) -> DriftState:
        """What was found so far."""
        return summarised(self._calibrated(), self.streams_, self.level)

    @property
    def observed_(self) -> Observed:
        """The values of the images observed, and the evidence after each."""
        return self._calibrated().observed

    @property
    def calibrated_(self) -> Calibrated:
        """The values of the images of `calibrate`."""
        return self._calibrated().calibrated

    def __repr__(self) -> str:
        state = f"{len(self.observed_.score)} images observed" if self.is_calibrated else "not calibrated"
        return f"DriftMonitor(streams={self.streams}, level=10^{self.level:.3g}), {state}"

    # What it does

    def calibrate(self, images: Any, *, errors: Any = "raise", progress: Any = None) -> Self:
        """Take what is normal from fresh normal images, and begin anew.

        Args:
            images: at least 40 images that the detector has not learned, better 100 from several days, as for
                `fit`; or `Predictions` of them. Half of them, every other one, become the reference of the
                features. Images that equal one before them count once.
            errors, progress: as for `detector.predict`.

        Raises ValueError for fewer, and, naming some, for images that the detector was fitted on.
        """
        detector = self._present()
        count = len(images) if isinstance(images, Predictions) else len(open_images(images))
        _require_enough(count, "")
        batches = list(self._predicted(detector, images, errors, progress, self.streams))
        learned = set(detector._fingerprints.tolist())
        values: list[Watched] = []
        known, looks = set[int](), []
        for batch in batches:
            old = [] if batch.fingerprints is None else batch.fingerprints.tolist()
            fitted = [place for place, look in enumerate(old) if look in learned]
            if fitted:
                raise ValueError(
                    f"images: the detector was fitted on {len(fitted)} or more of them "
                    f"({named(batch.paths, fitted)}), so that they say nothing of new images; give others"
                )
            places, own = new_places(batch.fingerprints, len(batch), known)
            known |= set(own.view(np.uint64).tolist())
            looks.append(own)
            if places:
                values.append(Watched.of(batch.take(places), self.streams, self.regions))
        total = sum(len(one.score) for one in values)
        _require_enough(total, " different from each other")
        calibrated = Calibrated.of(detector, values, np.concatenate(looks))
        if "embedding" in self.streams and calibrated.embedding is None:
            name = type(detector).__name__
            if self.streams == ("embedding",):
                raise ValueError(f'streams: {name} runs no network, so that there is no "embedding" to watch')
            warn(f'{name} runs no network, so that there is no "embedding" to watch; the other streams are')
        self._begin(identity(detector), precision_of(detector), calibrated)
        return self

    def observe(self, images: Any, *, errors: Any = "raise", progress: Any = None) -> DriftState:
        """Take in new images, in the order in which they were made.

        Args:
            images: as for `detector.predict`; or this detector's `Predictions` of them, for which nothing is
                computed twice: `detector.predict(images, features=True)`. Those of another detector, or of
                another precision, are not recognised, and may raise an alarm.
            errors, progress: as for `detector.predict`.

        Raises NotFittedError before `calibrate`, ValueError for NaN and for predictions without features. An
        error or an interrupt leaves what batches before it have brought.
        """
        for _ in self.observe_batches(images, errors=errors, progress=progress):
            pass
        return self.state_

    def observe_batches(
        self, images: Any, *, errors: Any = "raise", progress: Any = None
    ) -> Iterator[DriftState]:
        """`observe`, with the state after every batch."""
        detector = self._attached()
        streams, before = self.streams_, self._calibrated().observed.repeated
        for batch in self._predicted(detector, images, errors, progress, streams):
            self._take_in(detector, batch)
            yield self.state_
        if left_out := self._calibrated().observed.repeated - before:
            warn(f"{left_out} images were observed before, or learned by the detector: they are left out")

    def reset(self, keep_reference: bool = True) -> Self:
        """Begin anew: forget all images observed, and the alarm. The promise then holds for the time from
        here on. With `keep_reference=False` forget the calibration too.

        After a false alarm calibrate with other images instead: the ones kept may be what raised it, and
        would raise it again.
        """
        kept = self._calibrated()
        self._kept, self._ranks, self._known = None, None, set()
        if keep_reference:
            self._begin(kept.model, kept.precision, kept.calibrated)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the monitor, without the detector, to a folder, whole or not at all.

        `ead.load(path, detector=detector)` goes on from there as if it had never stopped, to the same bits.
        """
        self._calibrated()
        store.save(self, path)

    # How

    def _calibrated(self) -> Kept:
        if self._kept is None:
            raise NotFittedError("this DriftMonitor is not calibrated; call calibrate first")
        return self._kept

    def _present(self) -> Detector:
        if self.detector is None:
            raise ValueError(
                "this DriftMonitor was loaded without its detector, and can only be read: give "
                "ead.load(path, detector=...)"
            )
        return self.detector

    def _attached(self) -> Detector:
        detector = self._present()
        if self._kept is not None:
            _check_model(self._kept, detector, "")
        return detector

    def _begin(self, model: str, precision: str, calibrated: Calibrated) -> None:
        self._kept, self._ranks = begun(model, precision, calibrated), None
        self._known = set(calibrated.fingerprints.view(np.uint64).tolist())

    def _predicted(
        self, detector: Detector, images: Any, errors: Any, progress: Any, streams: Sequence[str]
    ) -> Iterator[Predictions]:
        if isinstance(images, Predictions):
            yield images
            return
        features = "embedding" in streams
        yield from detector.predict_batches(images, errors=errors, progress=progress, features=features)

    def _take_in(self, detector: Detector, batch: Predictions) -> None:
        """All of a batch, or, after an error, nothing of it."""
        kept = self._calibrated()
        learned = set(detector._fingerprints.tolist())
        places, looks = new_places(batch.fingerprints, len(batch), self._known | learned)
        repeated = kept.observed.repeated + len(batch) - len(places)
        if not places:
            self._kept = replace(kept, observed=replace(kept.observed, repeated=repeated))
            return
        fresh = batch.take(places)
        values = Watched.of(fresh, self.streams_, self.regions)
        new = Observed.of(fresh, values, kept.calibrated, looks, repeated, detector.geometry)
        restarting = self.mean_run_length is not None
        ranks, self._ranks = self._ranks or online_ranks(kept), None  # after an error they are made anew
        following, evidence = after_bets(kept, ranks, new, seed=self.seed, restarting=restarting)
        observed = kept.observed.joined(replace(new, evidence=evidence))
        self._kept, self._ranks = replace(following, observed=observed), ranks
        self._known |= set(looks.view(np.uint64).tolist())

    # Saving

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`."""
        names = ("streams", "regions", "false_alarm_probability", "mean_run_length", "seed")
        own = {name: getattr(self, name) for name in names}
        kept = self._calibrated()
        return {"parameters": own, "model": kept.model, "kept": save_state(writer, "kept", kept, Kept)}

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`, with the option `detector`."""
        monitor = cls.__new__(cls)
        with reader.as_damage():
            monitor._set_up(**reader.state["parameters"])
            kept: Kept = load_state(reader, "kept", reader.state["kept"], Kept)
            monitor._kept = kept
            looks = np.concatenate([kept.calibrated.fingerprints, kept.observed.fingerprints])
            monitor._known = set(looks.view(np.uint64).tolist())
        detector = reader.options.get("detector")
        if detector is not None:
            if not isinstance(detector, Detector):
                raise TypeError(f"detector must be a detector, got {type(detector).__name__}")
            _check_model(kept, detector, "detector: ")
        monitor.detector = detector
        return monitor


_OTHER_MODEL = (
    "this is not the model that the monitor was calibrated for, or it has learned, was calibrated or got "
    "another threshold since; calibrate the monitor anew"
)


def _check_model(kept: Kept, detector: Detector, where: str) -> None:
    if identity(detector) != kept.model:
        raise ValueError(f"{where}{_OTHER_MODEL}")
    if (own := precision_of(detector)) != kept.precision:
        raise ValueError(
            f"{where}this one's networks compute in {own}, and did in {kept.precision} when the monitor was "
            "calibrated, which gives other scores; load it with that precision, or calibrate the monitor anew"
        )


def _require_enough(count: int, what: str) -> None:
    if count < FEWEST:
        raise ValueError(
            f"images: at least {FEWEST} are needed{what}, better 100 of several days; got {count}"
        )
