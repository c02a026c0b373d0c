"""One memory bank per layer, and the cosine distance: both against a computation by hand in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from support.networks import NATIVE, TinyNet
from support.textures import SIDE, normal_images, with_defects
from torch import nn

import ensemblead as ead
from ensemblead.detectors.patchcore.layer_banks import LayerBanksState
from ensemblead.detectors.patchcore.scoring import is_zero, of_length_one

LAYERS = ("first", "second")
TRAIN = normal_images(5)
PROBE = np.concatenate([normal_images(1, 1), with_defects(normal_images(1, 2))[0]])


def detector(**options: Any) -> ead.PatchCore:
    given = {**NATIVE, "coreset_fraction": 0.05, "precision": "float32", "device": "cpu", **options}
    return ead.PatchCore(TinyNet(), given.pop("layers", LAYERS), **given)


@pytest.fixture(scope="module")
def fitted() -> ead.PatchCore:
    return detector(banks="per_layer").fit(TRAIN)


# By hand


def patches(layer: str, images: np.ndarray, metric: str) -> np.ndarray:
    """Float64 `[B, h, w, D]` of a detector of that layer alone, of length 1 for "cosine"."""
    alone = detector(layers=(layer,))
    extractor = alone.network_
    maps = extractor(extractor.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    embedded = alone.embed(maps).double().numpy()
    if metric == "cosine":
        embedded = embedded / np.linalg.norm(embedded, axis=3, keepdims=True)
    return embedded


def nearest(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """Distances `[B, h, w]` of queries `[B, h, w, D]` to the nearest of rows `[M, D]`."""
    if metric == "cosine":
        return (1.0 - queries @ rows.T).min(3)
    return ((queries[:, :, :, None] - rows) ** 2).sum(4).min(3)


def on_grid(grid: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Bilinear, `align_corners=False`: `[B, h, w]` to `[B, *size]`."""
    given = torch.from_numpy(grid)[:, None]
    return nn.functional.interpolate(given, tuple(size), mode="bilinear", align_corners=False)[:, 0].numpy()


def score_of(grid: np.ndarray, score: str) -> float:
    count = 1 if score == "max" else max(1, int(grid.size * 0.01))
    return float(np.sort(grid.ravel())[-count:].mean())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("score", ["topk", "max"])
def test_per_layer_is_the_mean_of_each_layers_own_bank(metric: Any, score: Any) -> None:
    made = detector(banks="per_layer", metric=metric, score=score).fit(TRAIN)
    grids, left_out = [], []
    for layer, bank in zip(LAYERS, made.memory_banks_, strict=True):
        alone = detector(layers=(layer,), metric=metric).fit(TRAIN).memory_bank_
        assert torch.equal(bank.rows_, alone.rows_)
        assert torch.equal(bank.images_, alone.images_)
        rows, owners = bank.rows_.double().numpy(), bank.images_.numpy()
        own = patches(layer, TRAIN, metric)
        distances = np.stack([nearest(own[i : i + 1], rows[owners != i], metric)[0] for i in range(5)])
        left_out.append(distances / distances.mean())
        grids.append(nearest(patches(layer, PROBE, metric), rows, metric) / distances.mean())
    size = grids[0].shape[1:]
    fused, normal = ((a + on_grid(b, size)) / 2 for a, b in (grids, left_out))
    found = made.predict(PROBE)
    for i, grid in enumerate(fused):
        assert found.anomaly_score[i] == pytest.approx(score_of(grid, score), rel=1e-4)
        up = on_grid(grid[None], (SIDE, SIDE))[0]
        expected = gaussian_filter(up, 4.0, mode="reflect", truncate=4.0)
        np.testing.assert_allclose(found.anomaly_map[i], expected, rtol=1e-4, atol=1e-5)
    scores = [score_of(grid, score) for grid in normal]
    np.testing.assert_allclose(made.calibration_.scores, scores, rtol=1e-4)
    assert found.is_anomalous.tolist() == [False, True]


