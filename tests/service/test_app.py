"""The service as a client sees it: answers, refusals, limits."""

from __future__ import annotations

import base64
import io
import json
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from PIL import Image
from support.pictures import chunk
from support.serving import Client, Gate, Serving, encoded, form, serving, wait_for

from ensemblead.service.app import ServeSettings

Files = list[tuple[str, bytes]]
# A request whose body does not come.
HALF = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\na"


@pytest.fixture(scope="module")
def served(detector: Any) -> Iterator[Serving]:
    with serving(detector, max_bytes=200_000, max_pixels=100_000, max_queue=8) as running:
        yield running


def test_several_files_have_the_scores_of_predict(
    served: Serving, detector: Any, pixels: np.ndarray, files: Files
) -> None:
    status, document = served.predict(*files)
    assert status == 200
    exact = detector.predict(pixels)
    for number, image in enumerate(document["images"]):
        assert image == {
            "name": f"{number}.png",
            "score": float(exact.anomaly_score[number]),
            "threshold": detector.threshold_,
            "is_anomalous": number >= 2,
            "size": [64, 64],
        }


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_one_image_as_the_body(served: Serving, detector: Any, files: Files, kind: str) -> None:
    status, answer = served.request("POST", "/predict", files[2][1], content_type=kind)
    assert status == 200
    (image,) = json.loads(answer)["images"]
    assert image["is_anomalous"]


def test_maps(served: Serving, detector: Any, pixels: np.ndarray, files: Files) -> None:
    exact = detector.predict(pixels[2:3]).anomaly_map[0]
    found = {
        kind: served.predict(files[2], query=f"?map={kind}")[1]["images"][0]["map"]
        for kind in ("float32", "png")
    }
    for kind, one in found.items():
        assert (one["kind"], one["height"], one["width"], one["box"]) == (kind, 64, 64, [0, 0, 64, 64])
        assert (one["low"], one["high"]) == (exact.min(), exact.max())
    data = {kind: base64.b64decode(one["data"]) for kind, one in found.items()}
    np.testing.assert_array_equal(np.frombuffer(data["float32"], "<f4").reshape(64, 64), exact)
    levels = np.asarray(Image.open(io.BytesIO(data["png"])))
    low, high = exact.min(), exact.max()
    np.testing.assert_allclose(low + levels / 255 * (high - low), exact, atol=0.51 * (high - low) / 255)
    before = served.metric('ensemblead_requests_total{status="422"}')
    status, document = served.predict(files[2], query="?map=gif")
    assert (status, document) == (422, {"detail": "map must be one of none, png, float32, got gif"})
    assert served.metric('ensemblead_requests_total{status="422"}') == before + 1


def test_a_bad_image_answers_for_itself(served: Serving, files: Files) -> None:
    status, document = served.predict(
        files[0], ("bad.png", b"none"), files[3], ("cut.png", files[0][1][:-40])
    )
    assert status == 200
    good, bad, other, torn = document["images"]
    assert not good["is_anomalous"]
    assert other["is_anomalous"]
    assert bad == {
        "name": "bad.png",
        "error": {"status": 422, "message": "cannot read image bad.png: it is no image of a known format"},
    }
    assert torn["error"]["status"] == 422
    status, document = served.predict(("bad.png", b"none"))
    assert status == 422
    assert document["images"] == [bad]


def bomb(side: int) -> bytes:
    """A small PNG that says that it is a large image."""
    data = bytearray(encoded(np.zeros((4, 4, 3), np.uint8)))
    header = data[16:29]
    header[0:8] = side.to_bytes(4, "big") * 2
    return bytes(data[:8]) + chunk(b"IHDR", bytes(header)) + bytes(data[33:])


def test_an_image_of_too_many_pixels_is_refused_by_its_header(served: Serving, files: Files) -> None:
    status, document = served.predict(("bomb.png", bomb(30_000)))
    assert status == 413
    message = "cannot read image bomb.png: it has 30000 x 30000 = 900000000 pixels, more than "
    assert document["images"][0]["error"] == {"status": 413, "message": f"{message}max_pixels=100000 allows"}
    status, document = served.predict(("bomb.png", bomb(30_000)), files[0])
    assert status == 200
    assert [image.get("error", {}).get("status") for image in document["images"]] == [413, None]


@pytest.mark.parametrize("size", [200_001, 500_000, 3_000_000])
def test_a_body_of_too_many_bytes(served: Serving, size: int) -> None:
    try:
        status, answer = served.request("POST", "/predict", bytes(size), content_type="image/png")
    except (BrokenPipeError, ConnectionResetError):
        assert size > 600_000  # what is far too large is not read to its end
        return
    assert status == 413
    assert json.loads(answer)["detail"] == "the body has more than max_bytes = 200000 bytes"


