"""Detectors from descriptions: what a file may say is what a constructor takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import ensemblead as ead
from ensemblead import store
from ensemblead.config.schema import Problems, Source
from ensemblead.ensembles.description import build, changed, construct, detector_types, resolve

GABOR = {"type": "PatchCore", "backbone": "gabor", "resize": None, "image_size": None}


def problems_of(description: Any) -> list[str]:
    problems = Problems(Source(description, "d"))
    resolve(description, (), problems)
    return problems.lines


def test_every_detector_that_can_be_saved_can_be_described() -> None:
    types = detector_types()
    assert {"PatchCore", "BackboneEnsemble"} <= set(types)
    assert types["PatchCore"] is ead.PatchCore
    assert types.items() <= store.registered().items()


def test_a_detector_with_defaults_filled_in() -> None:
    detector = build({**GABOR, "layers": ["layer1"], "coreset_fraction": 1, "resize": [32, 48]}, seed=5)
    assert isinstance(detector, ead.PatchCore)
    assert (detector.layers, detector.coreset_fraction, detector.resize) == (("layer1",), 1.0, (32, 48))
    assert detector.seed == 5
    alone = build({**GABOR, "seed": 1}, seed=5, device="cpu")
    assert isinstance(alone, ead.PatchCore)
    assert (alone.seed, str(alone.device)) == (1, "cpu")
    plain = ead.PatchCore("gabor", resize=None, image_size=None)
    described = build(GABOR)
    assert isinstance(described, ead.PatchCore)
    assert described.parameters() == plain.parameters()


def test_ensembles_nest() -> None:
    inner = {"type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "layers": ["layer1"]}], "fusion": "max"}
    detector = build({"type": "BackboneEnsemble", "members": [inner, GABOR], "weights": [1, 3]}, seed=7)
    assert isinstance(detector, ead.BackboneEnsemble)
    assert [leaf.seed for leaf in detector._parts()] == [7, 7, 7]  # type: ignore[attr-defined]
    first = detector.members[0]
    assert isinstance(first, ead.BackboneEnsemble)
    assert first.fusion == "max"


def test_a_node_builds_anew_every_time_and_takes_changes() -> None:
    node = resolve({"type": "BackboneEnsemble", "members": [GABOR]}, (), Problems(Source({})), {"seed": 1})
    one, other = construct(node), construct(node)
    assert one is not other
    assert one._parts()[0] is not other._parts()[0]
    assert construct(changed(node, {"seed": 9}))._parts()[0].seed == 9  # type: ignore[attr-defined]
    assert node["members"][0]["seed"] == 1


def test_a_preset_is_what_its_class_method_makes() -> None:
    here, there = build({"preset": "mission", "device": "cpu"}), ead.BackboneEnsemble.mission(device="cpu")
    assert isinstance(here, ead.BackboneEnsemble)
    for one, other in zip(here.members, there.members, strict=True):
        assert isinstance(one, ead.PatchCore)
        assert isinstance(other, ead.PatchCore)
        assert (one.backbone, one.layers, one.weights) == (other.backbone, other.layers, other.weights)
        assert one.parameters() == other.parameters()
    mine = build({"preset": "mission", "fusion": "rank", "weights": [None, "b", "c"], "batch_size": 2})
    assert isinstance(mine, ead.BackboneEnsemble)
    assert mine.fusion == "rank"
    assert [leaf.weights for leaf in mine._parts()] == [None, "b", "c"]  # type: ignore[attr-defined]
    assert mine.batch_size == 2


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "PatchCor"}, "d: type has the unknown type 'PatchCor'; did you mean PatchCore?"),
        ({"type": ["PatchCore"]}, "d: type has the unknown type ['PatchCore']; did you mean PatchCore?"),
        ({"preset": ["mission"]}, "d: preset must be one of mission, got ['mission']"),
        ({}, "d: has no type; there are: "),
        (3, "d: must be a mapping with type or preset, got int"),
        ({**GABOR, "sed": 1}, "d: sed is an unknown key; did you mean seed?"),
        ({**GABOR, "seed": True}, "d: seed must be a whole number, got true"),
        ({**GABOR, "layers": "layer1"}, 'd: layers must be a list of strings, got "layer1"'),
        ({**GABOR, "score": "mx"}, 'd: score must be "max" or "reweighted" or "topk", got "mx"'),
        ({**GABOR, "coreset_fraction": 1.5}, "d: (PatchCore): coreset_fraction must be in (0, 1], got 1.5"),
        ({**GABOR, "device": "abacus"}, "d: (PatchCore): device must be"),
        ({"type": "BackboneEnsemble"}, "d: has no 'members', which must be given"),
        ({"type": "BackboneEnsemble", "members": GABOR}, "d: members must be a list of detectors, got dict"),
        ({"type": "BackboneEnsemble", "members": []}, "d: (BackboneEnsemble): members must not be empty"),
        (
            {"type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "seed": "x"}]},
            'd: members[1].seed must be a whole number, got "x"',
        ),
        ({"preset": "missoin"}, "d: preset must be one of mission, got 'missoin'"),
        ({"preset": "mission", "fusoin": "max"}, "d: fusoin is an unknown key; did you mean fusion?"),
        ({"preset": "mission", "backbone": "resnet18"}, "d: backbone is an unknown key"),
        ({"preset": "mission", "weights": ["a"]}, "d: weights must be a list of 3, got ['a']"),
    ],
)
def test_what_is_refused(description: Any, message: str) -> None:
    (line,) = problems_of(description)
    assert line.startswith(message)


def test_everything_that_is_wrong_is_told() -> None:
    wrong = {"type": "BackboneEnsemble", "fusoin": 1, "members": [{**GABOR, "a": 1}, {"type": "x"}]}
    assert len(problems_of(wrong)) == 3
    with pytest.raises(ValueError, match="detector has 3 problems"):
        build(wrong)


class TestOptions:
    """`fit --config` and `evaluate --config FILE DATA` take a description as well as flat options."""

    def options(self, tmp_path: Path, text: str) -> Any:
        pytest.importorskip("yaml")
        from ensemblead.cli.options import read_config

        (tmp_path / "c.yaml").write_text(text)
        return read_config(tmp_path / "c.yaml")

    def test_a_nested_detector(self, tmp_path: Path) -> None:
        from ensemblead.cli.options import DetectorOptions, build_detector

        text = (
            "type: BackboneEnsemble\nfusion: max\nmembers:\n"
            "  - {type: PatchCore, backbone: gabor, seed: 3}\n  - {type: PatchCore, backbone: gabor}\n"
        )
        found = self.options(tmp_path, text)
        detector = build_detector(found)
        assert isinstance(detector, ead.BackboneEnsemble)
        assert detector.fusion == "max"
        assert [leaf.seed for leaf in detector._parts()] == [3, 0]  # type: ignore[attr-defined]
        # The command line goes first, where it means the whole detector.
        detector = build_detector(DetectorOptions(seed=7, device="cpu").over(found))
        assert [leaf.seed for leaf in detector._parts()] == [7, 7]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"describes all of the detector: leave out coreset_fraction"):
            build_detector(DetectorOptions(coreset_fraction=0.1).over(found))

    def test_flat_options_in_yaml(self, tmp_path: Path) -> None:
        from ensemblead.cli.options import build_detector

        flat = self.options(
            tmp_path, "backbone: gabor\nlayers: [layer1]\nresize: [32, 48]\nimage_size: null\n"
        )
        detector = build_detector(flat)
        assert isinstance(detector, ead.PatchCore)
        assert (detector.layers, detector.resize, detector.image_size) == (("layer1",), (32, 48), None)

    def test_problems_have_their_lines(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"c\.yaml, line 3: scre is an unknown key; did you mean score\?"
        ):
            self.options(tmp_path, "type: PatchCore\nbackbone: gabor\nscre: max\n")
        with pytest.raises(
            ValueError, match=r"1\) line 1: seed must be a whole number.*\n2\) line 2: sede is"
        ):
            self.options(tmp_path, "seed: x\nsede: 3\n")