@pytest.mark.parametrize("score", ["topk", "max", "reweighted"])
def test_cosine_is_one_minus_the_cosine(score: Any) -> None:
    made = detector(layers=("first",), metric="cosine", score=score, reweight_neighbors=3).fit(TRAIN)
    rows = made.memory_bank_.rows_.double().numpy()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)
    queries = patches("first", PROBE, "cosine")
    found = made.predict(PROBE).anomaly_score
    for i, grid in enumerate(nearest(queries, rows, "cosine")):
        expected = score_of(grid, "topk" if score == "topk" else "max")
        if score == "reweighted":
            query = queries[i].reshape(-1, rows.shape[1])[grid.argmax()]
            winner = (1.0 - rows @ query).argmin()
            around = (1.0 - rows @ query)[np.argsort(1.0 - rows @ rows[winner])[:3]]
            expected *= 1.0 - np.exp(around[0]) / np.exp(around).sum()
        assert found[i] == pytest.approx(expected, rel=1e-3)


# Vectors of zeros


def test_zeros_stay_zeros() -> None:
    given = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0], [3e38, 3e38]])
    found = of_length_one(given)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [0.5**0.5] * 2]))
    assert is_zero(found).tolist() == [False, True, False, False]


def _relu(seed: int = 0) -> nn.Module:
    """A network that puts out zeros for black pixels."""
    network = TinyNet(seed)
    network.first.bias.data.zero_()
    return nn.Sequential(_Pixels(), network.first, nn.ReLU())


