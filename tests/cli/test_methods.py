"""Methods on the command line: every registered one, by its signature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import call, call_json
from support.registry import separate_registry
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.cli.options import DetectorOptions, build_detector, read_config, typed_options
from ensemblead.config.registry import describe

CLI = Path(sys.modules["ensemblead.cli"].__file__ or "").parent
NATIVE = ["--device", "cpu", "--resize", "none", "--image-size", "none"]
PADIM = ["--method", "padim", "-b", "gabor", "--num-dimensions", "12", *NATIVE]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    for kind, pictures in (("good", normal_images(8)), ("bad", with_defects(normal_images(2, seed=3))[0])):
        (folder / kind).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / kind / f"{i}.png")
    return folder


def built(*sets: str, **names: Any) -> Any:
    return build_detector(typed_options({}, sets, **names))


class Strict(ead.PaDiM):
    """A method of another package, with a parameter of its own."""

    def __init__(
        self,
        backbone: str = "gabor",
        layers: Sequence[str] = ("layer1",),
        *,
        strictness: float = 1.0,
        num_dimensions: int | None = 8,
        weights: str | None = "default",
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | None = None,
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            layers,
            num_dimensions=num_dimensions,
            weights=weights,
            image_size=image_size,
            resize=resize,
            device=device,
            precision=precision,
            batch_size=batch_size,
            seed=seed,
            compile=compile,
        )
        self.strictness = float(strictness)


class TestANewMethod:
    """A class that is registered is a method of the command line, without an edit there."""

    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        separate_registry(monkeypatch)
        ead.register("StrictPaDiM")(Strict)

    def test_it_is_fitted_by_its_name(self, images: Path, tmp_path: Path) -> None:
        method = ["--method", "strict-padim", "--set", "strictness=2", "--set", "num_dimensions=5"]
        summary = call_json("fit", images / "good", "--model", tmp_path / "m", *method, "--seed", 3)
        assert summary["detector"] == "Strict"
        (member,) = summary["members"]
        assert (member["backbone"], member["layers"], member["dimensions"]) == ("gabor", ["layer1"], 5)
        predicted = call_json("predict", tmp_path / "m", images / "bad", "--out", tmp_path / "o")
        assert predicted["images"] == 2

    def test_its_parameters_are_checked(self, images: Path, tmp_path: Path) -> None:
        fit = ["fit", images / "good", "--model", tmp_path / "m", "--method", "StrictPaDiM"]
        for text, message in (
            ("strictnes=2", "strictnes is no parameter of StrictPaDiM; did you mean strictness?"),
            ("strictness=very", 'strictness must be a number, got "very"'),
            ("coreset_fraction=0.1", "coreset_fraction is no parameter of StrictPaDiM, but of PatchCore"),
            ("0.strictness=x", '0.strictness must be a number, got "x"'),
        ):
            outcome = call(*fit, "--set", text)
            assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
            assert message in outcome.stderr

    def test_in_ensembles_tiles_and_files(self, tmp_path: Path) -> None:
        method = "strictpadim"
        pair = built("strictness=2", "1.strictness=3", method=method, backbone=["gabor", "resnet18"])
        assert [member.strictness for member in pair.members] == [2.0, 3.0]
        tiled = built("strictness=2", "tile_size=32", "tile_score=max", method=method)
        assert (type(tiled), tiled.score, tiled.member.strictness) == (ead.TiledEnsemble, "max", 2.0)
        (tmp_path / "c.json").write_text(json.dumps({"method": method, "strictness": 2, "seed": 4}))
        found: Any = build_detector(DetectorOptions(), read_config(tmp_path / "c.json"))
        assert (found.strictness, found.seed) == (2.0, 4)
        (tmp_path / "c.json").write_text(json.dumps({"type": "StrictPaDiM", "strictness": 2}))
        found = build_detector(typed_options({}, ["strictness=5"]), read_config(tmp_path / "c.json"))
        assert found.strictness == 5.0
        assert ead.create(describe(found)).strictness == 5.0


def test_a_method_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)

    @ead.register("Grey")
    class Grey:
        def __init__(self, *, grid: int = 8, seed: int = 0) -> None:
            self.grid, self.seed = grid, seed

    assert describe(built("grid=3", method="grey")) == {"type": "Grey", "grid": 3, "seed": 0}
    with pytest.raises(ValueError, match="backbone is no parameter of Grey, got resnet18"):
        built(method="grey", backbone=["resnet18"])


def test_the_command_line_names_no_method() -> None:
    """But for the method that is fitted if none is named, the demonstration's, and what other tools have."""
    for path in CLI.glob("*.py"):
        if path.name == "convert.py":
            continue
        code = path.read_text()
        assert "PaDiM" not in code
        assert "padim" not in code
        assert code.count('"PatchCore"') == (path.name in ("options.py", "demo.py"))


