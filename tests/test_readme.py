"""The example of README.md runs, and the shapes in its comments are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_does_what_its_comments_say() -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None, "README.md has no Python example"
    names: dict[str, Any] = {}
    checked = 0
    for line in found[1].splitlines():
        exec(line, names)
        claim = re.match(r"(\w+) = .*#\s*\[([\d, ]+)\]", line)
        if claim:
            assert tuple(names[claim[1]].shape) == tuple(map(int, claim[2].split(","))), line
            checked += 1
    assert checked >= 5
