"""The structure of a network as data: layers of torch, and the operations between them.

Nothing in it is code.

A saved model has it in `network.json`, so that it runs without the package that the network came from.
`describing.py` writes it. docs/design/cold_start.md has the format.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Layers of torch.nn, and what their constructors take: attributes of the same names ("bias": whether there
# is one). They compute and do nothing else.
_NORM = ("eps", "momentum", "affine", "track_running_stats")
LAYERS: dict[str, tuple[str, ...]] = {
    "AdaptiveAvgPool2d": ("output_size",),
    "AdaptiveMaxPool2d": ("output_size",),
    "AvgPool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "BatchNorm2d": ("num_features", *_NORM),
    "Conv2d": (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
        "padding_mode",
    ),
    "ELU": ("alpha", "inplace"),
    "Flatten": ("start_dim", "end_dim"),
    "GELU": ("approximate",),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Hardsigmoid": ("inplace",),
    "Hardswish": ("inplace",),
    "Identity": (),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
    "LeakyReLU": ("negative_slope", "inplace"),
    "Linear": ("in_features", "out_features", "bias"),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    "ReLU": ("inplace",),
    "ReLU6": ("inplace",),
    "Sigmoid": (),
    "SiLU": ("inplace",),
    "Softmax": ("dim",),
    "Tanh": (),
}
# What the layers and operations around them hold: a batch norm with its activation, layers in a row, the
# operations of a class of its own, and layers that are only called by name.
NORM_ACT, ROW, STEPS, HOLDER = "BatchNormAct2d", "Sequential", "steps", "Module"


def _holds(condition: Any, _message: str = "") -> None:
    """For `torch._assert` of a network, as on the sides of images that it takes."""
    if not condition:
        raise AssertionError("its patches do not divide them, or it was made for one size")


def resample_abs_pos_embed(
    posemb: Tensor,
    new_size: Sequence[int],
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
) -> Tensor:
    """A transformer's embeddings of places `[1, T, C]` for another grid; arguments as in timm, whose result
    it has. Bicubic with antialiasing; leading tokens stay as they are.
    """
    if old_size is None:
        side = int((posemb.shape[1] - num_prefix_tokens) ** 0.5)
        old_size = (side, side)
    if tuple(old_size) == tuple(new_size):
        return posemb
    places = posemb[:, num_prefix_tokens:].float().reshape(1, *old_size, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(places, size=tuple(new_size), mode="bicubic", antialias=True)
    rows = grid.permute(0, 2, 3, 1).flatten(1, 2).to(posemb.dtype)
    return torch.cat([posemb[:, :num_prefix_tokens], rows], dim=1)


# Operations between layers, by name. None reads or writes anything but its arguments.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "iadd", "sub", "mul", "imul", "truediv", "floordiv", "mod", "neg", "matmul")
    },
    **{name: getattr(operator, name) for name in ("getitem", "eq", "pow")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in (
            *("add", "cat", "flatten", "max_pool2d", "mean", "mul", "permute", "relu", "sigmoid", "softmax"),
            *("stack", "unsqueeze"),
        )
    },
    **{
        f"functional.{name}": getattr(functional, name)
        for name in (
            *("adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "conv2d", "dropout", "gelu", "group_norm"),
            *("hardsigmoid", "hardswish", "interpolate", "layer_norm", "leaky_relu", "linear", "max_pool2d"),
            *("normalize", "pad", "relu", "relu6", "scaled_dot_product_attention", "sigmoid", "silu"),
            *("softmax", "tanh"),
        )
    },
    "assert": _holds,
    "resample_abs_pos_embed": resample_abs_pos_embed,
}
METHODS = frozenset(
    (
        *("add", "add_", "chunk", "clamp", "clone", "contiguous", "div", "div_", "dim", "expand"),
        *("expand_as", "flatten", "float", "masked_fill", "matmul", "mean", "mul", "mul_", "permute"),
        *("relu", "relu_", "repeat", "reshape", "roll", "sigmoid", "size", "softmax", "split", "squeeze"),
        *("sub", "sum", "tanh", "to", "transpose", "type_as", "unbind", "unflatten", "unsqueeze"),
        *("view",),
    )
)
# Python's own operators also take numbers, and grow them without an end.
_GROWING = frozenset(("add", "iadd", "sub", "mul", "imul", "floordiv", "mod", "neg", "pow"))
_LONGEST, _LARGEST = 64, 2**63
ATTRIBUTES = frozenset(("shape", "ndim", "dtype", "device"))
_KINDS = ("call", "function", "method", "attribute", "tensor")


class Value(NamedTuple):
    """The result of a step by its number; the first numbers are the inputs."""

    number: int


class Step(NamedTuple):
    """One step: what is done, with what, and which values nobody reads later."""

    kind: str
    name: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    released: tuple[int, ...]


class Stepped(nn.Module):
    """Runs steps in their order. Its layers and tensors have the names that they had in the network."""

    def __init__(self, inputs: int, steps: Sequence[Step], output: Any) -> None:
        super().__init__()
        self._inputs, self._steps, self._output = inputs, tuple(steps), output

    def forward(self, *given: Any) -> Any:
        if len(given) != self._inputs:
            raise TypeError(f"expected {self._inputs} inputs, got {len(given)}")
        values: list[Any] = list(given)
        for step in self._steps:
            arguments = _filled(step.arguments, values)
            keywords = {name: _filled(value, values) for name, value in step.keywords.items()}
            values.append(self._done(step, arguments, keywords))
            del arguments, keywords
            for number in step.released:
                values[number] = None
        return _filled(self._output, values)

    def _done(self, step: Step, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if step.kind == "call":
            return self.get_submodule(step.name)(*arguments, **keywords)
        if step.kind == "function":
            if step.name in _GROWING:
                _check_operands(step.name, arguments)
            return FUNCTIONS[step.name](*arguments, **keywords)
        if step.kind == "tensor":
            return getattr(self, step.name)
        if step.kind == "attribute":
            return getattr(arguments[0], step.name)
        return getattr(torch.Tensor, step.name)(*arguments, **keywords)


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation behind it, timm's `BatchNormAct2d`."""

    def forward(self, input: Tensor) -> Tensor:
        normed: Tensor = self.get_submodule("act")(self.get_submodule("drop")(super().forward(input)))
        return normed