def test_every_parameter_can_be_set() -> None:
    assert built("precision=float32", "batch_size=4", "compile=true", method="padim").batch_size == 4
    detector = built("layers=[layer3]", "pretrain_dim=[64]", "score=topk", "reweight_neighbors=3")
    assert (detector.layers, detector.pretrain_dim, detector.score) == (("layer3",), (64,), "topk")
    ensemble = built("fusion=max", "0.seed=3", backbone=["gabor", "gabor"])
    assert (ensemble.fusion, [member.seed for member in ensemble.members]) == ("max", [3, 0])


def test_former_options_are_settings(images: Path, tmp_path: Path) -> None:
    options = ["-b", "gabor", *NATIVE, "-p", 0.2, "--score=topk", "--batch-size", 3, "--no-compile"]
    call_json("fit", images / "good", "--model", tmp_path / "m", *options, "--aggregation", "concat")
    detector = ead.load(tmp_path / "m")
    assert isinstance(detector, ead.PatchCore)
    assert (detector.score, detector.batch_size, detector.aggregation) == ("topk", 3, "concat")
    outcome = call("fit", images / "good", "--model", tmp_path / "n", "--fusion")
    assert outcome.exit_code == 2


# PaDiM


def test_padim_fits_and_predicts(images: Path, tmp_path: Path) -> None:
    summary = call_json("fit", images / "good", "--model", tmp_path / "m", *PADIM, "--seed", "3")
    detector = ead.load(tmp_path / "m")
    assert isinstance(detector, ead.PaDiM)
    assert (detector.layers, detector.seed) == (("layer1", "layer2", "layer3"), 3)
    (member,) = summary["members"]
    assert (summary["detector"], member["gaussians"], member["dimensions"]) == ("PaDiM", 256, 12)
    assert "bank_rows" not in member
    predicted = call_json("predict", tmp_path / "m", images / "bad", "--out", tmp_path / "o")
    assert predicted["images"] == predicted["anomalous"] == 2


