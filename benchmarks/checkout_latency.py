"""PatchCore of another checkout of this library for bench_latency.py, which starts this program and speaks
with it in lines of JSON, as with anomalib_latency.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from answering import answer_all, seconds_of_calls


def start(task: dict[str, Any]) -> tuple[Any, Callable[[Any], list[float]]]:
    sys.path.insert(0, str(Path(task["checkout"]) / "python"))
    import torch

    import ensemblead as ead

    assert Path(str(ead.__file__)).is_relative_to(task["checkout"]), ead.__file__
    torch.set_num_threads(task["threads"])
    images = np.load(task["images"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds by few images
        detector = ead.PatchCore(
            task["network"], weights=task["weights"], device="cpu", coreset_size=task["rows"]
        ).fit(images)
    return {}, lambda count: seconds_of_calls(lambda image: detector.predict(image[None]), images, count)


if __name__ == "__main__":
    answer_all(start)
