"""`--part K/N`: one of N parts of the work, which run anywhere and meet in one folder."""

from __future__ import annotations

import re

from ensemblead.common.validation import part_of

PART_HELP = "Do part K of N alone, from 1/N to N/N; others may do theirs at the same time."


def parse_part(text: str | None) -> tuple[int, int] | None:
    """`3/8` as `(3, 8)`. Raises ValueError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise ValueError(f"--part must be K/N, such as 3/8, got {text!r}")
    return part_of("--part", (int(found[1]), int(found[2])))
