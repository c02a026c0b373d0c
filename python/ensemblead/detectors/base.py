"""What a detector is: images in, `Predictions` out; and how detectors are made of detectors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead import store
from ensemblead.calibration.statistics import (
    DEFAULT_RATE,
    ROUNDING,
    Calibration,
    ImageDigest,
    NormalSample,
    calibration_positions,
    extended,
    warn_if_too_few,
)
from ensemblead.common.errors import NotFittedError
from ensemblead.common.warnings import warn
from ensemblead.detectors.fitting import Embedded, Errors, Fitting, Progress, Result
from ensemblead.images import Geometry, ImageBatch, Replay, SkippedImage, iterate_batches, open_images
from ensemblead.networks.network import FeaturePool, Network
from ensemblead.networks.transfer import FiniteChecks, HostCopy, deferred_checks, is_asynchronous, verified

if TYPE_CHECKING:
    from typing_extensions import Self

# A network's feature maps of the batch under way, which is in this geometry.
Features = Callable[[Network, Geometry], list[torch.Tensor]]

__all__ = [
    "Detector",
    "Embedded",
    "Errors",
    "Features",
    "Fitting",
    "Leaf",
    "LeafDetector",
    "Predictions",
    "Progress",
    "Result",
    "share_networks",
]


@dataclass
class Predictions:
    """What a detector says of N images. Larger is more anomalous; the units are the detector's.

    `anomaly_score` float32 `[N]`; `anomaly_map` float32 `[N, H, W]` in the frame that the network saw (see
    `Detector.geometry`); `is_anomalous` bool `[N]`: the score is above the detector's threshold; `paths`:
    files, or None.
    """

    anomaly_score: npt.NDArray[np.float32]
    anomaly_map: npt.NDArray[np.float32]
    is_anomalous: npt.NDArray[np.bool_]
    paths: list[str | None]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """All images of all parts. Maps of different sizes have no common array (ValueError)."""
        sizes = {part.anomaly_map.shape[1:] for part in parts}
        if len(sizes) > 1:
            raise ValueError(
                f"the images' anomaly maps differ in size ({', '.join(map(str, sorted(sizes)))}), so predict "
                "cannot stack them: use predict_batches, or give an exact resize or a crop"
            )
        return cls(
            np.concatenate([part.anomaly_score for part in parts]),
            np.concatenate([part.anomaly_map for part in parts]),
            np.concatenate([part.is_anomalous for part in parts]),
            [path for part in parts for path in part.paths],
        )


class Detector(ABC):
    """Base of all detectors.

    A detector is a tree: its leaves turn images into embeddings with a frozen network, ensembles combine
    them. A `TiledEnsemble`, which cuts its image into tiles for detectors of its own, counts as a leaf. The
    leading underscores are for users; a new detector or ensemble implements those methods.
    """

    batch_size: int
    skipped_: list[SkippedImage]  # what the last run over images left out under errors="skip"

    # What users call

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
    def calibration_(self) -> Calibration:
        """Statistics of normal images; `.threshold` and `.false_alarm_rate` decide `is_anomalous`."""

    @property
    def threshold_(self) -> float:
        """Scores above it are anomalous."""
        return self.calibration_.threshold

    def fit(self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None) -> Self:
        """Learn what normal looks like.

        Args:
            images: normal images: a folder, a list of paths, uint8 `[N, H, W, 3]`, or a torch Dataset.
            errors: "raise" stops at an image that cannot be read; "skip" leaves it out, counts it in a
                warning, and lists it in `skipped_`. An image that vanishes between the passes of a fit (a
                `TiledEnsemble` may need several) is an error either way: parts have learned it already.
            progress: called with a stage's name, how much is done, and how much there is.

        A fit that fails or is interrupted leaves the detector as it was.
        """
        self._learn(images, self._begin_fit(), errors, progress, extending=False)
        return self

    def extend(self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None) -> Self:
        """Learn from more normal images, without starting over; what is known stays.

        Leave-one-out statistics then include the new images. Those of `calibrate` stay, guarantee and all,
        where more images only lower scores; for `PaDiM` and `score="reweighted"` they become estimates.
        """
        self._require_fitted("extend")
        self._learn(images, self._begin_extension(), errors, progress, extending=True)
        return self

    def predict(
        self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None
    ) -> Predictions:
        """Score images (any form that `fit` takes); all maps are held at once, see `predict_batches`."""
        return Predictions.concatenate(list(self.predict_batches(images, errors=errors, progress=progress)))

    def predict_batches(
        self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None
    ) -> Iterator[Predictions]:
        """Score images batch by batch, in order; memory does not grow with their number."""
        self._require_fitted("predict")
        self._require_single_image_scores()
        return self._predict_batches(images, errors, progress)

    def calibrate(
        self,
        images: Any,
        false_alarm_rate: float = DEFAULT_RATE,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
    ) -> Self:
        """Take the statistics and the threshold from fresh normal images, in place of the leave-one-out ones.

        A fresh normal image from the same source then scores above the threshold with probability at most
        `false_alarm_rate` (split conformal prediction); with fewer than `1/rate - 1` images, at most `1/(n +
        1)`, with a warning. For an ensemble the weights of its members come from the same images, which the
        theorem leaves out: there the rate holds up to terms of order 1/n.
        """
        self._require_fitted("calibrate")
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must be between 0 and 1, got {false_alarm_rate}")
        samples = [NormalSample(leaf._rounding) for leaf in self._leaves()]
        digest = ImageDigest()
        for batch, embedded in self._run(images, errors, progress, "calibrate"):
            self._note(digest, batch)
            for sample, (scores, maps) in zip(samples, self._score_leaves(embedded), strict=True):
                sample.add(scores, maps)
        calibrations = [sample.calibration(false_alarm_rate, True, digest.hexdigest()) for sample in samples]
        warn_if_too_few(calibrations[:1])
        self._accept(calibrations)
        return self

    def save(self, path: str | os.PathLike[str], include_backbone: bool = False) -> None:
        """Write the fitted detector to a folder, whole or not at all; `ead.load(path)` reads it back.

        Args:
            include_backbone: store the weights of published networks and of weights files too, so that the
                folder needs nothing else. Others (state dicts, `weights=None`, modules) are stored anyway.
        """
        self._require_fitted("save")
        store.save(self, path, include_backbone=include_backbone)

    # What detectors and ensembles implement

    @abstractmethod
    def _leaves(self) -> list[Leaf]:
        """The detectors at the ends of the tree, in a fixed order."""

    @abstractmethod
    def _network_leaves(self) -> list[LeafDetector]:
        """All that have a network; of a leaf made of detectors, those."""

    @abstractmethod
    def _begin_fit(self) -> Fitting:
        """Start afresh."""

    @abstractmethod
    def _begin_extension(self) -> Fitting:
        """Start from what is fitted."""

    @abstractmethod
    def _combine(self, results: Sequence[Result]) -> Result:
        """One result from one per leaf."""

    @abstractmethod
    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        """Take new statistics, one per leaf."""

    @abstractmethod
    def _clone(self) -> Self:
        """An unfitted detector of the same parameters, sharing the networks."""

    @abstractmethod
    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        """For `store.save`."""

    @classmethod
    @abstractmethod
    def from_store(cls, reader: store.FolderReader) -> Self:
        """For `store.load`."""

    def _require_single_image_scores(self) -> None:
        """Raises where a score is defined only within a set of images."""
        return

    def _check_batch(self, batch: ImageBatch) -> None:
        """Raises where the members cannot agree on a batch."""
        return

    # What is the same for all

    def _require_fitted(self, action: str) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"cannot {action}: this {type(self).__name__} is not fitted; call fit first")

    def _geometries(self, wanted: Sequence[bool] | None = None) -> tuple[Geometry, ...]:
        """Those of all leaves, or of the wanted ones."""
        leaves = self._leaves()
        chosen = [leaf for i, leaf in enumerate(leaves) if wanted is None or wanted[i]]
        return tuple(dict.fromkeys(leaf.geometry for leaf in chosen))

    def _pool(self) -> FeaturePool:
        """One forward pass per network and input, whatever number of leaves reads it."""
        leaves = [leaf for leaf in self._leaves() if isinstance(leaf, LeafDetector)]
        return FeaturePool([(leaf._network(), leaf.geometry) for leaf in leaves])

    def _embed(
        self,
        images: Mapping[Geometry, torch.Tensor],
        pool: FeaturePool,
        wanted: Sequence[bool] | None = None,
    ) -> Embedded:
        """Embeddings of uint8 images `[B, 3, h, w]`, given for every geometry of the leaves that are wanted;
        the others get nothing, `[B, 0]`.
        """
        parts, sizes = [], []
        count = len(next(iter(images.values())))
        with pool.batch(images) as features:
            for i, leaf in enumerate(self._leaves()):
                if wanted is None or wanted[i]:
                    pixels = images[leaf.geometry]
                    parts.append(leaf._look(pixels, features))
                    sizes.append((pixels.shape[2], pixels.shape[3]))
                else:
                    parts.append(torch.empty(count, 0))
                    sizes.append((0, 0))
        return Embedded(tuple(parts), tuple(sizes))

    def _score(self, embedded: Embedded) -> Result:
        return self._combine(list(self._score_leaves(embedded)))

    def _score_leaves(self, embedded: Embedded) -> Iterator[Result]:
        for i, leaf in enumerate(self._leaves()):
            yield leaf._score(embedded.leaves(slice(i, i + 1)))

    def _run(
        self, images: Any, errors: Errors, progress: Progress | None, stage: str
    ) -> Iterator[tuple[ImageBatch, Embedded]]:
        """Every batch and its embeddings, found finite; decoding goes on in the background.

        A GPU's batch comes when the next one is queued behind it, so that the GPU is not kept waiting.
        """
        source = open_images(images)
        pool = self._pool()
        done = 0

        def embed(batch: ImageBatch) -> Embedded:
            self._check_batch(batch)
            return self._embed(batch.images, pool)

        pinned = any(is_asynchronous(leaf._network().device) for leaf in self._network_leaves())
        with iterate_batches(
            source, self._geometries(), self.batch_size, errors=errors, pin_memory=pinned
        ) as batches:
            self.skipped_ = batches.skipped
            for batch, embedded in verified(batches, embed):
                yield batch, embedded
                done += len(batch)
                del batch, embedded
                if progress is not None:
                    progress(stage, done + len(batches.skipped), len(source))
        if batches.skipped:
            first, count = batches.skipped[0], f"{len(batches.skipped)} of {len(source)}"
            which = first.path or first.index
            warn(f"left out {count} images that cannot be read; the first: {which}: {first.reason}")
        if done == 0:
            raise ValueError(f"images: none of the {len(source)} images can be read")

    def _learn(
        self, images: Any, fitting: Fitting, errors: Errors, progress: Progress | None, *, extending: bool
    ) -> None:
        source = open_images(images)
        sampled = calibration_positions(len(source))
        digest, replay = ImageDigest(), Replay(source, self.batch_size, fitting.replay_bytes())
        fitting.expect(len(source))
        passes = 1

        def told(stage: str, done: int, total: int) -> None:
            if progress is not None:
                progress(stage, done, total * passes)

        for batch, embedded in self._run(source, errors, told, "embed"):
            self._note(digest, batch)
            fitting.observe(embedded, batch.indices, [index in sampled for index in batch.indices])
            left = fitting.passes_left()
            passes = 1 + max(left)
            replay.offer(batch, self._geometries([n > 0 for n in left]))
        pool = self._pool()
        for number in range(1, passes):
            wanted = [n > 0 for n in fitting.passes_left()]
            fitting.end_pass(progress)
            done = number * len(source)
            for batch in replay.again(self._geometries(wanted)):
                embedded = self._embed(batch.images, pool, wanted)
                fitting.observe(embedded, batch.indices, [index in sampled for index in batch.indices])
                done += len(batch)
                told("embed", done, len(source))
        samples = fitting.finish(progress)
        fitting.warn()
        calibrations = [sample.calibration(DEFAULT_RATE, False, digest.hexdigest()) for sample in samples]
        if extending:
            falling = all(leaf._extending_lowers_scores() for leaf in self._leaves())
            calibrations = extended([leaf.calibration_ for leaf in self._leaves()], calibrations, falling)
        fitting.commit()
        self._accept(calibrations)

    @staticmethod
    def _note(digest: ImageDigest, batch: ImageBatch) -> None:
        for index, size, fingerprint in zip(batch.indices, batch.sizes, batch.fingerprints, strict=True):
            digest.add(index, size, fingerprint)

    def _predict_batches(
        self, images: Any, errors: Errors, progress: Progress | None
    ) -> Iterator[Predictions]:
        threshold = self.threshold_
        coming: deque[tuple[FiniteChecks, HostCopy, list[str | None]]] = deque()
        for batch, embedded in self._run(images, errors, progress, "predict"):
            # Some embed only now, as a tiled ensemble does.
            with deferred_checks() as checks:
                scores, maps = self._score(embedded)
            coming.append((checks.start(), HostCopy([scores, maps]), batch.paths))
            # A GPU's results are read when those of the next batch are queued behind them.
            if not is_asynchronous(scores.device) or len(coming) > 1:
                yield _arrived(*coming.popleft(), threshold)
        while coming:
            yield _arrived(*coming.popleft(), threshold)


def _arrived(checks: FiniteChecks, copy: HostCopy, paths: list[str | None], threshold: float) -> Predictions:
    checks.verify()
    scores, maps = copy.wait()
    return Predictions(scores, maps, scores > threshold, paths)


class Leaf(Detector):
    """An end of the tree: what it looks at is an image."""

    @property
    def _rounding(self) -> float:
        return ROUNDING  # see Calibration

    def _extending_lowers_scores(self) -> bool:
        return True  # no image scores higher than before once more images have been learned

    def _leaves(self) -> list[Leaf]:
        return [self]

    def _combine(self, results: Sequence[Result]) -> Result:
        (result,) = results
        return result

    @abstractmethod
    def _look(self, pixels: torch.Tensor, features: Features) -> torch.Tensor:
        """What it takes in of images, uint8 `[B, 3, h, w]` in its geometry: any tensor of B rows."""

    @abstractmethod
    def _score(self, embedded: Embedded) -> Result:
        """Scores float32 `[B]` and maps float32 `[B, H, W]`, on the device of the embeddings."""


class LeafDetector(Leaf):
    """A detector with a network of its own."""

    def _network_leaves(self) -> list[LeafDetector]:
        return [self]

    def _look(self, pixels: torch.Tensor, features: Features) -> torch.Tensor:
        return self._embed_features(features(self._network(), self.geometry))

    @abstractmethod
    def _network(self) -> Network:
        """The frozen network, loaded at the first call."""

    @abstractmethod
    def _share_network(self, network: Network) -> None:
        """Use an equal network that is loaded already."""

    @abstractmethod
    def _embed_features(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        """Feature maps, one per layer, `[B, C_l, H_l, W_l]` -> float32 `[B, h, w, D]`."""


def share_networks(leaves: Sequence[LeafDetector]) -> None:
    """Let leaves that loaded the same network one by one keep one copy of it."""
    loaded: dict[Any, Network] = {}
    for leaf in leaves:
        network = leaf._network()
        first = loaded.setdefault(network.key, network)
        if first.extractor.module is not network.extractor.module:
            leaf._share_network(first)
