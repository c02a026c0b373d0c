"""Every public name has an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest
import sys

import pytest
from support.registry import separate_registry

import ensemblead

NAMES = sorted(name for name in ensemblead.__all__ if name != "__version__")


def public(name: str) -> object:
    try:
        return getattr(ensemblead, name)
    except ensemblead.EnsembleADError as error:  # a package that an extra brings is not installed
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = public(name)
    if not value.__module__.startswith("ensemblead.kernels"):  # those need NumPy alone
        pytest.importorskip("torch")
    separate_registry(monkeypatch)
    module = sys.modules[value.__module__]
    found = doctest.DocTestFinder().find(value, name, module=module, globs={name: value})
    examples = [example for test in found for example in test.examples]
    assert any(test.examples for test in found if test.name == name), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    printed: list[str] = []
    for test in found:
        runner.run(test, out=printed.append)
    assert runner.summarize(verbose=False) == (0, len(examples)), "".join(printed)
