"""The examples of the page on services run, with stand-ins for what they talk to."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.pages import ROOT, blocks_of

PAGE = ROOT / "docs/how-to/service.md"


def example(name: str) -> str:
    (found,) = (block.text for block in blocks_of(PAGE) if f"def {name}(" in block.text)
    return found


def test_a_webhook_gets_every_row_once(tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        names: dict[str, Any] = {"__name__": "example"}
        address = f"http://127.0.0.1:{server.server_port}/"
        exec(example("follow").replace("http://mes.example:8080/parts", address), names)
        lines, place = tmp_path / "results.jsonl", tmp_path / "sent.txt"
        rows = [json.dumps({"id": number, "is_anomalous": False}) for number in range(3)]
        lines.write_text(f"{rows[0]}\n{rows[1]}\n{rows[2][:7]}")
        names["follow"](lines, place, names["webhook"])
        assert [row["id"] for row in received] == [0, 1]
        with lines.open("a") as file:
            file.write(f"{rows[2][7:]}\n")
        for _ in range(2):
            names["follow"](lines, place, names["webhook"])
        server.shutdown()
        thread.join()
    assert [row["id"] for row in received] == [0, 1, 2]


def test_mqtt(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    modules = {name: ModuleType(name) for name in ("paho", "paho.mqtt", "paho.mqtt.publish")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["paho"].mqtt = modules["paho.mqtt"]  # type: ignore[attr-defined]
    modules["paho.mqtt"].publish = modules["paho.mqtt.publish"]  # type: ignore[attr-defined]
    modules["paho.mqtt.publish"].single = lambda *given, **named: sent.append((given, named))  # type: ignore[attr-defined]
    names: dict[str, Any] = {}
    exec(example("mqtt"), names)
    for called in (False, True):
        names["mqtt"]({"id": 1, "is_anomalous": called})
    text = json.dumps({"id": 1, "is_anomalous": True})
    assert sent == [(("line3/parts", text), {"qos": 1, "hostname": "broker.example"})]
