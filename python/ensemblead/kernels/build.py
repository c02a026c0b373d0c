"""The build of the core, and the devices and instructions that it finds on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ensemblead import _core
from ensemblead._core import __version__

__all__ = ["Build", "__version__", "build", "cuda_available", "has_cuda_kernels"]


@dataclass(frozen=True)
class Build:
    """How the core was compiled and what it chose at run time."""

    version: str
    cuda: str  # "on" or "off" and why
    cuda_available: bool  # built with CUDA, and a device that the kernels run on is there
    cuda_kernels: bool  # whether detectors can run on a GPU at all
    compiler: str  # its name and version, the system and the processor that it compiled for
    instruction_set: str  # of the SIMD loops, chosen for this processor
    threading: str  # what runs the loops: OpenMP, or C++ threads on Windows and macOS
    default_threads: int  # of the kernels, unless another number is asked for


def cuda_available() -> bool:
    """Whether the core was built with CUDA kernels and finds a device that they run on.

    Example:
        >>> import ensemblead as ead
        >>> ead.cuda_available() in (True, False)
        True
    """
    return _core.cuda_available()


def has_cuda_kernels() -> bool:
    """Whether this build has kernels for CUDA arrays. Where it has none, detectors run on the CPU, whatever
    GPU torch sees.
    """
    return _core.cuda_decision.startswith("on ")


def build() -> Build:
    """Describes the compiled core.

    Raises:
        ValueError: ENSEMBLEAD_INSTRUCTION_SET names an instruction set that there is not, or not here.
    """
    return Build(
        version=__version__,
        cuda=_core.cuda_decision,
        cuda_available=cuda_available(),
        cuda_kernels=has_cuda_kernels(),
        compiler=_core.compiler,
        instruction_set=_core.instruction_set(),
        threading=_core.threading,
        default_threads=_core.default_threads(),
    )
