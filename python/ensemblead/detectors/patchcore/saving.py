"""States of `PatchCore` in folders: banks' rows, without the structures that are searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ensemblead.detectors.patchcore.layer_banks import LayerBanks, LayerBanksState
from ensemblead.detectors.patchcore.object_learning import ObjectBanks, ObjectBankState, ObjectLayersState
from ensemblead.memory import BankState, MemoryBank
from ensemblead.store import FolderReader


def state_to_save(cls: type, state: Any) -> Any:
    """What is saved of a state, as a `cls`, `PatchCore.State`."""
    if isinstance(state, ObjectBanks):
        learned = state.learned
        inner = LayerBanksState if isinstance(learned, LayerBanks) else BankState
        return cls(state_to_save(inner, learned), state.foreground)
    if isinstance(state, LayerBanks):
        return cls(tuple(bank.state() for bank in state.banks), state.scales)
    return state.state()


def in_half(state: Any) -> tuple[Any, Sequence[str]]:
    """For `Method._in_half`."""
    if isinstance(state, (ObjectBankState, ObjectLayersState)):
        learned, fields = in_half(state.learned)
        return replace(state, learned=learned), [f"learned.{field}" for field in fields]
    if isinstance(state, BankState):
        return state.for_half(), ("rows",) if state.defects is None else ("rows", "defects.rows")
    halves = tuple(bank.for_half() for bank in state.banks)
    return replace(state, banks=halves), [f"banks.{i}.rows" for i in range(len(halves))]


def state_from_saved(saved: Any, parameters: Mapping[str, Any], count: int) -> Any:
    """The reverse of `state_to_save`: so many banks of `MemoryBank.parameters`.

    Raises ValueError or TypeError for what does not go together.
    """
    if isinstance(saved, (ObjectBankState, ObjectLayersState)):
        banks, foreground = state_from_saved(saved.learned, parameters, count), saved.foreground
        return ObjectBanks(banks, None if foreground is None else foreground.fitting(learned_width(banks)))
    states = saved.banks if isinstance(saved, LayerBanksState) else (saved,)
    if len(states) != count:
        raise ValueError(f"there must be one bank per layer ({count}), got {len(states)}")
    banks = tuple(MemoryBank.from_state(parameters, one) for one in states)
    return LayerBanks(banks, saved.scales) if isinstance(saved, LayerBanksState) else banks[0]


def learned_width(banks: MemoryBank | LayerBanks) -> int:
    """Dimensions of the embeddings that tell the object: the first bank's."""
    first = banks.banks[0] if isinstance(banks, LayerBanks) else banks
    return int(first.rows_.shape[1])


def state_of_format1(reader: FolderReader) -> BankState:
    """For `Method._state_from_format1`."""
    known, tensors = reader.state["bank"], reader.tensors("bank.safetensors")
    return BankState(
        rows=tensors["rows"],
        images=tensors["images"],
        projection=tensors.get("projection"),
        radius=known["radius"],
        num_added=known["num_added"],
        index=reader.data("bank.faiss") if reader.has("bank.faiss") else None,
    )
