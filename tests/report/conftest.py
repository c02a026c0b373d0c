"""A browser for the tests of pages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.browser import Browser, find_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        reason = "there is no Chromium (Debian: apt-get install chromium)"
        if os.environ.get("ENSEMBLEAD_REQUIRE_BROWSER") == "1":
            pytest.fail(f"ENSEMBLEAD_REQUIRE_BROWSER=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    with Browser(path) as started:
        yield started
