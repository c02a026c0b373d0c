"""Names, objects from descriptions, and descriptions of objects: `create` and `describe` are inverse."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from support.registry import separate_registry

import ensemblead as ead
from ensemblead.config import names, registry
from ensemblead.config.documents import Problems, Source
from ensemblead.config.presets import PRESETS, preset_notes
from ensemblead.config.registry import (
    construct,
    create,
    describe,
    register,
    registered_class,
    registered_name,
    registered_names,
    resolve,
)

GABOR = {"type": "PatchCore", "backbone": "gabor", "resize": None, "image_size": None}

LARGE = {"preset": "patchcore-large"}


def problems_of(description: Any) -> list[str]:
    problems = Problems(Source(description, "d"))
    resolve(description, (), problems)
    return problems.lines


class TestNames:
    @pytest.mark.slow
    def test_the_librarys_own_are_imported_when_asked_for(self) -> None:
        code = """
import sys
from ensemblead.config.registry import registered_class, registered_names
assert "PatchCore" in registered_names()
assert "torch" not in sys.modules
assert registered_class("PaDiM").__name__ == "PaDiM"
import ensemblead as ead
assert type(ead.create({"type": "TiledEnsemble", "member": {"type": "PatchCore"}})) is ead.TiledEnsemble
"""
        outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr

    def test_every_own_name_is_that_of_its_class(self) -> None:
        methods = ("DRAEM", "EfficientAD", "FastFlow", "PaDiM", "PatchCore", "ReverseDistillation")
        for name in (*methods, "BackboneEnsemble", "TiledEnsemble"):
            assert name in registered_names()
            assert registered_class(name) is getattr(ead, name)
            assert registered_name(getattr(ead, name)) == name

    def test_a_class_of_another_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        separate_registry(monkeypatch)

        def define() -> Any:
            @register("Mean")
            class Mean:
                def __init__(self, size: int = 3) -> None:
                    self.size = size

            return Mean

        first = define()()
        Mean = define()  # noqa: N806 - as a notebook's cell that is run twice
        assert type(create({"type": "Mean"})) is Mean is not type(first)
        assert describe(first) == describe(create({"type": "Mean"})) == {"type": "Mean", "size": 3}
        with pytest.raises(ValueError, match="size must be a whole number"):
            create({"type": "Mean", "size": "x"})
        with pytest.raises(ValueError, match="a class is registered as 'Mean' already: Mean"):
            register("Mean")(type("Other", (), {}))
        with pytest.raises(ValueError, match="Mean is registered already, as 'Mean'"):
            register("Average")(Mean)
        # Whether or not the library's own has been imported.
        monkeypatch.delitem(names._classes, "PaDiM", raising=False)
        with pytest.raises(ValueError, match="registered as 'PaDiM' already of ensemblead"):
            register("PaDiM")(type("Mine", (), {}))

    def test_a_package_is_found_by_its_entry_point(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        separate_registry(monkeypatch)
        info = tmp_path / "mean_colour-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-colour\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[ensemblead.detectors]\nMeanColour = mean_colour_of_test\n")
        (tmp_path / "mean_colour_of_test.py").write_text(
            "import ensemblead as ead\n"
            "@ead.register('MeanColour')\n"
            "class MeanColour:\n    def __init__(self, grid: int = 8): self.grid = grid\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert "MeanColour" in registered_names()
        assert create({"type": "MeanColour", "grid": 4}).grid == 4

    def test_names_and_classes_that_are_unknown(self) -> None:
        with pytest.raises(ValueError, match="unknown type 'PatchCor'; did you mean PatchCore"):
            registered_class("PatchCor")
        with pytest.raises(TypeError, match="int is not registered"):
            describe(3)

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        separate_registry(monkeypatch)
        monkeypatch.delitem(names._classes, "PaDiM", raising=False)

        def refuse(module: str) -> Any:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(names.importlib, "import_module", refuse)
        with pytest.raises(ead.EnsembleADError, match="PaDiM needs torch"):
            registered_class("PaDiM")


def objects() -> dict[str, Any]:
    """Detectors and ensembles with parameters of every kind."""
    core = ead.PatchCore("gabor", ["layer1"], resize=(32, 48), image_size=None, pretrain_dim=[64], seed=5)
    padim = ead.PaDiM("resnet18", num_dimensions=None, weights=Path("w.pt"), device=torch.device("cpu"))
    pair = ead.BackboneEnsemble([core, padim], weights=[1, 2.5])
    return {
        "PatchCore": core,
        "PaDiM": padim,
        "defaults": ead.PatchCore(),
        "pair": pair,
        "largest": ead.BackboneEnsemble([ead.PaDiM("gabor"), ead.PatchCore("gabor")], fusion="max"),
        "three": ead.BackboneEnsemble([ead.PaDiM("gabor", seed=i) for i in range(3)], weights=[1, 1, 5]),
        "tiles": ead.TiledEnsemble(pair, 32, (16, 32), image_size=(64, 96), shared=True, score="max"),
        "nested": ead.BackboneEnsemble(
            [
                ead.TiledEnsemble(ead.PatchCore("gabor"), image_size=None),
                ead.BackboneEnsemble([ead.PaDiM("gabor")]),
            ]
        ),
        "preset": ead.BackboneEnsemble.patchcore_large(),
    }


class TestInverse:
    @pytest.mark.parametrize("name", list(objects()))
    def test_create_and_describe(self, name: str) -> None:
        detector = objects()[name]
        description = describe(detector)
        again = create(description)
        assert type(again) is type(detector)
        assert describe(again) == description
        # In plain types, and whole: as a file keeps it, and with every default filled in.
        assert json.loads(json.dumps(description)) == description
        assert json.loads(json.dumps(resolve(description, (), Problems(Source({}))))) == description

    def test_every_parameter_is_in_it(self) -> None:
        description = describe(ead.PatchCore("gabor", resize=(32, 48), image_size=None, weights=Path("a/b")))
        assert set(description) == {"type", *signature(ead.PatchCore).parameters}
        assert (description["resize"], description["weights"]) == ([32, 48], "a/b")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"backbone": torch.nn.ReLU(), "layers": ("0",)},
                r"^members\[0\]\.backbone of a PatchCore cannot be .* ReLU has no plain",
            ),
            (
                {"weights": {"a": torch.zeros(2)}},
                r"^members\[0\]\.weights of a PatchCore .* Tensor has no plain form",
            ),
        ],
    )
    def test_what_has_no_plain_form_is_named(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            describe(ead.BackboneEnsemble([ead.PatchCore(**arguments)]))

    def test_a_parameter_without_an_attribute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        separate_registry(monkeypatch)

        @register("Forgetful")
        class Forgetful:
            def __init__(self, size: int = 3) -> None:
                pass

        with pytest.raises(TypeError, match="size is a parameter of Forgetful without an attribute"):
            describe(Forgetful())

    def test_objects_that_no_file_holds_may_be_given(self) -> None:
        module = torch.nn.ReLU()
        detector = create(
            {"type": "PatchCore", "backbone": module, "layers": ["0"], "device": torch.device("cpu")}
        )
        assert detector.backbone is module


def test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    for one in (names, registry):
        failed, tried = doctest.testmod(one)
        assert failed == 0
        assert tried > 0


def test_a_detector_with_defaults_filled_in() -> None:
    detector = create({**GABOR, "layers": ["layer1"], "coreset_fraction": 1, "resize": [32, 48]}, seed=5)
    assert isinstance(detector, ead.PatchCore)
    assert (detector.layers, detector.coreset_fraction, detector.resize) == (("layer1",), 1.0, (32, 48))
    assert detector.seed == 5
    alone = create({**GABOR, "seed": 1}, seed=5, device="cpu")
    assert isinstance(alone, ead.PatchCore)
    assert (alone.seed, str(alone.device)) == (1, "cpu")
    plain = ead.PatchCore("gabor", resize=None, image_size=None)
    described = create(GABOR)
    assert isinstance(described, ead.PatchCore)
    assert describe(described) == describe(plain)


def test_ensembles_nest() -> None:
    inner = {"type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "layers": ["layer1"]}], "fusion": "max"}
    detector = create({"type": "BackboneEnsemble", "members": [inner, GABOR], "weights": [1, 3]}, seed=7)
    assert isinstance(detector, ead.BackboneEnsemble)
    first, last = detector.members
    assert isinstance(first, ead.BackboneEnsemble)
    assert first.fusion == "max"
    assert [member.seed for member in (*first.members, last)] == [7, 7, 7]  # type: ignore[attr-defined]


def test_a_node_builds_anew_every_time() -> None:
    node = resolve({"type": "BackboneEnsemble", "members": [GABOR]}, (), Problems(Source({})), {"seed": 1})
    one, other = construct(node), construct(node)
    assert one is not other
    assert one.members[0] is not other.members[0]
    assert node["members"][0]["seed"] == 1


class TestPresets:
    @pytest.mark.parametrize("name", list(PRESETS))
    def test_each_makes_a_detector(self, name: str) -> None:
        detector = create({"preset": name})
        assert create(describe(detector)).is_fitted is False

    @pytest.mark.parametrize("name", ["patchcore-large", "mission"])
    def test_a_preset_is_what_its_class_method_makes(self, name: str) -> None:
        here = create({"preset": name, "device": "cpu"})
        assert describe(here) == describe(ead.BackboneEnsemble.patchcore_large(device="cpu"))
        assert describe(here) == describe(ead.BackboneEnsemble.mission(device="cpu"))
        assert [member.backbone for member in here.members] == [
            "wide_resnet101_2",
            "resnext101_32x8d",
            "densenet201",
        ]

    def test_parameters_are_set_in_it(self) -> None:
        weights = [None, "b", "c"]
        mine = create({"preset": "patchcore-large", "fusion": "rank", "weights": weights, "batch_size": 2})
        assert (mine.fusion, mine.batch_size) == ("rank", 2)
        assert [member.weights for member in mine.members] == weights
        there = ead.BackboneEnsemble.patchcore_large(fusion="rank", weights=weights, batch_size=2)
        assert describe(mine) == describe(there)

    def test_each_says_what_it_needs_and_lacks(self) -> None:
        for name in PRESETS:
            said = preset_notes(name)
            leaves = str(PRESETS[name])
            assert "weights" in said
            assert ("Meta's own" in said) == ("dinov3" in leaves)
            assert ("Without: " in said) == (name != "patchcore-large")
        assert preset_notes("mission") == preset_notes("patchcore-large")
        with pytest.raises(ValueError, match=r"preset must be one of .*, got 'radd'; did you mean rad"):
            preset_notes("radd")

    def test_the_presets_of_token_methods(self) -> None:
        """The settings that the authors' code has, see config/presets.py."""
        mine = create({"preset": "anomaly_dino", "device": "cpu"})
        assert (mine.backbone, mine.layers, mine.resize) == (
            "vit_small_patch14_dinov2",
            ("norm",),
            (448, 448),
        )
        assert (mine.metric, mine.patch_size, mine.score, mine.num_neighbors) == ("cosine", 1, "topk", 1)
        rad = create({"preset": "rad", "seed": 3})
        assert [layer.split(":")[0] for layer in rad.layers] == [f"blocks.{i}" for i in (3, 6, 9, 11)]
        assert (rad.banks, rad.metric, rad.resize, rad.image_size) == ("per_layer", "cosine", (512, 512), 448)
        tiles = create({"preset": "superadd", "image_size": [1024, 1640], "coreset_size": 500})
        assert (tiles.tile_size, tiles.stride, tiles.image_size) == ((640, 640), (384, 384), (1024, 1640))
        assert tiles.scales == (0.625,)
        assert (tiles.member.banks, tiles.member.coreset_size) == ("per_layer", 500)

    def test_the_banks_of_the_presets_fit_their_budgets(self) -> None:
        # All patches of MVTec AD's largest category, and the rows of SuperADD's configuration.
        create({"preset": "rad"}).new_bank().expect(391 * 28**2, 768)
        # And those with the tiles that give the threshold, of which each of four layers has a quarter.
        tiles = create({"preset": "superadd"})
        assert tiles.member.coreset_size == 100_000
        tiles.member.new_bank().expect(10_000_000, 1280, beside=tiles.memory_budget // 3 // 4)

    def test_wrong_arguments_of_the_class_method(self) -> None:
        with pytest.raises(ValueError, match=r"one per backbone \(3\), got 1"):
            ead.BackboneEnsemble.patchcore_large(weights=[None])
        with pytest.raises(TypeError, match="colour"):
            ead.BackboneEnsemble.patchcore_large(colour="red")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "PatchCor"}, "d: type has the unknown type 'PatchCor'; did you mean PatchCore?"),
        ({"type": ["PatchCore"]}, "d: type has the unknown type ['PatchCore']; did you mean PatchCore?"),
        (
            {"preset": ["a"]},
            "d: preset must be one of patchcore-large, anomaly_dino, rad, superadd, got ['a']",
        ),
        ({}, "d: has no type; there are: "),
        (3, "d: must be a mapping with type or preset, got int"),
        ({**GABOR, "sed": 1}, "d: sed is an unknown key; did you mean seed?"),
        ({**GABOR, "seed": True}, "d: seed must be a whole number, got true"),
        ({**GABOR, "layers": "layer1"}, 'd: layers must be a list of strings or "auto", got "layer1"'),
        ({**GABOR, "score": "mx"}, 'd: score must be "max" or "reweighted" or "topk", got "mx"'),
        ({**GABOR, "coreset_fraction": 1.5}, "d: coreset_fraction must be in (0, 1], got 1.5"),
        ({**GABOR, "device": "abacus"}, "d: device must be"),
        ({"type": "BackboneEnsemble"}, "d: has no 'members', which must be given"),
        ({"type": "BackboneEnsemble", "members": GABOR}, "d: members must be a list of detectors, got dict"),
        ({"type": "BackboneEnsemble", "members": []}, "d: members must not be empty"),
        (
            {"type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "seed": "x"}]},
            'd: members[1].seed must be a whole number, got "x"',
        ),
        (
            {"type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "device": "abacus"}]},
            "d: members[1] (PatchCore): device must be",
        ),
        (
            {"preset": "missoin"},
            "d: preset must be one of patchcore-large, anomaly_dino, rad, superadd, got 'missoin'",
        ),
        ({**LARGE, "fusoin": "max"}, "d: fusoin is no parameter of PatchCore; did you mean fusion?"),
        ({**LARGE, "backbone": "resnet18"}, "d: backbone is set by the preset 'patchcore-large', for each"),
        (
            {**LARGE, "weights": ["a"]},
            'd: weights must be a string or null, or a list with one for each of 3 members, got ["a"]',
        ),
        (
            {"type": "TiledEnsemble", "member": 3},
            "d: member must be a mapping with type or preset, got int",
        ),
    ],
)
def test_what_is_refused(description: Any, message: str) -> None:
    (line,) = problems_of(description)
    assert line.startswith(message)


