"""The configuration of a suite: its form, and the errors of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.brightness import draw, draw_category, draw_two_categories
from support.suites import GABOR, Config, two_by_two

pytest.importorskip("torch")
pytest.importorskip("yaml")

from ensemblead.evaluation import Category, Suite, run
from ensemblead.suites.suite import Entry, model_for


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_two_categories(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path) -> Config:
    return two_by_two(data)


def problem(config: Config) -> str:
    with pytest.raises(ValueError, match="configuration") as caught:
        Suite.parse(config)
    return str(caught.value)


class TestConfiguration:
    def test_names_settings_and_cells(self, config: Config, data: Path) -> None:
        suite = Suite.parse(config)
        assert [entry.name for entry in suite.detectors] == ["one", "two"]
        assert suite.detectors[0].description["seed"] == 2
        assert suite.detectors[1].description["members"][1]["device"] == "cpu"
        assert [str(cell) for cell in suite.cells()] == [
            "one on parts/bolt",
            "one on parts/nut",
            "two on parts/bolt",
            "two on parts/nut",
        ]
        del config["detectors"][0]["name"], config["datasets"][0]["name"]
        config["datasets"][0]["category"] = "nut"
        suite = Suite.parse(config)
        assert suite.detectors[0].name == "PatchCore gabor"
        assert list(suite.datasets) == ["nut"]
        config["datasets"][0]["category"] = ["nut", "bolt"]
        (dataset,) = Suite.parse(config).datasets.values()
        assert [category.name for category in dataset.categories] == ["nut", "bolt"]
        assert dataset.name == data.name

    def test_folders_hold_out_by_the_suites_seed(self, config: Config, tmp_path: Path) -> None:
        for index in range(10):
            draw(tmp_path / f"ok/{index}.png", index)
        entry = {"type": "Folder", "root": str(tmp_path), "normal": "ok", "name": "line"}
        chosen = set()
        for seed in range(4):
            (dataset,) = Suite.parse({**config, "seed": seed, "datasets": [entry]}).datasets.values()
            assert dataset.name == "line"
            chosen.add(dataset.train)
        assert len(chosen) > 1
        fixed = {**entry, "seed": 1}
        (first,) = Suite.parse({**config, "seed": 3, "datasets": [fixed]}).datasets.values()
        (second,) = Suite.parse({**config, "seed": 4, "datasets": [fixed]}).datasets.values()
        assert first.train == second.train

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bootstrp": 3}, "configuration: bootstrp is an unknown key; did you mean bootstrap?"),
            ({"bootstrap": -1}, "bootstrap must be at least 0, got -1"),
            ({"confidence": 2.0}, "confidence must be in (0, 1), got 2.0"),
            ({"seed": "1"}, 'seed must be a whole number, got "1"'),
            ({"errors": "ignore"}, 'errors must be "raise" or "skip", got "ignore"'),
            ({"detectors": []}, "detectors must be a list of at least one, got []"),
            ({"detectors": [3]}, "detectors[0] must be a mapping with type, preset or model, got int"),
            ({"detectors": [GABOR, GABOR]}, "is called 'PatchCore gabor', as 1 more"),
            ({"detectors": [{**GABOR, "name": 3}]}, "detectors[0].name must be a string, got 3"),
            ({"detectors": [{**GABOR, "sed": 3}]}, "detectors[0].sed is an unknown key; did you mean seed?"),
            ({"detectors": [{"model": "/nowhere"}]}, "detectors[0].model must be a saved model or hold one"),
            ({"detectors": [{"model": 3}]}, "detectors[0].model must be a string, got 3"),
            ({"detectors": [{"model": "a", "size": 3}]}, "detectors[0].size is an unknown key"),
            ({"datasets": [{"type": ["VisA"]}]}, "must have a type, got ['VisA']; did you mean VisA"),
            ({"datasets": [{"type": "VisAD"}]}, "must have a type, got 'VisAD'; did you mean VisA"),
            ({"datasets": [{"type": "MVTecAD"}]}, "datasets[0] has no 'root', which must be given"),
            ({"datasets": [{"type": "MVTecAD", "root": "/nowhere"}]}, "no such folder: /nowhere"),
            ({"datasets": [{"type": "Folder", "root": "/", "nrmal": "a"}]}, "did you mean normal"),
        ],
    )
    def test_what_is_refused(self, config: Config, change: Config, message: str) -> None:
        assert message in problem({**config, **change})

    def test_data_sets_are_looked_at_before_anything_runs(self, config: Config, tmp_path: Path) -> None:
        root = draw_category(tmp_path / "part", 0)
        config["datasets"] = [{"type": "MVTecAD", "root": str(root), "category": "prt"}]
        assert "category 'prt' is not in" in problem(config)
        config["datasets"][0]["category"] = []
        assert "category must name at least one" in problem(config)
        config["datasets"] = [{"type": "MVTecAD", "root": str(tmp_path), "category": ["part", "part"]}]
        assert "category 'part' is named 2 times" in problem(config)
        config["datasets"] = [{"type": "MVTecAD", "root": str(root)}]
        mask = root / "ground_truth/dull/0.png"
        mask.unlink()
        assert "1 defective image(s) have no mask" in problem(config)
        draw(mask, 0)
        from PIL import Image

        Image.new("L", (5, 5)).save(mask)
        assert "must be as large as its image" in problem(config)

    def test_all_problems_of_a_file_with_their_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "suite.yaml"
        path.write_text(
            "seed: 0\nbotstrap: 1\ndetectors:\n  - {type: PatchCore, backbone: gabor}\n  - type: PatchCore\n"
            "    scre: max\ndatasets:\n  - {type: MVTecAD, root: /nowhere}\n"
        )
        with pytest.raises(ValueError, match=r"suite\.yaml has 3 problems") as caught:
            Suite.read(path)
        lines = str(caught.value).splitlines()[1:]
        assert lines[0].startswith("1) line 2: botstrap is an unknown key; did you mean bootstrap?")
        assert lines[1].startswith("2) line 6: detectors[1].scre is an unknown key; did you mean score?")
        assert lines[2].startswith("3) line 8: datasets[0] (MVTecAD): no such folder")

    def test_it_must_be_a_mapping_with_both_lists(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="must hold a mapping with detectors and datasets, got list"):
            run(_file(tmp_path, "- 1"), tmp_path / "out")
        with pytest.raises(ValueError, match="has no 'datasets', which must be given"):
            run({"detectors": [GABOR]}, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return path


def test_the_suite_of_the_page_is_one(tmp_path: Path) -> None:
    import re

    from ensemblead.config.documents import Problems, read_source
    from ensemblead.config.registry import resolve

    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "evaluation.md").read_text()
    (block,) = (one for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "datasets:" in one)
    source = read_source(_file(tmp_path, block))
    problems = Problems(source)
    described = [one for one in source.value["detectors"] if "type" in one]
    for one in described:
        resolve({key: value for key, value in one.items() if key != "name"}, (), problems)
    problems.raise_any()
    assert len(described) == 2
    with pytest.raises(ValueError, match="has 3 problems") as caught:  # none of its folders is here
        Suite.read(tmp_path / "suite.yaml")
    assert str(caught.value).count("no such folder") == 3


def test_the_name_of_a_category_does_not_lead_out_of_the_models_folder(tmp_path: Path) -> None:
    models = Entry("saved", {"model": str(tmp_path / "models")})
    for name in ("../../secret", "/etc", "..", "a/b"):
        folder = model_for(models, Category(name, (), ()))
        assert folder.parent == tmp_path / "models"
    assert model_for(models, Category("metal nut", (), ())) == tmp_path / "models/metal nut"
