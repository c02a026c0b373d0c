"""`pad_to_grid`: images of sizes that a network does not take, and what of the padding counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402
from support.commands import call, call_json  # noqa: E402
from support.networks import TinyNet  # noqa: E402
from support.textures import normal_images, with_defects  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead.common.errors import NotExportableError  # noqa: E402
from ensemblead.detectors import frozen  # noqa: E402

SIZE = (40, 52)  # 48 x 64 is what patches of 16 pixels take
VIT = "vit_tiny_patch16_224"
TRAIN = normal_images(5, side=52)[:, :40]
TEST = np.concatenate([normal_images(2, seed=3, side=52), with_defects(normal_images(2, seed=4, side=52))[0]])
TEST = TEST[:, :40]


def detector(**options: Any) -> ead.PatchCore:
    options = {"resize": SIZE, "pad_to_grid": True, "coreset_fraction": 1.0, **options}
    return ead.PatchCore(
        VIT, ("blocks.0",), weights=None, patch_size=1, aggregation="concat", device="cpu", **options
    )


def padded(images: Any) -> Any:
    return np.pad(images, ((0, 0), (0, 8), (0, 12), (0, 0)), mode="edge")


@pytest.fixture(scope="module")
def fitted() -> ead.PatchCore:
    return detector().fit(TRAIN)


def test_it_is_refused_unless_asked_for() -> None:
    with pytest.raises(ValueError, match=r"resize: .* 40 x 52 pixels: 32 x 48 or 48 x 64 would do"):
        detector(pad_to_grid=False)


def test_it_equals_images_padded_by_hand(fitted: ead.PatchCore) -> None:
    by_hand = detector(resize=(48, 64), pad_to_grid=False).fit(padded(TRAIN))
    rows = [one.memory_bank_.rows_ for one in (fitted, by_hand)]
    torch.testing.assert_close(*(own[own[:, 0].argsort()] for own in rows))
    found, expected = fitted.predict(TEST), by_hand.predict(padded(TEST))
    assert found.anomaly_map.shape == (4, *SIZE)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-4)
    np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map[:, :40, :52], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fitted.calibration_.scores, by_hand.calibration_.scores, rtol=1e-4)
    assert "pad_to_grid=True" in repr(fitted)


@pytest.mark.parametrize("banks", ["joint", "per_layer"])
def test_patches_of_padding_alone_are_neither_learned_nor_scored(
    banks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "padded_size", lambda name, layers, size: (64, 64))
    one = detector(banks=banks, score="max").fit(TRAIN)
    # Of 4 x 4 patches the lowest row shows nothing of the image.
    (bank,) = one.memory_banks_
    assert len(bank) == len(TRAIN) * 3 * 4
    found: list[Any] = []
    scores = one.scores
    monkeypatch.setattr(one, "scores", lambda state, seen: found.append(scores(state, seen)) or found[-1])
    assert one.predict(TEST).anomaly_map.shape == (4, *SIZE)
    # It takes the values of the row above.
    assert torch.equal(found[0].grids[:, 3], found[0].grids[:, 2])
    assert not torch.equal(found[0].grids[:, 2], found[0].grids[:, 1])
    monkeypatch.setattr(frozen, "padded_size", lambda name, layers, size: (48, 64))
    assert len(detector(banks=banks).fit(TRAIN).memory_banks_[0]) == len(bank)


def test_saved_loaded_calibrated_and_fused(fitted: ead.PatchCore, tmp_path: Path) -> None:
    expected = fitted.predict(TEST)
    fitted.save(tmp_path / "model", include_backbone=True)
    loaded = ead.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(TEST).anomaly_map, expected.anomaly_map)
    loaded.calibrate(normal_images(20, seed=30, side=52)[:, :40], false_alarm_rate=0.2)
    assert loaded.calibration_.origin == "calibrated"
    gabor = ead.PatchCore("gabor", ("layer1",), resize=SIZE, coreset_fraction=0.5, device="cpu").fit(TRAIN)
    fused = ead.BackboneEnsemble([fitted, gabor]).predict(TEST)
    assert fused.anomaly_map.shape == (4, *SIZE)
    assert np.isfinite(fused.anomaly_map).all()


def test_a_region_and_native_images() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:, :16] = True
    one = detector(resize=None, region=mask).fit(TRAIN)
    assert len(one.memory_bank_) == len(TRAIN) * 3
    found = one.predict(TEST)
    assert (found.anomaly_map[:, ~mask] == 0).all()
    assert (found.anomaly_map[:, mask] > 0).all()


def test_known_defects_and_their_masks(tmp_path: Path) -> None:
    picture, mask = with_defects(normal_images(1, seed=9, side=52))
    Image.fromarray(picture[0, :40]).save(tmp_path / "d.png")
    Image.fromarray(np.uint8(mask[0, :40]) * 255).save(tmp_path / "m.png")
    paths = {"defects": [str(tmp_path / "d.png")], "defect_masks": [str(tmp_path / "m.png")]}
    one = detector(**paths).fit(TRAIN)
    assert one.learned_["defect_rows"] >= 1


def test_images_of_several_sizes() -> None:
    images = [np.ascontiguousarray(image) for image in TRAIN]
    one = detector(resize=None, batch_size=1)
    with pytest.raises(ValueError, match="pad_to_grid needs images of one size, got 40 x 52 and 36 x 52"):
        one.fit([Image.fromarray(image) for image in (*images, images[0][:36])])


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: ead.PatchCore(TinyNet(), ("first",), pad_to_grid=True),
            ValueError,
            "pad_to_grid needs a network by name",
        ),
        (lambda: detector(pad_to_grid="yes"), TypeError, "pad_to_grid must be True or False, got 'yes'"),
        (lambda: detector(foreground="auto"), ValueError, "foreground='auto' finds the object among all"),
        (lambda: detector(augment="rotations"), ValueError, "augment='rotations' turns images, and a pad"),
        (
            lambda: ead.PatchCore("levit_128", weights=None, resize=(230, 230), pad_to_grid=True),
            ValueError,
            "pad_to_grid: levit_128 cannot take images of 230 x 230 pixels: 224 x 224 would do",
        ),
        (
            lambda: ead.TiledEnsemble(detector(resize="auto"), 40, image_size=80),
            ValueError,
            "member: pad_to_grid must be False, for tiles can have a tile_size that fits",
        ),
    ],
)
def test_what_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_no_graph_pads(fitted: ead.PatchCore, tmp_path: Path) -> None:
    with pytest.raises(
        NotExportableError, match="pad_to_grid: images of 40 x 52 pixels are padded to 48 x 64"
    ):
        fitted.export(tmp_path / "out", verify=np.concatenate([TEST, TRAIN, TEST]))


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for i, image in enumerate(TRAIN):
        Image.fromarray(image).save(tmp_path / "good" / f"{i}.png")
    options = ["-b", VIT, "-le", "blocks.0", "--weights", "none", "--resize", "40x52", "-p", "0.5"]
    options += ["--device", "cpu", "--set", "pad_to_grid=true"]
    outcome = call("fit", tmp_path / "good", "--model", tmp_path / "m", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert "images are padded to the next size that the network takes" in outcome.stdout
    summary = call_json("fit", tmp_path / "good", "--model", tmp_path / "n", *options)
    assert summary["members"][0]["pad_to_grid"] is True
