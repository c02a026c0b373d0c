"""`ensemblead fit`: models, what is refused before the work, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

import torch
from support.commands import GABOR, call, call_json

import ensemblead as ead


class TestFit:
    def test_a_described_minmax_is_refused_before_the_work(self, category: Path, tmp_path: Path) -> None:
        member = {"type": "PatchCore", "backbone": "gabor", "layers": ["layer1"]}
        described = {"type": "BackboneEnsemble", "members": [member, member], "fusion": "minmax"}
        (tmp_path / "c.json").write_text(json.dumps(described))
        data = category / "train/good"
        outcome = call("fit", data, "--model", tmp_path / "m", "--config", tmp_path / "c.json")
        assert (outcome.exit_code, "fit with another fusion" in outcome.stderr) == (2, True)
        assert not (tmp_path / "m").exists()

    def test_minmax_is_refused_before_the_work(self, category: Path, tmp_path: Path) -> None:
        network = ["-b", "gabor", "-b", "gabor", "-le", "0.layer1", "-le", "1.layer2"]
        outcome = call(
            "fit", category / "train/good", "--model", tmp_path / "m", *network, "--fusion", "minmax"
        )
        assert (outcome.exit_code, "predict could not use" in outcome.stderr) == (2, True)
        assert not (tmp_path / "m").exists()

    def test_summary_and_model(self, category: Path, tmp_path: Path) -> None:
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "--seed", 3)
        detector = ead.load(tmp_path / "m")
        assert isinstance(detector, ead.PatchCore)
        assert (detector.seed, detector.resize, detector.coreset_fraction) == (3, None, 0.1)
        assert summary["threshold"] == detector.threshold_
        (member,) = summary["members"]
        assert member["bank_rows"] == len(detector.memory_bank_)
        assert member["layers"] == ["layer2", "layer3"]
        assert summary["skipped"] == []

    def test_a_bank_of_a_size_within_a_budget(self, category: Path, tmp_path: Path) -> None:
        sizes = ["--coreset-size", 30, "--memory-budget", "1.5 GiB", "--half"]
        network = ["-b", "gabor", "--resize", "none", "--device", "cpu"]
        arguments = ("fit", category / "train/good", "--model", tmp_path / "m", *network, *sizes)
        (member,) = call_json(*arguments)["members"]
        detector = ead.load(tmp_path / "m")
        assert isinstance(detector, ead.PatchCore)
        assert (detector.coreset_size, detector.memory_budget) == (30, 3 << 29)
        assert member["bank_rows"] == len(detector.memory_bank_) == 30
        assert member["covering_radius"] < detector.memory_bank_.radius_ < 1.1 * member["covering_radius"]
        told = call(*arguments, "--overwrite", "-v").stdout
        assert f"lies within {member['covering_radius']:.4g} of it; certified: at most" in told
        assert "lies within" not in call(*arguments, "--overwrite").stdout

    def test_a_budget_that_does_not_do(self, category: Path, tmp_path: Path) -> None:
        network = ["-b", "gabor", "--resize", "none", "--device", "cpu"]
        outcome = call(
            "fit", category / "train/good", "--model", tmp_path / "m", *network, "--memory-budget", "1kB"
        )
        assert outcome.exit_code == 2
        assert "memory_budget is 1000 bytes, too few" in outcome.stderr
        assert "give --memory-budget" in outcome.stderr

    def test_same_seed_same_model(self, category: Path, model: Path, tmp_path: Path) -> None:
        call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR)
        kept, again = ead.load(model), ead.load(tmp_path / "m")
        assert isinstance(kept, ead.PatchCore)
        assert isinstance(again, ead.PatchCore)
        assert bool((kept.memory_bank_.rows_ == again.memory_bank_.rows_).all())

    @pytest.mark.slow
    def test_an_ensemble_as_the_reference_writes_it(self, category: Path, tmp_path: Path) -> None:
        members = ["-b", "gabor", "-b", "resnet18", "-le", "0.layer2", "-le", "1.layer1", "-le", "1.layer2"]
        sizes = ["--resize", 64, "--image-size", 64, "-p", "0.05", "--device", "cpu"]
        summary = call_json(
            "fit", category / "train/good", "--model", tmp_path / "m", *members, *sizes, "--weights", "1.none"
        )
        assert summary["detector"] == "BackboneEnsemble"
        assert [member["layers"] for member in summary["members"]] == [["layer2"], ["layer1", "layer2"]]
        detector = ead.load(tmp_path / "m")
        assert isinstance(detector, ead.BackboneEnsemble)
        assert [member.target_dim for member in detector.members] == [384, 384]  # type: ignore[attr-defined]
        assert call_json("predict", tmp_path / "m", category / "test", "--out", tmp_path / "o")["images"] == 8

    def test_fresh_images_set_a_guaranteed_threshold(self, category: Path, tmp_path: Path) -> None:
        fresh = ["--calibrate", category / "test/good", "--false-alarm-rate", "0.2"]
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, *fresh)
        assert (summary["false_alarm_rate"], summary["false_alarm_rate_is"]) == (0.2, "guaranteed")
        count = len(list((category / "test/good").iterdir()))
        assert summary["threshold_images"] == count
        said = call("fit", category / "train/good", "--model", tmp_path / "n", *GABOR, *fresh).stdout
        assert f" by {count} fresh images, false alarms 0.2 (guaranteed)" in said

    def test_unreadable_fresh_images_are_not_counted_among_the_learned(
        self, category: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(category / "test/good", tmp_path / "fresh")
        (tmp_path / "fresh/no.png").write_bytes(b"no image")
        fresh = ["--calibrate", tmp_path / "fresh", "--false-alarm-rate", "0.5", "--skip-unreadable"]
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, *fresh)
        assert len(summary["skipped"]) == 1
        assert summary["learned"] == summary["images"]

    def test_a_threshold_that_is_replaced_is_not_warned_of(self, category: Path, tmp_path: Path) -> None:
        few = ["fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "-p", "0.001", "--json"]
        alone = call(*few)
        assert "ensemblead: warning: the memory bank has only" in alone.stderr
        assert len(json.loads(alone.stdout)["warnings"]) == 1
        fresh = ["--calibrate", category / "test/good", "--false-alarm-rate", "0.2"]
        outcome = call(*few, *fresh, "--overwrite")
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        assert json.loads(outcome.stdout)["warnings"] == []

    def test_training_is_kept_in_a_checkpoint(self, category: Path, tmp_path: Path) -> None:
        kept = ["--checkpoint", tmp_path / "c"]
        options = ["-b", "gabor", "--resize", "32x32", "--device", "cpu", *kept]
        trained = ["--method", "reverse-distillation", "--set", "steps=2", "--set", "batch_size=4"]
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *options, *trained)
        assert summary["detector"] == "ReverseDistillation"
        assert not (tmp_path / "c").exists()
        outcome = call("fit", category / "train/good", "--model", tmp_path / "n", *GABOR, *kept)
        assert outcome.exit_code == 2
        assert "checkpoint: nothing is trained here" in outcome.stderr
        for place in (tmp_path / "n", tmp_path / "n" / "c"):  # the same command could not go on
            kept = ["--checkpoint", place]
            outcome = call("fit", category / "train/good", "--model", tmp_path / "n", *GABOR, *kept)
            assert outcome.exit_code == 2
            assert "checkpoint must lie outside of the model's folder" in outcome.stderr

    def test_a_checkpoint_stays_until_the_model_is_saved(self, category: Path, tmp_path: Path) -> None:
        shutil.copytree(category / "test/good", tmp_path / "fresh")
        (tmp_path / "fresh/no.png").write_bytes(b"no image")
        options = ["-b", "gabor", "--resize", "32x32", "--device", "cpu", "--checkpoint", tmp_path / "c"]
        trained = ["--method", "reverse-distillation", "--set", "steps=2", "--set", "batch_size=4"]
        fresh = ["--calibrate", tmp_path / "fresh", "--false-alarm-rate", "0.5"]
        command = ["fit", category / "train/good", "--model", tmp_path / "m", *options, *trained, *fresh]
        outcome = call(*command)
        assert (outcome.exit_code, "no.png" in outcome.stderr) == (2, True)
        assert (tmp_path / "c/part0/training.safetensors").exists()
        (tmp_path / "fresh/no.png").unlink()
        assert call(*command).exit_code == 0
        assert not (tmp_path / "c").exists()

    def test_a_single_image_is_enough_with_a_warning(self, category: Path, tmp_path: Path) -> None:
        image = category / "train/good/000.png"
        outcome = call("fit", image, "--model", tmp_path / "m", *GABOR, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        assert "ensemblead: warning: no training image can be scored" in outcome.stderr
        assert json.loads(outcome.stdout)["warnings"]

    def test_unreadable_images(self, category: Path, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for path in (category / "train/good").iterdir():
            os.link(path, folder / path.name)
        (folder / "broken.png").write_bytes(b"\x89PNG no more")
        (folder / "notes.txt").write_text("no image")
        outcome = call("fit", folder, "--model", tmp_path / "m", *GABOR)
        assert outcome.exit_code == 2
        assert "broken.png" in outcome.stderr
        assert not (tmp_path / "m").exists()
        summary = call_json("fit", folder, "--model", tmp_path / "m", *GABOR, "--skip-unreadable")
        assert [Path(one["path"]).name for one in summary["skipped"]] == ["broken.png"]
        assert summary["ignored_files"] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-le", "layr2"], "did you mean"),
            (["-b", "resnet", "-le", "0.layer2", "-le", "1.layer2"], "did you mean"),
            (["-b", "resnet18", "-le", "layer2"], "0.layer2 (gabor) or 1.layer2 (resnet18)"),
            (["-p", "1.5"], "coreset_fraction"),
            (["--resize", "big"], 'resize must be a whole number, HxW, "auto" or none, got "big"'),
            (["--preset", "missoin"], "preset must be one of patchcore-large, anomaly_dino, rad"),
            (["--preset", "patchcore-large"], "brings its backbones and layers"),
            (
                ["--fusion", "max"],
                "fusion is no parameter of PatchCore, but of BackboneEnsemble: give several",
            ),
            (["--set", "scor=max"], "scor is no parameter of PatchCore; did you mean score"),
            (["--set", "seed=many"], 'seed must be a whole number, got "many"'),
            (["--set", "seed"], "--set takes NAME=VALUE or I.NAME=VALUE, got 'seed'"),
            (["--set", "1.seed=3"], "1.seed is for member 1, but there are 1"),
            (["--method", "patchcor"], "did you mean patchcore?"),
            (["--false-alarm-rate", "0.1"], "needs --calibrate"),
            (["--weights", "nowhere.safetensors"], "no such weights file: nowhere.safetensors"),
            (["--device", "abacus"], "device must be"),
        ],
    )
    def test_wrong_options(self, category: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        options = ["--model", tmp_path / "m", "-b", "gabor", "--device", "cpu", *arguments]
        outcome = call("fit", category / "train/good", *options)
        assert outcome.exit_code == 2
        assert message in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_folders_that_hold_defects_are_refused(self, category: Path, tmp_path: Path) -> None:
        for folder in (category, category / "test"):
            outcome = call("fit", folder, "--model", tmp_path / "m", *GABOR)
            assert outcome.exit_code == 2
            assert str(folder) in outcome.stderr

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        outcome = call("fit", tmp_path / "empty", "--model", tmp_path / "m", *GABOR)
        assert (outcome.exit_code, "no image files" in outcome.stderr) == (2, True)
        outcome = call("fit", tmp_path / "nowhere", "--model", tmp_path / "m", *GABOR)
        assert (outcome.exit_code, "no such image or folder" in outcome.stderr) == (2, True)

    def test_what_is_no_model_is_not_overwritten(self, category: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("precious")
        outcome = call("fit", category / "train/good", "--model", tmp_path, *GABOR)
        assert outcome.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_model_is_replaced_only_if_asked_for(self, category: Path, model: Path, tmp_path: Path) -> None:
        shutil.copytree(model, tmp_path / "m")
        fit = ["fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "--seed", 5]
        outcome = call(*fit)
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
        assert f"there is a model in {tmp_path / 'm'} already: --overwrite replaces it" in outcome.stderr
        assert (tmp_path / "m/model.json").read_bytes() == (model / "model.json").read_bytes()
        assert call(*fit, "--overwrite").exit_code == 0
        assert ead.load(tmp_path / "m").seed == 5  # type: ignore[attr-defined]
        # An empty folder holds nothing to lose; other files are never replaced.
        (tmp_path / "empty").mkdir()
        assert call(*fit[:3], tmp_path / "empty", *GABOR).exit_code == 0
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/notes.txt").write_text("precious")
        assert call(*fit[:3], tmp_path / "mine", *GABOR, "--overwrite").exit_code == 2

    @pytest.mark.slow
    def test_it_says_where_weights_are_kept(
        self, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("timm")
        weights = tmp_path / "w.pt"
        torch.save(ead.FeatureExtractor("resnet18", ["layer1"], weights=None).module.state_dict(), weights)
        network = ["-b", "resnet18", "-le", "layer1", "--weights", weights, "--device", "cpu", "-p", "0.01"]
        fit = ["fit", category / "train/good", *network, "--resize", 64, "--image-size", "none"]
        outcome = call(*fit, "--model", tmp_path / "m")
        assert "fit with --include-backbone" in " ".join(outcome.stdout.split())
        stored = call(*fit, "--model", tmp_path / "whole", "--include-backbone")
        assert "--include-backbone" not in stored.stdout
        # On the machine that has the model and not the file.
        weights.rename(tmp_path / "moved.pt")
        predict = ["predict", tmp_path / "m", category / "test/good", "--out", tmp_path / "o"]
        outcome = call(*predict)
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
        assert "give --weights PATH with where they are now" in outcome.stderr
        assert "fit and fuse --include-backbone store" in outcome.stderr
        assert "ead.load" not in outcome.stderr
        assert call(*predict, "--weights", tmp_path / "moved.pt").exit_code == 0
        assert call("predict", tmp_path / "whole", *predict[2:]).exit_code == 0

    def test_weights_that_cannot_be_had_are_an_error_of_the_library(
        self, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ensemblead.networks import zoo

        def offline(*_: Any) -> Any:
            raise OSError("no network")

        monkeypatch.setattr(zoo, "_timm_pretrained", offline)
        outcome = call("fit", category / "train/good", "--model", tmp_path / "m", "-b", "resnet18")
        assert outcome.exit_code == 1
        assert "--weights PATH" in outcome.stderr
        assert "--include-backbone" in outcome.stderr
        assert "weights=" not in outcome.stderr
        assert "resnet18.tv_in1k/resolve/main/model.safetensors" in outcome.stderr