def test_every_problem_is_reported() -> None:
    wrong = {"type": "BackboneEnsemble", "fusoin": 1, "members": [{**GABOR, "a": 1}, {"type": "x"}]}
    assert len(problems_of(wrong)) == 3
    with pytest.raises(ValueError, match="detector has 3 problems"):
        create(wrong)


def test_a_registry_of_a_test_keeps_the_librarys_own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those first imported while it is separate would be gone after it, and their modules not run again."""
    with monkeypatch.context() as inner:
        separate_registry(inner)
        ead.register("Passing")(type("Passing", (), {}))
    assert "Passing" not in names._classes
    assert names._MODULES.keys() <= names._classes.keys()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("PatchCore", {"coreset_sampling_ratio": 0.1}, "here it is coreset_fraction"),
        ("PatchCore", {"num_nn": 3}, "here it is num_neighbors"),
        ("PaDiM", {"n_features": 50}, "here it is num_dimensions"),
        ("EfficientAD", {"model_size": "s"}, "here it is size"),
        ("DRAEM", {"anomaly_source_path": "dtd"}, "here it is textures"),
        ("PatchCore", {"flow_steps": 8}, "there are: backbone, layers"),
        ("BackboneEnsemble", {"members": [], "fusoin": "max"}, "did you mean fusion?"),
    ],
)
def test_unknown_keywords_of_constructors(name: str, given: dict[str, Any], said: str) -> None:
    wrong = list(given)[-1]
    with pytest.raises(TypeError, match=f"{name} got an unexpected keyword argument '{wrong}'; {said}"):
        getattr(ead, name)(**given)


def test_a_registered_class_keeps_its_signature_and_its_own_keywords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    separate_registry(monkeypatch)

    @register("Loose")
    class Loose:
        def __init__(self, first: int, /, second: int = 2, **more: int) -> None:
            self.more = more

    @register("Strict")
    class Strict:
        """Its docstring."""

        def __init__(self, first: int, /, second: int = 2) -> None:
            """Of the constructor."""
            self.values = first, second

    assert Loose(1, third=3).more == {"third": 3}
    assert Strict(1, second=3).values == (1, 3)
    assert list(signature(Strict).parameters) == ["first", "second"]
    assert Strict.__init__.__doc__ == "Of the constructor."
    with pytest.raises(TypeError, match="keyword argument 'first'; there are: second"):
        Strict(first=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Strict()  # type: ignore[call-arg]
