"""What a service counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service.

    Args:
        queued: images that wait for a batch.
        inside: images that have been admitted and not been answered.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queued: Callable[[], int], inside: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ensemblead_requests", "Requests to /predict by status.", ["status"], registry=self._registry
        )
        self._images = Counter("ensemblead_images", "Images by result.", ["result"], registry=self._registry)
        self._seconds = Histogram(
            *("ensemblead_request_seconds", "Time of a request that was answered with 200."),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_images = Histogram(
            "ensemblead_batch_images", "Images of a batch.", buckets=_IMAGES, registry=self._registry
        )
        self._batch_seconds = Histogram(
            *("ensemblead_batch_seconds", "Time of a batch, decoding included."),
            buckets=_SECONDS,
            registry=self._registry,
        )
        for name, text, function in (
            ("ensemblead_queued_images", "Images that wait for a batch.", queued),
            ("ensemblead_inside_images", "Images that are being read, wait, or are predicted.", inside),
        ):
            Gauge(name, text, registry=self._registry).set_function(function)

    def answered(self, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(seconds)

    def image(self, result: str) -> None:
        """An image has its result: "normal", "anomalous" or "error"."""
        self._images.labels(result).inc()

    def batch(self, images: int, seconds: float) -> None:
        """A batch is done."""
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
