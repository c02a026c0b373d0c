"""Writers of an `ImageIndex` that are killed, two processes at once, damage to files, and random walks."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.campaigns import trials
from support.registry import separate_registry

pytest.importorskip("torch")

from support.mean_colours import MeanColours, draw_image, register_mean_colours
from support.vectors import vector_of, vectors_of

import ensemblead as ead
from ensemblead.common.errors import (
    DamagedModelError,
    EnsembleADError,
    IndexBusyError,
    NewerFormatError,
)
from ensemblead.retrieval import folder as folders
from ensemblead.retrieval import structures, view

SUPPORT = Path(__file__).resolve().parents[1] / "support"
NAMES = [f"image {i:03}" for i in range(40)]
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An index of 40 ready vectors, of which one was removed."""
    with ead.ImageIndex.from_vectors(NAMES, vectors_of(NAMES), tmp_path / "index", labels=NAMES) as index:
        index.remove("image 005")
    return tmp_path / "index"


# --- killed ---------------------------------------------------------------------------------------


def struck(tmp_path: Path, blow: str, trials: int, seed: int) -> dict[str, int]:
    call = [sys.executable, str(SUPPORT / "struck.py"), "index", blow, str(tmp_path), str(trials), str(seed)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, **THREADS})
    assert done.returncode == 0, done.stderr[-3000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"index, {blow}: {counts}")
    assert {key for key in counts if key.startswith("ended")} == set()
    return counts


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked")
def test_killed_at_any_line_it_is_whole(tmp_path: Path) -> None:
    counts = struck(tmp_path, "line", 8, 0)
    assert counts["killed"] > 3
    assert counts.get("error", 0) == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a full disk is a limit of Linux here")
@pytest.mark.parametrize(("blow", "count"), [("line", 150), ("kill", 40), ("disk", 20)])
def test_struck_it_is_whole(tmp_path: Path, blow: str, count: int) -> None:
    counts = struck(tmp_path, blow, trials(count), 1)
    assert counts.get("error" if blow == "disk" else "killed", 0) > trials(count) // 10


def test_what_a_killed_writer_leaves_is_ignored_and_removed(out: Path) -> None:
    """Rows that were not committed, a generation that was not, and files that were not renamed."""
    with open(out / "vectors.0.f16", "ab") as file:
        file.write(b"\xff" * 100)
    left = [out / name for name in ("vectors.1.f16", "ann.1.faiss", ".123-0123abcd.tmp")]
    for path in left:
        path.write_bytes(b"half")
    (out / "vectors.notes.txt").touch()  # somebody else's
    with ead.ImageIndex.open(out) as index:
        assert index.search(vector_of("image 007"), top=1).paths == [["image 007"]]
        assert all(path.exists() for path in left)  # a reader removes nothing
        index.add_vectors(["new"], vectors_of(["new"]))
        assert (out / "vectors.0.f16").stat().st_size == 41 * 8 * 2
        assert not any(path.exists() for path in left)
        assert (out / "vectors.notes.txt").exists()
        index.verify()


def test_an_unfinished_folder_is_finished(tmp_path: Path) -> None:
    vectors = vectors_of(NAMES)
    ead.ImageIndex.from_vectors(NAMES, vectors, tmp_path / "x").close()
    shutil.copytree(tmp_path / "x", tmp_path / "damaged")
    (tmp_path / "damaged/index.json").unlink()
    with pytest.raises(DamagedModelError, match="is incomplete: index.json is missing"):
        ead.ImageIndex.from_vectors(NAMES, vectors, tmp_path / "damaged")
    # Killed before there were any rows.
    for name in ("index.json", "vectors.0.f16", "catalogue.sqlite"):
        (tmp_path / "x" / name).unlink()
    with ead.ImageIndex.from_vectors(NAMES, vectors, tmp_path / "x") as index:
        assert len(index) == 40


# --- two at once ----------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from support.vectors import vectors_of
import ensemblead as ead
names = [f"image {i:03}" for i in range(40)]
with ead.ImageIndex.open(sys.argv[2]) as index:
    for number in range(6):
        new = [f"round {number} {i}" for i in range(30)]
        index.add_vectors(new, vectors_of(new))
        index.add_vectors(names[6:9], vectors_of(names[6:9], version=number % 2))
        index.remove(new[:20])
        index.compact()
        index.remove(new[20:])
