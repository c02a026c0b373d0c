"""Feature maps of named layers of a frozen network."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.validation import near_names
from ensemblead.networks.backbones import BackboneInfo, Weights, load_backbone, module_configuration
from ensemblead.networks.compiled import CompiledPass
from ensemblead.networks.folding import fold_batch_norms
from ensemblead.networks.gabor import GaborBank
from ensemblead.networks.grids import TokenLayout
from ensemblead.networks.weights import require_loaded

# The size of the images that a network ran on last, whichever extractor ran it: some networks take no other.
_ran_at: weakref.WeakKeyDictionary[nn.Module, tuple[int, int]] = weakref.WeakKeyDictionary()


class FeatureExtractor:
    """Runs a frozen network as far as the layers asked for, and returns what they put out.

    Args:
        backbone: a name (`load_backbone`: timm, then torchvision), "gabor", or any `torch.nn.Module`. A
            module is used as it is, not copied: while it runs here it is in eval mode without gradients and
            has hooks; after every call its training flags and hooks are as before. `to` moves it for good.
        layers: names of submodules at any depth, as `named_modules` gives them, in the order wanted back. A
            layer that is called several times in one pass gives the output of its first call.
        weights: for a name, see `load_backbone`: "default", a path, a state dict, or None for random ones.
            It may lack tensors that are not needed to reach the layers. A module and "gabor" bring their own.
        seed: of the random initialisation under `weights=None`.
        mean, std: of the three channels, for RGB in 0..1; by default those the weights were trained with
            (for a module that carries no record of them, ImageNet's).

    Attributes:
        name: "resnet18", or the module's class. `layers`: a tuple. `mean`, `std`. `input_size`: the side
            that the weights were trained at, or None. `module`: the network. `source`: where it came from,
            in JSON's types.

    Raises ValueError for a layer that does not exist (near matches suggested), for weights that lack what the
    layers need or belong to another network, TypeError for the wrong kind of thing; see `load_backbone` as
    well.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        layers: Sequence[str],
        *,
        weights: Weights = "default",
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        module, info = _load(backbone, weights, seed)
        self.name = info.name
        self.input_size = info.input_size
        self.source: dict[str, Any] = info.source
        self.mean = _three("mean", mean, info.mean)
        self.std = _three("std", std, info.std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        self.module = module
        self._scale: Tensor | None = None
        # Networks with folded batch norms by their layers, shared as the compiled passes are; None: not asked
        # for.
        self._folded: dict[tuple[str, ...], nn.Module] | None = None
        # Compiled passes by their layers, shared by all extractors over this network; None: not asked for.
        self._compiled: dict[tuple[str, ...], CompiledPass] | None = None
        self._set_layers(layers)
        if info.missing:
            what = self.source.get("path", "the state dict given")
            require_loaded(info.missing, self._needed_names(), self.layers, what)

    def _set_layers(self, layers: Sequence[str]) -> None:
        self.layers = _checked_layers(self.module, layers)
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
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.module = copy.deepcopy(self.module)
        if self.module in _ran_at:
            _ran_at[other.module] = _ran_at[self.module]
        other._folded = None if self._folded is None else {}
        other._compiled = None if self._compiled is None else {}
        other._set_layers(self.layers)
        other._channels_last = self._channels_last
        return other

    def is_at(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether `to` would leave the values and places of all parameters and buffers as they are."""
        tensors = (t for group in (self.module.parameters(), self.module.buffers()) for t in group)
        return all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters (or buffers) lie."""
        return self._anchor().device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self._anchor().dtype

    def _anchor(self) -> Tensor:
        tensors = (t for group in (self.module.parameters(), self.module.buffers()) for t in group)
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

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
        self.module.to(**arguments)
        self._channels_last = channels_last
        if self._folded is not None:
            self._folded.clear()
        if self._compiled is not None:
            self._compiled.clear()  # their graphs are of the old place
        return self

    def fold(self) -> FeatureExtractor:
        """Run convolutions and the batch norms behind them as one from now on; returns self.

        For networks that nobody changes: folded weights are made at the first call, and kept beside the
        original ones. In float32 only, where the outputs differ by rounding; compiled passes fold themselves.
        """
        if self._folded is None:
            self._folded = {}
        return self

    def compile(self) -> FeatureExtractor:
        """Run the network through `torch.compile` from now on; returns self.

        It is compiled at the first call, which takes long, and again for batches of one image. Call it after
        `to`. Raises CompilationError, at that first call, where the network cannot be compiled.
        """
        if self._compiled is None:
            self._compiled = {}
        return self

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
            self._scale = torch.tensor([self.mean, self.std]).mul(255.0).to(pixels.device)
        mean, std = self._scale.view(2, 1, 3, 1, 1)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return pixels.sub_(mean).div_(std).to(self.dtype, memory_format=layout)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Normalised images, float `[B, 3, H, W]` -> one `[B, C_l, H_l, W_l]` per layer, in the order of
        `layers`.

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
        outputs = self._pass(images.to(self.dtype).contiguous(memory_format=layout), size)
        grids = [self._layout.to_grid(outputs[layer], layer, size) for layer in self.layers]
        grids = [grid.contiguous(memory_format=layout) for grid in grids]
        self._shapes[size] = [tuple(grid.shape[1:]) for grid in grids]
        _ran_at[self.module] = size
        return grids

    def channels(self, image_size: int | tuple[int, int]) -> tuple[int, ...]:
        """Channels of each layer for images of `image_size` (a side, or (h, w)); one blank image is run to
        see.
        """
        return tuple(shape[0] for shape in self._probe(image_size))

    def grid(self, image_size: int | tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the first layer's grid for images of `image_size` (a side, or (h, w))."""
        _, rows, columns = self._probe(image_size)[0]
        return rows, columns

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that reaching the layers takes, as `weights=` accepts them back."""
        needed = self._needed_names()
        return {name: tensor for name, tensor in self.module.state_dict().items() if name in needed}

    def __repr__(self) -> str:
        return f"FeatureExtractor({self.name!r}, layers={self.layers})"

    def _probe(self, image_size: int | tuple[int, int]) -> list[tuple[int, ...]]:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if size not in self._shapes:
            if min(size) < 1:
                raise ValueError(f"image_size must be positive, got {image_size}")
            self(torch.zeros(1, 3, *size, dtype=self.dtype, device=self.device))
        return self._shapes[size]

    def _pass(self, images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        if self._compiled is None:
            return self._run(images, self._folded_for(images))
        if self.layers not in self._compiled:
            # One image as written, so that what is wrong with the layers is said before anything is compiled.
            outputs = self._run(images[:1])
            for layer in self.layers:
                self._layout.to_grid(outputs[layer], layer, size)
            self._compiled[self.layers] = CompiledPass(self.module, self.layers, self.name)
        return self._compiled[self.layers](images)

    def _folded_for(self, images: Tensor) -> nn.Module:
        if self._folded is None or self.dtype != torch.float32:
            return self.module
        if self.layers not in self._folded:
            probe = images[:1]
            found = fold_batch_norms(self.module, lambda module: self._run(probe, module), self.layers)
            self._folded[self.layers] = self.module if found is None else found
        return self._folded[self.layers]

    def _run(self, images: Tensor, module: nn.Module | None = None) -> dict[str, Tensor]:
        """One pass, ended by an exception from the hook of the last layer needed; through the network, or a
        twin of it.
        """
        module = self.module if module is None else module
        outputs: dict[str, Any] = {}
        caller = threading.get_ident()

        def tap(layer: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                # Another thread may be running the same network through another extractor.
                if layer in outputs or threading.get_ident() != caller:
                    return
                last = len(outputs) == len(self.layers) - 1
                # What follows may write into this tensor (ReLU in place); after the last one nothing follows.
                outputs[layer] = output if last or not isinstance(output, Tensor) else output.clone()
                if last:
                    raise _Reached

            return hook

        parts = dict(module.named_modules())
        with _frozen(module), _eager(module):
            handles = [parts[layer].register_forward_hook(tap(layer)) for layer in self.layers]
            try:
                module(images)
            except _Reached:
                return outputs
            finally:
                for handle in handles:
                    handle.remove()
        unreached = [layer for layer in self.layers if layer not in outputs]
        raise ValueError(f"layers: {unreached} exist in {self.name} but its forward pass never calls them")

    def _needed_names(self) -> frozenset[str]:
        """Names in the state dict that a pass to the layers may read.

        A module's own tensors if it was entered; those of parts that were not, if the module ran to its
        end, since it may have read them without calling the part (as attention does with its output
        projection).
        """
        entered: set[nn.Module] = set()
        finished: set[nn.Module] = set()
        with _watched(self.module, entered, finished):
            side = self.input_size or 224
            size = _ran_at.get(self.module, (side, side))
            self._run(torch.zeros(1, 3, *size, dtype=self.dtype, device=self.device))
        needed: set[str] = set()

        def visit(module: nn.Module, prefix: str, certain: bool) -> None:
            run = certain or module in entered
            if run:
                own = [*module._parameters, *module._buffers]
                needed.update(prefix + name for name in own)
            for name, child in module.named_children():
                visit(child, f"{prefix}{name}.", (certain or module in finished) and run)

        visit(self.module, "", False)
        return frozenset(needed.intersection(self.module.state_dict()))


class _Reached(BaseException):
    """Ends a forward pass. No Exception, lest a network that catches those swallows it."""


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


def _checked_layers(module: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got one string; write ({layers!r},)")
    layers = tuple(layers)
    if not layers:
        raise ValueError("layers must not be empty")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers must differ from each other, got {layers}")
    names = [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if layer not in names:
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


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, so that no batch norm counts these images; every flag as it was outside."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _eager(module: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled parts as written: a compiled graph has no hooks on its layers and no way to stop
    inside.
    """
    compiled = any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
    if not compiled:
        return nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        raise TypeError("backbone must not be compiled: this torch (before 2.6) cannot run it uncompiled")
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _watched(module: nn.Module, entered: set[nn.Module], finished: set[nn.Module]) -> Iterator[None]:
    handles = []
    for part in module.modules():
        handles.append(part.register_forward_pre_hook(lambda m, _: entered.add(m)))
        handles.append(part.register_forward_hook(lambda m, _i, _o: finished.add(m)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
