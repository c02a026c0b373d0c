"""A region together with what else PatchCore is told: banks, places, metric, precision, odd images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from support.regions import MASK, SIDE, padim, painted_inside, painted_outside, patchcore, photographs

import ensemblead as ead
from ensemblead.detectors.patchcore.scoring import top_count
from ensemblead.kernels.filling import cells_inside, nearest_inside
from ensemblead.kernels.maps import render_maps, resize_maps

pytestmark = pytest.mark.filterwarnings("ignore::ensemblead.common.warnings.ThresholdWarning")

TRAIN, TEST = photographs(10), painted_inside(photographs(2, seed=9))
EVERYTHING = np.ones((SIDE, SIDE), bool)
LAYERS = ("layer1", "layer2")
ALL: dict[str, Any] = {
    "banks": "per_layer",
    "position_radius": 1,
    "metric": "cosine",
    "bank_dtype": "float16",
}
JUDGED: dict[str, Any] = {**ALL, "banks": "joint", "contamination": 0.1}
COMMON: dict[str, Any] = {"resize": None, "device": "cpu", "coreset_fraction": 0.1}


def two_layers(**options: Any) -> Any:
    return ead.PatchCore("gabor", LAYERS, **(COMMON | options))


def four_tiles(member: Any, region: Any) -> Any:
    return ead.TiledEnsemble(member, SIDE // 2, SIDE // 2, image_size=SIDE, region=region)


MAKERS: dict[str, Any] = {
    "all": lambda region: two_layers(**ALL, region=region),
    "judged": lambda region: two_layers(**JUDGED, region=region),
    "reweighted": lambda region: patchcore(
        position_radius=1, metric="cosine", score="reweighted", num_neighbors=2, region=region
    ),
    "backbones": lambda region: ead.BackboneEnsemble(
        [two_layers(**ALL), patchcore(resize=(48, 48), **JUDGED), padim()], region=region
    ),
    "tiles": lambda region: four_tiles(two_layers(**ALL), region),
    "tiles of backbones": lambda region: four_tiles(
        ead.BackboneEnsemble([patchcore(**(JUDGED | {"contamination": "auto"})), padim()]), region
    ),
}
SLOW = {"judged", "reweighted", "tiles of backbones"}


def assert_same(found: Any, expected: Any) -> None:
    for name in ("anomaly_score", "anomaly_map", "is_anomalous"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MAKERS]
)
def test_options_go_with_a_region(name: str, tmp_path: Path) -> None:
    one, other = (MAKERS[name](MASK).fit(images) for images in (TRAIN, painted_outside(TRAIN)))
    found = one.predict(TEST)
    assert_same(one.predict(painted_outside(TEST)), found)
    assert_same(other.predict(TEST), found)
    assert one.threshold_ == other.threshold_
    assert one.calibration_.pixel_threshold() == other.calibration_.pixel_threshold()
    left_out = [image.index for image in one.left_out_]
    assert left_out == [image.index for image in other.left_out_]
    assert bool(left_out) == (name in ("judged", "backbones"))  # a share was asked for
    # The defect alone is an object, however low the threshold.
    for detected in found.objects(found.pixel_threshold) + found.objects(-1e6):
        x, y, width, height = detected.box
        assert min(x - 8, y - 10, 50 - x - width, 45 - y - height) >= 0
    one.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert_same(loaded.predict(TEST), found)
    more = photographs(3, seed=3)
    assert_same(loaded.extend(more).predict(TEST), other.extend(painted_outside(more)).predict(TEST))
    # A region of all pixels is none.
    whole, none = (MAKERS[name](region).fit(TRAIN) for region in (EVERYTHING, None))
    assert_same(whole.predict(TEST), none.predict(TEST))
    assert whole.threshold_ == none.threshold_


def embeddings(detector: Any, images: Any) -> list[torch.Tensor]:
    """Of photographs whose surroundings are filled by hand, per layer: float64 `[B, h, w, D]`."""
    filled = images.reshape(len(images), -1, 3)[:, nearest_inside(MASK).ravel()].reshape(images.shape)
    pixels = torch.from_numpy(filled.transpose(0, 3, 1, 2).copy())
    found = detector.embed(detector.network_(detector.network_.normalize(pixels)))
    return [one.double() for one in found]


def nearest_near(
    queries: torch.Tensor, rows: torch.Tensor, cells: Any, *, is_own: bool = False
) -> torch.Tensor:
    """Half the squared distance of patches `[B, h, w, D]` to the nearest row `[N, h, w, D]` of a cell inside
    that lies at most one cell away, in loops; `is_own`: of the same images, each without itself.
    """
    height, width = cells.shape
    found = torch.zeros(queries.shape[:3], dtype=torch.float64)
    for row, column in np.argwhere(cells):
        near = [
            (r, c)
            for r in range(max(row - 1, 0), min(row + 2, height))
            for c in range(max(column - 1, 0), min(column + 2, width))
            if cells[r, c]
        ]
        for image in range(len(queries)):
            others = [number for number in range(len(rows)) if not (is_own and number == image)]
            candidates = torch.cat([rows[others, r, c] for r, c in near])
            apart = (candidates - queries[image, row, column]).square().sum(1)
            found[image, row, column] = 0.5 * apart.min()
    return found


def test_all_options_against_a_naive_reference() -> None:
    train = TRAIN[:4]
    detector = two_layers(**ALL, coreset_fraction=1.0, region=MASK).fit(train)
    fused, alone = torch.zeros(()), torch.zeros(())
    grids = []
    for learned, seen in zip(embeddings(detector, train), embeddings(detector, TEST), strict=True):
        cells = cells_inside(MASK, (learned.shape[1], learned.shape[2]))
        grids.append(cells.shape)
        halves = learned.half().double()
        order = torch.from_numpy(cells.ravel().cumsum() - 1)[nearest_inside(cells)]
        inside = torch.from_numpy(cells)
        known = nearest_near(learned, halves, cells, is_own=True)
        scale = known[:, inside].mean()
        for_all = [
            resize_maps((one[:, inside] / scale)[:, order].float(), grids[0])
            for one in (nearest_near(seen, halves, cells), known)
        ]
        fused, alone = fused + for_all[0] / 2, alone + for_all[1] / 2
    first = cells_inside(MASK, grids[0])
    inside, count = torch.from_numpy(first), top_count(int(first.sum()))
    found = detector.predict(TEST)
    scores = fused[:, inside].topk(count, 1).values.mean(1).numpy()
    np.testing.assert_allclose(found.anomaly_score, scores, rtol=1e-3)
    order = torch.from_numpy(first.ravel().cumsum() - 1)[nearest_inside(first)]
    maps = render_maps(fused[:, inside][:, order], (SIDE, SIDE)).numpy() * MASK
    np.testing.assert_allclose(found.anomaly_map, maps, rtol=1e-3, atol=1e-3)
    expected = alone[:, inside].topk(count, 1).values.mean(1).numpy()
    np.testing.assert_allclose(detector.calibration_.scores, expected, rtol=1e-3)


def test_drift_of_standardised_maps_is_watched_inside() -> None:
    from ensemblead.monitoring.watching import Watched

    detector = four_tiles(patchcore(), MASK).fit(TRAIN)
    found = detector.predict(TEST[:1])
    found.anomaly_map[:] = np.where(MASK, -2.0, 0.0)  # far below the usual value
    cells = Watched.of(found, ("regions",), 4).regions
    assert cells is not None
    covered = MASK.reshape(4, 16, 4, 16).any((1, 3)).ravel()
    assert 0 < covered.sum() < 16
    assert np.array_equal(cells[0], np.where(covered, -2.0, 0.0))


@pytest.mark.slow
def test_detectors_with_a_region_or_places_are_checked() -> None:
    mask = EVERYTHING.copy()
    mask[:5], mask[:, 60:] = False, False
    passed = ead.check_detector(patchcore(resize=48, region=mask, banks="per_layer"))
    assert "works_beside_others" in passed
    assert "works_in_tiles" not in passed
    passed = ead.check_detector(patchcore(resize=32, position_radius=1))
    assert "works_in_tiles" in passed
    assert "works_shared_by_tiles" not in passed
