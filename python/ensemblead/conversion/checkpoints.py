"""Checkpoints as Lightning or `torch.save` wrote them: tensors and plain values, nothing else."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensemblead.conversion.plain_pickle import check_extent

_FITS_OTHERWISE = "save the model's state dict with torch.save, and give backbone and layers"
# What is read besides the tensors.
_READ = (
    "hyper_parameters",
    "anomalib_components_enabled",
    "anomalib_pre_processor_config",
    "anomalib_post_processor_config",
)
# Of all tensors together, in lengths of the file: some share their values.
_MOST_LENGTHS = 4


class _Text(str):
    """Stands for the one class of anomalib that its checkpoints name, an enumeration of texts."""


def _member(kind: object, name: object) -> _Text:
    """Stands for `getattr`, by which some versions of Python write a member of an enumeration: its text is
    its name there, but for capitals. Of nothing else.
    """
    if kind is not _Text or not isinstance(name, str):
        raise ValueError("GLOBAL getattr")
    return _Text(name.lower())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and what of it the caller has given or it states.

    Attributes:
        what: its path.
        state: the model's own tensors, without the prefix "model.".
        others: tensors of the post-processor.
        hyper: the constructor's arguments, where they are there.
        content: the rest of what is read, by its names.
    """

    what: str
    state: Mapping[str, torch.Tensor]
    others: Mapping[str, torch.Tensor]
    hyper: Mapping[str, Any]
    content: Mapping[str, Any]

    def choose(self, name: str, given: Any, default: Any = None) -> Any:
        """An argument that is given, or stated; both only if they agree."""
        stated = self.hyper.get(name, default)
        if given is None and stated is None:
            raise ValueError(f"{name} must be given: {self.what} does not state it")
        if given is not None and name in self.hyper and given != stated:
            raise ValueError(f"{name} is {stated!r} in {self.what}, got {given!r}")
        return stated if given is None else given


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file without running anything in it.

    Raises FileNotFoundError, or ValueError for one that is no checkpoint, or holds more than tensors and
    plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        _check_archive(path)
        stand_ins: list[Any] = [(_Text, "anomalib.PrecisionType"), (_member, "builtins.getattr")]
        with torch.serialization.safe_globals(stand_ins):
            # Mapped, a tensor ends where the file does, whatever length the file states for it.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what it likes for files that are not its own
        # Torch's message advises to run what is in the file.
        names = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f" (it names {names[1]})" if names else ""
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values, which is not read{reason}; "
            f"{_FITS_OTHERWISE}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    tensors = state.items() if isinstance(state, Mapping) else ()
    if not tensors or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors):
        raise ValueError(f"{path} must hold a state dict of tensors; {_FITS_OTHERWISE}")
    _check_tensors(path, [value for _, value in tensors])
    # Copies, so that no one depends on the file.
    own = {
        key.removeprefix("model."): value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in tensors
    }
    others = {key: value for key, value in own.items() if key.startswith("post_processor.")}
    rest = {} if state is content else {key: content[key] for key in _READ if key in content}
    try:
        check_extent(rest)
    except ValueError as error:
        raise ValueError(f"{path} states arguments that cannot be read: {error}") from error
    stated = rest.get("hyper_parameters", {})
    hyper = dict(stated) if isinstance(stated, Mapping) else {}
    if isinstance(hyper.get("layers"), tuple):
        hyper["layers"] = list(hyper["layers"])
    return Checkpoint(str(path), own, others, hyper, rest)


def _check_archive(path: Path) -> None:
    """Refuse packed files, which `torch.save` does not write: a short one can fill the memory."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is packed")


def _check_tensors(path: Path, tensors: Iterable[torch.Tensor]) -> None:
    """Refuse tensors that are larger than the file, or of another kind than a state dict of a network has."""
    total, length = 0, path.stat().st_size
    for one in tensors:
        if one.layout != torch.strided or one.device.type != "cpu" or one.is_quantized:
            raise ValueError(f"{path} has tensors that are sparse, quantized or without values")
        total += one.numel() * one.element_size()
    if total > _MOST_LENGTHS * length:
        raise ValueError(f"{path} is damaged: it has {length} bytes, but tensors of {total}")
