"""Options as the command line and configuration files give them, and the detectors they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

import ensemblead as ead
from ensemblead.cli.options import (
    DetectorOptions,
    build_detector,
    byte_count,
    layers_per_member,
    read_config,
    typed_options,
    weights_per_member,
)
from ensemblead.config.registry import describe


class TestMembers:
    def test_layers(self) -> None:
        assert layers_per_member(["layer1"], ["a"]) == [["layer1"]]
        assert layers_per_member(["0.layer1"], ["a"]) == [["layer1"]]
        assert layers_per_member(["1.features.denseblock2", "0.b"], ["x", "y"]) == [
            ["b"],
            ["features.denseblock2"],
        ]
        assert layers_per_member(None, ["a", "b"]) == [None, None]
        with pytest.raises(ValueError, match="numbered 0 to 1"):
            layers_per_member(["2.layer1"], ["a", "b"])
        with pytest.raises(ValueError, match=r"backbone 1 \(b\) has no layer"):
            layers_per_member(["0.layer1"], ["a", "b"])

    def test_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("0.safetensors", "w.pth"):
            Path(name).touch()
        assert weights_per_member(["0.safetensors"], 1) == {0: "0.safetensors"}
        assert weights_per_member(["0.w.pth"], 1) == {0: "w.pth"}
        assert weights_per_member(["1.w.pth", "0.none"], 2) == {1: "w.pth", 0: None}
        with pytest.raises(ValueError, match="twice"):
            weights_per_member(["1.w.pth", "1.none"], 2)
        with pytest.raises(ValueError, match=r"I\.PATH"):
            weights_per_member(["w.pth"], 2)


def test_the_large_ensemble_in_all_its_forms() -> None:
    backbones = ["wideresnet101", "resnext101", "densenet201"]
    layers = [f"{i}.{layer}" for i in (0, 1) for layer in ("layer2", "layer3")]
    layers += ["2.features.denseblock2", "2.features.denseblock3"]
    values = {"resize": "366", "image_size": "320", "device": "cpu"}
    as_published = typed_options(values, ["score=max"], backbone=backbones, layers=layers)
    spelled = describe(build_detector(as_published))
    for member, name in zip(
        spelled["members"], ("wide_resnet101_2", "resnext101_32x8d", "densenet201"), strict=True
    ):
        member["backbone"] = name
    for name in ("patchcore-large", "mission"):
        assert describe(build_detector(typed_options({"device": "cpu"}, preset=name))) == spelled
    assert describe(ead.BackboneEnsemble.patchcore_large(device="cpu")) == spelled
    changed = build_detector(typed_options({}, ["1.seed=3", "fusion=rank"], preset="patchcore-large"))
    assert isinstance(changed, ead.BackboneEnsemble)
    assert changed.fusion == "rank"
    assert [member.seed for member in changed.members] == [0, 3, 0]  # type: ignore[attr-defined]


def test_weights_of_members(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    given = [f"1.{tmp_path}/w.pt", "2.none"]
    detector = build_detector(typed_options({}, preset="patchcore-large", weights=given))
    assert [member["weights"] for member in describe(detector)["members"]] == [
        "default",
        f"{tmp_path}/w.pt",
        None,
    ]
    with pytest.raises(ValueError, match="numbered 0 to 2"):
        build_detector(typed_options({}, preset="patchcore-large", weights=["3.none"]))


class TestConfigurationFiles:
    """`fit --config` and `evaluate --config FILE DATA`: names and parameters, or a description."""

    def written(self, tmp_path: Path, document: Any) -> DetectorOptions:
        (tmp_path / "c.json").write_text(document if isinstance(document, str) else json.dumps(document))
        return read_config(tmp_path / "c.json")

    def test_the_command_line_goes_first(self, tmp_path: Path) -> None:
        document = {"backbone": "gabor", "resize": [64, 32], "seed": 5, "image_size": None}
        detector = build_detector(typed_options({"seed": "7"}), self.written(tmp_path, document))
        assert isinstance(detector, ead.PatchCore)
        assert (detector.resize, detector.image_size, detector.seed) == ((64, 32), None, 7)

    def test_a_preset_by_its_name(self, tmp_path: Path) -> None:
        document = {"preset": "patchcore-large", "batch_size": 2, "2.seed": 5, "fusion": "max"}
        detector = build_detector(DetectorOptions(), self.written(tmp_path, document))
        assert isinstance(detector, ead.BackboneEnsemble)
        assert (detector.fusion, detector.batch_size) == ("max", 2)
        assert [member.seed for member in detector.members] == [0, 0, 5]  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"coreset_fractoin": 0.1}',
                r"c\.json: coreset_fractoin is no .* PatchCore; did you mean coreset_f",
            ),
            ('{"seed": "x"}', r'c\.json: seed must be a whole number, got "x"'),
            ('{"seed": true}', "seed must be a whole number"),
            ('{"layers": [1]}', "layers must be a string or a list of strings"),
            ('{"resize": [1, 2, 3]}', 'resize must be a whole number, a list of 2, "auto" or null'),
            ('{"method": 3}', "method must be a string, got 3"),
            ("[]", "must hold one mapping, got list"),
            ("{", "is not JSON"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_detector(DetectorOptions(), self.written(tmp_path, text))

    def test_a_nested_description(self, tmp_path: Path) -> None:
        members = [{"type": "PatchCore", "backbone": "gabor", "seed": 3}, {"type": "PatchCore"}]
        found = self.written(tmp_path, {"type": "BackboneEnsemble", "fusion": "max", "members": members})

        def seeds(**values: str) -> list[int]:
            detector = build_detector(typed_options(values), found)
            assert isinstance(detector, ead.BackboneEnsemble)
            assert detector.fusion == "max"
            return [member.seed for member in detector.members]  # type: ignore[attr-defined]

        assert seeds() == [3, 0]
        assert seeds(seed="7", device="cpu") == [7, 7]
        with pytest.raises(ValueError, match="describes all of the detector: leave out backbone"):
            build_detector(typed_options({}, backbone=["gabor"]), found)

    def test_yaml_and_lines(self, tmp_path: Path) -> None:
        pytest.importorskip("yaml")
        file = tmp_path / "c.yaml"
        file.write_text("backbone: gabor\nlayers: [layer1]\nresize: [32, 48]\nimage_size: null\n")
        detector = build_detector(DetectorOptions(), read_config(file))
        assert isinstance(detector, ead.PatchCore)
        assert (detector.layers, detector.resize, detector.image_size) == (("layer1",), (32, 48), None)
        file.write_text("type: PatchCore\nbackbone: gabor\nscre: max\n")
        with pytest.raises(
            ValueError, match=r"c\.yaml, line 3: scre is an unknown key; did you mean score\?"
        ):
            read_config(file)
        file.write_text("seed: x\nsede: 3\n")
        with pytest.raises(ValueError, match=r"1\) line 1: seed must be a whole.*\n2\) line 2: sede is no"):
            build_detector(DetectorOptions(), read_config(file))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("500mb", 5 * 10**8),
        ("64KiB", 1 << 16),
        ("12", 12),
        ("12B", 12),
        ("1t", None),
        ("0", None),
        ("0.1B", None),
        ("GB", None),
        ("-2GB", None),
        ("2 GB more", None),
        ("1e9", None),
    ],
)
def test_bytes_as_they_are_written(text: str, count: int | None) -> None:
    if count is not None:
        assert byte_count("memory-budget", text) == count
        return
    with pytest.raises(
        ValueError, match=r"memory-budget must be a number of bytes, such as 2GB or 500MB, got"
    ):
        byte_count("memory-budget", text)
