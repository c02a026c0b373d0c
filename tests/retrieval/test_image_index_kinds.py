"""Approximate kinds of `ImageIndex`: what they find, and what becomes of their search structures."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from support.vectors import clustered, vector_of, vectors_of

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.retrieval import folder as folders
from ensemblead.retrieval import structures, view
from ensemblead.retrieval.structures import KINDS

APPROXIMATE = [kind for kind in KINDS if kind != "flat"]
TRAINED_QUICKLY = [kind for kind in APPROXIMATE if kind != "pq"]
COUNT, DIM = 1500, 16
ROWS = clustered(COUNT, DIM)
NAMES = [f"{i:04}" for i in range(COUNT)]
QUERIES = clustered(20, DIM, seed=0) + np.float32(0.05)


def build(out: Path, kind: str, count: int = COUNT, **options: Any) -> ead.ImageIndex:
    labels = [f"{i % 30}" for i in range(count)]
    return ead.ImageIndex.from_vectors(NAMES[:count], ROWS[:count], out, kind=kind, labels=labels, **options)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """The ten nearest of every query."""
    with build(tmp_path_factory.mktemp("flat") / "index", "flat") as index:
        return [set(line) for line in index.search(QUERIES, top=10).paths]


def similarities_hold(hits: Any) -> None:
    """Similarities are those of the images named, in order, each image once."""
    unit = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    for query, ids, similarities in zip(unit, hits.ids, hits.similarities, strict=True):
        np.testing.assert_allclose(similarities, ROWS[ids].astype(np.float16) @ query, atol=5e-4)
        assert len(set(ids.tolist())) == len(ids)
        assert (np.diff(similarities) <= 0).all()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_they_find_most_of_the_nearest(tmp_path: Path, kind: str, exact: list[set[str]]) -> None:
    with build(tmp_path / "x", kind) as index:
        hits = index.search(QUERIES, top=10)
        similarities_hold(hits)
        recall = np.mean([len(set(line) & near) / 10 for line, near in zip(hits.paths, exact, strict=True)])
        assert recall > 0.9
        assert [path.suffix for path in (tmp_path / "x").glob("ann.0.*")]
        index.verify()
    with ead.ImageIndex.open(tmp_path / "x") as index:
        np.testing.assert_array_equal(index.search(QUERIES, top=10).ids, hits.ids)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_as_many_as_asked_for_and_none_that_was_removed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_FEW", 0)
    monkeypatch.setattr(view, "SMALLEST", 0)  # no filter is so narrow that rows are searched exactly
    with build(tmp_path / "x", kind) as index:
        nearest = index.search(QUERIES, top=15).paths
        gone = sorted({path for line in nearest for path in line})[:300]
        index.remove(gone)
        assert (tmp_path / "x/vectors.0.f16").exists()  # not compacted: tombstones are left out of searches
        for top in (1, 15, 900):
            hits = index.search(QUERIES, top=top)
            similarities_hold(hits)
            assert hits.ids.shape == (20, top)
            assert not {path for line in hits.paths for path in line} & set(gone)
        hits = index.search(QUERIES, top=1, where={"label": ["7", "8"]})
        similarities_hold(hits)
        assert {label for line in hits.labels for label in line} <= {"7", "8"}


@pytest.mark.parametrize("kind", TRAINED_QUICKLY)
def test_rows_added_later_are_found(tmp_path: Path, kind: str) -> None:
    """Before and after they are in the file of the structure, by this object and by others."""
    with build(tmp_path / "x", kind) as index, ead.ImageIndex.open(tmp_path / "x") as other:
        other.search(QUERIES)
        file = next((tmp_path / "x").glob("ann.0.*"))
        before = file.read_bytes()
        names = ["new 1", "new 2"]
        index.add_vectors(names, vectors_of(names, DIM))
        assert file.read_bytes() == before  # two rows are not worth a new file
        for found in (index, other):
            assert found.search(vector_of("new 1", DIM), top=1).paths == [["new 1"]]
        many = [f"more {i}" for i in range(1100)]
        index.add_vectors(many, vectors_of(many, DIM))
        assert file.read_bytes() != before
        for found in (index, other):
            assert found.search(vectors_of(many[:5], DIM), top=1).paths == [[name] for name in many[:5]]
        other.verify()
    with ead.ImageIndex.open(tmp_path / "x") as index:
        assert index.search(vector_of("more 9", DIM), top=1).paths == [["more 9"]]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_structure_of_a_later_state_is_no_damage(
    tmp_path: Path, compacted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer replaces the structure between a reader's look at the state and at the file."""
    build(tmp_path / "x", "ivf").close()
    read, many = structures.Structure.read, [f"more {i}" for i in range(1100)]

    def read_late(*arguments: Any) -> structures.Structure:
        monkeypatch.setattr(structures.Structure, "read", read)
        with ead.ImageIndex.open(tmp_path / "x") as writer:
            writer.add_vectors(many, vectors_of(many, DIM))
            if compacted:
                writer.remove(NAMES[:5])
                writer.compact()
        return read(*arguments)

    monkeypatch.setattr(structures.Structure, "read", read_late)
    with ead.ImageIndex.open(tmp_path / "x") as index:
        assert index.search(vectors_of(many[:3], DIM), top=1).paths == [[name] for name in many[:3]]
        assert len(index) == COUNT + 1100 - 5 * compacted


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("hnsw", "flipped"),
        *((kind, damage) for kind in ("ivf", "usearch") for damage in ("flipped", "cut", "of another")),
        *(("ivf", damage) for damage in ("missing", "header", "garbage")),
    ],
)
def test_a_damaged_structure_is_built_anew(
    tmp_path: Path, kind: str, damage: str, exact: list[set[str]]
) -> None:
    build(tmp_path / "x", kind).close()
    file = next((tmp_path / "x").glob("ann.0.*"))
    data = file.read_bytes()
    line, body = data.split(b"\n", 1)
    if damage == "missing":
        file.unlink()
    elif damage == "of another":
        other = structures.Structure.build("hnsw" if kind == "ivf" else "ivf", ROWS[:1200], 0)
        other.write(file)
    else:
        file.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "flipped": line + b"\n" + body[:100] + bytes([body[100] ^ 1]) + body[101:],
                "header": line.replace(b'"rows": 1500', b'"rows": 1499') + b"\n" + body,
                "garbage": b"\x00" * 5000,
            }[damage]
        )
    with ead.ImageIndex.open(tmp_path / "x") as index:
        if damage == "missing":
            hits = index.search(QUERIES, top=10)
        else:
            with pytest.raises(DamagedModelError, match=r"ann\.0"):
                index.verify()
            with pytest.warns(UserWarning, match="built anew from the vectors"):
                hits = index.search(QUERIES, top=10)
        recall = np.mean([len(set(line) & near) / 10 for line, near in zip(hits.paths, exact, strict=True)])
        assert recall > 0.9
        index.verify()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ead.ImageIndex.open(tmp_path / "x") as index:
            np.testing.assert_array_equal(index.search(QUERIES, top=10).ids, hits.ids)


