"""What a tiled ensemble has learned in folders: one per location, and the statistics of the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.validation import whole_number
from ensemblead.ensembles.tile_merging import TileFrame, TileStatistics
from ensemblead.ensembles.tile_plan import TiledState, settle_in_tile
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state


def write_tiles(writer: FolderWriter, state: TiledState, *, shared: bool) -> dict[str, Any]:
    """A folder per location, of which the first has the network and the others borrow it; returns the rest,
    in JSON's types.
    """
    frame = state.frame
    for number, member in zip(frame.numbers, state.members, strict=not shared):
        borrowed = {"borrowed": True} if number != frame.numbers[0] else {}
        writer.child(_folder(number, frame, shared), member, **borrowed)
    kept: dict[str, Any] = {"image_size": list(frame.image_size), "tiles": list(frame.grid)}
    if frame.skipped:
        kept["skipped"] = list(frame.skipped)
    if state.statistics is not None:
        kept["statistics"] = save_state(writer, "statistics", state.statistics, TileStatistics)
    return kept


def read_tiles(reader: FolderReader, parameters: Mapping[str, Any]) -> TiledState:
    """What `write_tiles` wrote of an ensemble of these parameters."""
    state, shared = reader.state, parameters["shared"]
    with reader.as_damage():
        names = "tile_size", "stride", "edge"
        skipped = tuple(whole_number("skipped", number, 0) for number in state.get("skipped", ()))
        frame = TileFrame(
            tuple(state["image_size"]), **{name: parameters[name] for name in names}, skipped=skipped
        )
        grid = frame.grid
        if not len(frame):
            raise ValueError("skipped: no tile is left")
    if list(grid) != state["tiles"]:
        raise DamagedModelError(f"{reader.folder} states {state['tiles']} tiles, its sizes give {grid}")
    first, *others = frame.numbers
    members = [reader.child(_folder(first, frame, shared))]
    for number in () if shared else others:
        lent = iter([network.network for network in members[0]._networks()])
        members.append(reader.child(_folder(number, frame, shared), networks=lent))
    for member in members:
        settle_in_tile(member)
    with reader.as_damage():
        statistics = _read_statistics(reader)
        expected = {"tile": len(frame), "image": 1, "none": 0}[parameters["normalization"]]
        if (0 if statistics is None else len(statistics.values)) != expected:
            raise ValueError(f"the statistics of tiles must have {expected} rows")
    return TiledState(tuple(members), frame, statistics)


def _read_statistics(reader: FolderReader) -> TileStatistics | None:
    if reader.format == 1:
        known = reader.has("units.safetensors")
        return TileStatistics(reader.tensors("units.safetensors")["units"]) if known else None
    known = "statistics" in reader.state
    return load_state(reader, "statistics", reader.state["statistics"], TileStatistics) if known else None


def _folder(number: int, frame: TileFrame, shared: bool) -> str:
    row, column = divmod(number, frame.grid[1])
    return "member" if shared else f"tile_{row}_{column}"