def test_a_body_without_a_length_is_limited_too(served: Serving) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            client.sendall(b"18000\r\n" + bytes(0x18000) + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        ("text/plain", b"words", 415, "send multipart/form-data, or one image as image/*, got text/plain"),
        ("", b"words", 415, "send multipart/form-data, or one image as image/*, got no type"),
        ("multipart/form-data", b"words", 400, "Missing boundary in multipart."),
        ("multipart/form-data; boundary=edge", b"words", 400, ""),  # in the parser's words
        ("multipart/form-data; boundary=edge", b"--edge\r\nwords", 400, "the form "),
        ("multipart/form-data; boundary=edge", b"--edge--\r\n", 400, "the form holds no file"),
        (
            "multipart/form-data; boundary=edge; charset=undefined",
            form(("a.png", b"a"))[1],
            400,
            "the form is ",
        ),
        (*form(*[("a.png", b"a")] * 9), 400, "Too many files. Maximum number of files is 8."),
    ],
)
def test_bad_bodies(served: Serving, kind: str, body: bytes, status: int, said: str) -> None:
    name = f'ensemblead_requests_total{{status="{status}"}}'
    before = served.metric(name)
    found, answer = served.request("POST", "/predict", body, content_type=kind)
    assert (found, json.loads(answer)["detail"][: len(said)]) == (status, said)
    assert served.metric(name) == before + 1


def test_names_of_files(served: Serving, files: Files) -> None:
    """Letters that no text can hold are escaped; others stay as they are."""
    kind, body = form(("\\ud800.png", files[0][1]), ("<b>\u00e9.png", files[0][1]))
    for more, names in (("", ["\\ud800.png", "<b>é.png"]), ("; charset=unicode_escape", None)):
        status, answer = served.request("POST", "/predict", body, content_type=kind + more)
        found = [image["name"] for image in json.loads(answer)["images"]]
        assert (status, found[0]) == (200, "\\ud800.png")
        assert names is None or found == names


