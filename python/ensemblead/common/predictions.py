"""What a detector says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import NotFittedError
from ensemblead.common.objects import DetectedRegion, Frame, detected_regions
from ensemblead.common.validation import finite_number


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

    For `objects` they also know `geometry`, where maps lie on their photographs, and `pixel_threshold`, above
    which a map's value belongs to a region; None where that is not known.

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
    geometry: Frame | None = None
    pixel_threshold: float | None = None

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
            self.geometry,
            self.pixel_threshold,
        )

    def objects(self, threshold: float | None = None, *, min_area: float = 0.0) -> list[DetectedRegion]:
        """Defects as objects: the connected regions of every map above a threshold, in photograph pixels.

        Pixels of the map that touch at a side or at a corner are one region (8-connectivity). Images that are
        called normal may have regions, too: the pixel threshold is another decision than that on the image.

        Args:
            threshold: in units of the maps, finite; values above it belong to a region. None: the
                `pixel_threshold` of the detector, at which a normal image is expected to have 0.05 false
                regions. `detector.calibration_.pixel_threshold(rate)` gives that of another rate.
            min_area: regions that are smaller are left out, in square pixels of the photograph.

        Returns the regions of all images, in their order, and of one image the highest maximum first.

        Raises:
            NotFittedError: `threshold` is None, and no pixel threshold is known.
            ValueError: predictions that do not know their photographs' `sizes` or `geometry`; NaN or infinity
                as `threshold` or in a map; a `min_area` that is negative or not finite.
            MissingExtraError: SciPy is not installed.

        Example:
            >>> import numpy as np
            >>> import ensemblead as ead
            >>> images = np.random.default_rng(0).integers(90, 110, (13, 64, 96, 3), dtype=np.uint8)
            >>> images[12, 16:48, 24:56] = 200
            >>> detector = ead.PatchCore("gabor", coreset_fraction=0.1, device="cpu").fit(images[:12])
            >>> defect = detector.predict(images[12:]).objects()[0]
            >>> x, y, width, height = defect.box
            >>> x < 26 and y < 18 and x + width > 54 and y + height > 46
            True
        """
        if threshold is None:
            if self.pixel_threshold is None:
                raise NotFittedError(
                    "objects: no pixel threshold is known, since the detector has no statistics of the "
                    "regions of normal images; call calibrate, or give a threshold"
                )
            threshold = self.pixel_threshold
        threshold = finite_number("threshold", threshold)
        min_area = finite_number("min_area", min_area)
        if min_area < 0:
            raise ValueError(f"min_area must not be negative, got {min_area:g}")
        if self.sizes is None or self.geometry is None:
            unknown = "sizes" if self.sizes is None else "geometry"
            raise ValueError(
                f"objects: these predictions do not know where maps lie on photographs: {unknown} is None; "
                "take those of predict"
            )
        found = list[DetectedRegion]()
        for index, (path, size) in enumerate(zip(self.paths, self.sizes, strict=True)):
            values = self.anomaly_map[index]
            found += detected_regions(
                values, threshold, self.geometry, size, min_area=min_area, index=index, path=path
            )
        return found

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
            _common([part.geometry for part in parts]),
            _common([part.pixel_threshold for part in parts]),
        )


def _joined(arrays: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """The rows of all; None where one is not known."""
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known and len(known) == len(arrays) else None


def _common(values: Sequence[Any]) -> Any:
    """What all have; None where they differ."""
    return values[0] if values and all(value == values[0] for value in values) else None
