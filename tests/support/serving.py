"""A service in a thread of the test, and clients of it."""

from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.service.app import ServeSettings, Service
from ensemblead.service.batching import Model
from ensemblead.service.server import Server, bound_socket, url_of

_PATIENCE = 60.0


@dataclass
class Serving:
    """A running service."""

    service: Service
    server: Server
    url: str
    port: int

    def stop(self) -> None:
        """As a signal does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.request("GET", path, b"", **headers)

    def request(self, method: str, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        """Status and body of the answer; `content_type` stands for Content-Type."""
        return self.answer(method, path, body, **headers)[:2]

    def answer(self, method: str, path: str, body: bytes, **headers: str) -> tuple[int, bytes, Any]:
        """Status, body and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def predict(
        self, *files: tuple[str, bytes], query: str = "", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and document for a form of files."""
        kind, body = form(*files)
        status, answer = self.request("POST", f"/predict{query}", body, content_type=kind, **headers)
        return status, json.loads(answer)

    def metric(self, name: str) -> float:
        """A value of /metrics, by its name and labels; 0 where it is not there yet."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name), 0.0)


@contextmanager
def serving(detector: Any, **settings: Any) -> Iterator[Serving]:
    """Serve a detector at a free port of this machine; what was taken is answered at the end."""
    service = Service(Model(detector, {"detector": "PatchCore"}), ServeSettings(**settings))
    bound = bound_socket("127.0.0.1", 0)
    server = Server(service, load=lambda: Model(detector, {"detector": "again"}), say=print)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Serving(service, server, url_of(bound), bound.getsockname()[1])
    finally:
        if not service.stopping:  # a second signal would end it at once
            server.handle_exit(signal.SIGTERM, None)
        thread.join(_PATIENCE)
        bound.close()
    assert not thread.is_alive(), "the service does not end"
    assert not service.batcher.is_alive


def wait_for(condition: Any) -> None:
    """Until it is true; AssertionError after a minute."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def form(*files: tuple[str, bytes]) -> tuple[str, bytes]:
    """Content-Type and body of a form of files."""
    parts = [
        b"--edge\r\nContent-Disposition: form-data; name=files; filename="
        + f'"{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return "multipart/form-data; boundary=edge", b"".join(parts) + b"--edge--\r\n"


class Client:
    """A request that is sent, and whose answer is read later."""

    def __init__(self, running: Serving, file: tuple[str, bytes]) -> None:
        kind, body = form(file)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        self.socket = socket.create_connection(("127.0.0.1", running.port), timeout=60)
        self.socket.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)

    def status(self) -> int:
        with self.socket, self.socket.makefile("rb") as file:
            return int(file.read().split(b" ", 2)[1])


class Gate:
    """Stands in for `score_each` and holds every batch until it is opened."""

    def __init__(self, score: Any) -> None:
        self._score = score
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, detector: Any, images: Any, **options: Any) -> Any:
        self.batches.append([image.name for image in images])
        self.entered.set()
        assert self.open.wait(_PATIENCE)
        return self._score(detector, images, **options)