@pytest.mark.parametrize("kind", TRAINED_QUICKLY)
def test_a_structure_whose_checksum_fits_is_still_checked(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    structures.Structure.build(kind, ROWS[:1200], 0).write(file)
    with pytest.raises(DamagedModelError, match="does not fit"):
        structures.Structure.read(file, kind, DIM, 1100)
    with pytest.raises(DamagedModelError, match="dimensions"):
        structures.Structure.read(file, kind, DIM + 1, 1500)
    line, body = file.read_bytes().split(b"\n", 1)
    header = {**json.loads(line), "rows": 1300}
    del header["sha256"]
    digest = hashlib.sha256(json.dumps(header).encode() + body).hexdigest()
    file.write_bytes(json.dumps({**header, "sha256": digest}).encode() + b"\n" + body)
    with pytest.raises(DamagedModelError, match="1200 rows"):
        structures.Structure.read(file, kind, DIM, 1500)


@pytest.mark.parametrize("kind", TRAINED_QUICKLY)
def test_compaction_builds_the_structure_anew(tmp_path: Path, kind: str) -> None:
    with build(tmp_path / "x", kind) as index, ead.ImageIndex.open(tmp_path / "x") as other:
        other.search(QUERIES)
        said: list[Any] = []
        index.remove(NAMES[:400:2])
        index.compact(progress=lambda *args: said.append(args))
        assert said == [("index", 1300, 1300)]
        assert sorted(path.name for path in (tmp_path / "x").glob("*.1.*")) == sorted(
            [f"ann.1.{'usearch' if kind == 'usearch' else 'faiss'}", "vectors.1.f16"]
        )
        assert not list((tmp_path / "x").glob("*.0.*"))
        for found in (index, other):
            hits = found.search(QUERIES, top=10)
            similarities_hold(hits)
            assert not {path for line in hits.paths for path in line} & set(NAMES[:400:2])
        index.compact()  # nothing is dead
        assert (tmp_path / "x/vectors.1.f16").exists()
        index.verify()


@pytest.mark.parametrize("kind", TRAINED_QUICKLY)
def test_a_disk_that_is_full_is_said_as_it_is(tmp_path: Path, kind: str) -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    structure = structures.Structure.build(kind, ROWS[:1200], 0)
    with pytest.raises(OSError, match="No space left"):
        structure.engine.write(full)


def test_a_search_needs_no_room_for_the_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: structures.Structure, path: Path) -> None:
        raise OSError(28, "No space left on device")

    build(tmp_path / "x", "ivf").close()
    next((tmp_path / "x").glob("ann.0.*")).unlink()
    monkeypatch.setattr(structures.Structure, "write", full)
    said = "search structure cannot be written, .*: .* No space left"
    with ead.ImageIndex.open(tmp_path / "x") as index, pytest.warns(UserWarning, match=said):
        assert index.search(ROWS[:3], top=1).paths == [["0000"], ["0001"], ["0002"]]


def test_few_rows_have_no_structure(tmp_path: Path) -> None:
    with build(tmp_path / "x", "pq", 100) as index:
        assert index.search(ROWS[:3], top=1).paths == [["0000"], ["0001"], ["0002"]]
        assert not list((tmp_path / "x").glob("ann*"))


def test_an_outgrown_structure_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "SMALLEST", 64)
    monkeypatch.setattr(folders, "SMALLEST", 64)
    with build(tmp_path / "x", "ivf", 200) as index:
        for count, trained in ((700, 200), (COUNT, COUNT)):
            index.add_vectors(NAMES[:count], ROWS[:count])
            line = (tmp_path / "x/ann.0.faiss").read_bytes().split(b"\n", 1)[0]
            assert (json.loads(line)["rows"], json.loads(line)["trained"]) == (count, trained)


def test_the_same_seed_gives_the_same_structure(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(tmp_path / name, "ivf", seed=seed).close()
        files.append((tmp_path / name / "ann.0.faiss").read_bytes())
    assert files[0] == files[1] != files[2]
