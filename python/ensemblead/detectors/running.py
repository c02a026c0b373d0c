"""Images through networks into parts, batch by batch; predictions out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblead.common.predictions import Predictions
from ensemblead.common.warnings import warn
from ensemblead.detectors.frozen import share_networks
from ensemblead.detectors.parts import Part, Progress, Seen, Tree
from ensemblead.images import ImageBatch, Images, ImageSet, ImageSource, SkippedImage, open_images
from ensemblead.networks.network import FeaturePool
from ensemblead.networks.summaries import FeatureSummaries, collected
from ensemblead.networks.transfer import FiniteChecks, HostCopy, deferred_checks, is_asynchronous, verified


def open_pool(parts: Sequence[Part], images: ImageSet) -> FeaturePool:
    """Forward passes for parts: one per network and input, whatever number of parts reads it."""
    share_networks([network for part in parts for network in part._networks()])
    readers = [
        (network.network, images.frame(part.geometry)) for part in parts for network in part._own_networks()
    ]
    return FeaturePool(readers)


def seen_batches(
    parts: Sequence[Part],
    images: ImageSet,
    batch_size: int,
    check: Any = None,
    summaries: deque[FeatureSummaries] | None = None,
) -> Iterator[tuple[ImageBatch, list[Seen]]]:
    """Every batch and what the parts see of it, found finite; decoding goes on in the background.

    A GPU's batch comes when the next one is queued behind it, so that the GPU is not kept waiting. Those of
    `summaries` that are added at its end are of the batches to come, in their order.
    """
    pool = open_pool(parts, images)

    def see(batch: ImageBatch) -> list[Seen]:
        if check is not None:
            check(batch)
        own = None
        if summaries is not None:
            own = FeatureSummaries(len(batch))
            summaries.append(own)
        with pool.batch(batch.images) as features, collected(own):
            return [
                part._seen(batch.images[frame], frame, features)
                for part, frame in ((part, images.frame(part.geometry)) for part in parts)
            ]

    networks = [network.network for part in parts for network in part._networks()]
    pinned = any(is_asynchronous(network.device) for network in networks)
    geometries = [images.frame(part.geometry) for part in parts]
    return verified(images.batches(geometries, batch_size, pin_memory=pinned), see)


def predict(
    detector: Tree, images: Any, errors: Any, progress: Progress | None, features: bool
) -> Iterator[Predictions]:
    """See `Detector.predict_batches`. `errors` may be a function too: see `scored_batches`."""
    calibration = detector.calibration_
    above = calibration.pixel_threshold() if calibration.knows_regions else None
    learned = frozenset(detector._fingerprints.tolist())
    detector.known_ = []
    coming: deque[tuple[FiniteChecks, HostCopy, list[str | None], list[int], list[tuple[int, int]]]] = deque()
    summaries: deque[FeatureSummaries] | None = deque() if features else None
    for batch, seen in scored_batches(detector, images, errors, progress, "predict", summaries):
        own = None if summaries is None else summaries.popleft()
        pairs = zip(batch.indices, batch.fingerprints, strict=True)
        detector.known_ += [index for index, look in pairs if look in learned]
        # Some embed only now, as a tiled ensemble does.
        with deferred_checks() as checks, collected(own):
            scores, maps = detector._combine(detector._results(seen))
        tensors = [scores, maps, calibration.is_anomalous(scores)]
        if own is not None:
            tensors.append(own.values(scores.device))
        coming.append((checks.start(), HostCopy(tensors), batch.paths, batch.fingerprints, batch.sizes))
        # A GPU's results are read when those of the next batch are queued behind them.
        if not is_asynchronous(scores.device) or len(coming) > 1:
            yield replace(_arrived(*coming.popleft()), geometry=detector.geometry, pixel_threshold=above)
    while coming:
        yield replace(_arrived(*coming.popleft()), geometry=detector.geometry, pixel_threshold=above)


def _arrived(
    checks: FiniteChecks,
    copy: HostCopy,
    paths: list[str | None],
    fingerprints: list[int],
    sizes: list[tuple[int, int]],
) -> Predictions:
    checks.verify()
    scores, maps, anomalous, *others = copy.wait()
    features = others[0] if others else None
    looks = np.array(fingerprints, dtype=np.uint64)
    return Predictions(scores, maps, anomalous, paths, looks, sizes, features)


def scored_batches(
    detector: Tree,
    images: Any,
    errors: Any,
    progress: Progress | None,
    stage: str,
    summaries: deque[FeatureSummaries] | None = None,
) -> Iterator[tuple[ImageBatch, list[Seen]]]:
    """Every batch of `images` and what the detector's parts see of it, for a single pass.

    Where `errors` is a function, it is called with the place of each image that cannot be read and the error.
    Such images are left out without a warning then, were it all of them.
    """
    source, done = open_images(images), 0
    if source.bits is None:
        source = open_images(source, bits=detector.bits_)
    with Images(source, errors=errors) as data:
        parts, check = detector._parts(), detector._check_batch
        for batch, seen in seen_batches(parts, data, detector.batch_size, check, summaries):
            yield batch, seen
            done += len(batch)
            del batch, seen
            if progress is not None:
                progress(stage, done + len(data.skipped), len(source))
            detector.skipped_ = data.skipped
        detector.skipped_ = data.skipped
        if data.skipped and progress is not None:
            progress(stage, len(source), len(source))  # the last images may be among those left out
        if not callable(errors):
            report_skipped(source, data.skipped)


def report_skipped(source: ImageSource, skipped: Sequence[SkippedImage]) -> None:
    """Warn of images left out; an error where none could be read."""
    total = len(source)
    if skipped:
        first, count = skipped[0], f"{len(skipped)} of {total}"
        which = first.path or first.index
        warn(f"left out {count} images that cannot be read; the first: {which}: {first.reason}")
    if len(skipped) == total:
        raise ValueError(f"images: none of the {total} images can be read")
