"""Checkpoints of trainings: damage, other files, other fits, and what a resumed training depends on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.textures import normal_images
from support.trained import distilled

from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.training import loop
from ensemblead.networks import placement
from ensemblead.networks.network import Network
from ensemblead.store import FolderWriter, read_folder, write_folder

TRAIN = normal_images(12, side=32)
FILE = "training.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


def at(step: int, act: Callable[[], object], stage: str = "train") -> Callable[[str, int, int], None]:
    """Progress that does something at a step."""

    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, step):
            act()

    return progress


def stop() -> None:
    raise KeyboardInterrupt


def interrupted(folder: Path, **options: Any) -> Path:
    """The checkpoint of a training that was stopped after step 3 of 12."""
    with pytest.raises(KeyboardInterrupt):
        distilled(**options).fit(TRAIN, progress=at(3, stop), checkpoint=folder)
    return folder / "part0"


def resumed_at(folder: Path, **options: Any) -> int:
    steps: list[int] = []
    distilled(**options).fit(
        TRAIN,
        checkpoint=folder,
        progress=lambda name, done, _: steps.append(done) if name == "train" else None,
    )
    return steps[0]


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end) and tensors[name].ndim)


def spoil(kind: str, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    weight, moment = first(tensors, "weight"), first(tensors, "exp_avg")
    if kind == "more steps":
        values["step"] = 100
    elif kind == "the end":
        values["step"] = 12
    elif kind == "no number":
        values["step"] = "3"
    elif kind == "no losses":
        del values["losses"]
    elif kind == "NaN":
        tensors[weight] = tensors[weight] * float("nan")
    elif kind == "other weights":
        tensors[weight] = tensors[weight][:1]
    elif kind == "other moments":  # Adam would read beyond their end
        tensors[moment] = tensors[moment].flatten()[:1].clone()
    elif kind == "no such parameter":
        tensors["adam.9999.exp_avg"] = tensors[moment]
    else:
        for name in [name for name in tensors if name.startswith("adam")]:
            del tensors[name]


SPOILED = ("more steps", "the end", "no number", "no losses", "NaN", "other weights", "other moments")


@pytest.mark.parametrize("kind", [*SPOILED, "no such parameter", "no moments"])
def test_what_fits_no_training_is_refused(kind: str, tmp_path: Path) -> None:
    """All of it with checksums that fit."""
    place = interrupted(tmp_path)
    reader = read_folder(place)
    assert reader is not None
    state, tensors = reader.state, reader.tensors(FILE)
    spoil(kind, state["values"], tensors)

    def fill(folder: Path) -> None:
        writer = FolderWriter(folder, {})
        writer.tensors(FILE, tensors)
        writer.finish("TrainingCheckpoint", state)

    write_folder(place, fill)
    with pytest.raises(
        DamagedModelError, match=f"checkpoint: .*{tmp_path} does not fit .*remove it to start"
    ):
        distilled().fit(TRAIN, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("state", "message"), [({}, "does not say what it is of"), (None, "holds no tensors: .*header")]
)
def test_a_file_of_something_else_is_refused(state: Any, message: str, tmp_path: Path) -> None:
    reader = read_folder(interrupted(tmp_path))
    assert reader is not None

    def fill(folder: Path) -> None:
        writer = FolderWriter(folder, {})
        writer.data(FILE, b"\x80\x04 a pickle")
        writer.finish("TrainingCheckpoint", reader.state if state is None else state)

    write_folder(tmp_path / "part0", fill)
    with pytest.raises(DamagedModelError, match=f"checkpoint: .*{message}.*remove it to start over"):
        distilled().fit(TRAIN, checkpoint=tmp_path)


# Other files


def test_files_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = interrupted(tmp_path) / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint: path .*part0 .* also holds notes.txt"):
        distilled().fit(TRAIN, checkpoint=tmp_path)
    notes.unlink()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.warns(UserWarning, match=r"no checkpoint could be written .*notes.txt.* training goes on"):
        detector = distilled().fit(
            TRAIN, progress=at(6, lambda: notes.write_text("mine")), checkpoint=tmp_path
        )
    assert notes.read_text() == "mine"
    assert detector.threshold_ == distilled().fit(TRAIN).threshold_


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    place = interrupted(tmp_path / "c")
    os.rename(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"checkpoint: path .*part0 exists and is no saved model"):
        distilled().fit(TRAIN, checkpoint=tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["model.json", FILE]


def test_what_a_killed_process_has_left_goes_at_the_end(tmp_path: Path) -> None:
    interrupted(tmp_path / "c")
    for name in (".part0.0123456789ab.new", ".part0.mine.new"):
        (tmp_path / "c" / name).mkdir()
    distilled().fit(TRAIN, checkpoint=tmp_path / "c")
    assert os.listdir(tmp_path / "c") == [".part0.mine.new"]


@pytest.mark.parametrize(
    ("folder", "error", "message"),
    [
        ("", ValueError, "checkpoint must be a folder of its own, got ''"),
        ("model", ValueError, "checkpoint must be a folder of its own, got 'model'"),
        (5, TypeError, "checkpoint must be a path, got 5"),
    ],
)
def test_places_that_are_no_folder_of_its_own(
    folder: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    distilled(steps=1).fit(TRAIN).save("model")
    with pytest.raises(error, match=message):
        distilled().fit(TRAIN, checkpoint=folder)
    assert os.listdir(tmp_path) == ["model"]


# Other fits, other machines


def test_one_fit_at_a_time(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(ValueError, match="checkpoint: another fit uses .*c now; give another folder"):
            distilled(seed=1).fit(TRAIN, checkpoint=tmp_path / "c")

    detector = distilled().fit(TRAIN, progress=at(3, second), checkpoint=tmp_path / "c")
    assert detector.threshold_ == distilled().fit(TRAIN).threshold_
    assert not (tmp_path / "c").exists()


def test_what_the_bits_depend_on_is_compared(tmp_path: Path) -> None:
    interrupted(tmp_path / "c", precision="auto")
    with pytest.raises(ValueError, match=r"other precision \('float32' there, 'bfloat16' here\)"):
        distilled(precision="bfloat16").fit(TRAIN, checkpoint=tmp_path / "c")
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match=r"other threads \(1 there, 2 here\)"):
        distilled().fit(TRAIN, checkpoint=tmp_path / "c")
    torch.set_num_threads(1)
    # What "auto" comes to is the same call.
    assert resumed_at(tmp_path / "c", precision="float32") == 4


def test_an_engine_counts_as_what_it_came_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "is_installed", lambda name: False)
    interrupted(tmp_path / "c", engine="auto")
    with monkeypatch.context() as context:
        context.setattr(Network, "engine", "openvino")
        with pytest.raises(ValueError, match=r"other engine \(\['torch'\] there, \['openvino'\] here\)"):
            distilled(engine="auto").fit(TRAIN, checkpoint=tmp_path / "c")
    assert resumed_at(tmp_path / "c", engine="torch") == 4


def test_ctrl_c_does_not_wait_for_all_feature_maps(tmp_path: Path) -> None:
    stages: list[str] = []
    press = at(4, lambda: signal.raise_signal(signal.SIGINT), "embed")

    def progress(name: str, done: int, total: int) -> None:
        stages.append(name)
        press(name, done, total)

    with pytest.raises(KeyboardInterrupt, match="stopped before its first step; the same call begins"):
        distilled().fit(TRAIN, progress=progress, checkpoint=tmp_path / "c")
    assert stages == ["embed"]
    assert not (tmp_path / "c").exists()
    found = distilled().fit(TRAIN, checkpoint=tmp_path / "c").losses_
    np.testing.assert_array_equal(found, distilled().fit(TRAIN).losses_)
