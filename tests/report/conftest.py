"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.browser import Browser, browser_or_skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browser_or_skip() as started:
        yield started
