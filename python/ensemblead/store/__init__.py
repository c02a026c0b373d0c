"""Saved models: folders, checksums, and one way to save a state."""

from ensemblead.store.folders import MANIFEST, FolderReader, FolderWriter
from ensemblead.store.saving import (
    check_target,
    load,
    read_folder,
    remove_folder,
    remove_leftovers,
    save,
    verify,
    write_folder,
)
from ensemblead.store.states import load_state, move_state, save_state

__all__ = [
    "MANIFEST",
    "FolderReader",
    "FolderWriter",
    "check_target",
    "load",
    "load_state",
    "move_state",
    "read_folder",
    "remove_folder",
    "remove_leftovers",
    "save",
    "save_state",
    "verify",
    "write_folder",
]
