"""`ead.check_detector` passes every detector and ensemble of the library."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from support.checked_methods import (
    NATIVE,
    CellMeans,
    LinearAutoencoder,
    MeansAccumulator,
    inapplicable,
)
from support.registry import separate_registry

import ensemblead as ead
from ensemblead.detectors import Detector
from ensemblead.ensembles.check import CHECKS

TILES: dict[str, Any] = {"tile_size": 32, "stride": 16, "image_size": (32, 48)}
# These say nothing of detectors that are tiled.
OF_TILES = {"works_in_tiles", "works_shared_by_tiles"}


class TinyNet(torch.nn.Module):
    """Two strided layers of fixed random filters."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = torch.nn.Conv2d(8, 12, 3, stride=2, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, images: Any) -> Any:
        return self.second(torch.relu(self.first(images)))


def patchcore(**options: Any) -> ead.PatchCore:
    return ead.PatchCore("gabor", ("layer1",), **(NATIVE | {"coreset_fraction": 0.1} | options))


def padim(**options: Any) -> ead.PaDiM:
    return ead.PaDiM("gabor", ("layer1", "layer2"), num_dimensions=10, **(NATIVE | options))


def pair(fusion: str = "calibrated", **options: Any) -> ead.BackboneEnsemble:
    return ead.BackboneEnsemble([patchcore(), padim()], fusion=fusion, **options)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    ead.register("CellMeans")(CellMeans)
    ead.register("LinearAutoencoder")(LinearAutoencoder)


def passes_all(detector: Detector, without: set[str] | frozenset[str] = frozenset()) -> None:
    without = without | inapplicable(detector)
    assert ead.check_detector(detector) == [name for name in CHECKS if name not in without]


@pytest.mark.slow
def test_patchcore_with_copies() -> None:
    passes_all(patchcore(augment="auto"))


@pytest.mark.parametrize("score", ["max", "reweighted", "topk"])
def test_patchcore(score: str) -> None:
    passes_all(patchcore(score=score))


@pytest.mark.slow
def test_patchcore_with_an_approximate_index() -> None:
    passes_all(patchcore(index="sq16"))


@pytest.mark.slow
def test_patchcore_that_leaves_odd_images_out() -> None:
    passes_all(patchcore(contamination="auto"))


@pytest.mark.slow
def test_a_module_as_backbone() -> None:
    detector = ead.PatchCore(TinyNet(), ("first", "second"), **NATIVE, coreset_fraction=0.3)
    passes_all(detector, {"description_is_inverse"})


@pytest.mark.slow
def test_padim() -> None:
    passes_all(padim())


@pytest.mark.slow
def test_a_crop_of_the_resized_image() -> None:
    passes_all(padim(resize=40, image_size=32))


@pytest.mark.slow
def test_half_precision_and_members_of_two_geometries() -> None:
    half = patchcore(precision="bfloat16", resize=40, image_size=32)
    passes_all(half)
    passes_all(ead.BackboneEnsemble([half, padim(resize=50, image_size=40)]))


@pytest.mark.slow
def test_images_at_their_own_size() -> None:
    passes_all(CellMeans(device="cpu", resize=None))


@pytest.mark.parametrize(
    "fusion",
    ["calibrated", "rank", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "max"))],
)
def test_backbone_ensemble(fusion: str) -> None:
    passes_all(pair(fusion))


@pytest.mark.slow
def test_tiled_ensemble() -> None:
    passes_all(ead.TiledEnsemble(patchcore(), **TILES), OF_TILES)


@pytest.mark.slow
def test_tiled_ensemble_with_one_detector() -> None:
    passes_all(ead.TiledEnsemble(padim(), **TILES, shared=True, normalization="image"), OF_TILES)


@pytest.mark.slow
def test_nested_ensembles() -> None:
    tiled = [ead.TiledEnsemble(pair(), **TILES), ead.TiledEnsemble(patchcore(), **TILES, score="max")]
    passes_all(ead.BackboneEnsemble(tiled), OF_TILES)


@pytest.mark.slow
def test_methods_without_a_network() -> None:
    passes_all(CellMeans(device="cpu"))
    passes_all(LinearAutoencoder(device="cpu"))


@pytest.mark.slow
def test_a_trained_method_in_ensembles() -> None:
    trained = LinearAutoencoder(device="cpu")
    passes_all(ead.BackboneEnsemble([trained, patchcore()]))
    passes_all(ead.TiledEnsemble(LinearAutoencoder(device="cpu"), **TILES), OF_TILES)


def test_the_detector_stays_as_it_is() -> None:
    detector = CellMeans(device="cpu")
    before = dict(vars(detector))
    reported: list[tuple[str, int, int]] = []
    chosen = ["seed_decides", "defects_are_seen"]
    passed = ead.check_detector(detector, checks=chosen, progress=lambda *call: reported.append(call))
    assert passed == ["defects_are_seen", "seed_decides"]
    assert reported == [("defects_are_seen", 1, 2), ("seed_decides", 2, 2)]
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is value for name, value in before.items())


def test_stages_may_report_as_often_as_the_images_ask_for() -> None:
    totals: list[float] = []

    class Reporting(MeansAccumulator):
        def finish(self, run: Any) -> Any:
            totals.append(float(self.total[0]))
            count = 3 if totals[-1] == totals[0] else 1  # more for the images of the first fit
            for done in range(count):
                run.progress("more", done + 1, count)
            return super().finish(run)

    class ReportsByContent(CellMeans):
        def start(self, state: Any = None) -> Any:
            return Reporting(self, state)

    passed = ead.check_detector(ReportsByContent(device="cpu"), checks=["failure_changes_nothing"])
    assert (passed, len(set(totals)) > 1) == (["failure_changes_nothing"], True)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="must be a detector, got str"):
        ead.check_detector("PatchCore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no 'seed_decide'; did you mean seed_decides"):
        ead.check_detector(CellMeans(device="cpu"), checks=["seed_decide"])
    with pytest.raises(ValueError, match="minmax"):
        ead.check_detector(pair("minmax"))
