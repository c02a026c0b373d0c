"""Networks that others have trained, from files with the names of their code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of

# Under it anomalib's checkpoints have the networks, and under these what belongs to no network.
_LIGHTNING = "model."
_NO_NETWORK = (
    "post_processor.",
    "pre_processor.",
    "evaluator.",
    "visualizer.",
    "loss.",
    "image_threshold.",
    "pixel_threshold.",
    "image_metrics.",
    "pixel_metrics.",
    "normalization_metrics.",
)
# A count of batches that batch norms keep; it is in no result.
_COUNTS = "num_batches_tracked"
_VARIANCE = "running_var"
_SHOWN = 4  # names in a message


class WeightFile:
    """The tensors of a safetensors file, by the names of the code that trained them.

    Of a checkpoint of anomalib only the networks are kept, without `model.` before their names.

    Raises FileNotFoundError, and ValueError for another kind of file, with the line that converts it.
    """

    def __init__(self, path: StrPath) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a path, got {path!r}")
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise ValueError(f"path must be a safetensors file, got {self.path}; {_conversion(self.path)}")
        if not self.path.is_file():
            raise FileNotFoundError(f"weights: no such file: {self.path}")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: cannot read {self.path} as safetensors: {error}") from error
        if any(name.startswith(_LIGHTNING) for name in tensors):
            tensors = {
                name.removeprefix(_LIGHTNING): tensor
                for name, tensor in tensors.items()
                if not name.startswith(_NO_NETWORK)
            }
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def has_below(self, *prefixes: str) -> bool:
        """Whether a name begins with one of them."""
        return any(name.startswith(prefixes) for name in self._tensors)

    def length(self, name: str) -> int:
        """The first side of a tensor; 0 if there is none."""
        tensor = self._tensors.get(name)
        return len(tensor) if tensor is not None and tensor.ndim else 0

    def prefix(self, *prefixes: str) -> str:
        """The first that some names begin with; the first of all where there is none."""
        return next((one for one in prefixes if self.has_below(one)), prefixes[0])

    def taken(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors below a prefix, by the rest of their names; they are not in the file any more."""
        names = [name for name in self._tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._tensors.pop(name) for name in names}

    def read(
        self,
        wanted: Mapping[str, Sequence[int]],
        what: str,
        is_unused: Callable[[str], bool] = lambda name: False,
    ) -> dict[str, torch.Tensor]:
        """The tensors of these names and shapes, float32; `what` needs them, for messages.

        Raises ValueError, naming the first, for tensors that are missing, have other shapes, are no floating
        point numbers, as those of quantized networks, or not finite, for variances below 0, and for tensors
        that are there though neither wanted nor unused.
        """
        tensors = {name: own for name, own in self._tensors.items() if not name.endswith(_COUNTS)}
        found = {name: tensors[name] for name in wanted if name in tensors}
        floats = {name: own.float() for name, own in found.items() if own.is_floating_point()}
        faults = {
            "lacks": [name for name in wanted if name not in tensors],
            "has other shapes:": [
                f"{name} {tuple(own.shape)} for {tuple(wanted[name])}"
                for name, own in found.items()
                if tuple(own.shape) != tuple(wanted[name])
            ],
            "has besides": [name for name in tensors if name not in wanted and not is_unused(name)],
            "has no floating point numbers in": [name for name in found if name not in floats],
            "is not finite in": [name for name, own in floats.items() if not bool(own.isfinite().all())],
            "has variances below 0 in": [
                name for name, own in floats.items() if name.endswith(_VARIANCE) and bool((own < 0.0).any())
            ],
        }
        said = [f"{fault} {some_of(names, _SHOWN)}" for fault, names in faults.items() if names]
        if said:
            raise ValueError(
                f"weights: {self.path} does not fit {what} with these parameters: it {'; it '.join(said)}"
            )
        return floats


def _conversion(path: Path) -> str:
    """How to turn a pickled checkpoint into safetensors, in one line."""
    target = path.with_suffix(".safetensors")
    return (
        "pickled checkpoints can run code and are not read here. This line converts one: python -c "
        f"\"import torch, safetensors.torch as s; d = torch.load({str(path)!r}, 'cpu', weights_only=True); "
        "d = d.get('state_dict', d.get('model_state_dict', d)); "
        "t = {f'{k}.{n}' if n else k: x for k, v in d.items() "
        "for n, x in (v if isinstance(v, dict) else {'': v}).items()}; "
        f's.save_file({{k: x.clone().contiguous() for k, x in t.items()}}, {str(target)!r})"'
    )
