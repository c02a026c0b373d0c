"""A suite's results in MLflow: a run per detector and category, with its parameters, metrics and remarks.

    python examples/track_with_mlflow.py SUITE.yaml OUT

Needs `pip install mlflow` (or mlflow-skinny); MLFLOW_TRACKING_URI says where the runs go. Nothing of it is
built in: `run` calls a hook, and this file is one.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import Any

import mlflow

from ensemblead.evaluation import CellResult, Suite, run

_LONGEST = 500  # what MLflow takes as a parameter's value


class MLflowHook:
    """`on_result` goes to `run`.

    Args:
        suite: whose detectors' descriptions become the parameters.
    """

    def __init__(self, suite: Suite) -> None:
        self._descriptions = {entry.name: entry.description for entry in suite.detectors}

    def on_result(self, cell: CellResult) -> None:
        """Called when a cell is done or has failed."""
        with mlflow.start_run(run_name=str(cell)):
            tags = {"detector": cell.detector, "dataset": cell.dataset, "category": cell.category}
            mlflow.set_tags({**tags, "status": cell.status})
            mlflow.log_params(flat(self._descriptions[cell.detector]))
            if cell.finished is None:
                mlflow.log_text(str(cell.failure), "failure.txt")
                return
            row, details = cell.finished.row, cell.finished.details
            numbers = {name: value for name, value in asdict(row).items() if isinstance(value, (int, float))}
            for name, (low, high) in details.intervals.items():
                numbers |= {f"{name}.low": low, f"{name}.high": high}
            mlflow.log_metrics({name: value for name, value in numbers.items() if math.isfinite(value)})
            mlflow.log_text("\n".join(cell.finished.warnings), "remarks.txt")


def flat(description: Any, above: str = "") -> dict[str, str]:
    """Nested parameters as MLflow has them: `members.0.backbone`."""
    if isinstance(description, dict):
        items: Any = description.items()
    elif isinstance(description, list) and any(isinstance(one, dict) for one in description):
        items = enumerate(description)
    else:
        return {above: str(description)[:_LONGEST]}
    return {
        key: value for name, one in items for key, value in flat(one, f"{above}.{name}".strip(".")).items()
    }


def main(path: str, out: str) -> None:
    suite = Suite.read(path)
    run(suite, out, on_result=MLflowHook(suite).on_result)


if __name__ == "__main__":
    main(*sys.argv[1:])
