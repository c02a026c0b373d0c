"""Writes the structure of a network, see `structure.py`, by following its operations layer by layer."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ensemblead.networks.engines.eager import EagerEngine, evaluating
from ensemblead.networks.engines.engine import Part, same_outputs
from ensemblead.networks.grids import TokenLayout
from ensemblead.networks.modes import default_modes
from ensemblead.networks.reaching import reached
from ensemblead.networks.structure import FUNCTIONS, HOLDER, LAYERS, NORM_ACT, ROW, STEPS, build

# In eval mode they give back what they are given.
_IDLE = frozenset(("Dropout", "Dropout2d", "DropPath", "StochasticDepth", "DropBlock2d"))
_NAMES = {function: name for name, function in FUNCTIONS.items()} | {torch._assert: "assert"}
_RESAMPLE = "resample_abs_pos_embed"
_TOLERANCE = 1e-5  # of the largest value of a layer: the same operations in the same order


class NotDescribedError(Exception):
    """A network that has no description; the message says why."""


def describe(part: Part, images: Tensor, needed: frozenset[str]) -> dict[str, Any]:
    """The structure of a network, in JSON's types.

    Args:
        part: the network and the layers that are read.
        images: `[1, 3, H, W]`; the network that is built again is compared with this one on them.
        needed: names of the tensors that reaching the layers takes.

    Raises NotDescribedError for a network that looks at values while it runs, or has other operations than
    `structure.py` knows.
    """
    module = part.module
    try:
        with default_modes(), evaluating(module):
            found = _described(module)
            found["class"] = type(module).__name__
            layout = TokenLayout(module)
            if layout.prefix_tokens is not None:
                found["num_prefix_tokens"] = layout.prefix_tokens
            if layout.channels_last:
                found["output_fmt"] = "NHWC"
            _compare(part, images, needed, reached(found, part.layers))
    except NotDescribedError:
        raise
    except Exception as error:  # a network is code of others, and raises anything when it meets a stand-in
        raise NotDescribedError(f"{type(error).__name__}: {error}") from error
    return found


def _compare(part: Part, images: Tensor, needed: frozenset[str], description: Any) -> None:
    """Raises NotDescribedError unless what is built again computes the same of the same tensors."""
    twin, state = build(description), part.module.state_dict()
    names = {name for name in twin.state_dict() if not name.endswith("num_batches_tracked")}
    wanted = {name for name in needed if not name.endswith("num_batches_tracked")}
    if names != wanted:
        raise NotDescribedError(f"tensors differ: {sorted(names ^ wanted)[:4]}")
    twin.load_state_dict({name: state[name] for name in twin.state_dict()}, assign=True)
    again = Part(twin, part.layers, part.name, part.device, part.dtype, part.precision)
    if not same_outputs(EagerEngine(again).run(images), EagerEngine(part).run(images), _TOLERANCE):
        raise NotDescribedError("what is built again computes something else")


def _described(module: nn.Module) -> dict[str, Any]:
    kind = _known_layer(module)
    if kind is not None:
        parts = (
            {one: _described(module.get_submodule(one)) for one in ("drop", "act")}
            if kind == NORM_ACT
            else {}
        )
        names = LAYERS["BatchNorm2d" if kind == NORM_ACT else kind]
        own = {name: _plain(_attribute(module, name)) for name in names}
        return {"is": kind, "with": own, **({"parts": parts} if parts else {})}
    if type(module).forward is nn.Sequential.forward:
        return {"is": ROW, "parts": {name: _described(part) for name, part in module.named_children()}}
    return _steps_of(module)


def _known_layer(module: nn.Module) -> str | None:
    """The class of torch that computes what this layer does."""
    name, own = type(module).__name__, type(module).__module__
    if type(module) is getattr(nn, name, None) and name in LAYERS:
        return name
    if own.startswith(("timm.", "torchvision.", "torch.nn.")) and name in _IDLE:
        return "Identity"
    if not own.startswith("timm."):
        return None
    if name == "LayerNorm" and isinstance(module, nn.LayerNorm) and not getattr(module, "_fast_norm", False):
        return "LayerNorm"
    return NORM_ACT if name == NORM_ACT and isinstance(module, nn.BatchNorm2d) else None


def _attribute(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    return value is not None if name == "bias" else value


def _plain(value: Any) -> Any:
    """A value in JSON's types."""
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if type(value) is float and not math.isfinite(value):
        raise NotDescribedError(f"{value} is no number")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise NotDescribedError(f"{type(value).__name__} {value!r} is no plain value")


