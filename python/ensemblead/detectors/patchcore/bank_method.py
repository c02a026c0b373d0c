"""A method of memory banks: what it shows of those that it has learned, and how it learns from copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemblead.detectors.method import Method
from ensemblead.detectors.parts import Fitted, Passes, Run
from ensemblead.detectors.patchcore.augmenting import AUTO, banks_of, learn_augmented, note_of
from ensemblead.detectors.patchcore.foreground import Foreground
from ensemblead.images import ImageSet
from ensemblead.memory import MemoryBank


class BankMethod(Method, abstract=True):
    """Base of `PatchCore`."""

    banks: str
    foreground: str | None
    augment: str | Sequence[str] | None

    @property
    def memory_bank_(self) -> MemoryBank:
        """The fitted bank; its rows are the embeddings of normal patches."""
        if self.banks == "per_layer":
            raise AttributeError('with banks="per_layer" there are several: see memory_banks_')
        return self.memory_banks_[0]

    @property
    def memory_banks_(self) -> tuple[MemoryBank, ...]:
        """The fitted banks: with `banks="per_layer"` one per layer, else one of all layers."""
        return banks_of(self.state_)

    @property
    def foreground_(self) -> Foreground | None:
        """What tells the object from its background; None: all is inspected, but for a region."""
        return None if self.foreground is None else self.state_.foreground

    @property
    def augment_(self) -> tuple[str, ...]:
        """How images were changed besides: "rotations", "brightness", both, or, as with None, not at all."""
        return self.memory_banks_[0].augment_

    @property
    def learned_(self) -> dict[str, int]:
        banks = self.memory_banks_
        dimensions = sum(int(bank.rows_.shape[1]) for bank in banks)
        known = sum(len(bank.defects_) for bank in banks if bank.defects_ is not None)
        learned = {"bank_rows": sum(map(len, banks)), "dimensions": dimensions}
        return {**learned, "defect_rows": known} if known else learned

    @property
    def settled_(self) -> dict[str, Any]:
        return {"augment": list(self.augment_)} if self.augment == AUTO else {}

    @property
    def passes(self) -> Passes:
        return "one" if self.augment is None else "many"

    def _learn(self, images: ImageSet, run: Run, *, extending: bool) -> Fitted:
        return learn_augmented(self, images, run, extending=extending)

    def _settled_text(self) -> str:
        return f", {note_of(self.augment_)}" if self.augment == AUTO else ""
