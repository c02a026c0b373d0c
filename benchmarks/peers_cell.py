"""What bench_peers.py measures of a tool, in a process of its own.

A tool's script (`peers_ours.py`, `peers_anomalib.py`, `peers_inspection.py`) is run by its own Python, as
`SCRIPT TASK.json`. So this file needs NumPy and Pillow alone. It writes scores and maps of all test images as
`.npz`, and the rest as `.json`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from common import PeakMemory
from PIL import Image

WARM_UP = 3
Found = tuple[float, "np.ndarray[Any, Any]"]  # an image's score, and its map [h, w]


@dataclass(frozen=True)
class Task:
    """One tool, in one setting, on one category."""

    category: str  # its folder, in MVTec AD's layout
    network: str
    layers: tuple[str, ...]
    weights: str  # .safetensors, with the names of torchvision and timm
    options: dict[str, Any]  # of the tool
    checkout: str  # of patchcore-inspection; "" for the others
    test: tuple[str, ...]  # paths of the test images
    labels: tuple[bool, ...]  # whether they are anomalous
    timed: int  # of how many images the latency is measured
    threads: int
    out: str  # the path of the results, without a suffix


class Tool(Protocol):
    """A tool with its network loaded."""

    def fit(self) -> None:
        """Learn the category's training images."""

    def predict_file(self, path: str) -> Found:
        """An image from its file."""

    def predict_pixels(self, pixels: np.ndarray[Any, Any]) -> Found:
        """A decoded image, uint8 `[H, W, 3]`."""

    def verdicts(self, scores: np.ndarray[Any, Any], labels: Sequence[bool]) -> list[bool] | None:
        """Which images are called anomalous; None where the tool has no threshold."""

    def facts(self) -> dict[str, Any]:
        """`version`, and what the network sees of an image: `resize` and `crop`, as `Geometry` takes them."""


def run(make: Callable[[Task], Tool]) -> None:
    """Measure the task that the command line names."""
    given = json.loads(Path(sys.argv[1]).read_text())
    task = Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    measure(make(task), task)


def measure(tool: Tool, task: Task) -> None:
    """Fit, predict all test images from their files, one at a time, then the latencies."""
    memory, start, cpu = PeakMemory(), time.perf_counter(), time.process_time()
    tool.fit()
    fit_seconds, fit_cpu = time.perf_counter() - start, time.process_time() - cpu
    fit_peak, peak = memory.read(), memory.whole()
    found = [tool.predict_file(path) for path in task.test]
    scores = np.array([score for score, _ in found])
    np.savez(f"{task.out}.npz", scores=scores, maps=np.stack([values for _, values in found]))
    del found
    memory = PeakMemory()  # from here on nothing is gathered
    seconds = latencies(tool, [task.test[number] for number in spread(len(task.test), task.timed)])
    numbers = {
        "fit_seconds": fit_seconds,
        "fit_cpu": fit_cpu,
        "fit_peak": fit_peak,
        "predict_peak": memory.read(),
        "peak": max(peak, memory.whole()),
        "verdicts": tool.verdicts(scores, task.labels),
        "threads": task.threads,
        **{name: statistics.median(one) for name, one in seconds.items()},
        **{f"{name}_quartiles": statistics.quantiles(one, n=4)[::2] for name, one in seconds.items()},
        **tool.facts(),
    }
    Path(f"{task.out}.json").write_text(json.dumps(numbers))


def spread(count: int, most: int) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced."""
    chosen = min(count, most)
    return [number * count // chosen for number in range(chosen)]


def latencies(tool: Tool, paths: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of every image, decoded and from its file, in turns; a few images go before."""
    images = [(path, np.array(Image.open(path).convert("RGB"))) for path in paths]
    seconds: dict[str, list[float]] = {"from_pixels": [], "from_file": []}
    for path, pixels in [*images[:WARM_UP], *images]:
        seconds["from_pixels"].append(taken(tool.predict_pixels, pixels))
        seconds["from_file"].append(taken(tool.predict_file, path))
    return {name: one[-len(paths) :] for name, one in seconds.items()}


def taken(call: Callable[[Any], object], argument: Any) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def load_weights(module: Any, path: str, never_run: Sequence[str] = ()) -> None:
    """Load a network's weights. Only layers of the prefixes `never_run` and counters may lack in the file.

    timm writes `features.conv0` as `features_conv0` in networks that give feature maps.
    """
    from safetensors.torch import load_file

    known = load_file(path)
    wanted = module.state_dict()
    own = {name: name.replace("features_", "features.", 1) for name in wanted}
    module.load_state_dict(
        {name: known[key].float() for name, key in own.items() if key in known}, strict=False
    )
    allowed = (*never_run, "fc.", "classifier.")
    missing = [
        name
        for name, key in own.items()
        if key not in known and not name.endswith("num_batches_tracked") and not name.startswith(allowed)
    ]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]} and {len(missing) - 1} more")
