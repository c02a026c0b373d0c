"""The public face of all detectors: images in, `Predictions` out."""

from __future__ import annotations

import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ensemblead import store
from ensemblead.calibration import DEFAULT_RATE, Calibration
from ensemblead.common.errors import NotFittedError
from ensemblead.common.predictions import Predictions
from ensemblead.common.validation import finite_number
from ensemblead.config.registry import describe
from ensemblead.detectors.exporting import ExportReport
from ensemblead.detectors.frozen import FrozenNetwork
from ensemblead.detectors.learning import calibrate, fit
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.parts import Part, Progress, Reading, Result
from ensemblead.detectors.provenance import Traced, record, record_calibration
from ensemblead.detectors.quantizing import MAX_IMAGES, quantize_and_score, warn_of_changes
from ensemblead.detectors.running import predict
from ensemblead.detectors.text import constructor_text
from ensemblead.detectors.training.checkpoint import opened
from ensemblead.images import Geometry, ImageBatch, Region, SkippedImage

if TYPE_CHECKING:
    from typing_extensions import Self

Errors = Literal["raise", "skip"]


class Detector(Traced, ABC):
    """Base of all detectors: of methods (`Method`) and of ensembles, which are made of detectors.

    Attributes: `batch_size`, images per forward pass; after a run over images `skipped_`, those that it left
    out under `errors="skip"`, and after predictions `known_`, the places of those that it has learned, whose
    scores say nothing of new images.
    """

    batch_size: int
    skipped_: list[SkippedImage]
    known_: list[int]

    # For users

    def __repr__(self) -> str:
        """One line: the parameters that are not the default, and the threshold."""
        name = constructor_text(self)
        try:
            threshold = self.threshold_
            name += self._settled_text()
            if threshold == math.inf:
                return f"{name}, no threshold"
            by = " set by the user" if self.calibration_.threshold_origin == "user" else ""
            return f"{name}, threshold {threshold:.4g}{by}"
        except (NotFittedError, AttributeError):  # or not constructed yet
            state = "not fitted" if getattr(self, "_state", None) is None else "no threshold"
            return f"{name}, {state}"

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether `predict` can be called."""

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """How an image becomes the frame of the anomaly map; `geometry.apply_mask` brings a mask into it."""

    @property
    @abstractmethod
    def region(self) -> Region | None:
        """What is inspected of photographs; None: all. Maps are zero outside."""

    @property
    @abstractmethod
    def calibration_(self) -> Calibration:
        """Statistics of normal images; their threshold and false-alarm rate decide `is_anomalous`."""

    @property
    def threshold_(self) -> float:
        """Scores above it are anomalous; infinity where none is known, as of some converted models.

        Set it to choose one yourself: a finite number, in units of the scores. The statistics stay, and
        `calibration_.false_alarm_rate` is what they let expect at it. `fit` and `calibrate` measure a
        threshold again; `extend` keeps yours, with a warning. Raises NotFittedError where nothing was fitted.
        """
        return self.calibration_.threshold

    @threshold_.setter
    def threshold_(self, value: float) -> None:
        self._set_threshold(finite_number("threshold_", value))
        record(self, "threshold", threshold=float(value))

    def fit(
        self,
        images: Any,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Learn what normal looks like.

        Args:
            images: normal images: a folder, a list of paths, uint8 `[N, H, W, 3]`, or a torch Dataset.
            errors: "raise" stops at an image that cannot be read; "skip" leaves it out, counts it in a
                warning, and lists it in `skipped_`.
            progress: called with a stage's name, how much is done, and how much there is. If it has a method
                `note(text, stays)`, that is told more: in training the parts of the loss and the seconds a
                step, and as a line that stays how long training takes on a CPU, from a minute on.
            checkpoint: for methods that are trained, a folder that keeps what was learned: every minute,
                on Ctrl-C, and in ensembles after each member or tile location. The same call goes on
                from there and ends as if it had never stopped. One with other arguments, images or threads
                is refused. The folder is removed at the end, if nothing else is in it.

        A fit that fails or is interrupted leaves the detector as it was. One that needs several passes over
        the images keeps them, resized, in memory, and beyond 256 MiB in a temporary file (see
        `ensemblead.images.Images`).
        """
        with opened(checkpoint) as kept:
            fit(self, images, errors, progress, extending=False, checkpoint=kept)
            if kept is not None:
                kept.remove()
        return self

    def extend(
        self,
        images: Any,
        *,
        max_rows: int | None = None,
        errors: Errors = "raise",
        progress: Progress | None = None,
    ) -> Self:
        """Learn from more normal images, without starting over; what is known stays.

        Leave-one-out statistics then include the new images. Those of `calibrate` stay, guarantee and all,
        where more images only lower scores; for `PaDiM` and `score="reweighted"` they become estimates.
        Images that were learned before give no statistics; a warning says how many there were.

        Args:
            images, errors, progress: as for `fit`.
            max_rows: a memory bank that would have more rows is selected anew, of its own and the new
                ones, and has this many; so is every one of an ensemble. Scores may rise then, so that
                statistics of `calibrate` become estimates. None: banks grow.

        Raises ValueError for methods that learn in many passes: they are fitted again. So does a set in which
        nothing is new.
        """
        self._require_fitted("extend")
        fit(self, images, errors, progress, extending=True, max_rows=max_rows)
        return self

    def predict(
        self,
        images: Any,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
        features: bool = False,
    ) -> Predictions:
        """Score images (any form that `fit` takes); all maps are held at once, see `predict_batches`."""
        batches = self.predict_batches(images, errors=errors, progress=progress, features=features)
        return Predictions.concatenate(list(batches))

    def predict_batches(
        self,
        images: Any,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
        features: bool = False,
    ) -> Iterator[Predictions]:
        """Score images batch by batch, in order; memory does not grow with their number.

        With `features` the predictions also carry what `DriftMonitor` watches of the networks' features.
        """
        self._require_fitted("predict")
        self._require_single_image_scores()
        return predict(self, images, errors, progress, features)

    def calibrate(
        self,
        images: Any,
        false_alarm_rate: float = DEFAULT_RATE,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
    ) -> Self:
        """Take the statistics and the threshold from fresh normal images, in place of those of `fit`.

        A fresh normal image from the same source then scores above the threshold with probability at most
        `false_alarm_rate` (split conformal prediction); with fewer than `1/rate - 1` images, at most `1/(n +
        1)`, with a warning. For an ensemble the weights of its members come from the same images, which the
        theorem leaves out: there the rate holds up to terms of order 1/n. Images that equal one before them
        count once.

        Raises ValueError, naming some, for images that the detector was fitted on: of those nothing could be
        guaranteed. A detector after `load_weights` has its threshold from here alone.
        """
        self._require_fitted("calibrate")
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must be between 0 and 1, got {false_alarm_rate}")
        self._accept(calibrate(self, images, float(false_alarm_rate), errors, progress))
        self._forget_threshold()
        record_calibration(self, float(false_alarm_rate))
        return self

    def quantize(
        self,
        images: Any,
        *,
        max_images: int = MAX_IMAGES,
        seed: int = 0,
        errors: Errors = "raise",
        progress: Progress | None = None,
    ) -> Self:
        """Run the frozen networks in int8 from now on, by OpenVINO: on CPUs, and several times as fast.

        What was learned in float32 stays, and so do the statistics and the threshold. Scores move: those of
        `PatchCore` with a ResNet by 1 to 2 % in the median, and by up to 12 %, those of trained methods by
        more (docs/design/engines.md). The images are scored before and after, and a ThresholdWarning says how
        many change sides of the threshold; `calibrate` gives one of int8 scores. The quantized network is
        saved with the detector. Loading it with `ead.load(path, engine="torch", precision="float32")` gives
        the exact one again.

        Args:
            images: as `fit` takes them: those of the fit, or others that are normal.
            max_images: so many of them are drawn, and the ranges of values are read from these.
            seed: of the draw.
            errors, progress: as for `fit`.

        Raises MissingExtraError without OpenVINO and NNCF, ValueError for networks that are not in float32 on
        a CPU, or for a detector without frozen networks, EngineError for a network that cannot be converted.
        The detector is then as it was.
        """
        self._require_fitted("quantize")
        networks = self._networks()
        if not networks:
            raise ValueError(f"quantize: this {type(self).__name__} has no frozen network")
        exact, found = quantize_and_score(self, networks, images, max_images, seed, errors, progress)
        record(self, "quantize", len(exact), max_images=max_images, seed=seed)
        warn_of_changes(self, exact, found)
        return self

    def save(
        self, path: str | os.PathLike[str], include_backbone: bool = False, *, half: bool = False
    ) -> None:
        """Write the fitted detector to a folder, whole or not at all; `ead.load(path)` reads it back.

        Args:
            path: the folder.
            include_backbone: store the weights of published networks and of weights files too, so that the
                folder needs nothing else. Others (state dicts, `weights=None`, modules, and those that were
                stored in the folder that the detector was loaded from) are stored anyway.
            half: store the rows of memory banks as float16, half as large. Loaded, they are float32 again,
                every value rounded by up to 1 in 2048 of itself; docs/design/large_sets.md has what that
                does to scores. Other states stay as they are.

        Raises ValueError where something else is at `path`, and with `half` for values beyond float16.
        """
        self._require_fitted("save")
        store.save(self, path, include_backbone=include_backbone, half=half)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        verify: Any,
        format: Literal["openvino", "onnx"] = "openvino",
        precision: Literal["float32", "bfloat16", "int8"] = "float32",
        input: Literal["image", "resized"] = "image",
        image_size: int | tuple[int, int] | None = None,
        tolerance: float | None = None,
        allow_flag_changes: int = 0,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the fitted detector as one graph, from decoded images to scores, maps and verdicts.

        `ead.load_exported(path)` predicts with it without torch, and so does any program that reads
        OpenVINO's or ONNX's files; docs/design/export.md says how it is called. Before anything stands at
        `path`, the graph is run on real images and compared with this detector.

        Args:
            path: the folder, which must not exist.
            verify: images to compare with, 10 at least, as `predict` takes them: good and defective ones.
            format: "openvino" (the extra openvino) or "onnx", opset 17 (the extra onnx).
            precision: of the networks. "bfloat16" and "int8" go with "openvino", and int8 needs a detector
                that `quantize` has made int8.
            input: "image": the graph resizes and crops. "resized": the caller does, as `load_exported` does.
            image_size: of the images, int or `(h, w)`, with input="image"; None: that of those of `verify`.
            tolerance: how far scores and maps may move, relative to themselves; None: 1e-3 in float32, 0.05
                in other precisions.
            allow_flag_changes: how many of the images may be called otherwise.
            progress: as for `fit`.

        Returns the comparison, image by image.

        Raises:
            ExportError: scores, maps or verdicts move further; the message names the worst image, and nothing
                is written.
            NotExportableError: a method, a fusion or a size of bank that no graph is made of; a ValueError.
            EngineError: a network that cannot be traced or converted.
            MissingExtraError: OpenVINO, or ONNX Runtime, is not installed.
            ValueError: fewer than 10 images, or of several sizes; options that do not go together.
        """
        self._require_fitted("export")
        # The room of exports stands on this one, which knows it by its name alone, as the registry does.
        room = importlib.import_module("ensemblead.deploy.export")
        report: ExportReport = room.export(
            self,
            path,
            format=format,
            precision=precision,
            input=input,
            image_size=image_size,
            images=verify,
            tolerance=tolerance,
            allow_flag_changes=allow_flag_changes,
            progress=progress,
        )
        return report

    def load_networks(self) -> Self:
        """Load all networks now; they are loaded at their first use otherwise.

        Raises what loading raises: WeightsUnavailableError, ValueError for a network or layers that are not
        there.
        """
        for network in self._networks():
            _ = network.network
        return self

    def describe(self) -> dict[str, Any]:
        """The detector as plain values, from which `ead.create` makes an unfitted one like it.

        Raises ValueError for what has no plain form: a module as backbone, a state dict as weights.
        """
        return describe(self)

    @property
    def settled_(self) -> dict[str, Any]:
        """What the fit has chosen where a parameter left it to the images, by its name, in JSON's types."""
        return {}

    # For methods and ensembles

    def _settled_text(self) -> str:
        """`settled_` in words, after a comma; empty where nothing was left to a fit."""
        return ""

    @abstractmethod
    def _parts(self) -> Sequence[Part]:
        """What scores images on its own, in a fixed order."""

    @abstractmethod
    def _networks(self) -> list[FrozenNetwork]:
        """All networks, of all parts and of what these are made of."""

    def _kept_geometries(self) -> Sequence[Geometry]:
        """How images are kept for its passes, where it makes several."""
        return (self.geometry,)

    @abstractmethod
    def _combine(self, results: Sequence[Result]) -> Result:
        """One result from one per part."""

    @abstractmethod
    def _clone(self) -> Self:
        """An unfitted detector of the same parameters, sharing the networks."""

    @abstractmethod
    def _take(self, states: Sequence[Any], reading: Reading) -> None:
        """Take what was learned: one state per part, and what was settled about images."""

    @abstractmethod
    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        """Take statistics, one per part."""

    def _set_threshold(self, value: float) -> None:
        """Take a threshold of the user's, beside the statistics."""
        self._accept([replace(self.calibration_, given=value)])

    def _forget_threshold(self) -> None:
        """Drop a threshold that was set apart from the statistics, which only ensembles have."""
        return

    @property
    @abstractmethod
    def bits_(self) -> int | None:
        """Used bits of 16-bit files, settled by `fit`; None where there were none."""

    @property
    @abstractmethod
    def left_out_(self) -> tuple[LeftOut, ...]:
        """Images that the last `fit` has left out, as odd among the others, the oddest first; see the
        parameter `contamination` of `PatchCore`. `extend` learns those that are good after all.
        """

    @property
    @abstractmethod
    def _fingerprints(self) -> npt.NDArray[np.uint64]:
        """Those of the images that were learned; of models saved before they were kept, none."""

    @abstractmethod
    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        """For `store.save`."""

    @classmethod
    @abstractmethod
    def from_store(cls, reader: store.FolderReader) -> Self:
        """For `store.load`."""

    def _results(self, seen: Sequence[Any]) -> list[Result]:
        """One result per part from what each has seen."""
        return [part._result(own) for part, own in zip(self._parts(), seen, strict=True)]

    def _require_single_image_scores(self) -> None:
        """Raises where a score is defined only within a set of images."""
        return

    def _check_batch(self, batch: ImageBatch) -> None:
        """Raises where the members cannot agree on a batch."""
        return

    def _require_fitted(self, action: str) -> None:
        if self.is_fitted:
            return
        name = type(self).__name__
        if not all(part.has_learned for part in self._parts()):
            raise NotFittedError(f"cannot {action}: this {name} is not fitted; call fit first")
        if action != "calibrate":
            raise NotFittedError(f"cannot {action}: this {name} has no threshold; call calibrate first")
