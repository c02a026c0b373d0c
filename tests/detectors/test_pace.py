"""What training says of itself while it goes on, to a progress that has `note`."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from support.textures import normal_images
from support.trained import Denoiser, Pyramid, distilled

import ensemblead as ead
from ensemblead.detectors.training import pace
from ensemblead.detectors.training.pace import Pace, shown_time

TRAIN = normal_images(20, side=32)


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lines: list[str] = []
        self.stages: list[tuple[str, int, int]] = []

    def note(self, text: str, stays: bool) -> None:
        (self.lines if stays else self.notes).append(text)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.append((stage, done, total))


def seconds(monkeypatch: pytest.MonkeyPatch, each: float) -> None:
    """A clock that goes on by so many seconds whenever it is read."""
    clock = itertools.count()
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: each * next(clock)))


def test_parts_of_the_loss_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 6.0)
    told = Told()
    own = Pace(told.note, 200, is_slow=True)
    for step in range(1, 5):
        own.tell(step, {"cosine": 1.0 / step, "focal": 0.5})
    assert told.notes == [
        "cosine 1, focal 0.5",
        "cosine 0.5, focal 0.5, 6 s a step",
        "cosine 0.333, focal 0.5, 6 s a step",
        "cosine 0.25, focal 0.5, 6 s a step",
    ]
    # 197 updates are left after the third.
    assert told.lines == ["training takes about 20 min more on the CPU: 197 updates of 6 s"]


@pytest.mark.parametrize(
    ("each", "steps", "is_slow"), [(0.1, 200, True), (6.0, 200, False), (6.0, 12, True), (6.0, 2, True)]
)
def test_a_time_that_is_not_worth_saying(
    each: float, steps: int, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds(monkeypatch, each)
    told = Told()
    own = Pace(told.note, steps, is_slow=is_slow)
    for step in range(1, steps + 1):
        own.tell(step, {})
    assert told.lines == []


def test_times_are_shown_in_minutes_and_hours() -> None:
    assert [shown_time(own) for own in (60, 7140, 7200, 300_000)] == ["1 min", "119 min", "2.0 h", "83.3 h"]


def test_a_fit_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 30.0)
    told, plain = Told(), list[tuple[str, int, int]]()
    detector = Denoiser(steps=6).fit(TRAIN, progress=told)
    assert told.lines == ["training takes about 2 min more on the CPU: 3 updates of 30 s"]
    assert len(told.notes) == 6
    # The parts add up to the loss.
    parts = [dict(one.rsplit(" ", 1) for one in text.split(", ")[:2]) for text in told.notes]
    for own, loss in zip(parts, detector.state_.losses.tolist(), strict=True):
        assert set(own) == {"square", "size"}
        assert sum(map(float, own.values())) == pytest.approx(loss, rel=1e-2)
    # A function, which has no `note`, is called as before.
    Denoiser(steps=6).fit(TRAIN, progress=lambda *own: plain.append(own))
    assert plain == told.stages


def test_a_resumed_training_measures_its_own_steps(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Denoiser(steps=9).fit(TRAIN, progress=stop, checkpoint=tmp_path / "c")
    seconds(monkeypatch, 30.0)
    told = Told()
    Denoiser(steps=9).fit(TRAIN, progress=told, checkpoint=tmp_path / "c")
    assert told.lines == ["training takes about 2 min more on the CPU: 3 updates of 30 s"]


def test_tile_locations_say_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 30.0)
    told = Told()
    member = distilled(Pyramid(), steps=6)
    ead.TiledEnsemble(member, 32, 32, image_size=(32, 64)).fit(TRAIN, progress=told)
    assert told.lines == [
        "training takes about 2 min more on the CPU: 3 updates of 30 s, at the first of 2 tile locations"
    ]
    assert len(told.notes) == 12
