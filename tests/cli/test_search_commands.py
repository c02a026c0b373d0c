"""`index`, `search` and `duplicates`: images found by example from the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from support.commands import call, call_json
from support.labelled import NETWORK, draw_classes
from support.report_page import Page

import ensemblead as ead
from ensemblead.cli.bars import Bars
from ensemblead.cli.duplicates import connected
from ensemblead.cli.search import read_conditions
from ensemblead.retrieval.layout import lock


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes dark, middle and light, five images each."""
    return draw_classes(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="module")
def built(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their index, with labels. Tests do not change it."""
    out = tmp_path_factory.mktemp("indexes") / "index"
    call_json("index", images, "--out", out, *NETWORK, "--labels", "from-folders")
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "index"))


def names(hits: list[dict[str, Any]], root: Path) -> list[str]:
    return [Path(hit["path"]).relative_to(root).as_posix() for hit in hits]


class TestIndex:
    def test_it_is_what_python_builds(self, images: Path, built: Path, tmp_path: Path) -> None:
        embedder = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
        query = images / "dark/0.png"
        with (
            ead.ImageIndex.build(images, embedder, tmp_path / "own", labels="from-folders") as own,
            ead.ImageIndex.open(built) as found,
        ):
            assert len(found) == 15
            expected, hits = own.search(query), found.search(query)
        assert hits.paths == expected.paths
        assert hits.labels == expected.labels
        np.testing.assert_allclose(hits.similarities, expected.similarities, atol=1e-3)

    def test_again_adds_what_is_new(self, images: Path, tmp_path: Path) -> None:
        root, out = tmp_path / "images", tmp_path / "index"
        shutil.copytree(images, root)
        first = call_json("index", root, "--out", out, *NETWORK)
        assert (first["images"], first["embedded"], first["kind"], first["dim"]) == (15, 15, "flat", 90)
        again = call_json("index", root, "--out", out, *NETWORK)
        assert (again["images"], again["embedded"]) == (15, 0)
        draw_classes(root, 6)  # a new one of each; the others are the same again
        outcome = call("index", root, "--out", out)
        assert outcome.exit_code == 0
        assert "3 images embedded" in outcome.stdout
        assert "the index has 18 images, as vectors of 90 dimensions" in outcome.stdout
        assert f"index: {out}" in outcome.stdout

    def test_images_that_are_gone_are_removed_where_that_is_asked_for(
        self, images: Path, tmp_path: Path
    ) -> None:
        root, other, out = tmp_path / "images", tmp_path / "images2", tmp_path / "index"
        shutil.copytree(images, root)
        shutil.copytree(images / "dark", other)
        call_json("index", root, "--out", out, *NETWORK)
        call_json("index", other, "--out", out)
        (root / "dark/0.png").unlink()
        (other / "1.png").unlink()
        kept = call_json("index", root, "--out", out)
        assert (kept["images"], kept["removed"]) == (20, 0)
        outcome = call("index", root, "--out", out, "--remove-gone")
        assert outcome.exit_code == 0
        assert "0 images embedded in" in outcome.stdout
        assert "1 that are gone removed; the index has 19 images" in " ".join(outcome.stdout.split())
        with ead.ImageIndex.open(out) as index:
            assert index.remove_gone(root) == []
            with pytest.raises(ValueError, match="there is no folder"):
                index.remove_gone(tmp_path / "elsewhere")
            assert index.remove_gone(tmp_path) == [str(other / "1.png")]
            assert len(index) == 18

    def test_unreadable_images_are_named(self, images: Path, tmp_path: Path) -> None:
        root, out = tmp_path / "images", tmp_path / "index"
        shutil.copytree(images, root)
        for number in range(7):
            (root / f"broken{number}.png").write_bytes(b"no image")
        refused = call("index", root, "--out", out, *NETWORK)
        assert refused.exit_code == 2
        assert "broken0.png" in refused.stderr
        assert "--skip-unreadable leaves such images out" in refused.stderr
        taken = call("index", root, "--out", out, *NETWORK, "--skip-unreadable")
        assert taken.exit_code == 0
        assert "7 image(s) left out:" in taken.stdout
        assert "and 2 more (--json has all)" in taken.stdout
        assert f"  cannot read image {root / 'broken0.png'}: " in taken.stdout  # the path once
        assert "warning: left out 7 of 22 images; the first: cannot read image " in taken.stderr
        document = call_json("index", root, "--out", out, "--skip-unreadable")
        assert [Path(one["path"]).name for one in document["skipped"]] == [f"broken{i}.png" for i in range(7)]
        assert "no image of a known format" in document["skipped"][0]["reason"]

    def test_unreadable_images_alone_make_no_index(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        (tmp_path / "images/a.png").write_bytes(b"no image")
        outcome = call("index", tmp_path / "images", "--out", tmp_path / "i", *NETWORK, "--skip-unreadable")
        assert outcome.exit_code == 2
        assert "none of 1 can be indexed, the first: cannot read image" in outcome.stderr

    def test_an_interrupt_keeps_what_was_committed(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "index"

        def interrupted(bars: Bars, stage: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Bars, "__call__", interrupted)
            stopped = call("index", images, "--out", out, *NETWORK, "--set", "batch_size=4")
        assert stopped.exit_code == 130
        assert f"interrupted: 0 images are in {out}; the same command goes on" in stopped.stderr
        assert call_json("index", images, "--out", out, *NETWORK, "--set", "batch_size=4")["images"] == 15

    def test_several_networks_become_one_vector(self, images: Path, tmp_path: Path) -> None:
        out = tmp_path / "index"
        both = [*NETWORK, "-b", "gabor", "-le", "0.layer1", "-le", "1.auto", "--set", "weights=[1,2]"]
        assert call_json("index", images, "--out", out, *both)["dim"] == 42 + 90
        with ead.ImageIndex.open(out) as index:
            ensemble: Any = index.embedder
        assert [member.layer for member in ensemble.members] == ["layer1", None]
        assert ensemble.weights == (1.0, 2.0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([*NETWORK, "-le", "layer2"], "was built with: its state.parameters.layer is 'layer2', not None"),
            (["-b", "gabor", "--device", "cpu"], "its state.parameters.resize is 256, not None"),
            ([*NETWORK, "-b", "gabor"], "its class is 'EmbeddingEnsemble', not 'Embedder'"),
            ([*NETWORK, "--kind", "hnsw"], "is an index of kind flat, got hnsw"),
            (["--labels", "mine"], "labels must be one of from-folders, got 'mine'"),
            (["-b", "gabor", "--fusion", "model"], "fusion brings its networks and layers"),
            (["--fusion", "model", "--resize", "64"], "fusion brings all settings of its networks"),
            (["--fusion", "nowhere"], "nowhere"),
            (["-b", "gabor", "-le", "layer1", "-le", "layer2"], "read off one layer, got layer1, layer2"),
            (["-b", "gabor", "--set", "pol=gem"], "pol"),
            (["-b", "gabor", "--set", "pool=median"], "pool must be one of"),
            (["-b", "gabor", "--weights", "none.safetensors"], "no such weights file"),
        ],
    )
    def test_an_index_stays_what_it_is(
        self, images: Path, index: Path, options: list[str], message: str
    ) -> None:
        before = {path.name: path.read_bytes() for path in index.rglob("*") if path.is_file()}
        outcome = call("index", images, "--out", index, *options)
        assert outcome.exit_code == 2, outcome.stderr
        assert message in outcome.stderr.replace("\n", " ")
        after = {path.name: path.read_bytes() for path in index.rglob("*") if path.is_file()}
        assert {name: after.get(name) for name in before if "sqlite" not in name} == {
            name: data for name, data in before.items() if "sqlite" not in name
        }

    def test_what_makes_no_index(self, images: Path, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.mkdir()
        (tmp_path / "full").mkdir()
        (tmp_path / "full/note.txt").touch()
        for arguments, message in (
            ((images, "--out", tmp_path / "new"), "backbone must be given: -b NAME"),
            ((images, "--out", tmp_path / "new", *NETWORK, "--kind", "tree"), "kind must be one of"),
            ((empty, "--out", tmp_path / "new", *NETWORK), "no image files in"),
            ((tmp_path / "nowhere", "--out", tmp_path / "new", *NETWORK), "nowhere"),
            ((images, "--out", tmp_path / "full", *NETWORK), "holds note.txt"),
            ((images, "--out", images / "dark/0.png", *NETWORK), "is no folder"),
        ):
            outcome = call("index", *arguments)
            assert outcome.exit_code == 2, (arguments, outcome.stderr)
            assert message in outcome.stderr, outcome.stderr
        assert not (tmp_path / "new").exists()

    def test_one_writer_at_a_time(self, images: Path, index: Path) -> None:
        descriptor = lock(index)
        try:
            outcome = call("index", images, "--out", index)
            assert outcome.exit_code == 1
            assert f"{index} is being written to by another process" in outcome.stderr
            assert call("search", index, images / "dark/0.png").exit_code == 0
        finally:
            os.close(descriptor)

    def test_weights_that_have_moved(self, images: Path, tmp_path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from ensemblead.networks import FeatureExtractor

        torch.manual_seed(0)
        file, moved, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "index"
        save_file(FeatureExtractor("pdn_small", ["conv1"], weights=None).state_dict(), file)
        network = ["-b", "pdn_small", "-le", "conv1", "--weights", file, "--device", "cpu"]
        call_json("index", images / "dark", "--out", out, *network)
        file.rename(moved)
        query = images / "dark/0.png"
        lost = call("search", out, query)
        assert lost.exit_code == 1
        assert "give --weights PATH" in lost.stderr
        found = call_json("search", out, query, "--weights", moved)["queries"]
        assert sorted(names(found[0]["hits"], images)) == [f"dark/{i}.png" for i in range(5)]
        assert found[0]["hits"][0]["similarity"] == pytest.approx(1, abs=1e-3)
        assert call_json("index", images, "--out", out, "--weights", moved)["images"] == 15


class TestSearch:
    def test_it_is_what_python_finds(self, images: Path, built: Path) -> None:
        queries = [images / "light/0.png", images / "dark/1.png"]
        found = call_json("search", built, *queries, "--top", 3)
        with ead.ImageIndex.open(built) as index:
            expected = json.loads(index.search(queries, top=3).to_json())
        assert [one["query"] for one in found["queries"]] == [str(query) for query in queries]
        for one, other in zip(found["queries"], expected, strict=True):
            assert names(one["hits"], images) == names(other["hits"], images)
            assert {hit["label"] for hit in one["hits"]} == {Path(one["query"]).parent.name}
        assert found["images"] == 15
        assert (found["html"], found["skipped"], found["warnings"]) == (None, [], [])

    def test_text_page_and_patterns(
        self, images: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(images)
        outcome = call("search", built, "dark/[01].png", "light", "--top", 2, "--html", tmp_path / "r.html")
        assert outcome.exit_code == 0, outcome.stderr
        lines = outcome.stdout.splitlines()
        assert lines[0] == "dark/0.png: 2 images"
        similarity, path, label = lines[1].split()
        assert float(similarity) == pytest.approx(1, abs=1e-3)
        assert (path, label) == (str(images / "dark/0.png"), "dark")
        assert lines[-1] == f"page: {tmp_path / 'r.html'}"
        page = Page(tmp_path / "r.html")
        assert sum(tag == "section" for tag, _ in page.tags) == 2 + 5
        assert "light/ 3.png" in page.words

    def test_conditions(self, images: Path, built: Path) -> None:
        query = images / "dark/0.png"
        for conditions, expected in (
            (["label=light"], {"light"}),
            (["label=light", "label=middle"], {"light", "middle"}),
            (["label=light", "width=32"], {"light"}),
            (["label=light", "height=33"], set()),
            (["label="], set()),
        ):
            options = [word for one in conditions for word in ("--where", one)]
            (found,) = call_json("search", built, query, *options)["queries"]
            assert {hit["label"] for hit in found["hits"]} == expected
        assert read_conditions(["label=a=b", "id=3", "label="]) == {"label": ["a=b", None], "id": [3]}

    def test_the_page_says_what_was_searched(self, images: Path, built: Path, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"no image")
        query, html = images / "dark/0.png", tmp_path / "r.html"
        only = ["--where", "label=<light>", "--skip-unreadable"]
        found = call_json("search", built, query, tmp_path / "broken.png", *only, "--html", html)
        assert found["warnings"] == ["where: no image of the index has label=<light>"]
        words = Page(html).words
        assert f"Searched: the index {built} of 15 images, those with label=<light> alone." in words
        assert "Queries that could not be read and are not here: 1." in words
        call_json("search", built, query, "--html", html)
        assert f"Searched: the index {built} of 15 images. " in Page(html).words

    def test_unreadable_and_zero_queries(self, images: Path, built: Path, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"no image")
        queries = [tmp_path / "broken.png", images / "dark/0.png"]
        refused = call("search", built, *queries)
        assert refused.exit_code == 2
        assert "--skip-unreadable leaves such images out" in refused.stderr
        found = call_json("search", built, *queries, "--skip-unreadable", "--top", 1)
        assert [one["query"] for one in found["queries"]] == [str(queries[1])]
        assert [one["path"] for one in found["skipped"]] == [str(queries[0])]
        alone = call("search", built, queries[0], "--skip-unreadable")
        assert alone.exit_code == 2
        assert "none of 1 can be read, the first: cannot read image" in alone.stderr

    def test_refusals(self, images: Path, built: Path, tmp_path: Path) -> None:
        query = images / "dark/0.png"
        vectors = tmp_path / "vectors"
        ead.ImageIndex.from_vectors(["a", "b"], np.eye(2, dtype=np.float32), vectors).close()
        for arguments, message, code in (
            ((built, query, "--where", "label"), "where must be COLUMN=VALUE", 2),
            ((built, query, "--where", "width=wide"), "width must be a whole number, got 'wide'", 2),
            ((built, query, "--where", "lable=x"), "unknown column 'lable'", 2),
            ((built, query, "--top", 0), "--top", 2),
            ((built, query, "--html", tmp_path), "html must be a file, got the folder", 2),
            ((built, tmp_path / "no.png"), "no.png", 2),
            ((tmp_path / "nowhere", query), "no image index at", 2),
            ((vectors, query), "was built of ready vectors", 2),
        ):
            outcome = call("search", *arguments)
            assert outcome.exit_code == code, (arguments, outcome.stderr)
            assert message in " ".join(outcome.stderr.split()).replace("│ ", ""), outcome.stderr

    def test_a_damaged_index(self, images: Path, index: Path) -> None:
        (index / "vectors.0.f16").write_bytes(b"")
        outcome = call("search", index, images / "dark/0.png")
        assert outcome.exit_code == 1
        assert "vectors.0.f16 has 0 bytes" in outcome.stderr


class TestDuplicates:
    def test_groups(self, images: Path, tmp_path: Path) -> None:
        folder = tmp_path
        shutil.copytree(images, folder / "images")
        for name, copy in (("dark/0", "dark/x"), ("dark/0", "light/y"), ("middle/1", "middle/z")):
            shutil.copy(folder / f"images/{name}.png", folder / f"images/{copy}.png")
        call_json("index", folder / "images", "--out", folder / "index", *NETWORK)
        found = call_json("duplicates", folder / "index", "--threshold", 0.999)
        groups = [
            [Path(path).relative_to(folder / "images").as_posix() for path in g] for g in found["groups"]
        ]
        assert groups == [["dark/0.png", "dark/x.png", "light/y.png"], ["middle/1.png", "middle/z.png"]]
        assert (found["images"], found["pairs"]) == (18, 4)
        with ead.ImageIndex.open(folder / "index") as index:
            assert found["duplicates"] == index.duplicates(0.999)
        text = call("duplicates", folder / "index", "--threshold", 0.999).stdout
        assert text.splitlines()[-1] == "5 of 18 images are in 2 groups of similarity 0.999 and more"
        assert text.splitlines()[1] == f"  {folder / 'images/dark/x.png'}"
        rows = list(
            csv.DictReader(
                io.StringIO(call("duplicates", folder / "index", "--threshold", 0.999, "--csv").stdout)
            )
        )
        assert [row["group"] for row in rows] == ["1", "1", "1", "2", "2"]
        assert [row["path"] for row in rows] == [path for group in found["groups"] for path in group]

    def test_none_and_refusals(self, built: Path, tmp_path: Path) -> None:
        hint = "most of them are in one group"
        assert hint in call("duplicates", built, "--threshold", -1).stdout
        assert hint not in call("duplicates", built, "--threshold", 0.999).stdout
        assert "0 of 15 images are in 0 groups" in call("duplicates", built, "--threshold", 1).stdout
        for arguments, message in (
            ((built, "--threshold", 2), "threshold must be between -1 and 1, got 2"),
            ((built, "--json", "--csv"), "--json and --csv exclude one another"),
            ((tmp_path,), "no image index at"),
        ):
            outcome = call("duplicates", *arguments)
            assert (outcome.exit_code, message in outcome.stderr) == (2, True), outcome.stderr

    def test_chains_are_one_group(self) -> None:
        assert connected({"a": ["b"], "c": ["d"], "b": ["e"], "e": ["d"]}) == [["a", "b", "c", "d", "e"]]
        assert connected({"a": ["c"], "b": ["d"], "e": ["d"]}) == [["a", "c"], ["b", "d", "e"]]
        assert connected({}) == []
