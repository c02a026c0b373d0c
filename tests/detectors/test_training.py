"""The training engine: order of the images, interrupts and checkpoints, losses, frozen features."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.registry import separate_registry
from support.textures import normal_images
from support.trained import Denoiser, Pyramid, distilled, stop_at

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, NonFiniteLossError
from ensemblead.detectors import Detector, Run, TrainingData
from ensemblead.detectors.training import features, loop
from ensemblead.detectors.training.checkpoint import opened
from ensemblead.images import AS_IS, Images, open_images
from ensemblead.store import folders

SIDE = 32
TRAIN = normal_images(20, side=SIDE)
TEST = normal_images(3, seed=5, side=SIDE)
STEPS = 12


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    ead.register("Denoiser")(Denoiser)


def same(one: Detector, other: Detector) -> None:
    """Equal to the last bit."""
    for name in ("anomaly_score", "anomaly_map"):
        np.testing.assert_array_equal(getattr(one.predict(TEST), name), getattr(other.predict(TEST), name))
    assert one.threshold_ == other.threshold_


def counted(counts: list[int]) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: counts.append(done) if stage == "train" else None


# The order of the images


def data_of(batch_size: int, seed: int = 0) -> TrainingData:
    images = Images(open_images(TRAIN), [AS_IS])
    held_out = frozenset({5, 15})
    run = Run(lambda *_: None, 20, held_out)
    return TrainingData(Denoiser(batch_size=batch_size), images, run, seed)


@pytest.mark.parametrize("batch_size", [1, 4, 18, 40])
def test_updates_take_epochs_one_behind_the_other(batch_size: int) -> None:
    data = data_of(batch_size)
    count = 3 * 18 // batch_size + 1
    drawn = [data.drawn(step) for step in reversed(range(count))][::-1]  # any order of asking
    assert all(len(own) == batch_size for own in drawn)
    line = list(itertools.chain(*drawn))
    epochs = [line[start : start + 18] for start in (0, 18, 36)]
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert data_of(batch_size, seed=1).drawn(0) != drawn[0] or batch_size == 1
    shown = list(itertools.chain(*(seen.numbers for seen in data.epoch(1))))
    kept = [number for number in range(20) if number not in (5, 15)]
    assert shown == [kept[item] for item in epochs[1]]


def test_every_draw_has_a_generator_of_its_own() -> None:
    data = data_of(4)
    drawn = [own.random() for step in range(5) for own in data.generators(step)]
    assert len(set(drawn)) == 20
    assert [own.random() for own in data.generators(3)] == drawn[12:16]
    assert [own.random() for own in data_of(8).generators(1)] == drawn[8:16]
    assert data_of(4, seed=1).generators(0)[0].random() != drawn[0]


def test_pixels_are_those_of_the_images() -> None:
    data = data_of(4)
    np.testing.assert_array_equal(data.pixels([5, 0]).permute(0, 2, 3, 1).numpy(), TRAIN[[6, 0]])
    assert data.held_out_positions() == (5, 15)


@pytest.mark.parametrize(("batch_size", "place"), [(1, 3), (4, 15)])
def test_images_of_several_sizes_are_refused_before_training(batch_size: int, place: int) -> None:
    """One of them was trained on, the other held out."""
    images, stages = [Image.fromarray(image).resize((64, 64)) for image in TRAIN], list[str]()
    images[place] = images[place].resize((64, 32))
    message = rf"to be trained on, but image 0 comes out as \(64, 64\) and image {place} as \(32, 64\); give"
    with pytest.raises(ValueError, match=message):
        distilled(batch_size=batch_size).fit(images, progress=lambda *call: stages.append(call[0]))
    assert stages == []
    assert distilled(batch_size=batch_size, steps=1, image_size=64, resize=96).fit(images).is_fitted


# Interrupts and checkpoints

FORMS: dict[str, Callable[[], Detector]] = {
    "feature maps": distilled,
    "pixels": Denoiser,
    "bfloat16": lambda: distilled(precision="bfloat16"),
    "float16": lambda: distilled(precision="float16"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_training_ends_as_an_uninterrupted_one(form: str, tmp_path: Path) -> None:
    detector, folder = FORMS[form](), tmp_path / "checkpoint"
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped after step 7 of 12; the .*{folder} stands at step 7"
    ):
        detector.fit(TRAIN, progress=stop_at(7), checkpoint=folder)
    assert not detector.is_fitted
    assert not list(folder.rglob("*.p*"))
    counts: list[int] = []
    detector.fit(TRAIN, progress=counted(counts), checkpoint=folder)
    assert counts == list(range(8, STEPS + 1))
    assert not folder.exists()
    same(detector, FORMS[form]().fit(TRAIN))


def test_ctrl_c_ends_the_update_first(tmp_path: Path) -> None:
    detector, before = distilled().fit(TRAIN), signal.getsignal(signal.SIGINT)
    expected = detector.predict(TEST)
    press = stop_at(3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 12; .* stands at step 3"):
        detector.fit(TRAIN, progress=press, checkpoint=tmp_path / "c")
    assert signal.getsignal(signal.SIGINT) is before
    np.testing.assert_array_equal(detector.predict(TEST).anomaly_map, expected.anomaly_map)
    same(detector.fit(TRAIN, checkpoint=tmp_path / "c"), distilled().fit(TRAIN))


def test_ctrl_c_in_the_last_checkpoint_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = folders._write

    def press(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        write(*arguments)
        monkeypatch.setattr(folders, "_write", write)

    monkeypatch.setattr(folders, "_write", press)
    with pytest.raises(KeyboardInterrupt, match="after step 12 of 12; .* stands at step 12"):
        distilled().fit(TRAIN, checkpoint=tmp_path / "c")
    same(distilled().fit(TRAIN, checkpoint=tmp_path / "c"), distilled().fit(TRAIN))


def test_without_a_checkpoint_an_interrupt_says_so() -> None:
    with pytest.raises(KeyboardInterrupt, match="after step 2 of 12; nothing of it is kept, which fit"):
        distilled().fit(TRAIN, progress=stop_at(2))


def test_what_is_written_every_minute_outlasts_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def killed() -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        distilled().fit(TRAIN, progress=stop_at(6, killed), checkpoint=tmp_path / "c")
    counts: list[int] = []
    resumed = distilled().fit(TRAIN, progress=counted(counts), checkpoint=tmp_path / "c")
    assert counts == list(range(7, STEPS + 1))
    same(resumed, distilled().fit(TRAIN))


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({"steps": 20}, TRAIN, r"other steps \(12 there, 20 here\); give another folder"),
        ({"seed": 1, "loss": "local"}, TRAIN, r"other loss .*seed|other seed .*loss"),
        ({}, TRAIN[:19], r"other images \('"),
        ({"net": True}, TRAIN, r"other networks \("),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(
    options: dict[str, Any], images: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distilled().fit(TRAIN, progress=stop_at(2), checkpoint=tmp_path / "c")
    if "net" in options:
        options = {"net": Pyramid(1)}
    with pytest.raises(ValueError, match=message):
        distilled(**options).fit(images, checkpoint=tmp_path / "c")
    same(distilled().fit(TRAIN, checkpoint=tmp_path / "c"), distilled().fit(TRAIN))


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "part0").mkdir()
    (tmp_path / "part0" / "notes.txt").write_text("mine")
    with pytest.raises(DamagedModelError, match="checkpoint: .*part0 is no saved model.*remove it to start"):
        distilled().fit(TRAIN, checkpoint=tmp_path)
    assert (tmp_path / "part0" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint: path .* cannot be written: .*file is no folder"):
        distilled().fit(TRAIN, checkpoint=tmp_path / "file")
    distilled().fit(TRAIN).save(tmp_path / "model" / "part0")
    with pytest.raises(ValueError, match="part0 holds a ReverseDistillation, and no checkpoint"):
        distilled().fit(TRAIN, checkpoint=tmp_path / "model")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distilled().fit(TRAIN, progress=stop_at(2), checkpoint=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedModelError, match="altered"):
        distilled().fit(TRAIN, checkpoint=tmp_path)


def test_a_full_disk_ends_the_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = distilled().fit(TRAIN)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "_write", full)
    with pytest.warns(UserWarning, match="no checkpoint could be written .*No space left.*goes on") as caught:
        detector = distilled().fit(TRAIN, checkpoint=tmp_path / "c")
    assert len([one for one in caught if "checkpoint" in str(one.message)]) == 1
    same(detector, expected)


def test_only_what_is_trained_has_a_checkpoint(tmp_path: Path) -> None:
    detector = ead.PatchCore("gabor", resize=None, device="cpu")
    with pytest.raises(ValueError, match="checkpoint: nothing is trained here"):
        detector.fit(TRAIN, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_several_trainings_of_a_method_are_kept_by_name(tmp_path: Path) -> None:
    steps: list[int] = []
    with opened(tmp_path / "c") as checkpoint:
        assert checkpoint is not None
        run = Run(counted(steps), 20, frozenset(), checkpoint=checkpoint)
        for name in ("teacher", "student", "teacher"):
            losses = loop.train(Line(3, lambda _: 1.0), data_of(4), run, name)
            assert len(losses) == 3
        assert steps == [1, 2, 3, 1, 2, 3]
        checkpoint.remove()
    assert not (tmp_path / "c").exists()


# In ensembles


def tiled() -> ead.TiledEnsemble:
    return ead.TiledEnsemble(distilled(steps=4), SIDE, SIDE, image_size=2 * SIDE)


def several() -> ead.BackboneEnsemble:
    return ead.BackboneEnsemble([distilled(steps=8), distilled(steps=8, seed=1)])


@pytest.mark.parametrize(("ensemble", "total"), [(tiled, 16), (several, 16)])
def test_what_an_ensemble_has_finished_is_not_trained_again(
    ensemble: Callable[[], Detector], total: int, tmp_path: Path
) -> None:
    folder, counts = tmp_path / "c", list[int]()
    with pytest.raises(KeyboardInterrupt, match="stands at step"):
        ensemble().fit(TRAIN, progress=stop_at(10), checkpoint=folder)
    resumed = ensemble().fit(TRAIN, progress=counted(counts), checkpoint=folder)
    assert len(counts) == total - 10
    assert not folder.exists()
    same(resumed, ensemble().fit(TRAIN))


def test_tiles_of_another_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiled().fit(TRAIN, progress=stop_at(6), checkpoint=tmp_path)
    other = ead.TiledEnsemble(distilled(steps=4), SIDE, SIDE // 2, image_size=2 * SIDE)
    with pytest.raises(ValueError, match="other tiles"):
        other.fit(TRAIN, checkpoint=tmp_path)


# Losses


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    detector = Denoiser().fit(TRAIN)
    before = detector.predict(TEST).anomaly_map
    detector.learning_rate = 1e30
    message = r"the loss of step 2 is not finite \(square .*, size .*\) at learning_rate 1e\+30; a smaller"
    with pytest.raises(NonFiniteLossError, match=message):
        detector.fit(TRAIN)
    np.testing.assert_array_equal(detector.predict(TEST).anomaly_map, before)


def test_weights_that_the_last_update_made_infinite_are_refused() -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"after step 1 weight is not finite, at learning_rate 1e\+39"
    ):
        Denoiser(steps=1, learning_rate=1e39).fit(TRAIN)


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss would show them an update later, when the checkpoint has them."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(NonFiniteLossError, match=r"after step 1 weight is not finite"):
        Denoiser(steps=2, learning_rate=1e39).fit(TRAIN, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    monkeypatch.undo()
    with pytest.raises(NonFiniteLossError, match=r"after step 1 weight is not finite"):
        Denoiser(steps=3, learning_rate=1e39).fit(TRAIN, checkpoint=tmp_path / "c", progress=stop_at(1))
    assert not (tmp_path / "c").exists()


class Line(loop.Recipe):
    """A number that is pulled to one."""

    def __init__(self, steps: int, rates: Callable[[int], float]) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.module.weight)
        self.steps, self.learning_rate, self._rates = steps, 0.1, rates

    def schedule(self, step: int) -> float:
        return self._rates(step)

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        return (torch.ones(1, 1),)

    def forward(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self.module(*batch),)

    def loss(self, outputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return {"apart": (outputs[0] - 1).square().sum()}


def test_adam_and_its_schedule_by_hand() -> None:
    recipe = Line(4, lambda step: 1.0 if step < 2 else 0.0)
    losses = loop.train(recipe, data_of(4), Run(lambda *_: None, 20, frozenset()))
    # The first update of Adam is as long as the learning rate; a factor of nothing ends all movement.
    assert losses[:2].tolist() == pytest.approx([1.0, 0.9**2], rel=1e-5)
    assert losses[2] == losses[3] < losses[1]
    assert not recipe.module.training


def test_few_images_are_shown_more_than_once() -> None:
    with pytest.warns(UserWarning, match="images: 2 are left to train on, fewer than batch_size 4"):
        detector = Denoiser().fit(TRAIN[:3])
    assert np.isfinite(detector.predict(TEST).anomaly_map).all()


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast"])
def test_torchs_modes_do_not_matter(mode: str) -> None:
    modes: dict[str, Any] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    with modes[mode]():
        detector = distilled().fit(TRAIN)
    same(detector, distilled().fit(TRAIN))


# Frozen features


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_the_same_in_a_file(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = distilled(precision=precision).fit(TRAIN)
    stages: list[str] = []
    with monkeypatch.context() as context:
        context.setattr(features.FeatureCache.__init__, "__defaults__", (0,))
        in_file = distilled(precision=precision).fit(TRAIN, progress=lambda *call: stages.append(call[0]))
        assert stages.count("embed") == 5  # batches of four, of eighteen
        same(in_file, expected)
        context.setenv("ENSEMBLEAD_SPOOL", "off")
        again = distilled(precision=precision).fit(TRAIN)
    np.testing.assert_allclose(
        again.losses_, expected.losses_, rtol=1e-2 if precision == "bfloat16" else 1e-4
    )


@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_room_is_taken_where_the_system_reserves_none(
    size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on macOS and Windows: a file that has blocks, not a length alone."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "room").open("wb") as file:
        features._take_room(file, size)
        found = os.fstat(file.fileno())
        assert found.st_size == size
        assert getattr(found, "st_blocks", size) * 512 >= size


def test_a_full_temporary_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.FeatureCache.__init__, "__defaults__", (0,))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        OSError, match="cannot keep .* bytes of feature maps in the temporary folder .*TMPDIR"
    ):
        distilled().fit(TRAIN)


INTERRUPTED_TWICE = """
import signal, sys
from ensemblead.detectors.training.loop import _deferred_interrupt

def interrupted(at):
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == at:
            signal.raise_signal(signal.SIGINT)
        return trace if inside else None

    inside = True
    try:
        with _deferred_interrupt():
            sys.settrace(trace)
            signal.raise_signal(signal.SIGINT)
            inside = False
            sys.settrace(None)
    except KeyboardInterrupt:
        sys.settrace(None)
        return True

print(all(interrupted(at) for at in range(1, 20)))
"""


def test_a_second_ctrl_c_may_come_at_any_line_of_the_first_ones_handler() -> None:
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.split() == ["True"]
