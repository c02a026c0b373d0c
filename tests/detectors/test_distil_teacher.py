"""A teacher of one's own for EfficientAD, and the images that trainings draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.descriptions import NAMES, make_narrow, named
from support.textures import normal_images
from support.trained import LAYERS, Pyramid, stop_at

import ensemblead as ead
from ensemblead.detectors.efficientad import penalty, teacher
from ensemblead.networks.pdn import PDN

SIDE = 64
TRAIN, GOOD = normal_images(20, side=SIDE), normal_images(3, seed=1, side=SIDE)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    make_narrow(monkeypatch)


def distilled(path: Path, **options: Any) -> Path:
    defaults: dict[str, Any] = {
        "backbone": Pyramid(),
        "layers": LAYERS[1:],
        "image_size": 64,
        "batch_size": 2,
    }
    return ead.distil_teacher(TRAIN, path, **(defaults | {"steps": 4, "device": "cpu"} | options))


def test_a_distilled_teacher(tmp_path: Path) -> None:
    path, again = distilled(tmp_path / "new" / "teacher.safetensors"), tmp_path / "again.safetensors"
    assert set(load_file(path)) == set(named(NAMES))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4"):
        distilled(again, checkpoint=tmp_path / "c", progress=stop_at(2))
    with pytest.raises(ValueError, match=r"with other learning_rate \(0.0001 there, 0.1 here\)"):
        distilled(again, checkpoint=tmp_path / "c", learning_rate=0.1)
    assert distilled(again, checkpoint=tmp_path / "c").read_bytes() == path.read_bytes()
    assert not (tmp_path / "c").exists()
    other = distilled(tmp_path / "other.safetensors", seed=1)
    assert other.read_bytes() != path.read_bytes()
    detector = ead.EfficientAD("small", "pdn_small", weights=path, steps=1, resize=None, device="cpu")
    assert detector.fit(TRAIN).predict(GOOD).anomaly_map.shape == (3, SIDE, SIDE)


def test_a_distilled_teacher_describes_as_the_network_does(tmp_path: Path) -> None:
    """On images that it has not seen."""
    extractor = ead.FeatureExtractor(Pyramid(), LAYERS[1:])
    drawn = [penalty.noise((128, 128), np.random.default_rng(seed)) for seed in range(4)]
    images = extractor.normalize(torch.from_numpy(np.stack(drawn)))
    wanted = teacher.patch_features(extractor, images, 1024).transpose(0, 1).flatten(1)
    alike = []
    for steps in (1, 100):
        path = distilled(tmp_path / f"{steps}.safetensors", steps=steps, learning_rate=2e-3)
        network = PDN("small", is_padded=True)
        network.load_state_dict(load_file(path))
        with torch.no_grad():
            found = network(torch.nn.functional.avg_pool2d(images, 2)).transpose(0, 1).flatten(1)
        pairs = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(wanted, found, strict=True)]
        alike.append(float(torch.stack(pairs).nanmean()))
    assert alike[0] < 0.3
    assert alike[1] > 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size must be one of small, medium, got 'tiny'"),
        ({"image_size": 32}, "image_size must be at least 64, got 32"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": -1}, "learning_rate must be positive"),
        ({"layers": ("one",)}, "layers: the first must have stride 8"),
    ],
)
def test_wrong_parameters_of_a_distillation(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        distilled(tmp_path / "t.safetensors", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("", ValueError, "path must be a file to write, got ''"),
        (3, TypeError, "path must be a file to write, got 3"),
        ("folder", ValueError, "path must be a file to write, got 'folder'"),
        ("file/teacher", ValueError, "path must be a file to write, got 'file/teacher'"),
        ("kept", ValueError, "checkpoint must be a folder of its own, got 'kept'"),
        (".", ValueError, "path must be a file to write, got '.'"),
        ("kept/teacher", ValueError, "checkpoint must be a folder of its own, got 'kept'"),
        ("teacher.pt", ValueError, "path must end in .safetensors, got 'teacher.pt'"),
    ],
)
def test_a_place_for_no_file_is_refused_before_training(
    path: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    stages: list[str] = []
    with pytest.raises(error, match=message):
        distilled(path, checkpoint="kept", progress=lambda stage, done, total: stages.append(stage))
    assert not stages
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


# What is drawn


def test_recolouring_by_hand() -> None:
    image = np.ascontiguousarray(TRAIN[0].transpose(2, 0, 1))
    luma = np.tensordot((0.299, 0.587, 0.114), image, 1)
    seen = set()
    for seed in range(12):
        twin = np.random.default_rng(seed)
        kind, factor = int(twin.integers(3)), twin.uniform(0.8, 1.2)
        other = (np.zeros_like(luma), np.full_like(luma, luma.mean()), luma)[kind]
        expected = np.clip(other + factor * (image - other), 0, 255)
        found = penalty.recoloured(image, np.random.default_rng(seed))
        np.testing.assert_allclose(found, expected, atol=1.5)
        seen.add(kind)
    assert seen == {0, 1, 2}


def test_procedural_images() -> None:
    image = np.ascontiguousarray(normal_images(1, side=128)[0, :96].transpose(2, 0, 1))
    drawn = [penalty.procedural(image, np.random.default_rng(seed)) for seed in range(100)]
    assert all(own.shape == image.shape and own.dtype == np.uint8 for own in drawn)
    assert np.array_equal(drawn[3], penalty.procedural(image, np.random.default_rng(3)))
    grey = sum(bool((own == own[0]).all()) for own in drawn)
    assert 15 <= grey <= 45  # of 30 expected
    assert min(np.abs(own.astype(int) - image).mean() for own in drawn) > 10.0


def test_pieces_are_shuffled() -> None:
    """A ramp is smooth within the pieces, and has jumps where they meet."""
    image = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8), (3, 128, 128))
    for seed in range(10):
        found = penalty.disordered(image, np.random.default_rng(seed))[0].astype(int)
        jumps = np.abs(np.diff(found, axis=1)).max(0)  # between a column and the next
        assert jumps.max() > 10
        assert (jumps > 5).sum() < 8
