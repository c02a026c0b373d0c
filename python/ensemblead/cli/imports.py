"""`--import`: modules of one's own, loaded before a command runs, so that the methods in them are known."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def load_modules(given: Sequence[str]) -> None:
    """Load every file (`FILE.py`, or a path) and module (`package.module`).

    Raises FileNotFoundError for a file that is not there, ValueError for a module that is not found, and for
    a file with the name of a module that is loaded already.
    """
    for one in given:
        if one.endswith(".py") or one.startswith(".") or os.sep in one:
            _load_file(Path(one).absolute())
            continue
        try:
            importlib.import_module(one)
        except ModuleNotFoundError as error:
            if error.name is None or not (one == error.name or one.startswith(f"{error.name}.")):
                raise  # the module is there, and one that it needs is not
            raise ValueError(f"--import takes a file or a module, and there is no module {one!r}") from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--import: no such file: {path}")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            return
        raise ValueError(f"--import {path}: a module {name!r} is loaded already; give the file another name")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--import takes a file FILE.py or a module, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
