"""Warnings that point at the caller's line, however deep inside the library they arise."""

from __future__ import annotations

import os
import sys
import warnings


class ThresholdWarning(UserWarning):
    """What `fit` learned sets the threshold badly; `calibrate` sets it right."""


class SlowPredictWarning(UserWarning):
    """What `fit` learned makes `predict` slow: a memory bank of many rows."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn`, as if from the innermost line outside of this package."""
    # What `skip_file_prefixes` does from Python 3.12 on.
    here = os.path.dirname(os.path.dirname(warn.__code__.co_filename)) + os.sep
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
