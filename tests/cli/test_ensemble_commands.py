"""`weights`, `fuse`, and `index --fusion`: embeddings of several networks joined from the command line; and
`evaluate --similar`.
"""

from __future__ import annotations

import csv
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
from ensemblead.cli.fuse import show

TWO = [*NETWORK, "-b", "gabor", "-le", "0.layer1", "-le", "1.layer3"]
LDA = ["--mode", "lda"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes dark, middle and light, five images each."""
    return draw_classes(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="module")
def fused(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, joined by discriminant analysis."""
    out = tmp_path_factory.mktemp("models") / "lda"
    call_json("fuse", images, "--out", out, *TWO, *LDA)
    return out


class TestWeights:
    def test_the_table_is_that_of_python(self, images: Path, tmp_path: Path) -> None:
        options = ["--grid", "0,1,2", "-k", 4, "--seed", 3, "--model", tmp_path / "model"]
        found = call_json("weights", images, "--out", tmp_path / "weights.csv", *TWO, *options)
        loaded: Any = ead.load(tmp_path / "model")
        paths = sorted(images.rglob("*.png"))
        labels = [path.parent.name for path in paths]
        vectors = [member.embed(paths) for member in loaded.members]
        expected = ead.search_weights(vectors, labels, grid=[0, 1, 2], k=4, seed=3)
        assert found["best"]["weights"] == list(loaded.weights) == list(expected.best.weights)
        assert found["best"]["map"] == pytest.approx(expected.best.map)
        assert found["best"]["holdout_map"] == pytest.approx(expected.best.holdout_map)
        assert (found["networks"], found["images"], found["k"]) == (["gabor layer1", "gabor layer3"], 15, 4)
        with (tmp_path / "weights.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == found["combinations"] == len(expected.rows) == 5
        assert [float(row["weight_1"]) for row in rows] == [row.weights[0] for row in expected.rows]
        index = call_json("index", images, "--out", tmp_path / "index", "--fusion", tmp_path / "model")
        assert index["images"] == 15

    def test_text(self, images: Path, tmp_path: Path) -> None:
        outcome = call("weights", images, "--out", tmp_path / "w.csv", *TWO)
        assert outcome.exit_code == 0, outcome.stderr
        head, *rows = outcome.stdout.splitlines()
        assert head.split() == [
            "gabor",
            "layer1",
            "gabor",
            "layer3",
            "mAP@14",
            "held",
            "out",
        ]  # 50 is more than there are
        assert len(rows) == 10 + 2
        assert rows[-2].startswith("15 images, 19 combinations in ")
        assert rows[-2].endswith(" s; the figure to expect is the best one's on the queries held out")
        assert rows[-1] == f"table: {tmp_path / 'w.csv'}"
        none = call("weights", images, "--out", tmp_path / "w.csv", *TWO, "--holdout", 0, "--grid", 1)
        assert none.stdout.splitlines()[-2].endswith(" s")

    def test_refusals(self, images: Path, fused: Path, tmp_path: Path) -> None:
        out = tmp_path / "w.csv"
        for arguments, message in (
            ((images, "--out", out, *NETWORK), "backbone must be given for each of two networks"),
            ((images, "--out", out), "backbone must be given"),
            ((images, "--out", out, *TWO, "--grid", "1,x"), "grid must be numbers with commas between"),
            ((images, "--out", out, *TWO, "--grid", "0"), "all zero"),
            ((images, "--out", out, *TWO, "-k", 15), "k must be below the 15 items, got 15"),
            ((images, "--out", out, *TWO, "--normalize", "none"), "normalize must be one of"),
            ((images, "--out", out, *TWO, "--labels", "a.csv"), "labels must be one of from-folders"),
            ((images / "dark", "--out", out, *TWO), "labels: 5 images lie in"),
            ((images, "--out", tmp_path, *TWO), "out must be a file, got the folder"),
            ((images, "--out", out, *TWO, "--model", fused), "model: there is a model in"),
        ):
            outcome = call("weights", *arguments)
            assert outcome.exit_code == 2, (arguments, outcome.stderr)
            assert message in " ".join(outcome.stderr.split()), outcome.stderr
        assert not out.exists()

    def test_they_come_before_images_are_read(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read_vectors(*_: Any, **__: Any) -> Any:
            raise AssertionError("images are read")

        monkeypatch.setattr("ensemblead.retrieval.embedders.read_vectors", read_vectors)
        for options, message in (
            (["--grid", "0"], "all zero"),
            (["--grid", "1,-2"], "not negative, got -2"),
            (["-k", 15], "k must be below the 15 items, got 15"),
            (["--holdout", 1], "holdout must be at least 0 and below 1"),
            (["--max-queries", 0], "max_queries must be at least 1"),
            (["--seed", -1], "seed must be at least 0"),
        ):
            outcome = call("weights", images, "--out", tmp_path / "w.csv", *TWO, *options)
            assert outcome.exit_code == 2, (options, outcome.stderr)
            assert message in " ".join(outcome.stderr.split()), outcome.stderr


class TestFuse:
    def test_it_is_what_python_fits(self, images: Path, fused: Path, tmp_path: Path) -> None:
        loaded: Any = ead.load(fused)
        paths = sorted(images.rglob("*.png"))
        own = ead.EmbeddingEnsemble(loaded.members, mode="lda").fit(paths, [p.parent.name for p in paths])
        np.testing.assert_allclose(loaded.embed(paths), own.embed(paths), atol=1e-4)
        outcome = call("fuse", images, "--out", tmp_path / "model", *TWO, *LDA)
        assert outcome.exit_code == 0, outcome.stderr
        first, second = outcome.stdout.splitlines()
        assert first.startswith("15 images of 3 classes in ")
        assert first.endswith("; 2 dimensions")
        assert second == f"ensemble: {tmp_path / 'model'}"

    def test_whitening_needs_no_labels(self, images: Path, tmp_path: Path) -> None:
        whiten = ["--out", tmp_path / "model", *TWO, "--mode", "whiten", "--dim", 3]
        found = call_json("fuse", images / "dark", *whiten)  # images in no folders of classes
        assert (found["images"], found["classes"], found["dim"]) == (5, 0, 3)
        outcome = call("fuse", images, *whiten, "--overwrite")
        assert outcome.stdout.startswith("15 images in "), outcome.stderr
        outcome = call("fuse", images, *whiten, "--overwrite", "--labels", "nonsense")
        assert "labels must be one of from-folders, got 'nonsense'" in outcome.stderr

    def test_text_of_a_training(self, capsys: pytest.CaptureFixture[str]) -> None:
        summary = {"skipped": [], "images": 9, "classes": 3, "seconds": 2.0, "dim": 8, "model": "m"}
        show({**summary, "best_epoch": 2, "validation_map": 0.75})
        show({**summary, "best_epoch": 4, "validation_map": None})
        printed = capsys.readouterr().out.splitlines()
        assert printed[1] == "best after 2 epochs, mAP@50 0.750 of the images held out for that"
        assert printed[4] == "best after 4 epochs"

    def test_a_trained_layer(self, images: Path, tmp_path: Path) -> None:
        pytest.importorskip("pytorch_metric_learning")
        training = ["--dim", 8, "--epochs", 2, "--loss", "proxy_anchor", "--seed", 1]
        found = call_json("fuse", images, "--out", tmp_path / "model", *TWO, *training)
        assert (found["mode"], found["dim"], found["classes"]) == ("fusion", 8, 3)
        assert found["best_epoch"] in (1, 2)
        assert found["validation_map"] == found["history"][found["best_epoch"] - 1]["validation_map"]
        loaded: Any = ead.load(tmp_path / "model")
        assert loaded.best_epoch_ == found["best_epoch"]
        assert loaded.embed(images / "dark").shape == (5, 8)

    def test_unreadable_images(self, images: Path, tmp_path: Path) -> None:
        root = draw_classes(tmp_path / "images", 3)
        (root / "dark/broken.png").write_bytes(b"no image")
        refused = call("fuse", root, "--out", tmp_path / "model", *TWO, *LDA)
        assert refused.exit_code == 2
        assert "--skip-unreadable leaves such images out" in refused.stderr
        for command, out, options in (("fuse", "model", LDA), ("weights", "w.csv", [])):
            found = call_json(command, root, "--out", tmp_path / out, *TWO, *options, "--skip-unreadable")
            assert found["images"] == 9
            assert [Path(one["path"]).name for one in found["skipped"]] == ["broken.png"]

    def test_an_index_by_a_fusion(self, images: Path, fused: Path, tmp_path: Path) -> None:
        out, other = tmp_path / "index", tmp_path / "other"
        assert call_json("index", images, "--out", out, "--fusion", fused)["dim"] == 2
        again = call_json("index", images, "--out", out, "--fusion", fused, "--labels", "from-folders")
        assert (again["embedded"], again["images"]) == (0, 15)
        found = call_json("search", out, images / "light/0.png", "--top", 5, "--where", "label=light")
        assert len(found["queries"][0]["hits"]) == 5
        call_json("fuse", draw_classes(tmp_path / "more", 7), "--out", other, *TWO, *LDA)
        refused = call("index", images, "--out", out, "--fusion", other)
        assert refused.exit_code == 2
        assert "was built with: its learned.safetensors has other contents" in refused.stderr

    def test_refusals(self, images: Path, fused: Path, tmp_path: Path) -> None:
        out = tmp_path / "model"
        for arguments, message in (
            ((images, "--out", fused, *TWO, *LDA), "out: there is a model in"),
            ((images, "--out", out, *LDA), "backbone must be given"),
            ((images, "--out", out, *TWO, "--mode", "concat"), "mode must be one of"),
            ((images, "--out", out, *TWO, *LDA, "--loss", "supcon", "--epochs", 3), "goes with training"),
            ((images, "--out", out, *TWO, "--loss", "triplet"), "loss must be one of"),
            ((images / "dark", "--out", out, *TWO, *LDA), "labels: 5 images lie in"),
            ((tmp_path, "--out", out, *TWO, *LDA), "no image files in"),
        ):
            outcome = call("fuse", *arguments)
            assert outcome.exit_code == 2, (arguments, outcome.stderr)
            assert message in " ".join(outcome.stderr.split()), outcome.stderr
        assert not out.exists()


class TestSimilar:
    def test_findings_name_similar_normal_images(self, category: Path, model: Path, tmp_path: Path) -> None:
        normal = tmp_path / "index"
        call_json("index", category / "train/good", "--out", normal, *NETWORK)
        call_json("index", category / "test/blot", "--out", normal)  # no image is similar to itself
        call_json("evaluate", model, category, "--out", tmp_path, "--bootstrap", 0, "--similar", normal)
        page = Page(tmp_path / "report.html")
        assert f"of the 16 images of the index {normal}" in page.words
        below = category / "test/blot"
        assert f"they lie below {below}" in page.words
        findings = [item for item in page.data["items"] if item["label"] or item["verdict"]]
        assert len(findings) == sum("similar" in item for item in page.data["items"]) == 4
        with ead.ImageIndex.open(normal) as index:
            for item in findings:
                path = category / "test" / item["name"]
                own, *expected = index.search(path, top=4)[0]
                assert own.path == str(path)
                names = [page.data["similar"][place]["name"] for _, place in item["similar"]]
                assert [below / name for name in names] == [Path(h.path) for h in expected]
                values = [value for value, _ in item["similar"]]
                assert values == pytest.approx([hit.similarity for hit in expected], abs=1e-3)

    def test_refusals(self, category: Path, model: Path, tmp_path: Path) -> None:
        vectors, suite, empty = tmp_path / "vectors", tmp_path / "suite.yaml", tmp_path / "empty"
        gabor = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
        query = next((category / "train/good").iterdir())
        with ead.ImageIndex.build([query], gabor, empty) as index:
            index.remove([query])
        refused = call("search", empty, query)
        assert (refused.exit_code, "has no images, or none yet" in refused.stderr) == (2, True)
        ead.ImageIndex.from_vectors(["a", "b"], np.eye(2, dtype=np.float32), vectors).close()
        suite.write_text(
            "detectors: [{name: a, type: PatchCore, backbone: gabor}]\n"
            f"datasets: [{{type: MVTecAD, root: {category}}}]\n"
        )
        for arguments, message in (
            ((model, category, "--similar", tmp_path / "nowhere"), "no image index at"),
            ((model, category, "--similar", vectors), "was built of ready vectors"),
            ((model, category, "--similar", empty), "has no images, or none yet"),
            (("--config", suite, "--similar", vectors), "leave out --similar"),
            ((model, category, "--similar-weights", vectors), "--similar-weights goes with --similar"),
        ):
            outcome = call("evaluate", *arguments, "--out", tmp_path / "out")
            assert outcome.exit_code == 2, (arguments, outcome.stderr)
            assert message in " ".join(outcome.stderr.split()), outcome.stderr
        assert not (tmp_path / "out").exists()

    def test_weights_of_the_index_that_have_moved(self, category: Path, model: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        from ensemblead.networks import FeatureExtractor

        file, moved, normal = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "index"
        save_file(FeatureExtractor("pdn_small", ["conv1"], weights=None).state_dict(), file)
        network = ["-b", "pdn_small", "-le", "conv1", "--weights", file, "--device", "cpu"]
        call_json("index", category / "train/good", "--out", normal, *network)
        file.rename(moved)
        measured = (
            "evaluate",
            model,
            category,
            "--out",
            tmp_path / "out",
            "--similar",
            normal,
            "--bootstrap",
            0,
        )
        lost = call(*measured)
        assert lost.exit_code == 1
        assert f"similar: the weights of pdn_small are no longer at {file}" in lost.stderr
        assert "give --similar-weights PATH with where they are now" in lost.stderr
        call_json(*measured, "--similar-weights", moved)
        assert any("similar" in item for item in Page(tmp_path / "out/report.html").data["items"])
