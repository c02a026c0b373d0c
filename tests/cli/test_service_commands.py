"""`ensemblead watch` and `ensemblead serve`: options, refusals, signals."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")
pytest.importorskip("watchfiles")

from PIL import Image
from support.commands import call, call_json

import ensemblead as ead
from ensemblead.calibration.statistics import Calibration
from ensemblead.cli.watch import _ended_by_signals


def test_watch_once(model: Path, category: Path, tmp_path: Path) -> None:
    folder, out = category / "test", tmp_path / "out"
    summary = call_json(
        "watch", model, folder, "--out", out, "--once", "--heat-maps", "--settle", 0.01, "--device", "cpu"
    )
    assert (summary["images"], summary["anomalous"], summary["failed"]) == (8, 4, 0)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    exact = ead.load(model).predict(folder)
    by_path = dict(zip(exact.paths, exact.anomaly_score, strict=True))
    for row in rows:
        assert row["anomaly_score"] == pytest.approx(by_path[str(folder / row["path"])], rel=1e-4)
        assert row["heat_map"] == f"heat_maps/{row['path']}.png"
        with Image.open(out / row["heat_map"]) as drawn:
            assert drawn.height > 64  # below a band with the verdict
    assert len({row["model"] for row in rows}) == 1
    outcome = call("watch", model, folder, "--out", out, "--once", "--settle", 0.01)
    assert outcome.stdout.startswith("0 images, 0 anomalous, 0 failed in ")
    with sqlite3.connect(out / "results.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM results").fetchone() == (8,)
    database.close()


def test_watch_refuses(model: Path, category: Path, tmp_path: Path) -> None:
    images = category / "test/good"
    for folder, out, said in (
        (tmp_path / "none", tmp_path / "out", "folder: there is no folder"),
        (images, images / "out", "lies inside the folder of images"),
        (images, model / "out", "lies inside the model"),
    ):
        outcome = call("watch", model, folder, "--out", out, "--once")
        assert outcome.exit_code == 2
        assert said in outcome.stderr
    outcome = call("watch", model, images, "--out", tmp_path / "out", "--settle", "0")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "ensemblead: settle must be positive and finite, got 0.0\n",
    )


def test_a_second_signal_may_come_while_the_first_one_ends_a_watch() -> None:
    """It does not come to the same handler, which would wait for the event's lock for ever."""
    handlers, before = [], signal.getsignal(signal.SIGINT)

    class Stop(threading.Event):
        def set(self) -> None:
            handlers.append(signal.getsignal(signal.SIGINT))
            super().set()

    with _ended_by_signals(stop := Stop()):
        signal.raise_signal(signal.SIGINT)
    assert stop.is_set()
    assert handlers == [before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_watch(model: Path, category: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"

    def end() -> None:
        wait_for(lambda: (out / "results.jsonl").exists() and (out / "results.jsonl").stat().st_size > 0)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=end)
    thread.start()
    outcome = call("watch", model, category / "test/good", "--out", out, "--settle", 0.01)
    thread.join()
    assert outcome.exit_code == 0, outcome.stderr
    assert signal.getsignal(number) is before
    lines = (out / "results.jsonl").read_text().splitlines()
    assert outcome.stdout.startswith(f"{len(lines)} images, ")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


def test_serve_from_start_to_end(
    model: Path, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of the environment, a model that is replaced, SIGHUP, SIGTERM."""
    served, port, found = tmp_path / "model", free_port(), list[tuple[int, dict[str, object]]]()
    shutil.copytree(model, served)
    image = next((category / "test/blot").iterdir()).read_bytes()
    monkeypatch.setenv("ENSEMBLEAD_TOKEN", "word\n")  # as a file that it is read from ends

    def ask(method: str, place: str, body: bytes | None = None, token: str = "word") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "image/png", "Authorization": f"Bearer {token}"}
        connection.request(method, place, body, headers)
        answer = connection.getresponse()
        found.append((answer.status, json.loads(answer.read())))
        connection.close()

    def up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def use() -> None:
        try:
            wait_for(up)
            ask("GET", "/health")
            ask("GET", "/model", token="other")
            ask("GET", "/model")
            ask("POST", "/predict", image)
            replaced = ead.load(model)
            replaced._calibration = Calibration.without_images()  # JSON has no infinity, and no NaN
            replaced.save(served)
            os.kill(os.getpid(), signal.SIGHUP)
            first = found[2][1]["manifest_sha256"]
            wait_for(lambda: ask("GET", "/model") or found[-1][1]["manifest_sha256"] != first)
            ask("POST", "/predict", image)
            shutil.rmtree(served)
            os.kill(os.getpid(), signal.SIGHUP)
            ask("POST", "/predict", image)
            reload = "ensemblead-reload"
            wait_for(lambda: all(one.name != reload for one in threading.enumerate()))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use)
    thread.start()
    outcome = call("serve", served, "--port", port)
    thread.join()
    assert outcome.exit_code == 0, outcome.stderr
    assert [status for status, _ in found[:4]] == [200, 401, 200, 200]
    assert found[2][1]["detector"] == "PatchCore"
    (second,) = [answer for _, answer in found[4:] if answer.get("threshold", 0) is None][-1:]
    assert second["false_alarm_rate"] is None
    verdicts = [answer["images"][0]["is_anomalous"] for _, answer in found if "images" in answer]  # type: ignore[index]
    assert verdicts == [True, False, False]
    lines = outcome.stderr.splitlines()
    assert f"ensemblead: {served} is served at http://127.0.0.1:{port}/, Ctrl-C ends it" in lines
    assert "ensemblead: SIGHUP: the model has been loaded again" in lines
    assert any("the model stays, for another one could not be loaded" in line for line in lines)
    assert lines[-1] == "ensemblead: everything that was taken is answered"


def test_a_model_that_is_replaced_while_it_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is that of the model that was loaded."""
    from ensemblead.cli import models
    from ensemblead.common.files import sha256_of

    served, loaded = tmp_path / "model", list[object]()
    shutil.copytree(model, served)
    load = models.load_model

    def replaced_meanwhile(*arguments: object) -> object:
        loaded.append(load(*arguments))  # type: ignore[arg-type]
        if len(loaded) == 1:
            other = ead.load(model)
            other.threshold_ = 7.0
            other.save(served)
        return loaded[-1]

    monkeypatch.setattr(models, "load_model", replaced_meanwhile)
    detector, digest = models.load_identified(served)
    assert len(loaded) == 2
    assert detector.threshold_ == 7.0
    assert digest == sha256_of(served / "model.json")


def test_serve_refuses(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENSEMBLEAD_TOKEN", raising=False)
    (tmp_path / "token").write_text(" \n")
    (tmp_path / "word").write_text("word\n")
    for options, code, said in (
        (["--host", "0.0.0.0"], 2, "host 0.0.0.0 is reached from other machines: give --token-file"),
        (["--host", "::"], 2, "host :: is reached from other machines"),
        (["--token-file", tmp_path / "token"], 2, f"token-file {tmp_path / 'token'} is empty"),
        (["--token-file", tmp_path / "none"], 2, "No such file"),
        (["--token-file", tmp_path / "word", "--without-token"], 2, "--without-token contradicts the token"),
        (["--max-queue", "0"], 2, "max_queue must be at least 1, got 0"),
        (["--max-wait-ms", "-1"], 2, "max_wait must be a number of seconds, at least 0, got -0.001"),
    ):
        outcome = call("serve", model, "--port", 0, *options)
        assert outcome.exit_code == code
        assert said in outcome.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = call("serve", model, "--port", port)
    assert outcome.exit_code == 1
    assert f"cannot listen at host 127.0.0.1, port {port}" in outcome.stderr
    assert call("serve", tmp_path / "none", "--port", 0).exit_code == 2


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_addresses_of_this_machine(host: str, own: bool) -> None:
    from ensemblead.service.server import is_loopback

    assert is_loopback(host) == own


def test_two_processes_can_share_a_port() -> None:
    from ensemblead.service.server import bound_socket, url_of

    with bound_socket("localhost", 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        with bound_socket("localhost", port, reuse_port=True) as second:
            assert url_of(first) == url_of(second)
        with pytest.raises(OSError, match=f"cannot listen at host localhost, port {port}"):
            bound_socket("localhost", port)
