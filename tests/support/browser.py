"""A headless Chromium, driven by the DevTools protocol over a pipe; needs no driver and no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    # --no-sandbox: containers seldom allow one, and what is opened are files that the tests wrote themselves.
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-extensions",
        "--no-first-run",
        "--no-default-browser-check",
    ),
    *("--force-color-profile=srgb", "--remote-debugging-pipe"),
)
_KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Escape": 27,
    "Tab": 9,
    "Enter": 13,
}
_CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color, under) => {
    canvas.fillStyle = `rgb(${under.join()})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const above = [];
    for (let at = node; at; at = at.parentElement) above.unshift(getComputedStyle(at).backgroundColor);
    return above.reduce((under, color) => rgb(color, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, :disabled")) continue;
    const under = behind(node);
    const style = getComputedStyle(node);
    const [a, b] = [light(rgb(node.closest("svg") ? style.fill : style.color, under)), light(under)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([contrast, walker.currentNode.textContent.slice(0, 30)]);
  }
  return found.sort((one, other) => one[0] - other[0]);
})()
"""
_PATIENCE = 60.0  # seconds without an answer after which the browser counts as stuck


def find_chromium() -> str | None:
    """The browser's path: ENSEMBLEAD_CHROMIUM, or what is installed; None if there is none."""
    return os.environ.get("ENSEMBLEAD_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def browser_or_skip() -> Browser:
    """A browser; without one the test is skipped, or fails where ENSEMBLEAD_REQUIRE_BROWSER=1 says so."""
    path = find_chromium()
    if path is None:
        reason = "there is no Chromium (Debian: apt-get install chromium)"
        if os.environ.get("ENSEMBLEAD_REQUIRE_BROWSER") == "1":
            pytest.fail(f"ENSEMBLEAD_REQUIRE_BROWSER=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    return Browser(path)


class Browser:
    """One Chromium with one page at a time. Use as a context manager."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="ensemblead-chromium-")
        self._log = (Path(self._profile.name) / "stderr.txt").open("w+")
        theirs, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4. bash, because sh may not know those above 9.
        launch = f'exec "$0" "$@" 3<&{theirs} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", launch, path, *_OPTIONS, f"--user-data-dir={self._profile.name}/profile"],
            pass_fds=(theirs, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            # Nothing of the tests' settings belongs to the browser.
            env={**os.environ, "HOME": self._profile.name},
        )
        os.close(theirs)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self._target: str | None = None
        self._session: str | None = None
        self._address = ""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process.poll() is None:
                self._session = None
                self.send("Browser.close")
                self._process.wait(10)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._log.close()
        # Children of the browser may still be writing to its profile.
        shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile._finalizer.detach()  # type: ignore[attr-defined]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        try:
            os.write(self._out, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise self._lost("has ended") from None
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found
            if "method" in answer:
                self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], _PATIENCE)
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise self._lost("has ended" if ready else "is stuck")
            self._buffer += data
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        return message

    def _lost(self, how: str) -> RuntimeError:
        self._log.seek(0)
        return RuntimeError(f"Chromium {how}: {self._log.read()[-2000:]}")

    def open(
        self,
        path: Path | str,
        width: int = 1280,
        height: int = 900,
        *,
        dark: bool = False,
        scripts: bool = True,
    ) -> None:
        """Load a file, or an address, in a new page of that size; console messages and exceptions from then
        on are kept.
        """
        self._session = None
        if self._target is not None:
            self.send("Target.closeTarget", targetId=self._target)
        self._target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.events = []
        self._session = self.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        # Headless pages have no focus of their own, and without it no :focus-visible.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        mobile = width < 600
        self.send(
            *("Emulation.setDeviceMetricsOverride",),
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._address = path if isinstance(path, str) else path.resolve().as_uri()
        self.send("Page.navigate", url=self._address)
        loaded = "document.readyState === 'complete' && location.protocol !== 'about:'"
        self.wait(loaded)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise RuntimeError(f"still not true after {seconds} s: {condition}")
            time.sleep(0.02)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key, as if pressed: "Tab", "ArrowLeft", "Escape", "Enter", or " "."""
        text = {"Enter": "\r", " ": " "}.get(key)
        options: dict[str, Any] = {"key": key, "code": "Space" if key == " " else key, "modifiers": 8 * shift}
        options["windowsVirtualKeyCode"] = _KEYS.get(key, 32)
        down = {**options, "text": text} if text else options
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **options)

    def click(self, selector: str) -> None:
        """The middle of the first element that matches, by the mouse."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What is seen, or the whole page, as a PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def contrasts(self) -> list[tuple[float, str]]:
        """The contrast of every visible text with what is behind it, 1 to 21, the lowest first."""
        return [(contrast, text) for contrast, text in self.run(_CONTRAST)]

    def problems(self) -> list[str]:
        """Errors and warnings of the console, exceptions, refused loads, and requests that leave the file, or
        the address.
        """
        found = []
        for event in self.events:
            method, details = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(f"exception: {details['exceptionDetails']}")
            elif method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
                found.append(f"console: {details['args']}")
            elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {details['entry']}")
            elif method == "Network.requestWillBeSent":
                url = details["request"]["url"]
                own = self._address if self._address.startswith("http:") else "file:"
                if not url.startswith((own, "data:", "about:", "blob:")):
                    found.append(f"request: {url}")
        return found
