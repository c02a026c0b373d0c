"""Files of tensors: those of the safetensors library, written a piece at a time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from ensemblead import store
from ensemblead.config.registry import register
from ensemblead.store import tensors as writing
from ensemblead.store.tensors import write_tensors


class Pieces(io.BytesIO):
    """A file that remembers how large the pieces were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, piece: Any) -> int:
        self.sizes.append(len(piece))
        return super().write(piece)


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 7, generator=generator)
    return {
        "rows": rows,
        "ünlike": torch.arange(5),
        "a.b": torch.tensor(3.5, dtype=torch.float64),
        "half": rows[:3].half(),
        "brain": rows[:2].bfloat16(),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "true": torch.tensor([True, False]),
        "small": torch.arange(-3, 3, dtype=torch.int8),
        "words": torch.arange(4, dtype=torch.int16),
        "ints": torch.arange(4, dtype=torch.int32),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("piece", [1 << 23, 64])
def test_files_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(writing, "_PIECE", piece)
    tensors, file = _tensors(), io.BytesIO()
    count, digest = write_tensors(file, tensors)
    data = file.getvalue()
    assert data == save(tensors)
    assert (count, digest) == (len(data), hashlib.sha256(data).hexdigest())


def test_any_layout_and_kind_of_array() -> None:
    rows = torch.randn(6, 4)
    file = io.BytesIO()
    write_tensors(file, {"t": rows.t(), "same": rows, "tied": rows, "numpy": rows.numpy()[:, ::2]})
    found = load(file.getvalue())
    assert torch.equal(found["t"], rows.t())
    assert torch.equal(found["tied"], found["same"])
    assert torch.equal(found["numpy"], rows[:, ::2])


def test_only_one_piece_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_PIECE", 1000)
    rows, file = torch.randn(500, 8), Pieces()
    write_tensors(file, {"rows": rows}, half=["rows"])
    assert max(file.sizes[1:]) == 500
    assert sum(file.sizes[1:]) == 500 * 8 * 2
    assert torch.equal(load(file.getvalue())["rows"], rows.half())


def test_a_kind_that_the_format_does_not_have() -> None:
    with pytest.raises(TypeError, match=r"cannot be saved: z: torch\.complex64"):
        write_tensors(io.BytesIO(), {"z": torch.zeros(2, dtype=torch.complex64)})


@register("test-rows")
class Rows:
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        writer.tensors("rows.safetensors", {"rows": self.rows})
        return {}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> Rows:
        return cls(reader.tensors("rows.safetensors")["rows"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_a_save_that_stops_between_two_pieces_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException]
) -> None:
    store.save(Rows(torch.zeros(3, 3)), tmp_path / "m")
    monkeypatch.setattr(writing, "_PIECE", 64)
    pieces = writing._pieces

    def stopping(*arguments: Any) -> Any:
        for number, piece in enumerate(pieces(*arguments)):
            if number == 3:
                raise error
            yield piece

    monkeypatch.setattr(writing, "_pieces", stopping)
    with pytest.raises(error):
        store.save(Rows(torch.ones(100, 3)), tmp_path / "m")
    assert torch.equal(store.load(tmp_path / "m").rows, torch.zeros(3, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_there_and_back_through_a_folder(tmp_path: Path) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 33)).astype(np.float32))
    store.save(Rows(rows), tmp_path / "m")
    assert torch.equal(store.load(tmp_path / "m").rows, rows)
