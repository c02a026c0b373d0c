"""What training says of itself: the parts of the loss, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ensemblead.detectors.parts import Note

# After so many updates the expected time is said, if it is so many seconds or more.
_MEASURED, _WORTH_SAYING = 3, 60.0


class Pace:
    """Seconds per update, without the first, which may read all images first.

    Args:
        steps: of the whole training.
        is_slow: whether to say what time is expected, as on a CPU.
    """

    def __init__(self, note: Note, steps: int, *, is_slow: bool) -> None:
        self._note, self._steps, self._is_slow = note, steps, is_slow
        self._begun: float | None = None
        self._done = 0  # updates since then

    def tell(self, step: int, parts: Mapping[str, float]) -> None:
        """After update `step`; `parts`: of the last loss that was read."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
        else:
            self._done += 1
        said = [f"{name} {value:.3g}" for name, value in parts.items()]
        if self._done:
            seconds = (now - self._begun) / self._done
            said.append(f"{seconds:.2g} s a step")
            left = seconds * (self._steps - step)
            if self._is_slow and self._done == _MEASURED - 1 and left >= _WORTH_SAYING:
                self._note(
                    f"training takes about {shown_time(left)} more on the CPU: {self._steps - step} updates "
                    f"of {seconds:.2g} s",
                    True,
                )
        self._note(", ".join(said), False)


def shown_time(seconds: float) -> str:
    """In minutes, or in hours from two hours on."""
    minutes = seconds / 60.0
    return f"{minutes:.0f} min" if minutes < 120.0 else f"{minutes / 60.0:.1f} h"