def test_nothing_is_written_to_a_disk(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of forms stay in memory, also those of more than a megabyte."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: pytest.fail("a file on a disk"))
    with serving(detector) as running:
        assert running.predict(("large.png", bytes((1 << 20) + 1)))[0] == 422


def test_health_says_that_nothing_can_be_predicted(
    detector: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(detector: Any, images: Any, **_: Any) -> Any:
        return [RuntimeError("no kernel image")] * len(images)

    with serving(detector) as running:
        with monkeypatch.context() as patch:
            patch.setattr("ensemblead.service.batching.score_each", fails)
            for _ in range(3):
                status, document = running.predict(files[0])
                assert status == document["images"][0]["error"]["status"] == 500
        assert running.get("/health") == (503, b'{"live":true,"ready":false}')
        assert running.predict(files[0])[0] == 200
        assert running.get("/health")[0] == 200


def test_one_time_for_the_whole_end(
    detector: Any, files: Files, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction that does not end and a client that does not read share it."""
    monkeypatch.setattr("ensemblead.service.server.GRACE_SECONDS", 0.3)
    with serving(detector) as running:
        client = Client(running, files[0])
        assert gate.entered.wait(30)
        running.stop()
        wait_for(lambda: running.server.should_exit)
        wait_for(lambda: running.server.config.timeout_graceful_shutdown == 1)
        gate.open.set()
        assert client.status() == 200


def test_an_empty_body_is_no_image(served: Serving) -> None:
    status, answer = served.request("POST", "/predict", b"", content_type="image/png", content_length="0")
    assert status == 422
    assert json.loads(answer)["images"][0]["error"]["message"] == "cannot read image the image: it is empty"


def test_a_body_that_does_not_come(detector: Any, files: Files) -> None:
    with serving(detector, body_seconds=0.1) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
            head = (
                b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n"
            )
            client.sendall(head + b"a")
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")
        assert running.service.is_idle
        assert running.predict(files[0])[0] == 200


def test_the_queue_is_bounded(detector: Any, files: Files, gate: Gate) -> None:
    with serving(detector, max_queue=3, max_batch=1) as running:
        clients = [Client(running, files[0]) for _ in range(2)]
        wait_for(lambda: running.service._inside == 2)
        kind, body = form(*files[:2])
        status, answer, headers = running.answer("POST", "/predict", body, content_type=kind)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "the queue of 3 images is full" in json.loads(answer)["detail"]
        assert running.metric("ensemblead_inside_images") == 2
        gate.open.set()
        assert [client.status() for client in clients] == [200, 200]
        assert running.predict(*files[:3])[0] == 200
        assert running.metric('ensemblead_requests_total{status="503"}') == 1


def test_a_client_that_goes_leaves_no_work(detector: Any, files: Files, gate: Gate) -> None:
    with serving(detector, max_batch=1) as running:
        stays = Client(running, files[0])
        assert gate.entered.wait(30)
        goes = Client(running, files[1])
        wait_for(lambda: running.service._inside == 2)
        goes.socket.close()
        wait_for(lambda: running.service._inside == 1)
        last = Client(running, files[2])
        wait_for(lambda: running.service._inside == 2)
        gate.open.set()
        assert (stays.status(), last.status()) == (200, 200)
        assert gate.batches == [["0.png"], ["2.png"]]
        assert running.metric('ensemblead_requests_total{status="499"}') == 1
        half = socket.create_connection(("127.0.0.1", running.port))
        half.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\na"
        )
        wait_for(lambda: running.service._inside == 1)
        half.close()
        wait_for(lambda: running.service.is_idle)
        assert running.predict(files[0])[0] == 200


def test_a_token(detector: Any, files: Files) -> None:
    with serving(detector, token="päss word") as running:
        kind, body = form(files[0])
        for shown in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic cGFzcw=="}):
            status, answer, headers = running.answer("POST", "/predict", body, content_type=kind, **shown)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(answer)["detail"] == "show the token: Authorization: Bearer TOKEN"
        for place in ("/model", "/metrics"):
            assert running.get(place)[0] == 401
            assert running.get(place, authorization="Bearer päss word")[0] == 200
        assert running.predict(files[0], authorization="bearer päss word")[0] == 200
        utf8 = "Bearer päss word".encode().decode("latin-1")  # as curl sends it
        assert running.get("/model", authorization=utf8)[0] == 200
        assert running.metric('ensemblead_requests_total{status="401"}') == 0
        assert 'requests_total{status="401"} 3.0' in running.service.metrics.text().decode()
        assert running.get("/health")[0] == running.get("/")[0] == 200


def test_health_model_and_metrics(served: Serving, files: Files) -> None:
    assert served.get("/health") == (200, b'{"live":true,"ready":true}')
    assert json.loads(served.get("/model")[1]) == {"detector": "PatchCore"}
    before = served.metric('ensemblead_images_total{result="anomalous"}')
    served.predict(files[2], files[3], ("bad", b""))
    assert served.metric('ensemblead_images_total{result="anomalous"}') == before + 2
    assert served.metric('ensemblead_images_total{result="error"}') >= 1
    assert served.metric("ensemblead_batch_images_count") >= 1
    assert served.metric("ensemblead_request_seconds_count") >= 1
    assert served.metric("ensemblead_queued_images") == 0


def test_the_schema_describes_the_request(served: Serving) -> None:
    document = json.loads(served.get("/openapi.json")[1])
    route = document["paths"]["/predict"]["post"]
    assert set(route["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert "score" in document["components"]["schemas"]["ImageAnswer"]["properties"]
    assert served.get("/docs")[0] == 404  # it would load scripts from elsewhere
    assert served.get("/predict")[0] == 405


def test_a_stop_answers_what_was_taken(detector: Any, files: Files, gate: Gate) -> None:
    with serving(detector, max_batch=1) as running:
        clients = [Client(running, file) for file in files]
        wait_for(lambda: running.service._inside == 4)
        running.stop()
        status, answer = running.predict(files[0])
        assert (status, answer["detail"]) == (503, "the service is stopping; try again later")
        assert running.get("/health") == (503, b'{"live":true,"ready":false}')
        gate.open.set()
        assert [client.status() for client in clients] == [200] * 4


def test_a_stop_waits_for_the_body_of_what_was_taken(detector: Any, files: Files) -> None:
    with serving(detector) as running, socket.create_connection(("127.0.0.1", running.port)) as client:
        data = files[0][1]
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(data)}"
        client.sendall(f"{head}\r\n\r\n".encode() + data[:9])
        wait_for(lambda: running.service._inside == 1)
        running.stop()
        assert running.predict(files[0])[0] == 503
        client.sendall(data[9:])
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_queue": 0}, "max_queue must be at least 1, got 0"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"max_wait": -1.0}, "max_wait must be a number of seconds, at least 0, got -1.0"),
        ({"body_seconds": 0.0}, "body_seconds must be positive"),
        ({"token": ""}, "token must not be empty"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServeSettings(**settings)
