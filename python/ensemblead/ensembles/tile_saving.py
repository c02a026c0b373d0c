"""What a tiled ensemble has learned in folders: one per location, and the statistics of the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemblead.common.errors import DamagedModelError
from ensemblead.ensembles.tile_merging import TileFrame, TileStatistics
from ensemblead.ensembles.tile_plan import TiledState
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state


def write_tiles(writer: FolderWriter, state: TiledState, *, shared: bool) -> dict[str, Any]:
    """A folder per location, of which the first has the network and the others borrow it; returns the rest,
    in JSON's types.
    """
    frame = state.frame
    for number, member in enumerate(state.members):
        borrowed = {"borrowed": True} if number else {}
        writer.child(_folder(number, frame, shared), member, **borrowed)
    kept: dict[str, Any] = {"image_size": list(frame.image_size), "tiles": list(frame.grid)}
    if state.statistics is not None:
        kept["statistics"] = save_state(writer, "statistics", state.statistics, TileStatistics)
    return kept


def read_tiles(reader: FolderReader, parameters: Mapping[str, Any]) -> TiledState:
    """What `write_tiles` wrote of an ensemble of these parameters."""
    state, shared = reader.state, parameters["shared"]
    with reader.as_damage():
        size, names = tuple(state["image_size"]), ("tile_size", "stride", "edge")
        frame = TileFrame(size, *(parameters[name] for name in names))
        grid = frame.grid
    if list(grid) != state["tiles"]:
        raise DamagedModelError(f"{reader.folder} states {state['tiles']} tiles, its sizes give {grid}")
    members = [reader.child(_folder(0, frame, shared))]
    for number in range(1, 1 if shared else len(frame)):
        lent = iter([network.network for network in members[0]._networks()])
        members.append(reader.child(_folder(number, frame, shared), networks=lent))
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
