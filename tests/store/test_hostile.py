"""Saved models against damage, and attackers who know how checksums are made.

A load gives `DamagedModelError`, or a detector that predicts: never another error, and never NaN that passes
for normal.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.campaigns import BRIEF, trials
from support.methods import Colours, Epochs
from support.networks import NATIVE
from support.tampering import replace_file, set_state, set_tensors
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import BackboneUnavailableError, DamagedModelError
from ensemblead.detectors import Method, Run, Scores, Seen, TrainingData

SIDE = 32
TRAIN = normal_images(12, side=SIDE)
PROBE = normal_images(2, seed=1, side=SIDE)


def _patchcore(**options: Any) -> ead.PatchCore:
    defaults: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.3, "device": "cpu"}
    return ead.PatchCore("gabor", ("layer1",), **(defaults | options))


def _padim() -> ead.PaDiM:
    return ead.PaDiM("gabor", ("layer1",), **NATIVE, num_dimensions=3, device="cpu")


def _fastflow() -> ead.FastFlow:
    return ead.FastFlow("gabor", **NATIVE, steps=1, batch_size=4, flow_steps=1, device="cpu")


MODELS: dict[str, Callable[[], ead.Detector]] = {
    "patchcore": _patchcore,
    "ivf": lambda: _patchcore(index="ivf", coreset_fraction=0.5),
    "padim": _padim,
    "fastflow": _fastflow,
    "epochs": Epochs,
    "colours": Colours,
    "fused": lambda: ead.BackboneEnsemble([_patchcore(), _padim()]),
    "tiled": lambda: ead.TiledEnsemble(_patchcore(), 16, 16, image_size=SIDE),
    "shared": lambda: ead.TiledEnsemble(_padim(), 16, 16, image_size=SIDE, shared=True),
}


# Their members are those above: of these a part is tried out.
COMPOSED = ("fused", "tiled", "shared")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in MODELS.items():
        make().fit(TRAIN).save(folder / name)
    return {name: folder / name for name in MODELS}


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _outcome(folder: Path) -> str:
    """What a load comes to: "refused", "elsewhere" (what this machine has not), or "loaded"."""
    try:
        detector = ead.load(folder)
    except DamagedModelError:
        return "refused"
    except BackboneUnavailableError:
        return "elsewhere"
    assert np.isfinite(detector.threshold_)
    found = detector.predict(PROBE)
    assert (np.isfinite(found.anomaly_score) | found.is_anomalous).all()
    return "loaded"


# Bytes


@pytest.mark.parametrize("rounds", [1, pytest.param(trials(40), marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_flipped_bits_and_cut_files_are_refused(
    saved: dict[str, Path], tmp_path: Path, model: str, rounds: int
) -> None:
    rng = np.random.default_rng(rounds)
    rounds = -(-rounds // 4) if model in COMPOSED else rounds
    shutil.copytree(saved[model], tmp_path / "m")
    tried = 0
    for name in _files(saved[model]):
        path = tmp_path / "m" / name
        data = path.read_bytes()
        for _ in range(rounds):
            flipped = bytearray(data)
            flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            for spoiled in (bytes(flipped), data[: rng.integers(len(data))], data + b"\0"):
                path.write_bytes(spoiled)
                with pytest.raises(DamagedModelError):
                    ead.load(tmp_path / "m")
                tried += 1
        path.unlink()
        with pytest.raises(DamagedModelError):
            ead.load(tmp_path / "m")
        path.write_bytes(data)
    assert _outcome(tmp_path / "m") == "loaded"
    print(f"{model}: {tried} damaged folders, all refused")


# Arrays, with checksums that fit

# Largest values of the cells of maps: models of earlier versions have none, and no pixel threshold.
OPTIONAL = ("peaks",)


def _spoiled(array: torch.Tensor) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Hostile arrays in the place of one."""
    flat = array.flatten()
    if array.is_floating_point():
        for name, value in (("nan", torch.nan), ("inf", torch.inf), ("-inf", -torch.inf), ("huge", 1e30)):
            other = flat.clone()
            other[len(other) // 2] = value
            yield name, other.view(array.shape)
        yield "float16", array.to(torch.float16)
        yield "zero", torch.zeros_like(array)
        yield "negative", -array.abs() - 1
    else:
        yield "negative", -array.abs() - 1
        yield "huge", torch.full_like(array, 2**62)
        yield "int32", array.to(torch.int32)
    yield "other kind", array.to(torch.float64 if array.dtype != torch.float64 else torch.float32)
    yield "missing", None
    yield "fewer", array[:-1].contiguous()
    yield "none", array[:0].contiguous()
    yield "flat", flat if array.ndim > 1 else array[:, None].contiguous()
    yield "more axes", array[None].contiguous()
    yield "scalar", flat[0].clone()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_hostile_arrays(saved: dict[str, Path], tmp_path: Path, model: str) -> None:
    counts: Counter[str] = Counter()
    for name in (name for name in _files(saved[model]) if name.endswith(".safetensors")):
        if model == "tiled" and "tile_" in name and "tile_0_1" not in name:
            continue  # the locations are alike
        for key, array in load((saved[model] / name).read_bytes()).items():
            for kind, hostile in _spoiled(array) if array.numel() else ():
                folder = tmp_path / "m"
                shutil.copytree(saved[model], folder)
                set_tensors(folder, name, **{key: hostile})
                outcome = _outcome(folder)
                counts[outcome] += 1
                if kind == "missing" and key in OPTIONAL:
                    assert outcome == "loaded", (name, key, kind)
                elif kind in ("nan", "inf", "-inf", "missing", "more axes", "scalar"):
                    assert outcome == "refused", (name, key, kind)
                shutil.rmtree(folder)
    print(f"{model}: {dict(counts)}")
    assert counts["refused"] > counts["loaded"]


def test_an_index_of_something_else_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    known = (saved["ivf"] / "learned.index").read_bytes()
    for data in (
        b"",
        b"no index",
        known[:-8],
        known[: len(known) // 2],
        b"\xff" * len(known),
    ):
        folder = tmp_path / "m"
        shutil.copytree(saved["ivf"], folder)
        replace_file(folder, "learned.index", data)
        assert _outcome(folder) == "refused", data[:8]
        shutil.rmtree(folder)


# Values of manifests


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if path:
        yield path
    for key, below in items:
        yield from _leaves(below, (*path, key))


def _put(state: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


HOSTILE: list[Any] = [None, -1, 0, True, 1e308, "x", "../../x", [], {}, [None], 10**30]


@pytest.mark.parametrize("every", [7, pytest.param(4 if BRIEF else 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_hostile_values(saved: dict[str, Path], tmp_path: Path, model: str, every: int) -> None:
    """Of every entry of every manifest; sizes that no memory holds are not tried out."""
    counts: Counter[str] = Counter()
    number = 0
    every *= 3 if model in COMPOSED else 1
    for manifest in (name for name in _files(saved[model]) if name.endswith("model.json")):
        if model == "tiled" and "tile_" in manifest and "tile_0_1" not in manifest:
            continue
        place = manifest.removesuffix("model.json").rstrip("/")
        state = json.loads((saved[model] / manifest).read_text())["state"]
        for path in _leaves(state):
            for value in HOSTILE:
                number += 1
                if number % every:
                    continue
                folder = tmp_path / "m"
                shutil.copytree(saved[model], folder)
                set_state(folder, place, lambda state, path=path, value=value: _put(state, path, value))
                try:
                    detector = ead.load(folder, device="cpu")
                    assert np.isfinite(detector.threshold_)
                    counts["loaded"] += 1
                except DamagedModelError:
                    counts["refused"] += 1
                except (ValueError, BackboneUnavailableError):
                    if path[-1] != "device" and path[0] != "network":  # which depend on the machine
                        raise
                    counts["elsewhere"] += 1
                shutil.rmtree(folder)
    print(f"{model}: {dict(counts)}")
    assert counts["refused"] > 0


@pytest.mark.parametrize("model", ["patchcore", "tiled"])
def test_nothing_is_read_outside_of_the_folder(saved: dict[str, Path], tmp_path: Path, model: str) -> None:
    shutil.copytree(saved[model], tmp_path / "m")
    for name in _files(tmp_path / "m"):
        path, away = tmp_path / "m" / name, tmp_path / "away"
        path.rename(away)
        path.symlink_to(away)
        if name != "model.json":
            with pytest.raises(DamagedModelError, match="outside of itself"):
                ead.load(tmp_path / "m")
        path.unlink()
        away.rename(path)


# States that could not be loaded again


@dataclass(frozen=True)
class Partial:
    """A state, one field of which its method forgets."""

    kept: torch.Tensor
    forgotten: torch.Tensor = field(init=False)


class _Careless(Method, abstract=True):
    def __init__(self, state: Any = None) -> None:
        super().__init__({"device": "cpu"})
        self.state = state

    def train(self, data: TrainingData, run: Run) -> Any:
        return self.state

    def scores(self, state: Any, seen: Seen) -> Scores:
        return Scores(seen.pixels.float().mean(1))


class Forgetful(_Careless):
    State = Partial


@dataclass(frozen=True)
class Loose:
    """A state of what cannot be stored."""

    known: Any


class Hoarding(_Careless):
    State = Loose


@pytest.mark.parametrize(
    ("cls", "state", "message"),
    [
        (Forgetful, Partial(torch.zeros(1)), "the state Partial lacks its field forgotten"),
        (Hoarding, Loose({"a": 1}), "the state's known must be .* got dict, so that it could not be loaded"),
        (Hoarding, Loose(lambda: 0), "the state's known must be .* got function"),
        (Hoarding, Loose((1, object())), "the state's known must be .* got tuple"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused_when_it_is_saved(
    cls: Any, state: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.registry import separate_registry

    from ensemblead.config.registry import register

    separate_registry(monkeypatch)
    register(f"test-{cls.__name__}")(cls)
    Epochs().fit(TRAIN).save(tmp_path / "m")
    detector = cls(state).fit(TRAIN)
    detector.state = None  # a parameter too, which is saved as it is
    with pytest.raises(TypeError, match=message):
        detector.save(tmp_path / "m")
    assert isinstance(ead.load(tmp_path / "m"), Epochs)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