@pytest.mark.parametrize("tiles", [False, True])
def test_the_table_counts_gaussians(images: Path, tmp_path: Path, tiles: bool) -> None:
    options = [*PADIM[:-4], "--tile-size", "32", "--image-size", "64"] if tiles else PADIM
    outcome = call("fit", images / "good", "--model", tmp_path / "m", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{576 if tiles else 256} Gaussians" in outcome.stdout


def test_defaults_are_those_of_the_signatures() -> None:
    assert describe(built(method="padim")) == describe(ead.PaDiM())
    assert describe(built()) == describe(built(method="patchcore")) == describe(ead.PatchCore())
    several = built(method="padim", backbone=["gabor", "resnet18"])
    assert isinstance(several, ead.BackboneEnsemble)
    assert all(isinstance(member, ead.PaDiM) for member in several.members)


@pytest.mark.parametrize(
    ("sets", "names", "message"),
    [
        ([], {"method": "pandim"}, "method must be a method's name, got 'pandim'; did you mean padim?"),
        (
            [],
            {"method": "xyz"},
            "got 'xyz'; there are: (?!.*tiledensemble).*padim.*; one of your own is known by .*--import",
        ),
        ([], {"method": "tiledensemble"}, "got the ensemble TiledEnsemble: tile_size must be given"),
        ([], {"method": "backbone-ensemble"}, "the ensemble BackboneEnsemble: use -b twice, or --config"),
        (["coreset_fraction=0.1"], {"method": "padim"}, "is no parameter of PaDiM, but of PatchCore"),
        (["num_dimensions=9"], {}, "num_dimensions is no parameter of PatchCore, but of PaDiM"),
        ([], {"method": "padim", "preset": "patchcore-large"}, "is of PatchCore, got method 'padim'"),
        (["fusion=max"], {"method": "padim"}, "but of BackboneEnsemble: give several backbones"),
    ],
)
def test_options_that_do_not_go_together(sets: list[str], names: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(*sets, **names)


@pytest.mark.parametrize(
    "document",
    [
        {"method": "padim", "backbone": "gabor", "num_dimensions": 12},
        {"type": "PaDiM", "backbone": "gabor", "num_dimensions": 12},
    ],
)
def test_in_a_configuration_file(tmp_path: Path, document: dict[str, Any]) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(document))
    detector = build_detector(DetectorOptions(), read_config(file))
    assert describe(detector) == describe(ead.PaDiM("gabor", num_dimensions=12))
    file.write_text(json.dumps({**document, "num_dimensions": "many"}))
    with pytest.raises(
        ValueError, match="num_dimensions must be a whole number, a list of whole numbers or null"
    ):
        build_detector(DetectorOptions(), read_config(file))


@pytest.mark.slow
def test_a_package_with_an_entry_point_needs_no_import(images: Path, tmp_path: Path) -> None:
    """As someone else's package brings a method: found by its name, in a process of its own."""
    info = tmp_path / "strict_padim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strict-padim\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ensemblead.detectors]\nOther = other_method_of_test\n")
    (tmp_path / "other_method_of_test.py").write_text(
        "import ensemblead as ead\n@ead.register('Other')\nclass Other(ead.PatchCore):\n    pass\n"
    )
    fit = ["fit", str(images / "good"), "--model", str(tmp_path / "m"), "--method", "other", "-b", "gabor"]
    for arguments in (
        [*fit, *NATIVE],
        ["predict", str(tmp_path / "m"), str(images / "bad"), "--out", str(tmp_path / "o")],
    ):
        outcome = subprocess.run(
            [sys.executable, "-c", "from ensemblead.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
        assert outcome.returncode == 0, outcome.stderr


OWN = """
from dataclasses import dataclass
import torch
import ensemblead as ead
from ensemblead.detectors.method import Method, Run, Scores, Seen, TrainingData

@dataclass(frozen=True)
class Darkness:
    mean: torch.Tensor

@ead.register("Darkness")
class DarknessDetector(Method):
    State = Darkness

    def __init__(self, *, resize=None, image_size=None, device: str = "auto") -> None:
        super().__init__(locals())

    def train(self, data: TrainingData, run: Run) -> Darkness:
        return Darkness(next(data.epoch(0)).pixels.float().mean())

    def scores(self, state: Darkness, seen: Seen) -> Scores:
        return Scores((seen.pixels.float().mean(1) - state.mean).abs())
"""


class TestImport:
    @pytest.fixture(autouse=True)
    def _own(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        separate_registry(monkeypatch)
        monkeypatch.setattr(sys, "modules", dict(sys.modules))
        (tmp_path / "own_methods.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("form", ["own_methods.py", "own_methods"])
    def test_a_method_in_a_file_or_module(
        self, form: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        fit = ["fit", images / "good", "--model", tmp_path / "m", "--method", "darkness", "--device", "cpu"]
        outcome = call("--import", form, "--import", form, *fit)
        assert outcome.exit_code == 0, outcome.stderr
        assert "(estimated, by images held out of the training)" in outcome.stdout
        assert "backbone" not in outcome.stdout.split("model:")[0]
        predict = ["predict", tmp_path / "m", images / "bad", "--out", tmp_path / "o"]
        assert call("--import", form, *predict).exit_code == 0

    def test_a_saved_model_imports_nothing(self, images: Path, tmp_path: Path) -> None:
        fit = ["fit", images / "good", "--model", tmp_path / "m", "--method", "darkness", "--device", "cpu"]
        command = [sys.executable, "-m", "ensemblead"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        for arguments, code in (
            (["--import", "own_methods.py", *fit], 0),
            (["predict", tmp_path / "m", images / "bad", "--out", tmp_path / "o"], 1),
        ):
            outcome = subprocess.run(
                [*command, *map(str, arguments)],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            assert outcome.returncode == code, outcome.stderr
        assert "holds a 'Darkness', which is not known: import the module that registers" in outcome.stderr

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("nowhere.py", "--import: no such file: "),
            ("no_such_module", "there is no module 'no_such_module'"),
            ("ensemblead.nothing", "there is no module 'ensemblead.nothing'"),
            ("json.py", "a module 'json' is loaded already; give the file another name"),
            (".", "--import: no such file"),
        ],
    )
    def test_what_cannot_be_loaded(self, given: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "json.py").write_text("")
        outcome = call("--import", given, "info")
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
        assert message in outcome.stderr