def _check_operands(name: str, arguments: tuple[Any, ...]) -> None:
    """Raises ValueError for numbers, words or tuples of which an operator makes something endless."""
    for number, one in enumerate(arguments):
        is_exponent = name == "pow" and number == 1
        wrong = type(one) is int and abs(one) > (_LONGEST if is_exponent else _LARGEST)
        if isinstance(one, (str, tuple, list)):  # shapes may be put together
            wrong = name not in ("add", "iadd") or len(one) > _LONGEST
        if wrong:
            raise ValueError(f"the step {name!r} cannot take {type(one).__name__} {str(one)[:40]!r}")


def _filled(given: Any, values: list[Any]) -> Any:
    """Arguments with the values that they name."""
    if type(given) is Value:
        return values[given.number]
    if type(given) is tuple:
        return tuple(_filled(one, values) for one in given)
    if type(given) is slice:
        return slice(*(_filled(one, values) for one in (given.start, given.stop, given.step)))
    return given


def build(description: Any) -> nn.Module:
    """The network of a description, on the meta device, in eval mode and without gradients.

    Raises TypeError, ValueError or KeyError for a description that `describing.describe` never writes, and
    whatever the layers' constructors raise.
    """
    with torch.device("meta"):
        module = _built(description)
    for name in ("class", "num_prefix_tokens", "output_fmt"):
        if name in description:
            setattr(module, "class_name" if name == "class" else name, description[name])
    return module.eval().requires_grad_(False)


