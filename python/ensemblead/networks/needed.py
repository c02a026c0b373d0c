"""The tensors of a network that a pass to some of its layers reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Part, input_of, normed_of


def needed_tensors(part: Part, images: Tensor) -> frozenset[str]:
    """Names in the state dict that a pass to the part's layers may read; `images` are run to see.

    A module's own tensors if it was entered; those of parts that were not, if the module ran to its end,
    since it may have read them without calling the part (as attention does with its output projection).
    """
    entered: set[nn.Module] = set()
    finished: set[nn.Module] = set()
    with _watched(part.module, entered, finished):
        EagerEngine(part).run(images)
    parts = dict(part.module.named_modules())
    # A layer of which only the input is read is entered, but the pass ends there.
    for layer in part.layers:
        base = input_of(layer, parts)
        if base is not None and parts[base] not in finished:
            entered.discard(parts[base])
    needed: set[str] = set()

    def visit(module: nn.Module, prefix: str, certain: bool) -> None:
        run = certain or module in entered
        if run:
            own = [*module._parameters, *module._buffers]
            needed.update(prefix + name for name in own)
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.", (certain or module in finished) and run)

    visit(part.module, "", False)
    if any(normed_of(layer, parts) is not None for layer in part.layers):
        needed.update(("norm.weight", "norm.bias"))
    return frozenset(needed.intersection(part.module.state_dict()))


@contextmanager
def _watched(module: nn.Module, entered: set[nn.Module], finished: set[nn.Module]) -> Iterator[None]:
    """Collects the parts that this thread enters and finishes."""
    caller = threading.get_ident()

    def note(where: set[nn.Module], part: nn.Module) -> None:
        if threading.get_ident() == caller:
            where.add(part)

    handles = []
    for part in module.modules():
        handles.append(part.register_forward_pre_hook(lambda m, _: note(entered, m)))
        handles.append(part.register_forward_hook(lambda m, _i, _o: note(finished, m)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
