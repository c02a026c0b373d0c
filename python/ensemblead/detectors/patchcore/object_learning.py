"""Learning of `PatchCore(foreground="auto")`: find the object, then learn its patches alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ensemblead.common.errors import NotExportableError
from ensemblead.common.warnings import warn
from ensemblead.detectors.parts import Fitted, Run, Seen
from ensemblead.detectors.patchcore.accumulator import BankAccumulator
from ensemblead.detectors.patchcore.foreground import MOST_IMAGES, Foreground, find_foreground
from ensemblead.detectors.patchcore.layer_banks import LayerBanks, LayerBanksState, LayersAccumulator
from ensemblead.kernels.object_cells import ObjectCells
from ensemblead.memory import BankState, MemoryBank


@dataclass(frozen=True)
class ObjectBankState:
    """What is saved of `ObjectBanks` with one bank."""

    learned: BankState
    foreground: Foreground | None


@dataclass(frozen=True)
class ObjectLayersState:
    """What is saved of `ObjectBanks` with a bank per layer."""

    learned: LayerBanksState
    foreground: Foreground | None


@dataclass(frozen=True)
class ObjectBanks:
    """One bank or several, of patches of the object. `foreground`: None where all patches were learned, and
    are scored.
    """

    learned: MemoryBank | LayerBanks
    foreground: Foreground | None


class ObjectAccumulator:
    """Holds embeddings of normal images until the object in them is known, then has its patches learned.

    Args:
        inner: learns them.
        known: of banks that are extended: nothing has to be held.
        bank: makes an empty one, which knows how much may be held.
    """

    def __init__(
        self,
        inner: BankAccumulator | LayersAccumulator,
        known: ObjectBanks | None,
        bank: Callable[[], MemoryBank],
    ) -> None:
        self._inner, self._known, self._bank = inner, known, bank
        self._waiting: list[Seen] = []

    def add(self, seen: Seen) -> None:
        if self._known is not None:
            self._pass_on(seen, self._known.foreground)
            return
        if not self._waiting and seen.total:
            self._expect(seen)
        self._waiting.append(seen)

    def finish(self, run: Run) -> Fitted:
        foreground = self._find() if self._known is None else self._known.foreground
        while self._waiting:  # what was held of a batch goes with it
            self._pass_on(self._waiting.pop(0), foreground)
        fitted = self._inner.finish(run)
        return replace(fitted, state=ObjectBanks(fitted.state, foreground))

    def _pass_on(self, seen: Seen, foreground: Foreground | None) -> None:
        self._inner.add(seen, None if foreground is None else foreground.cells(seen.values[0]))

    def _expect(self, seen: Seen) -> None:
        """Refuse a budget that cannot hold all patches as soon as their size is known."""
        bank, sizes = self._bank(), [one.shape[1:] for one in seen.values]
        least = max(bank.bytes_for(seen.total * rows * columns, dims) for rows, columns, dims in sizes)
        if least > bank.memory_budget:
            raise ValueError(
                'foreground="auto" needs all patches at once, to find the object before any is learned, and '
                f"memory_budget={bank.memory_budget} holds fewer: give memory_budget={least}, fewer or "
                "smaller images, or foreground=None"
            )

    def _find(self) -> Foreground | None:
        """The object in some of the images, chosen by content; a warning where there is none."""
        chosen: dict[int, torch.Tensor] = {}
        for seen in (one for one in self._waiting if not one.turns):
            for content, embeddings in zip(seen.contents, seen.values[0], strict=True):
                chosen[content] = embeddings
                if len(chosen) > MOST_IMAGES:
                    del chosen[max(chosen)]
        ordered = [chosen[content] for content in sorted(chosen)]
        same = [one for one in ordered if one.shape == ordered[0].shape]
        foreground, reason = find_foreground(same)
        if foreground is None:
            warn(
                f'foreground="auto": the training images show no object on a background ({reason}), so all '
                "patches are learned and scored, as with foreground=None"
            )
        return foreground


def learned_banks(state: Any) -> Any:
    """The bank, or the banks, of a state, with or without a foreground."""
    return state.learned if isinstance(state, ObjectBanks) else state


def objects_in(state: Any, seen: Seen) -> ObjectCells | None:
    """The patches of images that a state inspects; None: all, or those of a region."""
    foreground = state.foreground if isinstance(state, ObjectBanks) else None
    return None if foreground is None else foreground.cells(seen.values[0])


def refuse_objects(state: Any) -> None:
    """Raise NotExportableError for a state with a foreground."""
    if isinstance(state, ObjectBanks) and state.foreground is not None:
        raise NotExportableError(
            'foreground="auto" decides patch by patch what is inspected: an engine that rounds otherwise may '
            "decide otherwise, and scores jump, so that no export could be verified; give a region, or "
            "foreground=None"
        )
