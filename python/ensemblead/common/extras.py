"""Packages that extras install, and what to say when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from ensemblead.common.errors import MissingExtraError

# Import name -> the extras that bring it. `cpu` and `gpu` are alternatives.
EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": ("cpu", "gpu"),
    "torchvision": ("cpu", "gpu"),
    "timm": ("cpu", "gpu"),
    "safetensors": ("cpu", "gpu"),
    "PIL": ("cpu", "gpu", "runtime"),
    "scipy": ("cpu", "gpu"),
    "sklearn": ("cpu", "gpu"),
    "matplotlib": ("cpu", "gpu"),
    "typer": ("cpu", "gpu"),
    "rich": ("cpu", "gpu"),
    "yaml": ("cpu", "gpu"),
    "faiss": ("cpu", "gpu"),
    "packaging": ("cpu", "gpu"),
    "cupy": ("gpu",),
    "pandas": ("retrieval",),
    "pytorch_metric_learning": ("retrieval",),
    "usearch": ("retrieval",),
    "openvino": ("openvino", "runtime"),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx",),
    "nncf": ("openvino",),
    "watchfiles": ("serve",),
    "fastapi": ("serve",),
    "uvicorn": ("serve",),
    "prometheus_client": ("serve",),
    "python_multipart": ("serve",),
}


def missing_extra(module: str, purpose: str) -> MissingExtraError:
    """The error for a missing module: which package, what for, and what to install."""
    commands = " or ".join(map(install_command, EXTRAS[module]))
    return MissingExtraError(
        f"{purpose} needs {module}, which is not installed: in a clone of ensemblead, {commands}", name=module
    )


def install_command(extra: str) -> str:
    """The command that installs an extra, in a clone of the repository."""
    return f'pip install ".[{extra}]"'


def require(module: str, purpose: str) -> ModuleType:
    """Imports a module that an extra installs.

    Args:
        module: its import name, a key of `EXTRAS`.
        purpose: what it is needed for, the subject of the error's sentence: "the command line".

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # it is there, but something that it needs is not
        raise missing_extra(module, purpose) from None


def is_installed(module: str) -> bool:
    """Whether a module that an extra installs can be imported; it is imported to see."""
    try:
        require(module, "a look at what is installed")
    except MissingExtraError:
        return False
    return True
