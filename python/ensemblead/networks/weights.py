"""Weights from a file or a state dict into a module, strictly, but for the parts that are never run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.validation import some_of

# Keys under which training scripts put a state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
# Classifiers: never run for features, and named and sized differently from zoo to zoo and from task to task.
HEADS = frozenset(
    ("fc", "classifier", "head", "heads", "pre_logits", "aux1", "aux2", "AuxLogits", "last_linear")
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file (by suffix) or, weights-only, from a torch file.

    A state dict wrapped as `{"state_dict": ...}` is unwrapped. Raises FileNotFoundError, or ValueError naming
    the file if it is damaged or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights: cannot read {path} as safetensors or as a state dict: {error}") from error
    return as_state_dict(content, str(path))


def as_state_dict(content: Any, what: str) -> dict[str, Tensor]:
    """Check that `content` maps names to tensors; unwrap what training scripts put around it."""
    if isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"weights: {what} must be a state dict, got {_kind(content)}")
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        kind = _kind(content[wrong[0]])
        raise ValueError(f"weights: {what} must map names to tensors, but {wrong[0]!r} is {kind}")
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> frozenset[str]:
    """Load `state` into `module`, cast to its dtype, and return the names it lacked.

    With `assign` the module, which may be on the meta device, takes the tensors themselves.

    `num_batches_tracked` may always lack. Raises ValueError if a name of `state` is not in the module (a
    classifier's apart) or a shape differs; nothing is loaded then. Whether the missing names matter is for
    the caller to say, who knows what is run.
    """
    own = module.state_dict()
    matching = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    others = [key for key in state if key not in matching and key.split(".")[0] not in HEADS]
    unknown = [key for key in others if key not in own]
    differing = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in others if key in own
    ]
    if differing:
        raise ValueError(f"weights: {what} has other shapes than {_class(module)}: {some_of(differing, 8)}")
    if unknown:
        raise ValueError(
            f"weights: {what} has names that {_class(module)} does not know: {some_of(unknown, 8)}; "
            f"it knows names such as {some_of(own, 8)}"
        )
    if assign:
        matching = {key: value.to(own[key].dtype) for key, value in matching.items()}
    module.load_state_dict(matching, strict=False, assign=assign)
    return frozenset(key for key in own if key not in matching and not key.endswith("num_batches_tracked"))


def require_loaded(
    missing: Iterable[str], needed: frozenset[str], layers: tuple[str, ...], what: str
) -> None:
    """Raise ValueError listing the names that the weights lack though the layers need them."""
    lacking = sorted(needed.intersection(missing))
    if lacking:
        read = ", ".join(
            f"the input of {name.removesuffix(':input')}" if name.endswith(":input") else name
            for name in layers
        )
        raise ValueError(
            f"weights: {what} lacks {len(lacking)} tensors needed for {read}: {some_of(lacking, 8)}; an "
            "earlier layer may do without them"
        )


def _class(module: nn.Module) -> str:
    return str(getattr(module, "class_name", type(module).__name__))


def _kind(value: object) -> str:
    return "an empty mapping" if isinstance(value, Mapping) and not value else type(value).__name__
