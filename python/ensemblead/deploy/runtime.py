"""`ead.load_exported`: an exported detector predicts, by OpenVINO or ONNX Runtime, without torch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath
from ensemblead.common.predictions import Predictions
from ensemblead.common.threads import available_cores, ended_with_generator
from ensemblead.common.validation import whole_number
from ensemblead.deploy import onnx, openvino
from ensemblead.deploy.contract import Contract, read_export
from ensemblead.images import ImageSource, open_images

Progress = Callable[[str, int, int], None]
# Of fewer images, several at a time gain less than it takes to compile the graph for that.
_MANY = 32


class ExportedDetector:
    """What `load_exported` gives: it predicts as the detector did that it was exported from.

    Threads may share it. A few images are predicted one after the other, each by all threads. Many are
    predicted several at a time, each by one thread, which takes less of the processor's time in all; the
    graph is compiled once more for that.

    Attributes: `contract`, all that `export.json` says; `threshold_`, scores above it are anomalous.
    """

    def __init__(self, contract: Contract, files: list[bytes], threads: int | None = None) -> None:
        self.contract = contract
        self.threshold_ = contract.threshold
        self._files, self._threads = files, threads
        self._at_once = available_cores() if threads is None else threads
        self._session = self._compiled(1)
        self._of_many: openvino.Session | onnx.Session | None = None
        self._lock = threading.Lock()

    def _compiled(self, at_once: int) -> openvino.Session | onnx.Session:
        if self.contract.format == "onnx":
            return onnx.Session(self._files[0], self._threads if at_once == 1 else 1)
        return openvino.Session(
            self._files[0],
            self._files[1],
            self.contract.precision,
            self._threads if at_once == 1 else at_once,
            at_once,
        )

    def __repr__(self) -> str:
        known = self.contract
        height, width = known.size
        return (
            f"ExportedDetector({known.format}, {known.precision}, {known.input} {height} x {width}), "
            f"threshold {known.threshold:.4g}"
        )

    def predict(self, images: Any, *, progress: Progress | None = None) -> Predictions:
        """Score images, in any form that a detector's `predict` takes; all maps are held at once."""
        return Predictions.concatenate(list(self.predict_batches(images, progress=progress)))

    def predict_batches(self, images: Any, *, progress: Progress | None = None) -> Iterator[Predictions]:
        """Score images, in order, and give one by one; memory does not grow with their number.

        Raises ValueError, naming the image, where one has not the size that the graph takes.
        """
        source = open_images(images)
        if source.bits is None:
            source = open_images(source, bits=self.contract.bits)
        is_many = len(source) >= _MANY and self._at_once > 1 and source.concurrent
        results = self._several_at_a_time(source) if is_many else self._one_by_one(source)
        for number, found in enumerate(results):
            yield found
            if progress is not None:
                progress("predict", number + 1, len(source))

    def _one_by_one(self, source: ImageSource) -> Iterator[Predictions]:
        return (self._scored(source, number, self._session) for number in range(len(source)))

    def _several_at_a_time(self, source: ImageSource) -> Iterator[Predictions]:
        """Each image is decoded and scored by one of the threads, a few of them ahead of what is taken."""
        with self._lock:
            if self._of_many is None:
                self._of_many = self._compiled(self._at_once)
                self._files = []  # no more is compiled of them
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="ensemblead-predict")
        coming: deque[Future[Predictions]] = deque()
        with ended_with_generator(pool):
            for number in range(len(source)):
                coming.append(pool.submit(self._scored, source, number, self._of_many))
                if len(coming) == 2 * self._at_once:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _scored(
        self, source: ImageSource, number: int, session: openvino.Session | onnx.Session
    ) -> Predictions:
        native = source.read(number)
        scores, maps, verdicts = session.run(self._input(native, source.describe(number)))
        return Predictions(
            scores,
            maps,
            verdicts,
            [source.paths[number]],
            sizes=[(native.shape[0], native.shape[1])],
            geometry=self.contract.geometry,
            pixel_threshold=self.contract.pixel_threshold,
        )

    def _input(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
        """An image `[H, W, 3]` as the graph takes it, `[1, h, w, 3]`."""
        known, native = self.contract, image.shape[:2]
        if known.input == "resized":
            try:
                image = known.geometry.apply(image)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if image.shape[:2] != known.size:
            height, width = known.size
            resized = "" if image.shape[:2] == native else f" that become {image.shape[0]} x {image.shape[1]}"
            raise ValueError(
                f"{name}: the graph was exported for images of {height} x {width} pixels, got {native[0]} x "
                f"{native[1]}{resized}; export it with image_size=({native[0]}, {native[1]}) for those"
            )
        return np.ascontiguousarray(image)[None]


def load_exported(path: StrPath, *, threads: int | None = None) -> ExportedDetector:
    """An exported detector, ready to predict in a process without torch.

    It needs NumPy, Pillow, and OpenVINO (the extra `runtime`) or, for the format "onnx", ONNX Runtime (the
    extra `onnx`).

    Args:
        path: the folder that `detector.export` wrote.
        threads: how many to compute with; None leaves it to OpenVINO or ONNX Runtime.

    Raises FileNotFoundError for nothing at `path`, DamagedModelError for a folder that is no export, is
    incomplete, mixed from two or altered, NewerFormatError for one of a later version, MissingExtraError
    where what runs its format is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... ).fit(images)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = detector.export(f"{folder}/export", verify=images)
        ...     exported = load_exported(f"{folder}/export")
        >>> exported.predict(images).anomaly_map.shape
        (12, 64, 64)
    """
    if threads is not None:
        threads = whole_number("threads", threads, 1)
    return ExportedDetector(*read_export(Path(path)), threads)
