"""How long a campaign is: all of it, or with ENSEMBLEAD_BRIEF=1 a quarter, as in continuous integration."""

from __future__ import annotations

import os

BRIEF = os.environ.get("ENSEMBLEAD_BRIEF") == "1"


def trials(count: int) -> int:
    """Of a campaign of `count` trials, as many as are to be made."""
    return max(1, count // 4) if BRIEF else count
