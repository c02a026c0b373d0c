"""The `ensemblead` script: what it says of the machine, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.instruction_sets import INSTRUCTION_SETS

import ensemblead

CALL_MAIN = "from ensemblead.cli import main; main()"


def run_script(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, in a process of its own; `before` is executed first."""
    command = [sys.executable, "-c", f"{before}\n{CALL_MAIN}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_package_is_named_with_its_extra(module: str) -> None:
    if module == "rich":
        pytest.importorskip("typer")  # typer is looked for first
    outcome = run_script("info", before=f"import sys; sys.modules[{module!r}] = None")
    assert outcome.returncode == 1
    assert f"needs {module}" in outcome.stderr
    assert 'pip install ".[cpu]"' in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


class TestWithTyper:
    @pytest.fixture(autouse=True)
    def _needs_typer(self) -> None:
        pytest.importorskip("typer")
        pytest.importorskip("rich")

    def test_version(self) -> None:
        outcome = run_script("--version")
        assert (outcome.returncode, outcome.stdout) == (0, f"ensemblead {ensemblead.__version__}\n")

    def test_as_a_module(self) -> None:
        command = [sys.executable, "-m", "ensemblead", "--version"]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (outcome.returncode, outcome.stdout) == (0, f"ensemblead {ensemblead.__version__}\n")

    def test_no_arguments_print_help(self) -> None:
        outcome = run_script()
        assert "info" in outcome.stdout
        assert outcome.returncode in (0, 2)  # click changed its mind about this

    @pytest.mark.parametrize("command", [[], ["fit"], ["predict"], ["evaluate"], ["demo"], ["info"]])
    def test_help_by_its_letter(self, command: list[str]) -> None:
        from support.commands import call

        outcome = call(*command, "-h")
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.stdout == call(*command, "--help").stdout
        assert "Usage" in outcome.stdout

    def test_what_is_installed_is_not_missing(self) -> None:
        """Whatever an import finds has a distribution, of whatever name."""
        from ensemblead.cli import info
        from ensemblead.common.extras import EXTRAS

        found = {module for module in EXTRAS if importlib.util.find_spec(module) is not None}
        assert {module for module in EXTRAS if info.installed(module)} == found

    def test_info_json(self) -> None:
        outcome = run_script("info", "--json")
        assert outcome.returncode == 0, outcome.stderr
        described = json.loads(outcome.stdout)
        assert described["ensemblead"] == ensemblead.__version__
        assert described["packages"]["numpy"]
        assert described["core"]["cuda"].startswith(("on", "off"))
        assert described["core"]["compiler"].startswith(("GNU", "Clang", "AppleClang"))
        assert described["core"]["compiler"].endswith(f"{platform.system()} {platform.machine()}")
        assert re.fullmatch(r"OpenMP \d{6}|C\+\+ threads", described["core"]["threading"])
        assert described["core"]["instruction_set"] in INSTRUCTION_SETS
        assert described["core"]["default_threads"] >= 1
        assert described["threads"]["kernels"] >= 1
        assert described["threads"]["affinity_cores"] >= 1
        assert described["threads"]["waiting"] != "default"
        assert described["devices"][0]["device"] == "cpu"
        if "torch" not in described["missing"]:
            assert list(described["search"]) == [device["device"] for device in described["devices"]]
            assert described["search"]["cpu"]["flat"] == "ensemblead's core on cpu"
            assert ("hnsw" in described["search"]["cpu"]) == ("faiss" not in described["missing"])
        for module, found in described["packages"].items():
            assert (module in described["missing"]) == (not found)

    @pytest.mark.slow
    def test_info_shows_what_json_has(self) -> None:
        outcome = run_script("info", before="import os; os.environ['COLUMNS'] = '200'")
        assert outcome.returncode == 0, outcome.stderr
        described = json.loads(run_script("info", "--json").stdout)
        for found in described["packages"].values():
            for name, version in found.items():
                assert f"{name} {version}" in outcome.stdout
        for extras in described["missing"].values():
            assert f'pip install ".[{extras[0]}]"' in outcome.stdout
        assert described["core"]["cuda"] in outcome.stdout
        for engines in described["search"].values():
            assert all(engine in outcome.stdout for engine in engines.values())

    @pytest.mark.slow
    def test_info_obeys_a_lowered_instruction_set(self) -> None:
        name = "ENSEMBLEAD_INSTRUCTION_SET"
        lowered = run_script("info", "--json", before=f"import os; os.environ[{name!r}] = 'baseline'")
        assert json.loads(lowered.stdout)["core"]["instruction_set"] == "baseline"
        unknown = run_script("info", before=f"import os; os.environ[{name!r}] = 'sse9'")
        assert unknown.returncode == 2
        assert "got 'sse9'" in unknown.stderr
        assert "Traceback" not in unknown.stderr

    def test_two_faiss_distributions_are_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from ensemblead.cli import info

        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        assert info.installed("faiss") == {}
        pretend(tmp_path, "faiss_gpu", "1.15.1")
        assert info.warnings_about({"faiss": info.installed("faiss"), "cupy": {}}) == []
        pretend(tmp_path, "faiss-cpu", "1.15.0")
        pretend(tmp_path, "faissnet", "9.9")
        found = info.installed("faiss")
        assert found == {"faiss-cpu": "1.15.0", "faiss-gpu": "1.15.1"}
        (warning,) = info.warnings_about({"faiss": found, "cupy": {}})
        assert "faiss-cpu and faiss-gpu are installed side by side" in warning
        assert "pip uninstall faiss-cpu faiss-gpu" in warning


def pretend(folder: Path, name: str, version: str) -> None:
    """An installed distribution that consists of nothing but its metadata."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemblead.common.errors import MissingExtraError
    from ensemblead.common.extras import EXTRAS, require

    def refuse(name: str) -> Callable[[str], Any]:
        def import_module(module: str) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return import_module

    for module, extras in EXTRAS.items():
        monkeypatch.setattr(importlib, "import_module", refuse(module))
        with pytest.raises(
            MissingExtraError, match=rf"the index needs {module}, .*\.\[{extras[-1]}\]"
        ) as caught:
            require(module, "the index")
        assert isinstance(caught.value, ensemblead.EnsembleADError)
        assert isinstance(caught.value, ImportError)
        assert caught.value.name == module
    # The package is there, but not all that it imports: that is not ours to explain.
    monkeypatch.setattr(importlib, "import_module", refuse("filelock"))
    with pytest.raises(ModuleNotFoundError, match="filelock"):
        require("torch", "the index")
