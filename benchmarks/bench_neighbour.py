"""What a busy neighbour costs, by what waiting threads do: spin, or sleep.

    python benchmarks/bench_neighbour.py [--seconds 4] [--rounds 3] [--keep]

The environment of a process decides (`OMP_WAIT_POLICY`), so every cell is a process of its own. It repeats
one piece of work for some seconds and gives the median time of a piece: a coreset selection (the compiled
core alone), or `predict` of one image (torch's network and the core). Beside it, or not, a neighbour keeps
one core busy. Policies and neighbours take turns, round after round; ratios are of medians in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

POLICIES = {"active": {"OMP_WAIT_POLICY": "active"}, "default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}
WORK = ("select_coreset", "predict")


def pieces(work: str, seconds: float) -> list[float]:
    """The times of all pieces of work that end within `seconds`; the first is not counted."""
    import numpy as np

    import ensemblead as ead

    random = np.random.default_rng(0)
    if work == "select_coreset":
        rows = random.standard_normal((20_000, 128)).astype(np.float32)

        def piece() -> object:
            return ead.select_coreset(rows, size=200, projection_dim=None)
    else:
        images = random.integers(0, 255, (8, 256, 256, 3), dtype=np.uint8)
        detector = ead.PatchCore("resnet18", weights=None, image_size=None, resize=256, device="cpu").fit(
            images
        )

        def piece() -> object:
            return detector.predict(images[:1])

    piece()
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        piece()
        taken.append(time.perf_counter() - start)
    return taken


def cell(work: str, policy: str, busy: bool, seconds: float) -> list[float]:
    """`pieces` in a process under `policy`, beside a neighbour or alone."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        outcome = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", work, "--seconds", str(seconds)],
            env=clean | POLICIES[policy],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    found: list[float] = json.loads(outcome.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write results/neighbour.json")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(pieces(options.child, options.seconds)))
        return
    taken: dict[tuple[str, str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for work in WORK:
            for policy in POLICIES:
                for busy in (False, True):
                    taken.setdefault((work, policy, busy), []).extend(
                        cell(work, policy, busy, options.seconds)
                    )
    rows: list[dict[str, Any]] = []
    print(f"{'work':16}{'policy':10}{'alone ms':>10}{'beside ms':>11}{'p99 ms':>9}{'slower':>8}")
    for work in WORK:
        for policy in POLICIES:
            alone, beside = (sorted(taken[work, policy, busy]) for busy in (False, True))
            quiet, busy_median = statistics.median(alone), statistics.median(beside)
            tail = beside[min(len(beside) - 1, int(0.99 * len(beside)))]
            rows.append(
                {
                    "work": work,
                    "policy": policy,
                    "alone_seconds": quiet,
                    "beside_seconds": busy_median,
                    "beside_p99_seconds": tail,
                    "slower": busy_median / quiet,
                }
            )
            print(
                f"{work:16}{policy:10}{quiet * 1e3:10.1f}{busy_median * 1e3:11.1f}{tail * 1e3:9.1f}"
                f"{busy_median / quiet:8.2f}"
            )
    if options.keep:
        keep(rows)


def keep(rows: list[dict[str, Any]]) -> None:
    """Write the figures where those of all benchmarks are."""
    from record import Figures

    figures = Figures()
    for row in rows:
        alone, beside, tail = (
            row[name] * 1e3 for name in ("alone_seconds", "beside_seconds", "beside_p99_seconds")
        )
        note = f"{alone:.1f} ms alone; beside {beside:.1f}, p99 {tail:.0f}"
        what = f"{row['work']}, one busy program beside / alone, waiting threads {row['policy']}"
        figures.of("neighbour").add(what, row["slower"], "x", note=note)
    figures.write()


if __name__ == "__main__":
    main()
