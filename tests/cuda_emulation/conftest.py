"""The CUDA twins run on the CPU: these tests need the core that ENSEMBLEAD_CUDA=EMULATED builds, and no GPU.

With any other core they are not collected. They prove nothing about a GPU: ENSEMBLEAD_REQUIRE_CUDA=1 asks
`cuda_available()`, which is false here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ensemblead import _core

EMULATED = _core.cuda_decision.startswith("emulated")
collect_ignore_glob = [] if EMULATED else ["test_*.py"]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Every test finds the emulation as it was at first."""
    from support import emulated

    emulated.reset()
    yield
    emulated.reset()


# In ascending, descending and shuffled order of threads and blocks: what depends on it is a race.
@pytest.fixture(params=[0, 1, 7], ids=["ascending", "descending", "shuffled"])
def order(request: pytest.FixtureRequest, untouched: None) -> int:
    """The order in which threads and blocks run, already set."""
    from support import emulated

    emulated.set_order(request.param)
    return int(request.param)
