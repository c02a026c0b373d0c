"""Exported graphs in ONNX: run by ONNX Runtime. The only file that imports onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.extras import require

GRAPH = "model.onnx"
_PURPOSE = "an export for ONNX"


class Session:
    """A graph for one image at a time; `threads`: None leaves their number to ONNX Runtime."""

    def __init__(self, graph: bytes, threads: int | None) -> None:
        runtime = require("onnxruntime", _PURPOSE)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """The outputs for an image uint8 `[1, H, W, 3]`."""
        outputs: list[npt.NDArray[Any]] = self._session.run(None, {"image": image})
        return outputs
