"""`ensemblead convert`: from files of other tools to a model that predict takes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("timm")

import torch
from support.commands import call, call_json
from support.other_tools import IMAGES, checkpoint, model_state, network_state, write_inspection


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "good").mkdir()
    for i, pixels in enumerate(IMAGES):
        image.fromarray(pixels).save(folder / "good" / f"{i}.png")
    torch.save(checkpoint("patchcore"), folder / "one.ckpt")
    torch.save(model_state("padim"), folder / "state.pt")
    torch.save(network_state(), folder / "network.pt")
    write_inspection(folder / "inspection")
    return folder


def test_an_anomalib_checkpoint_becomes_a_model(files: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    made = call_json("convert", "anomalib", files / "one.ckpt", "--out", model, "--device", "cpu")
    assert made["threshold"] == 60.5
    assert made["false_alarm_rate"] is None
    assert made["false_alarm_rate_is"] == "not known"
    assert made["verified_images"] == 4
    assert made["largest_difference"] < 1e-4
    found = call_json("predict", model, files / "good", "--out", tmp_path / "scores", "--scale", "0", "80")
    recorded = np.load(Path(__file__).parents[1] / "conversion" / "anomalib.npz")["patchcore_scores"]
    scores = [one["anomaly_score"] for one in found["predictions"]]
    np.testing.assert_allclose(scores, recorded, rtol=1e-4)
    assert found["anomalous"] == (recorded > 60.5).sum()
    refused = call("predict", model, files / "good", "--out", tmp_path / "scores")
    assert refused.exit_code == 2
    assert "no statistics of normal images" in refused.stderr
    assert "--scale LOW HIGH" in refused.stderr


def test_a_state_dict_takes_options(files: Path, tmp_path: Path) -> None:
    names = ("-b", "resnet10t", "-le", "layer1", "-le", "layer2", "--resize", "64x64", "--device", "cpu")
    made = call("convert", "anomalib", files / "state.pt", "--out", tmp_path / "model", *names)
    assert made.exit_code == 0, made.stderr
    assert "PaDiM resnet10t (layer1, layer2): 256 Gaussians" in made.stdout
    assert "verified on 4 images: scores and maps are those of anomalib's definition within" in made.stdout
    assert "note: it has no threshold" in made.stdout
    assert (tmp_path / "model" / "model.json").is_file()


def test_a_folder_of_patchcore_inspection_becomes_a_model(files: Path, tmp_path: Path) -> None:
    made = call_json(
        "convert", "patchcore-inspection", files / "inspection", "--out", tmp_path / "model",
        "--weights", files / "network.pt", "--resize", "64", "--images", files / "good",
        "--false-alarm-rate", "0.2", "--device", "cpu",
    )  # fmt: skip
    assert made["threshold_images"] == 4
    assert made["false_alarm_rate_is"] == "guaranteed"
    assert made["members"][0]["weights"]["path"] == str(files / "network.pt")
    found = call_json("predict", tmp_path / "model", files / "good", "--out", tmp_path / "scores")
    assert found["anomalous"] == 0  # the threshold is their largest score


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("anomalib", "none.ckpt"), 2, "no such file: none.ckpt"),
        (("anomalib", "{files}/network.pt"), 2, "--backbone|backbone must be given"),
        (("anomalib", "{files}/one.ckpt", "--resize", "big"), 2, "resize must be N or HxW, got 'big'"),
        (("anomalib", "{files}/one.ckpt", "--false-alarm-rate", "0.1"), 2, "that --images gives"),
        (("patchcore-inspection", "{files}/good"), 2, "lacks patchcore_params.pkl, nnscorer_search"),
    ],
)
def test_refusals_are_one_line(
    arguments: tuple[str, ...], code: int, says: str, files: Path, tmp_path: Path
) -> None:
    given = [argument.format(files=files) for argument in arguments]
    outcome = call("convert", *given, "--out", tmp_path / "model", "--device", "cpu")
    assert outcome.exit_code == code
    assert any(part in outcome.stderr for part in says.split("|")), outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_hostile_folder_runs_nothing(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    folder = write_inspection(tmp_path / "theirs")
    (folder / "patchcore_params.pkl").write_bytes(pickle.dumps(Runs()))
    outcome = call("convert", "patchcore-inspection", folder, "--out", tmp_path / "model")
    assert outcome.exit_code == 2
    assert "might run code" in outcome.stderr
    assert not (tmp_path / "ran").exists()