class _Recorder(fx.Tracer):
    """Follows the operations of one layer, down to those that it calls, whatever they do. Other threads may
    run the network meanwhile.
    """

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module) -> None:
        # It looks at sizes, and is one step.
        resample = type(module).forward.__globals__.get(_RESAMPLE)
        super().__init__(autowrap_functions=() if resample is None else (resample,))
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Arguments with a default keep it; the others are what the layer is given."""
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in _inputs(root_fn)]
        return root_fn, [self.root, *inputs]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise NotDescribedError("a tensor is made while it runs")
        return super().create_arg(a)


def _inputs(forward: Callable[..., Any]) -> list[str]:
    """The names of the arguments without a default, `self` apart."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        raise NotDescribedError("it takes any number of inputs")
    return [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]


def _steps_of(module: nn.Module) -> dict[str, Any]:
    graph = _Recorder(module).trace(module)
    node: dict[str, Any] = {"is": STEPS, "tensors": _own_tensors(module), "parts": {}, "steps": []}
    numbers: dict[fx.Node, int] = {}
    for one in graph.nodes:
        if one.op == "output":
            node["output"] = _encoded(one.args[0], numbers)
            continue
        if one.op != "placeholder":
            arguments, keywords = list(one.args), dict(one.kwargs)
            step = _step(module, one, arguments, keywords, node["parts"])
            encoded = [_encoded(value, numbers) for value in arguments]
            node["steps"].append([*step, encoded, {k: _encoded(v, numbers) for k, v in keywords.items()}])
        numbers[one] = len(numbers)
    node["inputs"] = len(numbers) - len(node["steps"])
    return node


def _own_tensors(module: nn.Module) -> dict[str, Any]:
    """Shape, dtype, and whether it is a parameter, of the tensors that a layer has itself."""
    named = {**module._parameters, **module._buffers}
    if any(named[name] is not None for name in module._non_persistent_buffers_set):
        raise NotDescribedError(f"{type(module).__name__} has a tensor that is not among its weights")
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), name in module._parameters]
        for name, tensor in named.items()
        if tensor is not None
    }


def _step(
    module: nn.Module, node: fx.Node, arguments: list[Any], keywords: dict[str, Any], parts: dict[str, Any]
) -> tuple[str, str]:
    """Kind and name of a step; what a call of it does not need is taken out of its arguments."""
    target: Any = node.target
    if node.op == "call_module":
        called = module.get_submodule(target)
        if _known_layer(called) is None and type(called).forward is not nn.Sequential.forward:
            _drop_defaults(called, keywords)
        _put(parts, target.split("."), called)
        return "call", target
    if node.op == "get_attr":
        if "." in target:
            raise NotDescribedError(f"{type(module).__name__} reads {target}, a tensor of another layer")
        return "tensor", target
    if node.op == "call_method":
        return "method", target
    if target is getattr:
        return "attribute", arguments.pop()
    if getattr(target, "__name__", "") == _RESAMPLE and target.__module__.startswith("timm."):
        return "function", _RESAMPLE
    name = _NAMES.get(target)
    if name is None:
        raise NotDescribedError(f"{type(module).__name__} calls {getattr(target, '__name__', target)}")
    if name == "assert":
        del arguments[1:]  # its words would name stand-ins
        keywords.clear()
    return "function", name


def _drop_defaults(called: nn.Module, keywords: dict[str, Any]) -> None:
    """Take out keywords that say what the layer's own defaults say."""
    for name, parameter in inspect.signature(type(called).forward).parameters.items():
        if name in keywords and keywords[name] is parameter.default:
            del keywords[name]


def _put(parts: dict[str, Any], path: list[str], called: nn.Module) -> None:
    """Describe a layer that is called, inside what holds it."""
    for name in path[:-1]:
        parts = parts.setdefault(name, {"is": HOLDER, "parts": {}})["parts"]
    if path[-1] not in parts:
        parts[path[-1]] = _described(called)


def _encoded(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"value": numbers[value]}
    if isinstance(value, (tuple, list)):
        return [_encoded(one, numbers) for one in value]
    if isinstance(value, slice):
        return {"slice": [_encoded(one, numbers) for one in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return _plain(value)
