"""Tiles on the command line and in configuration files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import call, call_json
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.cli.options import DetectorOptions, build_detector, read_config, typed_options
from ensemblead.cli.shorthands import expanded
from ensemblead.config.registry import create, describe

TILES = [
    "-b",
    "gabor",
    "-le",
    "layer3",
    "-p",
    "0.1",
    "--device",
    "cpu",
    "--tile-size",
    "32",
    "--stride",
    "32",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for kind, pictures in (("good", normal_images(4)), ("bad", with_defects(normal_images(2, seed=3))[0])):
        (folder / kind).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).resize((80, 64)).save(folder / kind / f"{i}.png")
    return folder


def test_fit_and_predict(images: Path, tmp_path: Path) -> None:
    summary = call_json("fit", images / "good", "--model", tmp_path / "m", *TILES, "--image-size", "64x96")
    detector = ead.load(tmp_path / "m")
    assert isinstance(detector, ead.TiledEnsemble)
    assert detector.tile_grid_ == (2, 3)
    (member,) = summary["members"]
    assert summary["detector"] == "TiledEnsemble"
    assert member["tiles"]["grid"] == [2, 3]
    assert member["image_size"] == [64, 96]
    assert member["bank_rows"] == sum(len(one.memory_bank_) for one in detector.members_)  # type: ignore[attr-defined]
    predicted = call_json("predict", tmp_path / "m", images / "bad", "--out", tmp_path / "o", "--maps")
    assert predicted["images"] == predicted["anomalous"] == 2
    with (tmp_path / "o" / "scores.csv").open() as file:
        scores = [float(row["anomaly_score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(scores, detector.predict(images / "bad").anomaly_score, rtol=1e-6)
    # Raw maps lie over the images as they are.
    with Image.open(tmp_path / "o" / "maps" / "0.tiff") as raw:
        assert raw.size == (80, 64)
        assert np.isfinite(np.asarray(raw)).all()


def test_the_table_has_the_tiles(images: Path, tmp_path: Path) -> None:
    outcome = call(
        "fit", images / "good", "--model", tmp_path / "m", *TILES, "--image-size", "64", "--shared-tiles"
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert "2 x 2 tiles of 32x32" in outcome.stdout
    assert ead.load(tmp_path / "m").shared is True  # type: ignore[attr-defined]


def test_several_scales(images: Path, tmp_path: Path) -> None:
    folders = [images / "good", "--model", tmp_path / "m"]
    outcome = call("fit", *folders, *TILES, "--image-size", "64x96", "--shared-tiles", "--scales", "1", ".5")
    assert outcome.exit_code == 0, outcome.stderr
    assert "2 x 3 and 1 x 2 tiles of 32x32 at scales 1 and 0.5" in outcome.stdout
    loaded = ead.load(tmp_path / "m")
    assert isinstance(loaded, ead.TiledEnsemble)
    assert (loaded.scales, loaded.tile_grids_) == ((1.0, 0.5), ((2, 3), (1, 2)))
    wrong = call(
        "fit", *TILES, "--image-size", "64", "--scales=1,.25", images / "good", "--model", tmp_path / "n"
    )
    assert wrong.exit_code == 2
    assert "scales: 0.25 leaves no whole tile" in wrong.stderr
    assert "smallest scale that works is 0.5" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--scales", "1", ".5", "x"], ["--set", "scales=[1,.5]", "x"]),
        (["x", "--scales"], ["x", "--set", "scales=[]"]),
        (["--scales=0.5,2"], ["--set", "scales=[0.5,2]"]),
        (["--", "--scales", "1"], ["--", "--scales", "1"]),
    ],
)
def test_scales_as_they_are_typed(given: list[str], expected: list[str]) -> None:
    assert expanded(given) == expected


def test_what_the_options_build(tmp_path: Path) -> None:
    document: dict[str, Any] = {"backbone": ["gabor", "gabor"], "layers": ["0.layer1", "1.layer2"]}
    document |= {"tile_size": [48, 32], "stride": 32, "image_size": None, "shared_tiles": True}
    document |= {"tile_score": "max", "tile_normalization": "image"}
    (tmp_path / "c.json").write_text(json.dumps(document))
    ensemble = build_detector(DetectorOptions(), read_config(tmp_path / "c.json"))
    assert isinstance(ensemble, ead.TiledEnsemble)
    assert isinstance(ensemble.member, ead.BackboneEnsemble)
    expected = {"tile_size": (48, 32), "stride": (32, 32), "image_size": None, "shared": True, "score": "max"}
    assert {name: getattr(ensemble, name) for name in expected} == expected
    assert ensemble.normalization == "image"
    plain = build_detector(typed_options({"tile_size": "64x96"}, backbone=["gabor"]))
    assert isinstance(plain, ead.TiledEnsemble)
    assert (plain.stride, plain.image_size, plain.score) == ((32, 48), (512, 512), "mean")
    set_ = build_detector(typed_options({}, ["tile_size=32", "seam_smoothing=false"], backbone=["gabor"]))
    assert isinstance(set_, ead.TiledEnsemble)
    assert (set_.tile_size, set_.stride, set_.seam_smoothing) == ((32, 32), (16, 16), False)
    # Above what a file says, and in an ensemble that a file describes.
    above = build_detector(typed_options({"stride": "8"}), read_config(tmp_path / "c.json"))
    assert isinstance(above, ead.TiledEnsemble)
    assert (above.tile_size, above.stride) == ((48, 32), (8, 8))
    (tmp_path / "d.json").write_text(json.dumps(describe(ensemble)))
    again = build_detector(typed_options({"image_size": "96"}, ["seed=3"]), read_config(tmp_path / "d.json"))
    assert isinstance(again, ead.TiledEnsemble)
    assert again.image_size == (96, 96)
    assert [member.seed for member in again.member.members] == [3, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": "64"}, "stride is no parameter of PatchCore, but of TiledEnsemble: give tile_size too"),
        ({"tile_size": "64", "resize": "80"}, "resize has no effect in tiles: image_size is the size"),
        ({"tile_size": "none"}, 'tile_size must be a whole number or HxW, got "none"'),
        ({"tile_size": "64", "stride": "none"}, 'stride must be a whole number or HxW, got "none"'),
        ({"tile_size": "64", "stride": "65"}, "stride must not exceed tile_size"),
        ({"tile_size": "64", "image_size": "63"}, "tile_size must not exceed the image"),
        ({"tile_size": "64", "tile_score": "sum"}, 'tile_score must be "mean" or "max", got "sum"'),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector(typed_options(options, backbone=["gabor"]))


def test_a_flag_in_a_file_is_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"tile_size": 32, "shared_tiles": "yes"}')
    with pytest.raises(ValueError, match="tile_shared must be true or false"):
        build_detector(DetectorOptions(), read_config(tmp_path / "c.json"))


def test_tiles_in_a_description() -> None:
    member = {"type": "PatchCore", "backbone": "gabor"}
    described = {"type": "TiledEnsemble", "member": member, "tile_size": [32, 48], "image_size": None}
    ensemble = create(described | {"stride": 16, "shared": True}, seed=5)
    assert isinstance(ensemble, ead.TiledEnsemble)
    assert (ensemble.tile_size, ensemble.stride, ensemble.shared) == ((32, 48), (16, 16), True)
    assert ensemble.member.seed == 5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"detector: image_size must be at least 1, got -1"):
        create(described | {"image_size": -1})
    with pytest.raises(ValueError, match='score must be "mean" or "max", got "sum"'):
        create(described | {"score": "sum"})
