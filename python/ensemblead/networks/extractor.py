"""Features of named layers of a frozen network: feature maps, or a vector per image."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.validation import near_names
from ensemblead.config.names import explain_unknown_keywords
from ensemblead.networks.engines import ENGINES
from ensemblead.networks.engines.engine import (
    NORMED_SUFFIX,
    Outputs,
    Part,
    Quantized,
    input_of,
    last_norm,
    normed_of,
)
from ensemblead.networks.engines.kept import KeptEngines
from ensemblead.networks.gabor import GaborBank
from ensemblead.networks.grids import TokenLayout
from ensemblead.networks.layers import layer_names
from ensemblead.networks.modes import default_modes
from ensemblead.networks.needed import needed_tensors
from ensemblead.networks.summaries import collected, offer
from ensemblead.networks.vectors import Pooling, check_pooling, head_input, to_vector
from ensemblead.networks.weights import require_loaded
from ensemblead.networks.zoo import BackboneInfo, Weights, load_backbone, module_configuration

# The size of the images that a network ran on last, whichever extractor ran it: some networks take no other.
_ran_at: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()


@explain_unknown_keywords
class FeatureExtractor:
    """Runs a frozen network as far as the layers asked for, and returns what they put out.

    Threads may share an extractor. Its results do not depend on torch's modes around a call: autocast, a
    default dtype or device, inference mode.

    Args:
        backbone: a name (`load_backbone`: timm, then torchvision), "gabor", or any `torch.nn.Module`. A
            module is used as it is, not copied: while it runs here it is in eval mode without gradients and
            has hooks; after every call its training flags and hooks are as before. `to` moves it for good.
        layers: names of submodules at any depth, as `named_modules` gives them, in the order wanted back. A
            layer that is called several times in one pass gives the output of its first call. "NAME:input" is
            what the layer NAME reads. "NAME:normed" is what a transformer's block NAME puts out, behind the
            network's last norm, as timm's `forward_intermediates(norm=True)` gives it; "norm" is that of the
            last block. None, with `pooling`: what the classifier reads.
        weights: for a name, see `load_backbone`: "default", a path, a state dict, or None for random ones.
            It may lack tensors that are not needed to reach the layers. A module and "gabor" bring their own.
        seed: of the random initialisation under `weights=None`.
        mean, std: of the three channels, for RGB in 0..1; by default those the weights were trained with
            (for a module that carries no record of them, ImageNet's).
        pooling: None for feature maps. "avg", "max" or "gem" (generalised mean, exponent 3) for a vector per
            image, pooled over the places of a layer; "token" for its class token. Layers that put out vectors
            are then taken as they are.

    Attributes:
        name: "resnet18", or the module's class. `layers`: a tuple. `mean`, `std`, `pooling`. `input_size`:
            the side that the weights were trained at, or None. `module`: the network. `source`: where it came
            from, in JSON's types.

    Raises ValueError for a layer that does not exist (near matches suggested), for weights that lack what the
    layers need or belong to another network, TypeError for the wrong kind of thing; and as `load_backbone`.

    Example:
        >>> import torch
        >>> extractor = FeatureExtractor("gabor", ("layer1", "layer2"))
        >>> [tuple(maps.shape) for maps in extractor(torch.rand(2, 3, 64, 64))]
        [(2, 42, 16, 16), (2, 90, 8, 8)]
        >>> FeatureExtractor("gabor", ("layer2",), pooling="avg")(torch.rand(2, 3, 64, 64))[0].shape
        torch.Size([2, 90])
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        layers: Sequence[str] | None,
        *,
        weights: Weights = "default",
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.pooling = check_pooling(pooling)
        with default_modes():
            module, info = _load(backbone, weights, seed)
        self._begin(module, info, layers, mean, std)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        info: BackboneInfo,
        layers: Sequence[str],
        pooling: Pooling | None,
        description: dict[str, Any],
    ) -> FeatureExtractor:
        """An extractor over a network that was built of its description, see `structure.py`."""
        extractor = object.__new__(cls)
        extractor.pooling = check_pooling(pooling)
        extractor._begin(module, info, layers, None, None)
        extractor._description = description
        return extractor

    def _begin(
        self,
        module: nn.Module,
        info: BackboneInfo,
        layers: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.name = info.name
        self.input_size = info.input_size
        self.source = info.source
        self.mean = _three("mean", mean, info.mean)
        self.std = _three("std", std, info.std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        self.module = module
        self._scale: Tensor | None = None
        self._engine, self._precision = "eager", ""
        self._quantized: Quantized | None = None
        self._engines = KeptEngines()
        self._description: dict[str, Any] | None = None
        self.file = info.file
        self._set_layers(layers)
        if info.missing:
            what = self.source.get("path", "the state dict given")
            require_loaded(info.missing, self._needed_names(), self.layers, what)

    def _set_layers(self, layers: Sequence[str] | None) -> None:
        if layers is None and self.pooling is None:
            raise ValueError("layers=None stands for a vector per image; give pooling= with it, or layers")
        self.layers = _checked_layers(self.module, [head_input(self.module)] if layers is None else layers)
        self._layout = TokenLayout(self.module)
        self._shapes: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        self._channels_last = False

    def with_layers(self, layers: Sequence[str]) -> FeatureExtractor:
        """An extractor of other layers over the same network (shared, not copied), where it is and as it
        is.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._set_layers(layers)
        other._channels_last = self._channels_last
        return other

    def copy(self) -> FeatureExtractor:
        """The same over a network of its own."""
        other = self.with_layers(self.layers)
        with default_modes():
            other.module = copy.deepcopy(self.module)
        if self.module in _ran_at:
            _ran_at[other.module] = _ran_at[self.module]
        other._engines = KeptEngines()
        other._layout = TokenLayout(other.module)
        return other

    def is_at(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `to` would leave the values and places of all parameters and buffers as they are."""
        return all(
            t.device == device and (t.dtype == dtype or not t.is_floating_point())
            for t in _tensors(self.module)
        )

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters (or buffers)."""
        return _anchor(self.module).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return _anchor(self.module).dtype

    def to(
        self,
        device: str | torch.device,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> FeatureExtractor:
        """Move the network to a device, cast it to `dtype` (None keeps it), lay it out channels last;
        returns self.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format
        arguments: dict[str, Any] = {"device": device, "memory_format": layout}
        if dtype is not None:
            if not dtype.is_floating_point:
                raise TypeError(f"dtype must be a floating-point type, got {dtype}")
            arguments["dtype"] = dtype
        with default_modes(), self._engines.lock:
            self.module.to(**arguments)
            self._engines.clear()  # they are of the old place
        self._channels_last = channels_last
        return self

    def fold(self) -> FeatureExtractor:
        """Run convolutions and the batch norms behind them as one from now on; returns self.

        For networks that nobody changes: folded weights are made at the first call, and kept beside the
        original ones. In float32 only, where the outputs differ by rounding.
        """
        return self.run_by("folded")

    def compile(self) -> FeatureExtractor:
        """Run the network through `torch.compile` from now on; returns self.

        It is compiled at the first call, which takes long, and again for batches of one image; on a CPU it
        gains little. Call it after `to`. Raises CompilationError, at that first call, where the network
        cannot be compiled, or computes something else when it is.
        """
        return self.run_by("compiled")

    def run_by(
        self, engine: str, precision: str | None = None, quantized: Quantized | None = None
    ) -> FeatureExtractor:
        """Run the network by the engine of that name from now on; returns self.

        "eager" is torch as it is. The others are made at the first call and compared with it there; where
        "folded" and "compiled" do not know the network's precision or device, eager torch stays.

        Args:
            precision: what to compute in, if that is not the network's dtype: "int8", by "openvino".
            quantized: the network for that.
        """
        if engine != "eager" and engine not in ENGINES:
            raise ValueError(f"engine must be one of eager, {', '.join(ENGINES)}, got {engine!r}")
        if precision is not None and (engine == "eager" or precision not in ENGINES[engine].precisions):
            raise ValueError(f"engine {engine!r} does not compute in {precision}; for int8 take 'openvino'")
        self._engine, self._precision, self._quantized = engine, precision or "", quantized
        return self

    @property
    def precision(self) -> str:
        """What the network computes in: the name of its dtype, or "int8"."""
        return self._precision or str(self.dtype).removeprefix("torch.")

    @contextmanager
    def recorded(self, note: Callable[[Tensor], None]) -> Iterator[None]:
        """Inside, `note` is called with all images that the network, or one of other layers over it, sees."""
        self._engines.notes.append(note)
        try:
            yield
        finally:
            self._engines.notes.remove(note)

    def normalize(self, images: Tensor) -> Tensor:
        """Network input from pixels: uint8 `[B, 3, H, W]`, on any device -> normalised, on the network's,
        its dtype.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        _check_images(images)
        # Moved as bytes, then normalised in float32 there: a quarter of the copy, and no rounding in half
        # precision.
        pixels = images.to(self.device, non_blocking=True).float()
        if self._scale is None or self._scale.device != pixels.device:
            # Kept on the device: made anew, it would make every batch wait for a copy.
            scale = torch.tensor([self.mean, self.std], dtype=torch.float32, device="cpu")
            self._scale = scale.mul(255.0).to(pixels.device)
        mean, std = self._scale.view(2, 1, 3, 1, 1)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return pixels.sub_(mean).div_(std).to(self.dtype, memory_format=layout)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Normalised images, float `[B, 3, H, W]` -> one `[B, C_l, H_l, W_l]` per layer, in the order of
        `layers`; with `pooling` one `[B, C_l]` per layer.

        The pass ends at the last layer needed. Outputs have the network's dtype and are contiguous
        (channels last after `to(..., channels_last=True)`); tokens are laid back onto the grid they came
        from, without class and register tokens. Raises TypeError for images that are no floats, ValueError
        for a wrong shape and for a layer that is never reached or puts out no grid.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a float tensor, normalised (see normalize), got {kind}")
        _check_images(images)
        size = (images.shape[2], images.shape[3])
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        with default_modes():
            if images.is_inference():
                images = images.clone()  # a network may write into it
            images = images.to(self.dtype).contiguous(memory_format=layout)
            for note in self._engines.notes:
                note(images)
            try:
                outputs = self._engines.run(
                    self._engine, self._part(), images, lambda outputs: self._arranged(outputs, size)
                )
                features = self._arranged(outputs, size)
            except AssertionError as error:  # a transformer's word on a size that it does not take
                raise ValueError(
                    f"images: {self.name} cannot take images of {size[0]} x {size[1]} pixels: {error}"
                ) from error
        self._shapes[size] = [tuple(feature.shape[1:]) for feature in features]
        _ran_at[self.module] = size
        offer((id(self.module), self.layers), features)
        return features

    def _arranged(self, outputs: Outputs, size: tuple[int, int]) -> list[Tensor]:
        """Grids, or vectors, out of the layers' outputs, in the order of `layers`."""
        if self.pooling is not None:
            pooling = self.pooling
            vectors = (to_vector(outputs[name], name, size, self._layout, pooling) for name in self.layers)
            return [vector.contiguous() for vector in vectors]
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        grids = (self._layout.to_grid(outputs[name], name, size) for name in self.layers)
        return [grid.contiguous(memory_format=layout) for grid in grids]

    def channels(self, image_size: int | tuple[int, int]) -> tuple[int, ...]:
        """Channels of each layer for images of `image_size` (a side, or (h, w)); one blank image is run to
        see.
        """
        return tuple(shape[0] for shape in self._probe(image_size))

    def grid(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the first layer's grid for images of `image_size` (a side, or (h, w))."""
        if self.pooling is not None:
            raise ValueError(f"pooling={self.pooling!r} gives vectors, which have no grid")
        _, rows, columns = self._probe(image_size)[0]
        return rows, columns

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that reaching the layers takes, as `weights=` accepts them back."""
        needed = self._needed_names()
        return {name: tensor for name, tensor in self.module.state_dict().items() if name in needed}

    def description(self) -> dict[str, Any] | None:
        """The network's structure in JSON's types, see `structure.py`; None for a network that has none."""
        if self._description is None:
            from ensemblead.networks.describing import NotDescribedError, describe

            part, blank = self._part(), self._blank()
            noise = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0))
            with suppress(NotDescribedError):
                self._description = describe(part, noise.to(blank), self._needed_names())
        return self._description

    def __repr__(self) -> str:
        return f"FeatureExtractor({self.name!r}, layers={self.layers})"

    def _probe(self, image_size: int | tuple[int, int]) -> list[tuple[int, ...]]:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if size not in self._shapes:
            if min(size) < 1:
                raise ValueError(f"image_size must be positive, got {image_size}")
            with collected(None):
                self(torch.zeros(1, 3, *size, dtype=self.dtype, device=self.device))
        return self._shapes[size]

    def _part(self) -> Part:
        return Part(
            self.module, self.layers, self.name, self.device, self.dtype, self.precision, self._quantized
        )

    def _needed_names(self) -> frozenset[str]:
        with default_modes():
            return needed_tensors(self._part(), self._blank())

    def _blank(self) -> Tensor:
        """An image of the size that the network ran on last, `[1, 3, H, W]`."""
        side = self.input_size or 224
        size = _ran_at.get(self.module, (side, side))
        return torch.zeros(1, 3, *size, dtype=self.dtype, device=self.device)


def _load(backbone: str | nn.Module, weights: Weights, seed: int) -> tuple[nn.Module, BackboneInfo]:
    own = weights is None or (isinstance(weights, str) and weights == "default")
    if isinstance(backbone, nn.Module):
        if not own:
            raise ValueError(
                "weights go with a backbone's name; a module brings its own: load them into it first"
            )
        if isinstance(backbone, torch.jit.ScriptModule):
            raise TypeError(
                "backbone must be an eager torch.nn.Module: a scripted one cannot be stopped at a layer"
            )
        # A compiled module hides the one whose layers have names.
        module: nn.Module = getattr(backbone, "_orig_mod", backbone)
        mean, std, input_size = module_configuration(module)
        return module, BackboneInfo(type(module).__name__, mean, std, input_size, {"kind": "module"})
    if isinstance(backbone, str) and backbone == "gabor":
        if not own:
            raise ValueError("weights: the gabor backbone has none")
        zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return GaborBank().eval(), BackboneInfo("gabor", zeros, ones, None, {"kind": "gabor"})
    return load_backbone(backbone, weights, seed=seed)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _anchor(module: nn.Module) -> Tensor:
    """The tensor by whose device and dtype a network is known."""
    for tensor in _tensors(module):
        if tensor.is_floating_point():
            return tensor
    return torch.empty(0, dtype=torch.float32, device="cpu")


def _checked_layers(module: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got one string; write ({layers!r},)")
    layers = layer_names(layers)
    names = [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if normed_of(layer, names) is not None and last_norm(module) is None:
            raise ValueError(
                f"layers: {type(module).__name__} has no last norm, which {layer!r} needs; leave out "
                f"{NORMED_SUFFIX!r}"
            )
        if all(found(layer, names) is None for found in (input_of, normed_of)) and layer not in names:
            near = near_names(layer, names, most=5)
            top = ", ".join(near or [name for name, _ in module.named_children()][:20])
            raise ValueError(
                f"layers: {type(module).__name__} has no layer {layer!r}; did you mean one of {top}?"
            )
    return layers


def _three(
    name: str, given: Sequence[float] | None, default: tuple[float, ...]
) -> tuple[float, float, float]:
    values = tuple(float(value) for value in (default if given is None else given))
    if len(values) != 3:
        raise ValueError(f"{name} must be three numbers, got {given}")
    return values[0], values[1], values[2]


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be [B, 3, H, W], got shape {tuple(images.shape)}")
