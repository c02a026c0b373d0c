"""Images of many requests in few batches: one thread owns the detector and takes what has queued up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ensemblead.detectors import Detector
from ensemblead.images import EncodedImage
from ensemblead.service.scoring import OF_IMAGES, Scored, score_each


@dataclass(frozen=True)
class Model:
    """A detector, and what is said of it, in JSON's types."""

    detector: Detector
    description: Mapping[str, Any]


# By which model, and its result or the error that it raised.
Outcome = tuple[Model, "Scored | Exception"]


# After so many batches in a row without a result, by errors that no image causes, a service is not well.
_FAILURES = 3
_LOGGER = logging.getLogger(__name__)


@dataclass
class _Job:
    image: EncodedImage | None
    answer: Future[Outcome]

    def forget(self, answer: Future[Outcome]) -> None:
        """Let the bytes of an image go that nobody waits for any more."""
        if answer.cancelled():
            self.image = None


class Batcher:
    """Predicts images in batches of up to `max_batch`, in the order in which they come.

    A batch takes what is queued. If it is not full, it waits up to `max_wait` seconds, but only while
    `expected()`, the number of images that are in the service, says that more are on their way.

    Args:
        model: the first model; setting `.model` replaces it between two batches.
        on_batch: told how many images a batch had, and how many seconds it took.

    Images whose future was cancelled before their batch began are dropped.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int,
        max_wait: float,
        max_pixels: int,
        expected: Callable[[], int],
        on_batch: Callable[[int, float], object],
    ) -> None:
        self.model = model
        self._max_batch, self._max_wait, self._max_pixels = max_batch, max_wait, max_pixels
        self._expected, self._on_batch = expected, on_batch
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="ensemblead-serve", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether images are still being predicted."""
        return self._thread.is_alive()

    @property
    def is_failing(self) -> bool:
        """Whether the last batches had no result, by errors that no image causes: a GPU that is gone."""
        return self._failures >= _FAILURES

    @property
    def queued(self) -> int:
        """Images that no batch has taken yet."""
        return self._jobs.qsize()

    def put(self, image: EncodedImage) -> Future[Outcome]:
        """Queue an image."""
        job = _Job(image, Future())
        job.answer.add_done_callback(job.forget)
        self._jobs.put(job)
        return job.answer

    def close(self, timeout: float | None = None) -> None:
        """Predict what is queued, and end. Nothing may be put any more."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        ended = False
        while not ended:
            job = self._jobs.get()
            batch: list[_Job] = []
            end = time.monotonic() + self._max_wait
            while job is not None:
                batch.append(job)
                if len(batch) == self._max_batch:
                    break
                try:
                    job = self._jobs.get(timeout=self._patience(len(batch), end))
                except Empty:
                    break
            ended = job is None
            # A future that runs cannot be cancelled any more.
            taken = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if taken:
                self._predict(taken)

    def _patience(self, taken: int, end: float) -> float:
        """Seconds to wait for one more image: none, if what is expected is there."""
        return max(0.0, end - time.monotonic()) if self._expected() > taken else 0.0

    def _predict(self, batch: list[_Job]) -> None:
        model, start = self.model, time.perf_counter()
        images = [job.image for job in batch if job.image is not None]  # all: none was cancelled
        outcomes: Sequence[Scored | Exception]
        try:
            outcomes = score_each(model.detector, images, max_pixels=self._max_pixels)
        except BaseException as error:  # no `Exception`: this thread must not end, everybody waits for it
            outcomes = [RuntimeError(f"{type(error).__name__}: {error}")] * len(batch)
        self._judge(outcomes)
        self._on_batch(len(batch), time.perf_counter() - start)
        for job, outcome in zip(batch, outcomes, strict=True):
            job.answer.set_result((model, outcome))

    def _judge(self, outcomes: Sequence[Scored | Exception]) -> None:
        """Count batches without a result, and tell of the first."""
        errors = [one for one in outcomes if isinstance(one, Exception)]
        if len(errors) < len(outcomes):
            self._failures = 0
        elif others := [error for error in errors if not isinstance(error, OF_IMAGES)]:
            self._failures += 1
            if self._failures == 1:
                _LOGGER.error("ensemblead: no image of a batch could be predicted: %s", others[0])
