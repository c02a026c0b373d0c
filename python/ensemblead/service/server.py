"""The process of a service: its socket, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from ensemblead.service.app import Service
from ensemblead.service.batching import Model

# Seconds in which a service that is to end answers what it has taken.
GRACE_SECONDS = 30
# Seconds for which a connection without requests stays open.
_KEEP_ALIVE_SECONDS = 30


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound_socket(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A socket that takes requests; port 0: any that is free.

    With `reuse_port` other processes may bind the same port, and the system shares connections out.

    Raises OSError naming the address where it cannot be had.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=1024, reuse_port=reuse_port)
    except OSError as error:
        raise OSError(f"cannot listen at host {host}, port {port}: {error}") from error


def url_of(bound: socket.socket) -> str:
    """The address of a socket as a browser takes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Server(uvicorn.Server):
    """Serves until a signal ends it.

    SIGINT and SIGTERM: what was taken is answered, new requests get 503, then it ends; a second signal ends
    it at once. SIGHUP: `load` gives another model, which takes the place of the first when it is whole.

    Args:
        say: told, in a sentence, what came of a SIGHUP.
    """

    def __init__(self, service: Service, *, load: Callable[[], Model], say: Callable[[str], object]) -> None:
        super().__init__(
            uvicorn.Config(
                service.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._service, self._load, self._say = service, load, say
        self._reloading = threading.Lock()
        self._end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also take SIGHUP, where signals are to be had, which is not on Windows."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal refuses what is new, the second ends at once."""
        if self._service.stopping:
            self.should_exit = self.force_exit = True
        self._service.stopping = True
        self._end = time.monotonic() + GRACE_SECONDS

    async def on_tick(self, counter: int) -> bool:
        """End when everything that was taken is answered, or the time for it has passed."""
        if self._end is not None and (self._service.is_idle or time.monotonic() > self._end):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Also end the thread that predicts."""
        self._service.stopping = True
        if self._end is not None:  # one time for all of it
            self.config.timeout_graceful_shutdown = math.ceil(self._rest())
        await super().shutdown(sockets)
        self._service.batcher.close(0.0 if self.force_exit else self._rest())

    def _rest(self) -> float:
        """Seconds of the time in which to end; one at least, for what needs no waiting."""
        return GRACE_SECONDS if self._end is None else max(1.0, self._end - time.monotonic())

    def _reload(self) -> None:
        threading.Thread(target=self._replace, name="ensemblead-reload", daemon=True).start()

    def _replace(self) -> None:
        with self._reloading:
            try:
                self._service.replace(self._load())
            except Exception as error:
                self._say(f"SIGHUP: the model stays, for another one could not be loaded: {error}")
            else:
                self._say("SIGHUP: the model has been loaded again")
