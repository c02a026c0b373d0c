"""What a detector says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Predictions:
    """What a detector says of N images. Larger is more anomalous; the units are the detector's.

    `anomaly_score` float32 `[N]`; `anomaly_map` float32 `[N, H, W]` in the frame that the network saw (see
    `Detector.geometry`), zero outside of the detector's region, if it has one; `is_anomalous` bool `[N]`: the
    score is above the detector's threshold; `paths`: files, or None.

    Where they come from `predict`, `fingerprints` uint64 `[N]` tell images apart by their pixels, and `sizes`
    are the photographs' (H, W). With `predict(..., features=True)`, `features` float32 `[N, D]` have the mean
    and the standard deviation over the grid of every layer that the networks computed; D is 0 where a
    detector uses none. Else all three are None.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> one = ead.Predictions(
        ...     np.ones(1, np.float32), np.zeros((1, 4, 4), np.float32), np.array([True]), ["a.png"]
        ... )
        >>> both = ead.Predictions.concatenate([one, one])
        >>> len(both), both.anomaly_map.shape, both.paths
        (2, (2, 4, 4), ['a.png', 'a.png'])
    """

    anomaly_score: npt.NDArray[np.float32]
    anomaly_map: npt.NDArray[np.float32]
    is_anomalous: npt.NDArray[np.bool_]
    paths: list[str | None]
    fingerprints: npt.NDArray[np.uint64] | None = None
    sizes: list[tuple[int, int]] | None = None
    features: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.anomaly_map.shape[1:]))
        count = int(np.count_nonzero(self.is_anomalous))
        return f"Predictions({len(self)} images, {count} anomalous, maps {size})"

    def take(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Predictions:
        """Those of some images, by their places, in the order given. Raises TypeError for what are no whole
        numbers: of a mask take `np.flatnonzero(mask)`.
        """
        index = np.asarray(places)
        if index.size and not np.issubdtype(index.dtype, np.integer):
            raise TypeError(f"places must be whole numbers, got {index.dtype}")
        index = index.astype(np.int64)
        sizes, known = self.sizes, self.fingerprints
        return Predictions(
            self.anomaly_score[index],
            self.anomaly_map[index],
            self.is_anomalous[index],
            [self.paths[i] for i in index],
            None if known is None else known[index],
            None if sizes is None else [sizes[i] for i in index],
            None if self.features is None else self.features[index],
        )

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
            _joined([part.fingerprints for part in parts]),
            None
            if any(part.sizes is None for part in parts)
            else [size for part in parts for size in part.sizes or ()],
            _joined([part.features for part in parts]),
        )


def _joined(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """The rows of all; None where one is not known."""
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known and len(known) == len(arrays) else None
