"""Batches: what they take, what they wait for, and how they end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from support.serving import Gate, wait_for

from ensemblead.images import EncodedImage
from ensemblead.service.batching import Batcher, Model
from ensemblead.service.scoring import Scored

Files = list[tuple[str, bytes]]


@contextmanager
def batching(detector: Any, expected: Callable[[], int] = lambda: 0, **options: Any) -> Iterator[Batcher]:
    given: dict[str, Any] = {"max_batch": 3, "max_wait": 0.0, "max_pixels": 10**6, **options}
    batcher = Batcher(Model(detector, {}), expected=expected, on_batch=lambda *_: None, **given)
    yield batcher
    batcher.close()
    assert not batcher.is_alive


def put(batcher: Batcher, *names: str, data: bytes) -> list[Any]:
    return [batcher.put(EncodedImage(name, data)) for name in names]


def test_a_batch_takes_what_has_queued_up(detector: Any, files: Files, gate: Gate) -> None:
    with batching(detector) as batcher:
        answers = put(batcher, "a", data=files[0][1])
        assert gate.entered.wait(30)
        answers += put(batcher, "b", "c", "d", "e", data=files[0][1])
        assert batcher.queued == 4
        gate.open.set()
        scores = {answer.result(30)[1].score for answer in answers}
    assert gate.batches == [["a"], ["b", "c", "d"], ["e"]]
    assert max(scores) - min(scores) < 1e-5  # the last bits of a network's features depend on the batch


def test_a_batch_waits_for_images_that_are_on_their_way(detector: Any, files: Files, gate: Gate) -> None:
    gate.open.set()
    with batching(detector, lambda: 2, max_wait=60.0) as batcher:
        (first,) = put(batcher, "a", data=files[0][1])
        (second,) = put(batcher, "b", data=files[1][1])
        assert isinstance(first.result(30)[1], Scored)
        assert isinstance(second.result(30)[1], Scored)
    assert gate.batches == [["a", "b"]]


def test_a_batch_does_not_wait_for_ever(detector: Any, files: Files, gate: Gate) -> None:
    gate.open.set()
    with batching(detector, lambda: 9, max_wait=0.05) as batcher:
        assert isinstance(put(batcher, "a", data=files[0][1])[0].result(30)[1], Scored)
    assert gate.batches == [["a"]]


def test_an_image_that_nobody_waits_for_is_dropped(detector: Any, files: Files, gate: Gate) -> None:
    with batching(detector) as batcher:
        (first,) = put(batcher, "a", data=files[0][1])
        assert gate.entered.wait(30)
        second, third = put(batcher, "b", "c", data=files[0][1])
        assert second.cancel()
        assert not first.cancel()
        gate.open.set()
        third.result(30)
    assert gate.batches == [["a"], ["c"]]


def test_what_is_queued_is_predicted_at_the_end(detector: Any, files: Files, gate: Gate) -> None:
    with batching(detector) as batcher:
        answers = put(batcher, *"abcde", data=files[0][1])
        threading.Timer(0.05, gate.open.set).start()
    assert all(answer.done() for answer in answers)


def test_bytes_that_nobody_waits_for_are_let_go(detector: Any, files: Files, gate: Gate) -> None:
    with batching(detector) as batcher:
        put(batcher, "a", data=files[0][1])
        assert gate.entered.wait(30)
        image = EncodedImage("b", files[0][1])
        known = weakref.ref(image)
        answer = batcher.put(image)
        del image
        assert known() is not None
        answer.cancel()
        assert known() is None
        gate.open.set()


class Panic(BaseException):
    """As compiled libraries raise."""


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), Panic("no kernel image")])
def test_errors_that_no_image_causes(
    detector: Any,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """The thread goes on, and says that it fails; one result, and it does no longer."""

    def fails(detector: Any, images: Any, **_: Any) -> Any:
        if isinstance(error, Exception):
            return [error] * len(images)
        raise error

    with batching(detector) as batcher:
        with monkeypatch.context() as patch:
            patch.setattr("ensemblead.service.batching.score_each", fails)
            for _ in range(3):
                assert not batcher.is_failing
                found = put(batcher, "a", data=files[0][1])[0].result(30)[1]
                assert isinstance(found, RuntimeError)
                assert "no kernel image" in str(found)
        wait_for(lambda: batcher.is_failing)
        put(batcher, "bad", data=b"none")[0].result(30)
        assert batcher.is_failing
        put(batcher, "a", data=files[0][1])[0].result(30)
        assert not batcher.is_failing
    assert caplog.text.count("no image of a batch could be predicted") == 1


@pytest.mark.usefixtures("gate")
def test_another_model_takes_over_between_two_batches(detector: Any, files: Files, gate: Gate) -> None:
    first, second = (Model(detector, {"number": number}) for number in (1, 2))
    with batching(detector) as batcher:
        batcher.model = first
        early = put(batcher, "a", data=files[0][1])[0]
        assert gate.entered.wait(30)
        batcher.model = second
        late = put(batcher, "b", data=files[0][1])[0]
        gate.open.set()
        assert early.result(30)[0] is first
        assert late.result(30)[0] is second
    wait_for(lambda: not batcher.is_alive)
