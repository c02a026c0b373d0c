"""The table of names of other tools: each entry leads to something that is here."""

from __future__ import annotations

import re

import pytest

import ensemblead as ead
from ensemblead.common.other_names import (
    ADVICE,
    COMMANDS,
    MISSING,
    NAMES,
    PARAMETERS,
    name_hint,
    option_hint,
    parameter_hint,
)
from ensemblead.config.presets import PRESETS

# `anomalib.models.__all__` of anomalib 2.7.0.
ANOMALIB = """
AiVad AnomalyDINO AnomalyVFM CFM Cfa Cflow Csflow Dfkde Dfm Dinomaly Draem Dsr EfficientAd Fastflow FoundAD
Fre Fuvas Ganomaly GeneralAD Glass InpFormer L2BT MHPatchcore Padim Patchcore Patchflow Rad
ReverseDistillation Stfpm SuperADD Supersimplenet Uflow UniNet VlmAd WinClip
"""


def test_names_lead_to_public_names_and_are_none() -> None:
    for name, here in NAMES.items():
        assert name not in ead.__all__
        for found in re.findall(r"\bead\.(\w+)", here):
            assert found in ead.__all__, f"{name} leads to ead.{found}"
        for preset in re.findall(r'"preset": "(\w+)"', here):
            assert preset in PRESETS


def test_every_model_of_anomalib_is_answered() -> None:
    assert set(ANOMALIB.split()) <= {*NAMES, *MISSING, *ead.__all__}
    assert not {*MISSING} & {*NAMES, *ead.__all__}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Patchcore", "here it is ead.PatchCore"),
        ("Engine", "here it is the detector itself: detector.fit(images)"),
        ("Stfpm", "that method of anomalib is not here"),
        ("padim", "here it is ead.PaDiM"),
        ("patchcore", "here it is ead.PatchCore"),
        ("STFPM", "that method of anomalib is not here"),
        ("ENSEMBLEADERROR", "did you mean EnsembleADError?"),
        ("driftmonitor", "did you mean DriftMonitor?"),
        ("select_corset", "did you mean select_coreset?"),
    ],
)
def test_the_package_answers(name: str, hint: str) -> None:
    assert not hasattr(ead, name)
    with pytest.raises(AttributeError, match=re.escape(f"has no attribute {name!r}; {hint}")):
        getattr(ead, name)


def test_a_name_like_none_has_no_hint() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'zzzqq'$"):
        getattr(ead, "zzzqq")  # noqa: B009
    assert name_hint("zzzqq", ["PatchCore"]) is None


def test_parameters_lead_to_parameters() -> None:
    pytest.importorskip("torch")
    from ensemblead.config.names import detector_names, registered_class
    from ensemblead.config.signatures import parameters

    known = {name for kind in detector_names() for name in parameters(registered_class(kind))}
    assert set(PARAMETERS.values()) <= known
    assert not known & {*PARAMETERS, *ADVICE}, "a parameter here needs no hint"
    assert not {*PARAMETERS} & {*ADVICE}


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("PatchCore", {"coreset_sampling_ratio": 0.1}, "here it is coreset_fraction"),
        ("MemoryBank", {"percentage": 0.1}, "here it is coreset_fraction"),
        ("FeatureExtractor", {"layers_to_extract_from": []}, "here it is layers"),
        ("Folder", {"normal_dir": "good"}, "normal= of ead.Folder"),
        ("MVTecAD", {"categroy": "bottle"}, "did you mean category?"),
        ("VisA", {"train_batch_size": 8}, "here it is batch_size, which is none of these: root"),
    ],
)
def test_constructors_answer(name: str, given: dict[str, object], hint: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(TypeError, match=re.escape(f"{name} got an unexpected keyword argument")) as caught:
        getattr(ead, name)("root", **given)
    assert hint in str(caught.value)


def test_a_parameter_that_this_one_has_not() -> None:
    hint = parameter_hint("num_nn", ["seed", "device"])
    assert hint == "here it is num_neighbors, which is none of these: seed, device"
    assert parameter_hint("sed", ["seed", "device"]) == "did you mean seed?"
    # An option of another command line, but a key of a file as others.
    assert parameter_hint("data", ["datasets", "detectors"]) == "did you mean datasets?"


@pytest.mark.parametrize(
    ("option", "options", "hint"),
    [
        ("--imagesize", ["--image-size"], "here it is --image-size"),
        ("--layers-to-extract-from", ["-le", "--layer"], "here it is --layer"),
        ("--n_features", ["--set"], "here it is --set num_dimensions=VALUE"),
        ("--num_nn", ["--out"], "here it is num_neighbors, a parameter of ensemblead fit"),
        ("--faiss_on_gpu", [], ADVICE["faiss_on_gpu"]),
        ("--patch_size", ["--patch-size"], None),
        ("--model.coreset_sampling_ratio", ["--coreset-fraction"], "here it is --coreset-fraction"),
        ("--model.backbone", ["--backbone", "--model"], "here it is --backbone"),
        ("--model.pre_trained", ["--set"], ADVICE["pre_trained"]),
        ("--data.category", ["--set"], ADVICE["data"]),
        ("--trainer.max_epochs", ["--set"], ADVICE["max_epochs"]),
        ("--model", ["--out"], ADVICE["model"]),
        ("--model.nonsense", ["--set"], None),
    ],
)
def test_options(option: str, options: list[str], hint: str | None) -> None:
    assert option_hint(option, options) == hint


def test_repr_of_public_objects_says_what_they_are() -> None:
    pytest.importorskip("torch")
    for name in {*ead.__all__} - {"Executors"}:  # of which there are no objects
        value = getattr(ead, name)
        assert not isinstance(value, type) or value.__repr__ is not object.__repr__, name


def test_commands_lead_to_commands() -> None:
    app = pytest.importorskip("ensemblead.cli.app").app
    known = {one.name for one in app.registered_commands}
    assert {here.split()[1] for here in COMMANDS.values()} <= known
    assert not known & {*COMMANDS}