"""


def test_readers_see_whole_states_while_another_process_writes(out: Path) -> None:
    query = vector_of("query")
    call = [sys.executable, "-c", WRITER, str(SUPPORT.parent), str(out)]
    writer = subprocess.Popen(call, env={**os.environ, **THREADS}, stderr=subprocess.PIPE, text=True)
    sizes = set()
    with ead.ImageIndex.open(out) as index:
        while writer.poll() is None or not sizes:
            time.sleep(0.01)  # half of a core is the writer's
            hits = index.search(query, top=1000)[0]
            names = [hit.path for hit in hits]
            sizes.add(len(names))
            assert len(set(names)) == len(names)
            rounds = {name.split()[1] for name in names if name.startswith("round")}
            assert len(rounds) <= 1  # one round's images are gone when the next one's come
            assert sum(name.startswith("image") for name in names) == 39
            for hit in hits:
                known = [vector_of(hit.path, version=version) @ query for version in (0, 1)]
                assert min(abs(hit.similarity - one) for one in known) < 2e-3
        index.verify()
    assert writer.stderr is not None
    with writer.stderr:
        assert writer.wait() == 0, writer.stderr.read()
    assert sizes <= {39, 49, 69}
    assert len(sizes) > 1


def test_a_second_writer_is_told_so(out: Path) -> None:
    with ead.ImageIndex.open(out) as one, ead.ImageIndex.open(out) as two:
        with one._folder.writing():
            for write in (
                lambda: two.add_vectors(["new"], vectors_of(["new"])),
                lambda: two.remove("image 001"),
                two.compact,
                lambda: ead.ImageIndex.from_vectors(NAMES, vectors_of(NAMES), out),
            ):
                with pytest.raises(IndexBusyError, match="is being written to"):
                    write()
            assert len(two) == 39
            assert two.search(vector_of("image 001"), top=1).paths == [["image 001"]]
        assert two.remove("image 001") == 1
        assert len(one) == 38


# --- damage ---------------------------------------------------------------------------------------


def damaged(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    assert change(data) != data
    path.write_bytes(change(data))


def cut(data: bytes) -> bytes:
    return data[:-5]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("index.json", cut, "index.json is damaged"),
        ("index.json", lambda data: data.replace(b'"dim": 8', b'"dim": 9'), "its checksum does not fit"),
        ("index.json", lambda data: b"[]", "index.json is damaged"),
        ("catalogue.sqlite", lambda data: b"nothing", "catalogue.sqlite is damaged"),
        ("catalogue.sqlite", lambda data: data[:100], "catalogue.sqlite is damaged"),
        ("catalogue.sqlite", lambda data: b"", "catalogue.sqlite is damaged"),
        ("catalogue.sqlite", None, "is incomplete: catalogue.sqlite is missing"),
        ("vectors.0.f16", cut, "has 635 bytes, but 640 of 40 rows were committed"),
        ("vectors.0.f16", None, "is incomplete: vectors.0.f16 is missing"),
    ],
)
def test_damage_is_refused(out: Path, name: str, change: Any, message: str) -> None:
    if change is None:
        (out / name).unlink()
    else:
        damaged(out / name, change)
    with pytest.raises(DamagedModelError, match=message):
        ead.ImageIndex.open(out)


def test_an_altered_vector_is_named(out: Path) -> None:
    damaged(out / "vectors.0.f16", lambda data: data[:161] + bytes([data[161] ^ 1]) + data[162:])
    said = r"image 10 \(image 010\) is not what was stored"
    with ead.ImageIndex.open(out) as index, pytest.raises(DamagedModelError, match=said):
        index.verify()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET rows = 39",
        "UPDATE state SET rows = NULL",
        "UPDATE state SET generation = -1",
        "DELETE FROM state",
        "DELETE FROM images WHERE id = 7",
        "UPDATE images SET row = 4000000 WHERE id = 39",
        "UPDATE images SET row = 4000000 WHERE id = 5",
        "UPDATE images SET removed = NULL WHERE id = 5",
        "UPDATE images SET added = added + 1 WHERE id = 7",
        "UPDATE images SET label = 'image 008' WHERE id = 7",
        "UPDATE images SET path = x'ff00' WHERE id = 7",
        "UPDATE images SET label = CAST(x'ff' AS TEXT) WHERE id = 7",
        "DROP TABLE images",
    ],
)
def test_a_catalogue_that_contradicts_itself(out: Path, statement: str) -> None:
    connection = sqlite3.connect(out / "catalogue.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(DamagedModelError), ead.ImageIndex.open(out) as index:
        index.verify()


def test_flipped_bytes_are_noticed_or_harm_nothing(out: Path, tmp_path: Path) -> None:
    def contents(path: Path) -> str:
        with ead.ImageIndex.open(path) as index:
            index.verify()
            hits = index.search(vectors_of(NAMES[:2]), top=100)
            return f"{hits}{hits.ids.tolist()}{hits.labels}{index.search(vector_of('x'), where={'id': 3})}"

    expected, rng, noticed = contents(out), np.random.default_rng(0), 0
    for trial in range(40):
        copy = tmp_path / f"copy {trial}"
        shutil.copytree(out, copy)
        data = bytearray((out / "catalogue.sqlite").read_bytes())
        used = np.flatnonzero(np.frombuffer(data, dtype=np.uint8))
        data[rng.choice(used)] ^= 1 << int(rng.integers(8))
        (copy / "catalogue.sqlite").write_bytes(data)
        try:
            assert contents(copy) == expected
        except EnsembleADError:
            noticed += 1
    assert noticed > 10


def test_a_later_format_is_named(out: Path) -> None:
    damaged(out / "index.json", lambda data: data.replace(b'"format": 1', b'"format": 99'))
    with pytest.raises(NewerFormatError, match="has format 99"):
        ead.ImageIndex.open(out)


def test_damage_to_the_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    register_mean_colours()
    image = draw_image(tmp_path / "images/a.png", 0)
    ead.ImageIndex.build(image, MeanColours(), tmp_path / "x").close()
    damaged(tmp_path / "x/embedder/model.json", lambda data: data.replace(b'"cells": 2', b'"cells": 3'))
    with ead.ImageIndex.open(tmp_path / "x") as index:
        for use in (index.verify, lambda: index.search(image)):
            with pytest.raises(DamagedModelError, match=r"model\.json was altered"):
                use()
        assert index.search(np.ones(12)).paths == [[str(image)]]  # vectors need no embedder
    shutil.rmtree(tmp_path / "x/embedder")
    with ead.ImageIndex.open(tmp_path / "x") as index:
        with pytest.raises(DamagedModelError, match="embedder is missing"):
            index.search(image)
        with pytest.raises(DamagedModelError, match=r"no model\.json"):
            index.verify()


# --- random walks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype", "seed"), [("flat", "float16", 0), ("hnsw", "float32", 1)])
def test_random_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, seed: int
) -> None:
    """Whatever is added, replaced, removed and compacted, searches agree with a dict and float64."""
    for module in (structures, view, folders):
        monkeypatch.setattr(module, "SMALLEST", 16)
    monkeypatch.setattr(view, "_FEW", 0)
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(120)]
    index = ead.ImageIndex.from_vectors(
        names[:5], vectors_of(names[:5]), tmp_path / "x", kind=kind, dtype=dtype, labels=["c"] * 5
    )
    known = {name: (vector_of(name), "c") for name in names[:5]}
    for step in range(80):
        action = rng.choice(["add", "add", "remove", "compact", "reopen"], p=[0.3, 0.3, 0.3, 0.05, 0.05])
        if action == "add":
            some = rng.choice(names, rng.integers(1, 12), replace=False).tolist()
            label = "abc"[int(rng.integers(3))]
            vectors = vectors_of(some, version=step % 3)
            index.add_vectors(some, vectors, labels=[label] * len(some))
            known |= {name: (vector, label) for name, vector in zip(some, vectors, strict=True)}
        elif action == "remove" and known:
            some = rng.choice(
                sorted(known), min(len(known), int(rng.integers(1, 10))), replace=False
            ).tolist()
            index.remove(some)
            for name in some:
                del known[name]
        elif action == "compact":
            index.compact()
        elif action == "reopen":
            index.close()
            index = ead.ImageIndex.open(tmp_path / "x")
        check(index, known, rng, exact=kind == "flat")
    index.verify()
    index.close()


def check(
    index: ead.ImageIndex, known: dict[str, tuple[np.ndarray, str]], rng: np.random.Generator, exact: bool
) -> None:
    query, top = rng.standard_normal(8), int(rng.integers(1, 40))
    where = {"label": "a"} if rng.random() < 0.3 else None
    allowed = {name: one for name, (one, label) in known.items() if where is None or label == "a"}
    expected = {name: float(one @ query / np.linalg.norm(query)) for name, one in allowed.items()}
    hits = index.search(query, top=top, where=where)[0]
    assert len(index) == len(known)
    assert len(hits) == min(top, len(allowed))
    assert len({hit.path for hit in hits}) == len(hits)
    for hit in hits:
        assert abs(hit.similarity - expected[hit.path]) < 1e-3
        assert hit.label == known[hit.path][1]
    if exact:
        best = sorted(expected.values(), reverse=True)[: len(hits)]
        np.testing.assert_allclose([hit.similarity for hit in hits], best, atol=1e-3)
