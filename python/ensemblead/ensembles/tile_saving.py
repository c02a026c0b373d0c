"""What a tiled ensemble has learned in folders: one per location, and the statistics of the tiles.

Folders of the first scale, and what was saved before there were scales, have names without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.validation import pair, whole_number
from ensemblead.ensembles.tile_merging import TileStatistics
from ensemblead.ensembles.tile_plan import TiledState, settle_in_tile
from ensemblead.ensembles.tile_pyramid import TilePyramid, checked_scales
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state


def write_tiles(writer: FolderWriter, state: TiledState, *, shared: bool) -> dict[str, Any]:
    """A folder per location, of which the first has the network and the others borrow it; returns the rest,
    in JSON's types.
    """
    frame = state.frame
    for group, member in zip(frame.groups(shared), state.members, strict=True):
        borrowed = {"borrowed": True} if group[0] != frame.numbers[0] else {}
        writer.child(_folder(group[0], frame, shared), member, **borrowed)
    kept: dict[str, Any] = {"image_size": list(frame.image_size), "tiles": list(frame.levels[0].grid)}
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
        scales = checked_scales(parameters.get("scales", (1.0,)))
        sizes = {name: parameters[name] for name in names}
        size = pair("image_size", tuple(state["image_size"]), 1)
        frame = TilePyramid.of(size, scales, **sizes).without(skipped)
        grid = frame.levels[0].grid
        if not all(map(len, frame.levels)):
            raise ValueError("skipped: no tile is left")
    if list(grid) != state["tiles"]:
        raise DamagedModelError(f"{reader.folder} states {state['tiles']} tiles, its sizes give {grid}")
    first, *others = frame.groups(shared)
    members = [reader.child(_folder(first[0], frame, shared))]
    for group in others:
        lent = iter([network.network for network in members[0]._networks()])
        members.append(reader.child(_folder(group[0], frame, shared), networks=lent))
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


def _folder(number: int, frame: TilePyramid, shared: bool) -> str:
    which, own = frame.place(number)
    row, column = divmod(own, frame.levels[which].grid[1])
    name = "member" if shared else f"tile_{row}_{column}"
    return f"scale{which}_{name}" if which else name