class _Pixels(nn.Module):
    """Undoes ImageNet's normalisation."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
        pixels = images * std + mean
        return torch.where(pixels < 1e-6, 0.0, pixels)


@pytest.mark.parametrize("banks", ["joint", "per_layer"])
def test_zeros_are_refused_in_fit_and_far_in_predict(tmp_path: Path, banks: Any) -> None:
    options = {**NATIVE, "coreset_fraction": 0.05, "device": "cpu", "metric": "cosine", "banks": banks}
    made = ead.PatchCore(_relu(), ("2",), **options)
    black = TRAIN.copy()
    black[3, 10:40, 10:40] = 0
    with pytest.raises(ValueError, match=r'metric="cosine" .* of 1 images .* zeros, first of image 3; leave'):
        made.fit(black)
    from PIL import Image

    for i, image in enumerate(black):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"zeros, first of .*3\.png; leave those images out"):
        made.fit(tmp_path)
    made.fit(TRAIN)
    state = made.state_
    grids = made.scores(state, _seen(made, black[3:4])).grids
    inside = grids[0, 7:18, 7:18]
    scale = state.scales[0] if banks == "per_layer" else 1.0
    torch.testing.assert_close(inside, torch.full_like(inside, 1.0 / scale))


def _seen(made: ead.PatchCore, images: np.ndarray) -> Any:
    from ensemblead.detectors.running import scored_batches

    ((_, (seen,)),) = scored_batches(made, images, "raise", None, "predict")
    return seen


# What a detector does besides


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded(tmp_path: Path, fitted: ead.PatchCore, half: bool) -> None:
    fitted.save(tmp_path / "model", half=half)
    again = ead.load(tmp_path / "model", backbone=TinyNet())
    assert again.state_.scales == fitted.state_.scales
    for ours, theirs in zip(again.memory_banks_, fitted.memory_banks_, strict=True):
        expected = theirs.rows_.half().float() if half else theirs.rows_
        assert torch.equal(ours.rows_, expected)
    np.testing.assert_allclose(
        again.predict(PROBE).anomaly_score, fitted.predict(PROBE).anomaly_score, rtol=2e-3 if half else 1e-6
    )


def test_extended(fitted: ead.PatchCore, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    more = ead.load(tmp_path / "model", backbone=TinyNet())
    before = more.predict(PROBE).anomaly_map
    more.extend(normal_images(3, 7))
    assert more.state_.scales == fitted.state_.scales
    sizes = [(len(a), len(b)) for a, b in zip(more.memory_banks_, fitted.memory_banks_, strict=True)]
    assert all(now > then for now, then in sizes)
    assert (more.predict(PROBE).anomaly_map <= before * (1 + 1e-5)).all()
    assert more.learned_["bank_rows"] == sum(now for now, _ in sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"banks": "per_layer"},
        {"banks": "per_layer", "metric": "cosine", "score": "max"},
        {"metric": "cosine"},
        {"metric": "cosine", "score": "reweighted", "reweight_neighbors": 4},
        {"banks": "per_layer", "position_radius": 1, "bank_dtype": "float16"},
    ],
)
def test_the_graph_puts_out_the_same(options: dict[str, Any]) -> None:
    made = detector(**options).fit(TRAIN)
    extractor = made.network_
    pixels = torch.from_numpy(PROBE).permute(0, 3, 1, 2)
    expected = made.scores(made.state_, _seen(made, PROBE))
    with torch.no_grad():
        grids, scores = made.graph(made.state_, (SIDE, SIDE))([], extractor(extractor.normalize(pixels)))
    torch.testing.assert_close(grids, expected.grids, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected.images, rtol=1e-4, atol=1e-5)


def test_in_tiles() -> None:
    tiles = ead.TiledEnsemble(detector(banks="per_layer", coreset_fraction=0.1), 32, 32, image_size=64)
    found = tiles.fit(TRAIN).predict(PROBE)
    assert found.is_anomalous.tolist() == [False, True]
    assert len(tiles.members_[0].memory_banks_) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"banks": "per_layer"}, {"metric": "cosine", "layers": ("first",)}])
def test_every_promise_of_a_detector(options: dict[str, Any]) -> None:
    ead.check_detector(detector(**options))


def test_one_image_alone_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no training image can be scored without"):
        detector(banks="per_layer", coreset_fraction=0.2).fit(TRAIN[:1])


def test_patches_of_one_cell_are_the_values_of_the_layer() -> None:
    made = detector(layers=("first",), patch_size=1, aggregation="concat")
    values = torch.rand(2, 600, 5, 4)
    assert torch.equal(made.embed([values]), values.permute(0, 2, 3, 1))


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"banks": "per_layr"}, "banks must be one of joint, per_layer, got 'per_layr'; did you mean"),
        ({"banks": None}, "banks must be one of joint, per_layer, got None"),
        ({"metric": "cos"}, "metric must be one of l2, cosine, got 'cos'"),
        ({"metric": 2}, "metric must be one of l2, cosine, got 2"),
        ({"banks": "per_layer", "score": "reweighted"}, 'score="reweighted" looks at the rows of one bank'),
        ({"banks": "per_layer", "pretrain_dim": (8, 8, 8)}, r"positive, one per layer \(2\)"),
    ],
)
def test_wrong_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(**options)


def test_one_layer_twice() -> None:
    with pytest.raises(ValueError, match=r"layers must differ from each other, got \('first', 'first'\)"):
        detector(banks="per_layer", layers=("first", "first"))


def test_one_bank_is_not_several(fitted: ead.PatchCore) -> None:
    with pytest.raises(AttributeError, match="memory_banks_"):
        _ = fitted.memory_bank_
    with pytest.raises(ValueError, match="verify is of one bank"):
        fitted.verify(TRAIN)


def test_wrong_states(fitted: ead.PatchCore) -> None:
    states = tuple(bank.state() for bank in fitted.memory_banks_)
    for scales, message in (((1.0,), "one per bank"), ((1.0, 0.0), "positive"), ((1.0, "2"), "positive")):
        with pytest.raises(ValueError, match=message):
            LayerBanksState(states, scales)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one bank per layer \(2\), got 1"):
        fitted._state_from_saved(LayerBanksState(states[:1], (1.0,)))