def _built(node: Any) -> nn.Module:
    if type(node) is not dict or type(node.get("is")) is not str:
        raise ValueError(f"a layer must state what it is, got {str(node)[:80]}")
    kind = node["is"]
    if kind in LAYERS or kind == NORM_ACT:
        layer: type[nn.Module] = NormAct if kind == NORM_ACT else getattr(nn, kind)
        names = LAYERS["BatchNorm2d" if kind == NORM_ACT else kind]
        module = layer(**{name: _argument(node["with"][name]) for name in names})
    elif kind == ROW:
        module = nn.Sequential()
    elif kind == STEPS:
        module = _stepped(node)
    elif kind == HOLDER:
        module = nn.Module()
    else:
        raise ValueError(f"layers of the kind {kind!r} are not known")
    for name, part in node.get("parts", {}).items():
        module.add_module(name, _built(part))
    return module


def _argument(given: Any) -> Any:
    """A value of a constructor: a number, a flag, a word, None, or a tuple of them."""
    if type(given) is list:
        return tuple(map(_argument, given))
    if given is not None and type(given) not in (bool, int, float, str):
        raise TypeError(f"a layer cannot take {str(given)[:80]}")
    return given


def _stepped(node: Mapping[str, Any]) -> Stepped:
    inputs, count = node["inputs"], node["inputs"]
    if type(inputs) is not int or not 0 < inputs < 16:
        raise ValueError(f"inputs must be a small number, got {inputs!r}")
    read: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []
    last: dict[int, int] = {}
    for number, (kind, name, arguments, keywords) in enumerate(node["steps"]):
        _check_step(kind, name, node)
        used: set[int] = set()
        args = tuple(_decoded(one, count, used) for one in arguments)
        kwargs = {key: _decoded(one, count, used) for key, one in keywords.items()}
        if kind == "attribute" and len(args) != 1:
            raise ValueError(f"{name} is of one value, got {len(args)}")
        read.append((kind, name, args, kwargs))
        last.update(dict.fromkeys(used, number))
        count += 1
    kept: set[int] = set()
    output = _decoded(node["output"], count, kept)
    released: dict[int, list[int]] = {}
    for value, end in last.items():
        if value not in kept:
            released.setdefault(end, []).append(value)
    steps = [Step(*step, tuple(released.get(number, ()))) for number, step in enumerate(read)]
    module = Stepped(inputs, steps, output)
    for name, (shape, dtype, is_parameter) in node.get("tensors", {}).items():
        empty = torch.empty(_argument(shape), dtype=_dtype(dtype))
        if is_parameter:
            module.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        else:
            module.register_buffer(name, empty)
    return module


def _check_step(kind: Any, name: Any, node: Mapping[str, Any]) -> None:
    """Raises ValueError for a step of another kind, or of a name that is not listed."""
    listed: dict[str, Any] = {
        "call": node.get("parts", {}),
        "function": FUNCTIONS,
        "method": METHODS,
        "attribute": ATTRIBUTES,
        "tensor": node.get("tensors", {}),
    }
    known = type(name) is str and kind in _KINDS
    if not known or (name.partition(".")[0] if kind == "call" else name) not in listed[kind]:
        raise ValueError(f"the step {kind!r} {name!r} is not known to this version")


def _decoded(given: Any, count: int, used: set[int]) -> Any:
    """An argument out of JSON; adds the values that it names to `used`."""
    if type(given) is list:
        return tuple(_decoded(one, count, used) for one in given)
    if type(given) is not dict:
        return _argument(given)
    if len(given) != 1:
        raise ValueError(f"an argument cannot be {str(given)[:80]}")
    ((kind, content),) = given.items()
    if kind == "value":
        if type(content) is not int or not 0 <= content < count:
            raise ValueError(f"value {content!r} is not known before its step")
        used.add(content)
        return Value(content)
    if kind == "slice" and len(content) == 3:
        return slice(*(_decoded(one, count, used) for one in content))
    if kind == "dtype":
        return _dtype(content)
    if kind == "ellipsis":
        return ...
    raise ValueError(f"an argument cannot be {str(given)[:80]}")


def _dtype(name: Any) -> torch.dtype:
    dtype = getattr(torch, name, None) if type(name) is str else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no dtype {name!r}")
    return dtype
