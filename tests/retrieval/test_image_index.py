"""`ImageIndex`: images in and out of it, searches, labels, duplicates, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.registry import separate_registry

pytest.importorskip("torch")

from support.mean_colours import MeanColours, draw_image, register_mean_colours

import ensemblead as ead
from ensemblead.common.errors import UnreadableImageError
from ensemblead.retrieval import adding
from ensemblead.retrieval import duplicates as duplicates_module
from ensemblead.retrieval.queries import search_images


@pytest.fixture(autouse=True)
def _embedder_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    register_mean_colours()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images in two folders, one of them in both."""
    for i in range(6):
        draw_image(tmp_path / "images" / ("good" if i % 2 else "bad") / f"{i}.png", i)
    draw_image(tmp_path / "images" / "good" / "copy.png", 2)
    draw_image(tmp_path / "images" / "alone.png", 9)
    return tmp_path / "images"


@pytest.fixture
def index(images: Path, tmp_path: Path) -> Iterator[ead.ImageIndex]:
    with ead.ImageIndex.build(images, MeanColours(), tmp_path / "index", labels="from-folders") as built:
        yield built


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def unit(vectors: Any) -> np.ndarray:
    wide = np.asarray(vectors, dtype=np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def test_an_image_is_found_by_example(index: ead.ImageIndex, images: Path) -> None:
    hits = index.search(images / "bad/2.png", top=3)
    assert len(index) == 8
    assert (len(hits), hits.ids.shape, hits.similarities.dtype) == (1, (1, 3), np.float32)
    assert names(hits.paths[0])[:2] == ["2.png", "copy.png"]
    assert hits.labels[0][:2] == ["bad", "good"]
    embedder = MeanColours()
    vectors = unit([embedder.embed([path])[0] for path in hits.paths[0]])
    np.testing.assert_allclose(hits.similarities[0], vectors @ vectors[0], atol=2e-3)
    assert [hit.similarity for hit in hits[0]] == sorted(hits.similarities[0].tolist(), reverse=True)


def test_opened_again_it_embeds_queries(index: ead.ImageIndex, images: Path) -> None:
    index.close()
    with ead.ImageIndex.open(index.path) as opened:
        assert isinstance(opened.embedder, MeanColours)
        assert names(opened.search([images / "bad/4.png", images / "alone.png"], top=1).paths[0]) == ["4.png"]
        assert (opened.kind, opened.dim, opened.dtype) == ("flat", 12, "float16")
        opened.verify()


def test_queries_of_every_kind_find_the_same(index: ead.ImageIndex, images: Path) -> None:
    import torch

    path = images / "good/3.png"
    pixels = np.asarray(ead_image(path))
    vector = MeanColours().embed([path])[0]
    expected = index.search(path, top=4).ids
    for query in (
        str(path),
        [path],
        pixels,
        pixels[None],
        [pixels],
        torch.tensor(vector, requires_grad=True),
        vector,
        vector[None],
        vector.tolist(),
        7.0 * vector,
    ):
        np.testing.assert_array_equal(index.search(query, top=4).ids, expected)


def ead_image(path: Path) -> Any:
    from PIL import Image

    return Image.open(path)


def test_all_are_given_where_fewer_are_there(index: ead.ImageIndex, images: Path) -> None:
    assert index.search(images / "alone.png", top=100).ids.shape == (1, 8)
    assert index.search(images / "alone.png", top=100, where={"label": "bad"}).ids.shape == (1, 3)
    assert index.search(images / "alone.png", where={"label": "nowhere"}).ids.shape == (1, 0)


def test_where_holds_for_every_hit(index: ead.ImageIndex, images: Path) -> None:
    query = images / "bad/0.png"

    def found(**where: Any) -> set[str]:
        return set(names(index.search(query, top=100, where=where).paths[0]))

    assert found(label="bad") == {"0.png", "2.png", "4.png"}
    assert found(label=None) == {"alone.png"}
    assert found(label=["bad", None]) == {"0.png", "2.png", "4.png", "alone.png"}
    assert found(label="good", path=str(images / "good/1.png")) == {"1.png"}
    assert found(height=8, id=[0, 1]) == set(
        names(index.search(query, top=100, where={"id": (0, 1)}).paths[0])
    )
    assert found(id=index.search(query, top=1).ids[0]) == {"0.png"}
    assert found(label="bad' OR '1'='1") == set()
    assert found(path='"; DROP TABLE images; --') == set()
    assert len(index) == 8


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({"lable": "bad"}, ValueError, "unknown column 'lable'; did you mean label?"),
        ({"1=1; --": 1}, ValueError, "unknown column"),
        ({"removed": None}, ValueError, "unknown column 'removed'"),
        ({"label": 1.5}, TypeError, "label must be a text"),
        ({"label": [True]}, TypeError, "got True"),
        ({"label": "bad\0b"}, ValueError, "label must be UTF-8 without NUL, got 'bad.x00b'"),
        ("label=bad", TypeError, "where must be a mapping"),
    ],
)
def test_where_is_checked(index: ead.ImageIndex, where: Any, error: type[Exception], message: str) -> None:
    """Before anything is embedded: the query is not even there."""
    for search in (index.search, lambda query, where: search_images(index, [query], where=where)):
        with pytest.raises(error, match=message):
            search("nothing.png", where=where)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (np.ones(5, np.float32), ValueError, "query must have 12 dimensions, as the index has, got 5"),
        (np.zeros(12), ValueError, "query 0: its vector is zero"),
        (np.full((2, 12), np.nan), ValueError, "query 0: its vector is not finite"),
        (np.ones((1, 1, 12)), ValueError, r"query must be \[N, D\]"),
        (np.ones((0, 12)), ValueError, "not empty"),
        (np.ones(12, np.uint8), TypeError, "query must be floats, got uint8"),
        (None, TypeError, "query must hold numbers"),
        ([Path("a.png"), 3.0], TypeError, "query must hold numbers"),
        ([[1.0] * 12, [1.0]], ValueError, "query must be one array, got rows of different lengths"),
        ("nothing.png", FileNotFoundError, "nothing.png"),
    ],
)
def test_queries_are_checked(index: ead.ImageIndex, query: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        index.search(query)


def test_top_is_checked(index: ead.ImageIndex) -> None:
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        index.search(np.ones(12), top=0)
    with pytest.raises(TypeError, match="top must be a whole number"):
        index.search(np.ones(12), top=2.0)  # type: ignore[arg-type]


def test_a_path_added_again(index: ead.ImageIndex, images: Path) -> None:
    path = images / "bad/0.png"
    before = index.search(path, top=1).ids[0, 0]
    assert index.add(images) == 0
    os.utime(path, ns=(1, 1))  # touched, not changed
    assert index.add([path]) == 0
    assert index.search(path, top=1).ids[0, 0] == before
    draw_image(path, 77)
    assert index.add([path]) == 1
    hits = index.search(path, top=8)
    assert len(index) == 8
    assert names(hits.paths[0])[0] == "0.png"
    assert hits.ids[0, 0] > 7
    assert hits.similarities[0, 0] > 0.999
    assert before not in hits.ids
    index.verify()


def test_labels_given_again_replace_the_old(index: ead.ImageIndex, images: Path) -> None:
    query = images / "alone.png"
    assert index.add(images, labels={"alone.png": "single", **dict.fromkeys(index_paths(index), "x")}) == 0
    assert index.search(query, top=1).labels == [["single"]]
    assert index.add(images) == 0  # without labels they stay
    assert set(index.search(query, top=8).labels[0]) == {"single", "x"}
    index.verify()


def test_a_changed_file_keeps_its_label(index: ead.ImageIndex, images: Path) -> None:
    path = draw_image(images / "bad/0.png", 77)
    assert index.add(images) == 1
    assert index.search(path, top=1).labels == [["bad"]]
    draw_image(path, 78)
    assert index.add([path], labels={path: None}) == 1
    assert index.search(path, top=1).labels == [[None]]
    index.add_vectors(["v"], np.ones((1, 12)), labels=["kept"])
    assert index.add_vectors(["v"], np.eye(12)[:1]) == 1
    assert index.search(np.eye(12)[0], top=1).labels == [["kept"]]


def test_a_closed_index_says_so(index: ead.ImageIndex) -> None:
    index.close()
    for use in (lambda: len(index), lambda: index.search(np.ones(12)), lambda: index.remove(0)):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_names_that_the_catalogue_cannot_keep(tmp_path: Path) -> None:
    with ead.ImageIndex.from_vectors(["a"], np.ones((1, 2)), tmp_path / "x") as index:
        for name in ("b\udcff", "b\0c"):
            with pytest.raises(ValueError, match="paths must be UTF-8 without NUL, got 'b"):
                index.add_vectors([name], np.ones((1, 2)))
            with pytest.raises(ValueError, match="labels must be UTF-8 without NUL, got 'b"):
                index.add_vectors(["b"], np.ones((1, 2)), labels=[name])
        assert len(index) == 1


def index_paths(index: ead.ImageIndex) -> list[str]:
    return [path for path in index.search(np.ones(12), top=100).paths[0] if "alone" not in path]


def test_labels_are_checked(images: Path, tmp_path: Path) -> None:
    for labels, error, message in (
        ({"alone.png": "x"}, ValueError, "labels has no entry for 7 images"),
        ("folders", ValueError, 'labels must be "from-folders"'),
        (["a"], TypeError, "labels must be"),
    ):
        with pytest.raises(error, match=message):
            ead.ImageIndex.build(images, MeanColours(), tmp_path / "x", labels=labels)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    with pytest.raises(TypeError, match="labels must be texts or None, got 3"):
        ead.ImageIndex.from_vectors(["a"], np.ones((1, 2)), tmp_path / "x", labels=[3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one for each of the 1 paths, got 2"):
        ead.ImageIndex.from_vectors(["a"], np.ones((1, 2)), tmp_path / "x", labels=["a", "b"])


def test_without_a_root_the_label_is_the_folder(images: Path, tmp_path: Path) -> None:
    paths = [images / "bad/0.png", images / "good/1.png"]
    with ead.ImageIndex.build(paths, MeanColours(), tmp_path / "x", labels="from-folders") as index:
        assert sorted(map(str, index.search(np.ones(12)).labels[0])) == ["bad", "good"]


def test_removed_images_are_never_found(index: ead.ImageIndex, images: Path) -> None:
    path = images / "bad/2.png"
    hits = index.search(path, top=8)
    copy = int(hits.ids[0, 1])
    assert index.remove([path]) == 1
    assert index.remove(copy) == 1
    assert len(index) == 6
    left = index.search(path, top=8)
    assert set(left.ids[0]) == set(hits.ids[0][2:])
    index.compact()
    np.testing.assert_array_equal(index.search(path, top=8).ids, left.ids)  # numbers are for life
    index.verify()
    assert index.add([path]) == 1
    assert index.search(path, top=1).ids[0, 0] == 8


def test_a_file_that_cannot_be_looked_at_is_not_gone(
    index: ead.ImageIndex, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "alone.png").unlink()
    whole = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(images / "bad/2.png"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return whole(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(OSError, match=r"Stale file handle.*2\.png"):
            index.remove_gone(images)
    assert len(index) == 8
    assert index.remove_gone(images) == [str(images / "alone.png")]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("nowhere.png", ValueError, "not in the index: nowhere.png"),
        ([0, 99, 98], ValueError, "not in the index: 99, 98"),
        ([0, 0], ValueError, "must not name one twice"),
        ([0, 1.0], TypeError, "images must be a whole number"),
    ],
)
def test_removal_is_checked(index: ead.ImageIndex, wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        index.remove(wrong)
    assert len(index) == 8


def test_a_quarter_dead_is_compacted(tmp_path: Path) -> None:
    paths, vectors = [f"{i}" for i in range(20)], np.random.default_rng(0).standard_normal((20, 4))
    with ead.ImageIndex.from_vectors(paths, vectors, tmp_path / "x") as index:
        index.remove(paths[:5])
        assert (tmp_path / "x/vectors.0.f16").stat().st_size == 20 * 4 * 2
        index.remove(paths[5])
        assert [path.name for path in (tmp_path / "x").glob("vectors*")] == ["vectors.1.f16"]
        assert (tmp_path / "x/vectors.1.f16").stat().st_size == 14 * 4 * 2
        assert index.search(vectors[7], top=1).paths == [["7"]]
        index.verify()


def test_unreadable_images_and_zeros_are_listed(images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"nothing")
    black = draw_image(images / "black.png", 1)
    ead_image(black).point(lambda _: 0).save(black)
    with pytest.warns(UserWarning, match=r"left out 2 of 10 images \(see .skipped_\)") as warned:
        index = ead.ImageIndex.build(images, MeanColours(), tmp_path / "index")
    assert warned[0].filename == __file__
    with index:
        assert len(index) == 8
        assert [(Path(path).name, reason.split(": ")[-1]) for path, reason in sorted(index.skipped_)] == [
            ("black.png", "its vector is zero"),
            ("broken.png", "it is no image of a known format"),
        ]
        with pytest.raises(ValueError, match="black.png: its vector is zero"):
            index.add([black], errors="raise")
        with pytest.raises(UnreadableImageError, match="broken.png"):
            index.add([images / "broken.png"], errors="raise")
        with pytest.warns(UserWarning, match="left out 1 of 1"):
            index.add([tmp_path / "gone.png"])
        with pytest.raises(FileNotFoundError):
            index.add([tmp_path / "gone.png"], errors="raise")
        with pytest.raises(ValueError, match="errors must be one of skip, raise"):
            index.add(images, errors="ignore")  # type: ignore[arg-type]
        assert len(index) == 8


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_name_that_is_no_text_is_listed(images: Path, tmp_path: Path) -> None:
    os.rename(images / "alone.png", os.fsencode(images) + b"/\xff.png")
    with pytest.warns(UserWarning, match="left out 1 of 8"):
        index = ead.ImageIndex.build(images, MeanColours(), tmp_path / "index")
    with index:
        assert index.skipped_[0].reason == "its name is no UTF-8: rename it"


def after_batch(monkeypatch: pytest.MonkeyPatch, number: int, strike: Callable[[], object]) -> None:
    """Let `strike` be called when the batch of this number has been embedded."""
    whole = MeanColours.embed_batches

    def embed_batches(self: MeanColours, images: Any, **options: Any) -> Iterator[Any]:
        for i, batch in enumerate(whole(self, images, **options)):
            if i == number:
                strike()
            yield batch

    monkeypatch.setattr(MeanColours, "embed_batches", embed_batches)


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_committed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "_BATCH", 1)
    said: list[tuple[str, int, int]] = []
    with monkeypatch.context() as patch:
        after_batch(patch, 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            ead.ImageIndex.build(images, MeanColours(batch_size=2), tmp_path / "index")
    with ead.ImageIndex.open(tmp_path / "index") as index:
        assert len(index) == 4
    with ead.ImageIndex.build(
        images, MeanColours(batch_size=2), tmp_path / "index", progress=lambda *args: said.append(args)
    ) as index:
        assert len(index) == 8
        assert said == [("embed", 2, 4), ("embed", 4, 4), ("embed", 4, 4)]
        index.verify()


def test_a_file_that_changes_while_it_is_read_is_left_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images / "alone.png"
    after_batch(monkeypatch, 0, lambda: draw_image(path, 55, size=16))
    with pytest.warns(UserWarning, match="was changed while it was read"):
        index = ead.ImageIndex.build([path], MeanColours(), tmp_path / "index")
    with index:
        assert len(index) == 0
        assert index.search(np.ones(12)).ids.shape == (1, 0)
        assert index.duplicates() == {}


def test_wrong_places_and_settings(images: Path, tmp_path: Path) -> None:
    def build(out: Path, **options: Any) -> None:
        ead.ImageIndex.build(options.pop("images", images), MeanColours(), out, **options).close()

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image files in"):
        build(tmp_path / "x", images=tmp_path / "empty")
    with pytest.raises(
        ValueError, match=r"exists and is no image index alone: it holds alone.png, bad, good"
    ):
        build(images)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="exists and is no folder"):
        build(tmp_path / "file")
    with pytest.raises(ValueError, match="kind must be one of flat, ivf, hnsw, pq, usearch, got 'lsh'"):
        build(tmp_path / "x", kind="lsh")
    with pytest.raises(ValueError, match="dtype must be one of float16, float32, got 'int8'"):
        build(tmp_path / "x", dtype="int8")
    with pytest.raises(ValueError, match="images must not name one twice, got .*alone.png"):
        build(tmp_path / "x", images=[images / "alone.png"] * 2)
    with pytest.raises(TypeError, match="images must be a folder, a path or a list of paths, got ndarray"):
        build(tmp_path / "x", images=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="no image index at"):
        ead.ImageIndex.open(tmp_path / "x")
    build(tmp_path / "empty")
    with pytest.raises(ValueError, match="is an index of kind 'flat', got 'ivf'"):
        build(tmp_path / "empty", kind="ivf")
    with pytest.raises(ValueError, match="embedder is not the one that"):
        ead.ImageIndex.build(images, MeanColours(3), tmp_path / "empty")
    with pytest.raises(ValueError, match="embedder is not the one that .* was built with"):
        ead.ImageIndex.open(tmp_path / "empty", embedder=MeanColours(3))
    with ead.ImageIndex.open(tmp_path / "empty", embedder=MeanColours()) as index:
        assert len(index) == 8


def test_ready_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((6, 5))
    paths = [f"name {i}" for i in range(6)]
    with ead.ImageIndex.from_vectors(
        paths, vectors, tmp_path / "x", dtype="float32", labels={path: path[-1] for path in paths}
    ) as index:
        hits = index.search(vectors, top=6)
        expected = unit(vectors) @ unit(vectors).T
        np.testing.assert_allclose(hits.similarities, np.sort(expected)[:, ::-1], atol=2e-7)
        assert [line[0] for line in hits.labels] == list("012345")
        assert index.add_vectors(paths[:2], vectors[:2]) == 0
        assert index.add_vectors(paths[:2], vectors[:2], labels=["a", "b"]) == 0
        assert index.add_vectors([*paths[:2], "new"], vectors[[0, 3, 4]] * 3) == 2
        hits = index.search(vectors[3], top=2)
        assert sorted(hits.paths[0]) == ["name 1", "name 3"]
        with pytest.raises(ValueError, match="was built of ready vectors: it has no embedder"):
            index.search("query.png")
        for given, message in (
            ((["a"], vectors), "paths must be one for each of the 6 vectors, got 1"),
            ((["a", "a"], vectors[:2]), "paths must not name one twice, got a"),
            ((["a"], np.zeros((1, 5))), "a: its vector is zero"),
            ((["a"], np.full((1, 5), np.inf)), "a: its vector is not finite"),
            ((["a"], np.ones((1, 4))), "vectors must have 5 dimensions, as the index has, got 4"),
        ):
            with pytest.raises(ValueError, match=message):
                index.add_vectors(*given)
        with pytest.warns(UserWarning, match="left out 1 of 1"):
            index.add_vectors(["zero"], np.zeros((1, 5)), errors="skip")
        assert len(index) == 7
        index.verify()
    # The same call goes on, and here finds nothing to do.
    with ead.ImageIndex.from_vectors(["new"], vectors[4:5], tmp_path / "x", dtype="float32") as index:
        assert len(index) == 7


def test_near_duplicates(index: ead.ImageIndex, images: Path) -> None:
    assert {names([path])[0]: names(others) for path, others in index.duplicates().items()} == {
        "2.png": ["copy.png"]
    }
    index.remove(images / "bad/2.png")
    assert index.duplicates() == {}
    said: list[Any] = []
    every = index.duplicates(-1.0, progress=lambda *args: said.append((*args, len(index))))
    assert sum(map(len, every.values())) == 7 * 6 / 2
    assert said == [("duplicates", 7, 7, 7)]
    for wrong, error in ((1.5, ValueError), ("high", TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="threshold must be"):
            index.duplicates(wrong)  # type: ignore[arg-type]


def test_pairs_that_would_fill_memory_are_refused(
    index: ead.ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(index) * (len(index) - 1) // 2
    monkeypatch.setattr(duplicates_module, "_PAIRS", count)
    assert sum(map(len, index.duplicates(-1.0).values())) == count
    monkeypatch.setattr(duplicates_module, "_PAIRS", count - 1)
    with pytest.raises(ValueError, match=f"threshold -1: more than {count - 1} pairs of the .* raise it"):
        index.duplicates(-1.0)


def test_hits_are_printed_and_written(index: ead.ImageIndex, images: Path, tmp_path: Path) -> None:
    hits = index.search([images / "bad/2.png", images / "alone.png"], top=2)
    lines = str(hits).splitlines()
    assert lines[0] == f"{images / 'bad/2.png'}: 2 images"
    assert lines[1] == f"  {hits.similarities[0, 0]:.4f}  {images / 'bad/2.png'}  bad"
    table = list(csv.DictReader(hits.to_csv(tmp_path / "hits.csv").read_text().splitlines()))
    assert [row["rank"] for row in table] == ["1", "2", "1", "2"]
    assert table[1]["label"] == "good"
    written = json.loads(hits.to_json())
    assert written[1]["hits"][0]["path"] == str(images / "alone.png")
    assert [[hit.id for hit in line] for line in hits] == hits.ids.tolist()


def test_no_similarity_is_above_one(tmp_path: Path) -> None:
    """Though rounding to float16 makes rows longer."""
    vectors = unit(np.random.default_rng(3).standard_normal((50, 4)))
    assert (np.linalg.norm(vectors.astype(np.float16).astype(np.float64), axis=1) > 1 + 1e-5).any()
    with ead.ImageIndex.from_vectors([f"{i}" for i in range(50)], vectors, tmp_path / "x") as index:
        hits = index.search(vectors, top=1)
    assert hits.ids[:, 0].tolist() == list(range(50))
    assert hits.similarities.max() == 1
    assert hits.similarities.min() > 0.999


def drawn(tmp_path: Path) -> list[Path]:
    return [draw_image(tmp_path / f"drawn/{i}.png", i, size=32) for i in range(4)]


def gabor(layer: str, **options: Any) -> ead.Embedder:
    return ead.Embedder("gabor", layer=layer, resize=None, image_size=None, device="cpu", **options)


def fitted(seed: int) -> ead.EmbeddingEnsemble:
    images = np.random.default_rng(seed).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    ensemble = ead.EmbeddingEnsemble([gabor("layer1"), gabor("layer2")], mode="whiten", dim=4)
    return ensemble.fit(images, [0, 1] * 6)


def test_embedders_are_told_apart_by_what_they_learned(tmp_path: Path) -> None:
    """Equal settings are no equal vectors."""
    paths, one, other = drawn(tmp_path), fitted(0), fitted(1)
    assert one.describe() == other.describe()
    ead.ImageIndex.build(paths[:2], one, tmp_path / "x").close()
    for use in (
        lambda: ead.ImageIndex.build(paths, other, tmp_path / "x"),
        lambda: ead.ImageIndex.open(tmp_path / "x", embedder=other),
    ):
        with pytest.raises(ValueError, match=r"is not the one that .* was built with: its learned"):
            use()
    with ead.ImageIndex.build(paths, fitted(0), tmp_path / "x") as index:
        assert len(index) == 4
        assert str(paths[3]) in index.search(paths[3], top=2).paths[0]


def test_how_an_embedder_is_run_is_no_difference(tmp_path: Path) -> None:
    paths = drawn(tmp_path)
    (tmp_path / "drawn/broken.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="left out 1 of 5"):
        ead.ImageIndex.build(tmp_path / "drawn", gabor("layer1"), tmp_path / "x").close()
    with ead.ImageIndex.open(tmp_path / "x", embedder=gabor("layer1", batch_size=1)) as index:
        assert index.search(paths[1], top=1).paths == [[str(paths[1])]]
        index.verify()
    with pytest.raises(ValueError, match=r"its state\.parameters\.layer is 'layer2', not 'layer1'"):
        ead.ImageIndex.open(tmp_path / "x", embedder=gabor("layer2"))
    ead.ImageIndex.from_vectors(["a"], np.ones((1, 18)), tmp_path / "ready").close()
    with pytest.raises(ValueError, match="built of ready vectors: it takes no embedder"):
        ead.ImageIndex.open(tmp_path / "ready", embedder=gabor("layer1"))
