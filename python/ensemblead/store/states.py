"""States in folders: dataclasses of tensors and plain values, by one pair of functions for all.

A field may hold a tensor or NumPy array, a number, a string, a bool, bytes, another such dataclass, a tuple
of numbers, of tensors, or of dataclasses of the type that it names, or, where its type says so, None. Types
of fields are the schema: what does not fit them is refused when it is saved, and when it is loaded.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from inspect import isclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from ensemblead.store.folders import FolderReader, FolderWriter

_PLAIN = (bool, int, float, str)


def save_state(
    writer: FolderWriter, name: str, state: Any, cls: type, *, half: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the tensors of a dataclass to the file `name`.safetensors, and return the rest, in JSON's types.

    Tensors of the fields in `half`, float32, are rounded to float16; loaded, they are float32 again.

    Raises TypeError for a state that is no `cls`, lacks a field, or holds what its type does not allow.
    """
    if not is_dataclass(cls) or type(state) is not cls:
        raise TypeError(f"the state must be a {cls.__name__}, a dataclass, got {type(state).__name__}")
    tensors: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    values = _dump(state, cls, "", tensors, files)
    if tensors:
        writer.tensors(f"{name}.safetensors", tensors, half=half)
    for field, data in files.items():
        writer.data(f"{name}.{field}", data)
    stored = {"values": values, "tensors": bool(tensors)}
    return {**stored, "half": list(half)} if half else stored


def load_state(reader: FolderReader, name: str, stored: Any, cls: type) -> Any:
    """The dataclass that `save_state` wrote; its tensors are on the CPU.

    Raises KeyError, TypeError or ValueError for what `save_state` never writes, and what `cls` refuses.
    """
    tensors = reader.tensors(f"{name}.safetensors") if stored["tensors"] else {}
    for field in stored.get("half", ()):
        tensors[field] = tensors[field].float()
    return _read(cls, stored["values"], "", tensors, lambda field: reader.data(f"{name}.{field}"))


def move_state(state: Any, device: torch.device) -> Any:
    """The same state with its tensors on a device."""
    if isinstance(state, torch.Tensor):
        return state.to(device)
    if isinstance(state, tuple):
        return tuple(move_state(item, device) for item in state)
    if is_dataclass(state) and not isinstance(state, type):
        moved = {field.name: move_state(getattr(state, field.name), device) for field in fields(state)}
        return replace(state, **moved)
    return state


def _dump(value: Any, hint: Any, path: str, tensors: dict[str, Any], files: dict[str, bytes]) -> Any:
    """`value` in JSON's types, its tensors and bytes put aside under their path."""
    if not _fits(value, hint):
        raise TypeError(
            f"the state's {path or 'value'} must be {_name(hint)}, got {type(value).__name__}, so that it "
            "could not be loaded again"
        )
    if isinstance(value, (torch.Tensor, np.ndarray)):
        tensors[path] = value
        return None
    if isinstance(value, bytes):
        files[path] = value
        return len(value)
    if isinstance(value, tuple):
        item_hint = _item_hint(hint)
        return [_dump(item, item_hint, f"{path}.{i}", tensors, files) for i, item in enumerate(value)]
    if is_dataclass(value):
        hints, own = get_type_hints(type(value)), {}
        for field in fields(value):
            if not hasattr(value, field.name):
                raise TypeError(f"the state {type(value).__name__} lacks its field {field.name}")
            below = f"{path}.{field.name}" if path else field.name
            own[field.name] = _dump(getattr(value, field.name), hints[field.name], below, tensors, files)
        return own
    return value


def _read(
    hint: Any, value: Any, path: str, tensors: dict[str, torch.Tensor], file: Callable[[str], bytes]
) -> Any:
    options = _options(hint)
    if path in tensors:
        tensor = _finite(tensors[path], path)
        return (
            tensor.numpy()
            if any((get_origin(option) or option) is np.ndarray for option in options)
            else tensor
        )
    if value is None and type(None) in options:
        return None
    for option in options:
        if is_dataclass(option) and isinstance(option, type):
            if type(value) is not dict:
                raise TypeError(f"{path or option.__name__} must be a mapping, got {value!r}")
            hints = get_type_hints(option)
            known = {field.name for field in fields(option)}
            if unknown := sorted(value.keys() - known):
                raise ValueError(f"{path or option.__name__} has the unknown fields {unknown}")
            items = {
                name: _read(hints[name], item, f"{path}.{name}" if path else name, tensors, file)
                for name, item in value.items()
            }
            return option(**items)
        if option is bytes:
            return file(path)
        if get_origin(option) is tuple:
            if type(value) is not list:
                raise TypeError(f"{path} must be a list, got {value!r}")
            if (own := _item_hint(option)) is not Any:
                return tuple(_read(own, item, f"{path}.{i}", tensors, file) for i, item in enumerate(value))
            return tuple(
                _finite(tensors[f"{path}.{i}"], f"{path}.{i}") if f"{path}.{i}" in tensors else item
                for i, item in enumerate(value)
            )
    if not _fits(value, hint):
        raise TypeError(f"{path} must be {_name(hint)}, got {value!r}")
    return value


def _finite(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """A tensor without NaN or infinity: with one, scores would be NaN, and nothing ever anomalous."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{path} must be finite, got NaN or infinity")
    return tensor


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _item_hint(hint: Any) -> Any:
    """The dataclass that all items of a tuple are of, by its type; Any for other tuples."""
    for option in _options(hint):
        items = get_args(option) if get_origin(option) is tuple else ()
        if items and isclass(items[0]) and is_dataclass(items[0]):
            return items[0]
    return Any


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may stand where `hint` is, and is of a kind that can be stored."""
    if hint is Any:
        return value is None or isinstance(value, (torch.Tensor, np.ndarray, *_PLAIN))
    for option in _options(hint):
        origin = get_origin(option) or option
        if origin is Literal:
            if value in get_args(option):
                return True
        elif origin is tuple:
            if isinstance(value, tuple) and all(_fits(item, _item_hint(option)) for item in value):
                return True
        elif origin is float:
            if type(value) in (int, float):
                return True
        elif isclass(origin) and (
            type(value) is origin or (origin not in _PLAIN and isinstance(value, origin))
        ):
            return True
    return False


def _name(hint: Any) -> str:
    return " or ".join(str(getattr(option, "__name__", option)) for option in _options(hint))
