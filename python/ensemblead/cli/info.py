"""`ensemblead info`: versions, devices, what was compiled in, what is missing and what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json
from ensemblead.cli.model_info import describe_folder, show_folder
from ensemblead.common.extras import EXTRAS, install_command
from ensemblead.common.processor import has_bfloat16, processor_name
from ensemblead.common.threads import affinity_cores, cpu_quota, wait_policy
from ensemblead.kernels.arrays import num_threads
from ensemblead.kernels.build import build

# Import name -> distribution name, where the two differ.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
# Several distributions provide these, each overwriting the files of the others.
_FAMILIES = {
    "faiss": ("faiss", "faiss-cpu", "faiss-gpu"),
    "cupy": ("cupy", "cupy-cuda", "cupy-rocm"),
}


def installed(module: str) -> dict[str, str]:
    """Distribution name -> version of what provides `module`; looked up without importing it."""
    if module in _FAMILIES:
        return _installed_of_family(_FAMILIES[module])
    name = _DISTRIBUTIONS.get(module, module)
    try:
        return {name: importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _installed_of_family(names: tuple[str, ...]) -> dict[str, str]:
    """The bare name, or one of the others with any suffix ("faiss-gpu-cu12")."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == names[0] or name.startswith(names[1:]):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def torch_build() -> dict[str, Any] | None:
    """What torch was built for (`cuda`, `rocm`: versions, or None), and its `bytes` on disk, with libraries
    for GPUs that came along; None where it is not installed.
    """
    if not installed("torch"):
        return None
    import torch

    names = ("torch", "triton")
    parts = [
        one
        for one in importlib.metadata.distributions()
        if (one.metadata["Name"] or "").lower() in names
        or (one.metadata["Name"] or "").lower().startswith("nvidia-")
    ]
    size = sum(file.size or 0 for one in parts for file in one.files or ())
    return {"cuda": torch.version.cuda, "rocm": torch.version.hip, "bytes": size}


def devices() -> list[dict[str, Any]]:
    """The CPU, and the GPUs that torch shows."""
    found: list[dict[str, Any]] = [{"device": "cpu", "name": processor_name(), "bfloat16": has_bfloat16()}]
    if not installed("torch"):
        return found
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = round(properties.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{index}", "name": properties.name, "memory_gib": memory})
    return found


def threads(packages: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The cores that this process may use, its threads, and what these do while they wait."""
    found: dict[str, Any] = {"affinity_cores": affinity_cores(), "quota_cores": cpu_quota()}
    if packages.get("torch"):
        import torch

        found["torch"] = torch.get_num_threads()
    return {**found, "kernels": num_threads() or build().default_threads, "waiting": wait_policy()}


def searches(found: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """For every device, what searches a memory bank there, by the name of the index."""
    if not installed("torch"):
        return {}
    from ensemblead.search.plan import INDEX_NAMES, search_plan

    has_faiss = bool(installed("faiss"))
    return {
        device["device"]: {
            name: str(search_plan(name, device["device"]))
            for name in INDEX_NAMES
            if has_faiss or name == "flat"
        }
        for device in found
    }


def describe() -> dict[str, Any]:
    """Everything that `ensemblead info` shows, as it appears in its JSON."""
    core = asdict(build())
    packages = {"numpy": installed("numpy"), **{module: installed(module) for module in EXTRAS}}
    missing = {module: list(EXTRAS[module]) for module, found in packages.items() if not found}
    found_devices = devices()
    return {
        "ensemblead": core.pop("version"),
        "python": platform.python_version(),
        "packages": packages,
        "torch": torch_build(),
        "devices": found_devices,
        "threads": threads(packages),
        "search": searches(found_devices),
        "core": core,
        "missing": missing,
        "warnings": warnings_about(packages),
    }


def warnings_about(packages: dict[str, dict[str, str]]) -> list[str]:
    """What is installed in a way that cannot work."""
    found = []
    for module in _FAMILIES:
        names = list(packages[module])
        if len(names) > 1:
            found.append(
                f"{' and '.join(names)} are installed side by side and overwrite each other's {module}: "
                f"pip uninstall {' '.join(names)}, then install one of the extras cpu and gpu"
            )
    return found


def command(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]", help="A saved model or an export: what it is, and where it comes from."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Versions, devices, what was compiled in; with MODEL its parameters, threshold, history and parent."""
    if model is not None:
        found = describe_folder(model)
        if as_json:
            print_json(found)
        else:
            show_folder(found)
        return
    with Bars("looking at packages and devices"):
        description = describe()
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    console = Console()
    console.print(f"ensemblead {description['ensemblead']}, Python {description['python']}", highlight=False)
    for title, rows in _sections(description).items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
        for cells in rows:
            table.add_row(*map(escape, cells))
        console.print()
        console.print(table)
    for warning in description["warnings"]:
        console.print(f"\n[bold red]warning:[/] {escape(warning)}", soft_wrap=True)


def _built_for(built: dict[str, Any]) -> str:
    if built["rocm"] is not None:
        return f"for ROCm {built['rocm']}"
    return "for CPUs alone" if built["cuda"] is None else f"for CUDA {built['cuda']}"


def _sections(description: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The tables: title -> rows of two cells."""
    packages = []
    for module, found in description["packages"].items():
        extras = description["missing"].get(module, [])
        install = " or ".join(map(install_command, extras))
        versions = ", ".join(f"{name} {version}" for name, version in found.items())
        if module == "torch" and (built := description["torch"]) is not None:
            versions += f", {_built_for(built)}, {built['bytes'] / 1e9:.1f} GB on disk"
        packages.append((module, versions or f"not installed ({install})"))
    shown = []
    for device in description["devices"]:
        memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        faster = "; precision='bfloat16' is faster than float32 here" if device.get("bfloat16") else ""
        shown.append((device["device"], device["name"] + memory + faster))
    core = [(key.replace("_", " "), str(value)) for key, value in description["core"].items()]
    counted = [
        (name.replace("_", " "), "no limit" if value is None else str(value))
        for name, value in description["threads"].items()
    ]
    sections = {"packages": packages, "devices": shown, "threads": counted}
    for device, engines in description["search"].items():
        sections[f"search in a memory bank on {device}"] = list(engines.items())
    return {**sections, "compiled core": core}
