"""Ensembles over backbones: what is shared, how members combine, how they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.networks import NATIVE, TinyNet
from support.textures import SIDE, normal_images, with_defects

import ensemblead as ead
from ensemblead.calibration import conformal_threshold
from ensemblead.common.errors import DamagedModelError, NotFittedError
from ensemblead.networks import FeatureExtractor

BAD, MASKS = with_defects(normal_images(4, seed=5))
GOOD = normal_images(4, seed=6)


def _gabor(*layers: str, **options: Any) -> ead.PatchCore:
    defaults = NATIVE | {"coreset_fraction": 0.05, "device": "cpu"}
    return ead.PatchCore("gabor", layers or ("layer1",), **(defaults | options))


def _tiny(**options: Any) -> ead.PatchCore:
    defaults = NATIVE | {"coreset_fraction": 0.02, "device": "cpu"}
    return ead.PatchCore(TinyNet(), ("first", "second"), **(defaults | options))


@pytest.fixture(scope="module")
def fitted() -> ead.BackboneEnsemble:
    return ead.BackboneEnsemble([_gabor("layer1", "layer2"), _tiny()]).fit(normal_images(10))


def test_members_learn_what_they_would_alone(fitted: ead.BackboneEnsemble) -> None:
    for member, alone in zip(fitted.members, (_gabor("layer1", "layer2"), _tiny()), strict=True):
        alone.fit(normal_images(10))
        torch.testing.assert_close(member.memory_bank_.rows_, alone.memory_bank_.rows_)
        np.testing.assert_allclose(member.calibration_.scores, alone.calibration_.scores, rtol=1e-4)


def test_prediction_is_the_calibrated_mean_of_the_members(fitted: ead.BackboneEnsemble) -> None:
    fused = fitted.predict(BAD)
    alone = [member.predict(BAD) for member in fitted.members]
    stats = [member.calibration_ for member in fitted.members]
    scores = [(p.anomaly_score - c.score_mean) / c.score_std for p, c in zip(alone, stats, strict=True)]
    maps = [(p.anomaly_map - c.map_mean) / c.map_std for p, c in zip(alone, stats, strict=True)]
    np.testing.assert_allclose(fused.anomaly_score, np.mean(scores, 0), rtol=1e-3)
    np.testing.assert_allclose(fused.anomaly_map, np.mean(maps, 0), rtol=1e-3, atol=1e-3)
    assert fused.is_anomalous.all()
    assert fused.anomaly_map[MASKS].mean() > 3 * fused.anomaly_map[~MASKS].mean()
    assert not fitted.predict(normal_images(10)).is_anomalous.any()


def test_members_speak_for_themselves(fitted: ead.BackboneEnsemble) -> None:
    (batch,) = fitted.predict_members(BAD)
    for member, said in zip(fitted.members, batch, strict=True):
        alone = member.predict(BAD)
        np.testing.assert_allclose(said.anomaly_map, alone.anomaly_map, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(said.is_anomalous, alone.is_anomalous)


def test_weights_shift_the_mean() -> None:
    members = [_gabor().fit(normal_images(6)), _tiny().fit(normal_images(6))]
    first = ead.BackboneEnsemble(members, weights=[1, 0]).predict(BAD)
    z = (members[0].predict(BAD).anomaly_score - members[0].calibration_.score_mean) / members[
        0
    ].calibration_.score_std
    np.testing.assert_allclose(first.anomaly_score, z, rtol=1e-3)


def test_the_threshold_follows_weights_and_fusion(fitted: ead.BackboneEnsemble) -> None:
    ensemble = ead.BackboneEnsemble(fitted.members)
    seen = [ensemble.threshold_]
    ensemble.weights = (0.9, 0.1)
    seen.append(ensemble.threshold_)
    ensemble.fusion = "rank"
    seen.append(ensemble.threshold_)
    expected = [
        ead.BackboneEnsemble(fitted.members, **options).threshold_
        for options in ({}, {"weights": (0.9, 0.1)}, {"weights": (0.9, 0.1), "fusion": "rank"})
    ]
    assert seen == expected
    assert len(set(seen)) == 3


def test_images_are_decoded_once_and_equal_networks_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, tuple[str, ...]]] = []
    run = FeatureExtractor.__call__

    def counted(self: FeatureExtractor, images: torch.Tensor) -> list[torch.Tensor]:
        calls.append((len(images), self.layers))
        return run(self, images)

    class Counted:
        reads = 0

        def __init__(self, images: np.ndarray) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> np.ndarray:
            Counted.reads += 1
            return np.asarray(self.images[index])

    # The first two share a network and its input; the third has another input, the fourth another network.
    members = [_gabor("layer2"), _gabor("layer1", "layer2"), _gabor(resize=(48, 48)), _tiny()]
    ensemble = ead.BackboneEnsemble(members)
    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    ensemble.fit(Counted(normal_images(6)))
    assert Counted.reads == 6
    runs = [layers for count, layers in calls if count == 6]
    assert sorted(runs) == [("first", "second"), ("layer1",), ("layer2", "layer1")]
    assert members[0].network_.module is members[1].network_.module
    alone = _gabor("layer2").fit(normal_images(6))
    torch.testing.assert_close(members[0].memory_bank_.rows_, alone.memory_bank_.rows_)


def test_members_fitted_apart_can_be_combined(tmp_path: Path) -> None:
    _gabor("layer2").fit(normal_images(8)).save(tmp_path / "a")
    _gabor("layer1", resize=(48, 48)).fit(normal_images(12, seed=1)).save(tmp_path / "b")
    ensemble = ead.BackboneEnsemble([ead.load(tmp_path / "a"), ead.load(tmp_path / "b")])
    assert ensemble.is_fitted
    predictions = ensemble.predict(np.concatenate([GOOD, BAD]))
    # In the frame of the first member, although the second's is smaller.
    assert predictions.anomaly_map.shape == (8, SIDE, SIDE)
    assert predictions.is_anomalous[4:].all()
    assert not predictions.is_anomalous[:4].any()
    assert not ensemble.calibration_.is_guaranteed


def test_the_same_images_are_known_wherever_they_lie_and_whatever_their_size(tmp_path: Path) -> None:
    images = normal_images(6)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    first, second = _gabor("layer2").fit(images), _gabor("layer1", resize=(48, 48)).fit(tmp_path)
    other = _gabor("layer2").fit(images[::-1].copy())
    assert (
        first.calibration_.images_sha256
        == second.calibration_.images_sha256
        != other.calibration_.images_sha256
    )


@pytest.mark.parametrize("fusion", ["calibrated", "mean", "max", "rank"])
def test_every_fusion_scores_a_single_image(fusion: str) -> None:
    members = [_gabor("layer2").fit(normal_images(8)), _tiny().fit(normal_images(8))]
    ensemble = ead.BackboneEnsemble(members, fusion=fusion)
    bad, good = ensemble.predict(BAD[:1]), ensemble.predict(GOOD)
    assert bad.is_anomalous[0]
    assert bad.anomaly_score[0] > good.anomaly_score.max()
    assert bad.anomaly_map[MASKS[:1]].mean() > bad.anomaly_map[~MASKS[:1]].mean()
    np.testing.assert_allclose(ensemble.predict(BAD).anomaly_score[:1], bad.anomaly_score, rtol=1e-3)
    both = ensemble.predict_set(BAD)
    np.testing.assert_array_equal(both.anomaly_score, ensemble.predict(BAD).anomaly_score)


def test_minmax_needs_a_set() -> None:
    members = [_gabor("layer2").fit(normal_images(8)), _tiny().fit(normal_images(8))]
    ensemble = ead.BackboneEnsemble(members, fusion="minmax")
    with pytest.raises(ValueError, match="scales over an evaluated set"):
        ensemble.predict(BAD)
    with pytest.raises(ValueError, match="scales over an evaluated set"):
        ensemble.predict_batches(BAD)
    images = np.concatenate([GOOD, BAD])
    fused = ensemble.predict_set(images)
    alone = [member.predict(images) for member in members]
    scaled = [(p.anomaly_score - p.anomaly_score.min()) / np.ptp(p.anomaly_score) for p in alone]
    np.testing.assert_allclose(fused.anomaly_score, np.mean(scaled, 0), rtol=1e-3, atol=1e-5)
    scaled = [(p.anomaly_map - p.anomaly_map.min()) / np.ptp(p.anomaly_map) for p in alone]
    np.testing.assert_allclose(fused.anomaly_map, np.mean(scaled, 0), rtol=1e-3, atol=1e-4)
    calibrated = ead.BackboneEnsemble(members).predict(images)
    np.testing.assert_array_equal(fused.is_anomalous, calibrated.is_anomalous)
    with pytest.raises(ValueError, match=r"members\[0\] fuses by 'minmax'"):
        ead.BackboneEnsemble([ensemble])


def test_calibrate_sets_the_fused_threshold() -> None:
    ensemble = ead.BackboneEnsemble([_gabor("layer2"), _tiny()]).fit(normal_images(8))
    estimate = ensemble.threshold_
    fresh = normal_images(30, seed=8)
    ensemble.calibrate(fresh, 0.1)
    scores = ensemble.predict(fresh).anomaly_score
    assert ensemble.threshold_ == pytest.approx(conformal_threshold(scores, 0.1)[0], rel=1e-3)
    assert ensemble.threshold_ != estimate
    assert ensemble.calibration_.is_guaranteed
    assert scores.mean() == pytest.approx(0, abs=1e-3)


def test_extend_reaches_all_members() -> None:
    ensemble = ead.BackboneEnsemble([_gabor("layer2"), _tiny()]).fit(normal_images(6))
    sizes = [len(member.memory_bank_) for member in ensemble.members]
    probe = 255 - normal_images(3, seed=9)
    before = ensemble.predict(probe)
    ensemble.extend(255 - normal_images(6, seed=4))
    assert all(len(m.memory_bank_) > size for m, size in zip(ensemble.members, sizes, strict=True))
    assert before.is_anomalous.all()
    assert ensemble.predict(probe).anomaly_score.max() < before.anomaly_score.min()
    assert len(ensemble.calibration_.scores) == 12


def test_an_interrupted_fit_changes_no_member(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = ead.BackboneEnsemble([_gabor("layer2"), _tiny()]).fit(normal_images(6))
    banks = [member.memory_bank_ for member in ensemble.members]
    stages = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        # The first member is done then, the second is not.
        if stages.count("calibrate") > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensemble.fit(normal_images(6, seed=3), progress=stop)
    assert [member.memory_bank_ for member in ensemble.members] == banks


def test_ensembles_nest() -> None:
    inner = ead.BackboneEnsemble([_gabor("layer1"), _gabor("layer2")], fusion="max")
    outer = ead.BackboneEnsemble([inner, _tiny()], weights=[2, 1]).fit(normal_images(8))
    predictions = outer.predict(np.concatenate([GOOD, BAD]))
    assert predictions.is_anomalous.tolist() == [False] * 4 + [True] * 4
    parts = [inner.predict(BAD), outer.members[1].predict(BAD)]
    stats = [inner.calibration_, outer.members[1].calibration_]
    z = [(p.anomaly_score - c.score_mean) / c.score_std for p, c in zip(parts, stats, strict=True)]
    np.testing.assert_allclose(outer.predict(BAD).anomaly_score, (2 * z[0] + z[1]) / 3, rtol=1e-3)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    inner = ead.BackboneEnsemble([_gabor("layer1"), _gabor("layer2")], fusion="max")
    ensemble = ead.BackboneEnsemble([inner, _tiny()], weights=[2, 1]).fit(normal_images(6))
    ensemble.save(tmp_path / "m")
    for backbone in ([None, TinyNet(9)], {1: TinyNet(9)}):
        again = ead.load(tmp_path / "m", backbone=backbone)
        expected, found = ensemble.predict(BAD), again.predict(BAD)
        np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
        assert again.threshold_ == ensemble.threshold_
    assert again.members[0].fusion == "max"
    for wrong, message in (
        (TinyNet(), r"an ensemble of 2; give a list of one per member"),
        ([None], r"one per member \(2\), got 1"),
        ({2: TinyNet()}, "members 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ead.load(tmp_path / "m", backbone=wrong)
    nested = tmp_path / "m" / "member0" / "member1" / "model.json"
    manifest = json.loads(nested.read_text())
    nested.write_text(json.dumps(manifest))  # the same content, other bytes
    with pytest.raises(DamagedModelError, match=r"member1/model\.json"):
        ead.load(tmp_path / "m", backbone={1: TinyNet()})


@pytest.mark.parametrize("from_file", [False, True])
def test_networks_stored_for_different_depths_are_not_mixed_up(tmp_path: Path, from_file: bool) -> None:
    options: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.02, "weights": None, "device": "cpu"}
    if from_file:
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.pth")
        options["weights"] = tmp_path / "w.pth"
    members = [
        ead.PatchCore("squeezenet1_1", (f"features.{i}",), patch_size=p, **options)
        for i, p in ((2, 3), (2, 1), (4, 3))
    ]
    ensemble = ead.BackboneEnsemble(members).fit(normal_images(3))
    assert len({id(member.network_.module) for member in members}) == 1
    ensemble.save(tmp_path / "m", include_backbone=True)
    again = ead.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(GOOD).anomaly_map, ensemble.predict(GOOD).anomaly_map)
    modules = [member.network_.module for member in again.members]
    # What is stored ends at the last layer read: a network stored for fewer layers cannot stand in for one of
    # more.
    assert modules[0] is modules[1]
    assert modules[0] is not modules[2]


def test_members_must_look_at_the_same_part(tmp_path: Path) -> None:
    close = ead.BackboneEnsemble([_gabor(resize=64, image_size=56), _gabor(resize=80, image_size=70)])
    assert close.fit(normal_images(4)).predict(BAD).anomaly_map.shape == (4, 56, 56)
    apart = ead.BackboneEnsemble([_gabor(resize=64, image_size=56), _gabor(resize=64, image_size=32)])
    with pytest.raises(ValueError, match=r"same part .* member 0 sees \(4\.0, .* and member 1 \(16\.0,"):
        apart.fit(normal_images(4))


def test_bad_members() -> None:
    member = _gabor()
    with pytest.raises(ValueError, match="members must not be empty"):
        ead.BackboneEnsemble([])
    with pytest.raises(TypeError, match=r"members\[1\] must be a detector, got str"):
        ead.BackboneEnsemble([member, "resnet18"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one appears twice"):
        ead.BackboneEnsemble([member, member])
    with pytest.raises(ValueError, match="one appears twice"):
        ead.BackboneEnsemble([ead.BackboneEnsemble([member]), member])
    with pytest.raises(ValueError, match="fusion must be one of"):
        ead.BackboneEnsemble([member], fusion="vote")
    with pytest.raises(NotFittedError, match="this BackboneEnsemble is not fitted"):
        ead.BackboneEnsemble([member]).predict(GOOD)


def test_one_training_image_warns_and_works() -> None:
    with pytest.warns(UserWarning, match="no training image can be scored"):
        ensemble = ead.BackboneEnsemble([_gabor("layer2"), _tiny()]).fit(normal_images(1))
    predictions = ensemble.predict(BAD)
    assert np.isfinite(predictions.anomaly_map).all()
    assert predictions.is_anomalous.all()
