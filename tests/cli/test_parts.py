"""`--part` of `predict` and `evaluate`, and `merge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
from support.brightness import draw_two_categories
from support.commands import call, call_json
from support.suites import two_by_two
from support.units import SIZES, draw_images

import ensemblead as ead


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scores do not depend on the batch."""
    folder = tmp_path_factory.mktemp("model")
    draw_images(folder / "good")
    detector = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.3, batch_size=1, **SIZES)
    detector.fit(folder / "good").save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder / "a", 4, seed=3)
    draw_images(folder / "b", 3, seed=4)
    (folder / 'b/qu"o,te.png').write_bytes((folder / "b/0.png").read_bytes())
    return folder


def predict(model: Path, images: Path, out: Path, *more: Any) -> dict[str, Any]:
    return call_json("predict", model, images, "--out", out, *more)


class TestPredict:
    def test_parts_make_a_whole(self, model: Path, images: Path, tmp_path: Path) -> None:
        predict(model, images, tmp_path / "whole", "--maps", "--masks")
        for number in (3, 1, 2):
            found = predict(model, images, tmp_path / "parts", "--part", f"{number}/3", "--maps", "--masks")
            assert found["images"] == {1: 3, 2: 3, 3: 2}[number]
            assert found["warnings"] == []
        assert not (tmp_path / "parts/scores.csv").exists()
        merged = call_json("merge", tmp_path / "parts")
        assert merged["images"] == 8
        assert Path(merged["scores"]).read_bytes() == (tmp_path / "whole/scores.csv").read_bytes()
        assert Path(merged["objects"]).read_bytes() == (tmp_path / "whole/objects.json").read_bytes()
        assert not (tmp_path / "parts/report.html").exists()  # pages are not put together
        assert len(list((tmp_path / "parts").glob("report.part-*-of-3.html"))) == 3
        for kind in ("maps", "masks", "heat_maps"):
            both = [
                {
                    path.relative_to(tmp_path / out / kind): path.read_bytes()
                    for path in (tmp_path / out / kind).rglob("*.*")
                }
                for out in ("whole", "parts")
            ]
            assert len(both[0]) == 8
            assert both[0] == both[1]

    def test_images_left_out(self, model: Path, tmp_path: Path) -> None:
        draw_images(tmp_path / "in", 5)
        (tmp_path / "in/1.png").write_bytes(b"no image")
        options = ("--skip-unreadable", "--no-heat-maps")
        predict(model, tmp_path / "in", tmp_path / "whole", *options)
        for number in range(1, 6):  # part 2 has that one alone
            predict(model, tmp_path / "in", tmp_path / "parts", *options, "--part", f"{number}/5")
        outcome = call("merge", tmp_path / "parts")
        assert outcome.exit_code == 0
        assert outcome.stdout.startswith("4 images, ")
        scores = [(tmp_path / out / "scores.csv").read_bytes() for out in ("whole", "parts")]
        assert scores[0] == scores[1]

    def test_more_parts_than_images(self, model: Path, tmp_path: Path) -> None:
        draw_images(tmp_path / "in", 2)
        for number in (1, 2, 3):
            found = predict(model, tmp_path / "in", tmp_path / "out", "--part", f"{number}/3")
            assert found["images"] == (number < 3)
        assert call_json("merge", tmp_path / "out")["images"] == 2

    @pytest.mark.parametrize("part", ["3", "a/2", "1/2/3", "0/2", "3/2", "1/0", "-1/2"])
    def test_wrong_parts(self, part: str, model: Path, images: Path, tmp_path: Path) -> None:
        outcome = call("predict", model, images, "--out", tmp_path / "out", "--part", part)
        assert outcome.exit_code == 2
        assert "--part must be" in outcome.stderr
        assert not (tmp_path / "out").exists()


class TestMerge:
    def test_what_is_not_there(self, model: Path, images: Path, tmp_path: Path) -> None:
        outcome = call("merge", tmp_path)
        assert outcome.exit_code == 2
        assert "predict --part K/N writes them" in outcome.stderr
        predict(model, images, tmp_path, "--part", "1/3", "--no-heat-maps")
        outcome = call("merge", tmp_path)
        assert outcome.exit_code == 2
        assert f"part 2/3 is not in {tmp_path}" in outcome.stderr.replace("\n", "")
        assert not (tmp_path / "scores.csv").exists()

    @pytest.mark.parametrize(
        ("name", "row", "message"),
        [
            ("scores.part-1-of-2.csv", "0,a.png,1.5,True,1", "holds parts of 1 and of 2"),
            ("scores.part-1-of-1.csv", "0,b.png,1.5,True", "is not what predict --part writes"),
            ("scores.part-1-of-1.csv", "x,b.png,1.5,True,1", "is not what predict --part writes"),
            ("scores.part-1-of-1.csv", "0,b.png,1.5,True,1\n1,a.png,1.5,True,2", "of several models"),
            ("scores.part-1-of-1.csv", "0,b.png,1.5,True,1\n0,a.png,1.5,True,1", "or sets of images"),
            ("scores.part-1-of-1.csv", "0,b.png,1.5,True,1\n1,b.png,1.5,True,1", "or sets of images"),
        ],
    )
    def test_what_does_not_go_together(self, name: str, row: str, message: str, tmp_path: Path) -> None:
        head = "image,path,anomaly_score,is_anomalous,threshold\n"
        (tmp_path / "scores.part-1-of-1.csv").write_text(head)
        (tmp_path / name).write_text(f"{head}{row}\n")
        outcome = call("merge", tmp_path)
        assert outcome.exit_code == 2
        assert message in outcome.stderr


class TestEvaluate:
    def test_parts_of_a_suite(self, tmp_path: Path) -> None:
        config = two_by_two(draw_two_categories(tmp_path / "data"))
        config["detectors"] = config["detectors"][:1]
        (tmp_path / "suite.json").write_text(json.dumps(config))
        suite = ("evaluate", "--config", tmp_path / "suite.json", "--out", tmp_path / "out", "--part")
        outcome = call(*suite, "1/2")
        assert outcome.exit_code == 0, outcome.stderr
        assert "1 of 2 cells wait for other parts" in outcome.stdout
        found = call_json(*suite, "2/2")
        assert found["reused"] == 1
        assert (tmp_path / "out/results.csv").exists()

    def test_a_detector_has_no_parts(self, model: Path, tmp_path: Path) -> None:
        outcome = call("evaluate", model, tmp_path, "--out", tmp_path / "out", "--part", "1/2")
        assert outcome.exit_code == 2
        assert "--part divides a suite" in outcome.stderr
