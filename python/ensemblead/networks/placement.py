"""Device and precision of a network: names are checked, and resolved on this machine."""

from __future__ import annotations

from typing import Any

import torch

from ensemblead.common.extras import is_installed, require
from ensemblead.common.threads import available_cores, cpu_quota
from ensemblead.common.validation import one_of
from ensemblead.common.warnings import warn
from ensemblead.kernels.build import __version__, cuda_available, has_cuda_kernels
from ensemblead.networks.engines import NAMES
from ensemblead.networks.engines.cuda_graph import CUDA_GRAPH
from ensemblead.networks.engines.openvino import OPENVINO

# A network in int8 has feature maps in float32.
_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
# The kind of device that an engine is for, what the error for another says, and what to use instead.
_DEVICES = {
    OPENVINO.name: (
        "cpu",
        "engine='openvino' and precision='int8' are for CPUs",
        "device='cpu', or engine='torch' and another precision",
    ),
    CUDA_GRAPH.name: ("cuda", "engine='cuda-graph' is for GPUs", "device='cuda', or engine='torch'"),
}


def check_device(device: Any) -> str:
    """The device's name if it is one that this version computes on, or "auto". Whether it is there shows when
    a network goes there.
    """
    if device == "auto":
        return "auto"
    try:
        name = str(torch.device(device))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto" or a torch device, got {device!r}') from error
    if name.startswith("cuda") and not has_cuda_kernels():
        raise ValueError(
            f"device is {name!r}, but the CUDA kernels are not part of this version of ensemblead, "
            f"{__version__}; use device='auto' or 'cpu'"
        )
    return name


def check_precision(precision: str, engine: str = "torch") -> str:
    """The precision itself. Raises ValueError for one that no engine has, and for int8 with an engine that
    lacks it, or with none (""), where no network is frozen.
    """
    if not isinstance(precision, str):
        raise TypeError(f"precision must be a name, got {precision!r}")
    if precision != "auto" and precision not in _PRECISIONS:
        raise ValueError(f'precision must be "auto" or one of {", ".join(_PRECISIONS)}, got {precision!r}')
    if precision == "int8" and not engine:
        raise ValueError(
            "precision must be float32, bfloat16 or float16, got 'int8': no network is frozen here"
        )
    if precision == "int8" and engine not in (OPENVINO.name, "auto"):
        raise ValueError(
            f"precision must be float32, bfloat16 or float16 with engine={engine!r}, got 'int8'; fit in "
            "float32, then call quantize(images) on a CPU; to load an int8 model, give precision='float32' "
            "too"
        )
    return precision


def check_engine(engine: str, device: str, *, compile: bool) -> str:
    """The engine's name itself, if it goes with the device, as far as one is named, and with `compile`."""
    one_of("engine", engine, (*NAMES, "auto"))
    if engine in _DEVICES:
        if compile:
            raise ValueError(f"compile=True goes with engine='torch', got engine={engine!r}")
        if device != "auto":
            _require_device(engine, torch.device(device))
    return engine


def resolve_engine(engine: str, precision: str, device: torch.device, *, compile: bool) -> str:
    """One of `NAMES`. "auto" is OpenVINO on a CPU if it is installed and `compile` is not set, else torch.

    Raises:
        MissingExtraError: OpenVINO is asked for, or needed by int8, and not installed.
        ValueError: an engine is asked for, or needed, on a device that it is not for.
    """
    if engine == "auto" and precision != "int8":
        return "openvino" if device.type == "cpu" and not compile and is_installed("openvino") else "torch"
    if engine != "auto":
        check_precision(precision, engine)
    if engine == "torch":
        return engine
    if engine == CUDA_GRAPH.name:
        _require_device(engine, device)
        return engine
    _require_device(OPENVINO.name, device)
    require("openvino", f"engine={engine!r}" if engine == "openvino" else "precision='int8'")
    return "openvino"


def _require_device(engine: str, device: torch.device) -> None:
    wanted, fault, advice = _DEVICES[engine]
    if device.type != wanted:
        raise ValueError(f"{fault}, and device is {str(device)!r}; use {advice}")


def resolve_device(device: str) -> torch.device:
    """The device itself, a GPU with its number. "auto" is torch's current GPU if there is one and the core's
    kernels run on it; with a warning, the CPU where there are kernels, but the GPU is torch's alone.

    Raises ValueError for a GPU that torch or the kernels do not see.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    unusable = (
        f"this torch sees {gpus} GPU{'s' * (gpus > 1)}, but the CUDA kernels can use none: the driver is "
        "older than the CUDA they were built with, or they were built for newer architectures"
    )
    if device == "auto":
        if not has_cuda_kernels() or gpus == 0:
            return torch.device("cpu")
        if not cuda_available():
            warn(f"{unusable}; detectors run on the CPU", RuntimeWarning)
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    place = torch.device(device)
    if place.type != "cuda":
        return place
    if gpus == 0:
        raise ValueError(f"device is {device!r}, but this torch sees no GPU; use device='auto'")
    if not cuda_available():
        raise ValueError(f"device is {device!r}, and {unusable}; use device='cpu'")
    # With the number, or "cuda" and "cuda:0" would count as two places.
    index = torch.cuda.current_device() if place.index is None else place.index
    if index >= gpus:
        raise ValueError(
            f"device is {device!r}, but this torch sees {gpus} GPU{'s' * (gpus > 1)}: "
            f"{', '.join(f'cuda:{i}' for i in range(gpus))}"
        )
    return torch.device("cuda", index)


def warn_of_threads(device: torch.device) -> None:
    """Says so where torch runs more threads than the quota of this process grants."""
    quota = cpu_quota() if device.type == "cpu" else None
    cores, threads = available_cores(), torch.get_num_threads()
    if quota is not None and threads > cores:
        warn(
            f"torch runs {threads} threads, but the control group of this process grants {quota:g} cores; "
            f"threads that wait for their turn slow everything down: call torch.set_num_threads({cores}), or "
            f"set OMP_NUM_THREADS={cores} in the environment",
            RuntimeWarning,
        )


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on a CPU and half precision on a GPU: bfloat16 where its tensor cores have it
    (compute capability 8.0), else float16.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    if device.type != "cuda":
        return torch.float32
    # torch.cuda.is_bf16_supported asks the current device, and says yes to an emulation.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
