"""OpenVINO's core, one for the whole process."""

from __future__ import annotations

from functools import cache
from typing import Any

from ensemblead.common.extras import require


def openvino_core(purpose: str) -> Any:
    """The core, which is kept until the process ends; `purpose` as `require` takes it.

    OpenVINO's CPU plugin gives signals a stack of its own while a core lives. When two cores overlap and the
    older one goes first, the stack that is in use is freed, and Ctrl-C ends the process with a segmentation
    fault (seen with OpenVINO 2026.4 on Linux). With one core that stays this cannot happen.
    """
    require("openvino", purpose)
    return _core()


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()
