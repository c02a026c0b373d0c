"""`ensemblead serve`: a saved model that answers over HTTP."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import reported_warnings, without_infinities
from ensemblead.cli.models import describe_model, load_identified
from ensemblead.cli.shared import Engine, FittedDevice, MovedWeights, Precision
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.kernels.build import __version__

if TYPE_CHECKING:
    from ensemblead.service.batching import Model

_TOKEN = "ENSEMBLEAD_TOKEN"


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; 127.0.0.1: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help=f"A file with the token that clients show; else {_TOKEN}."),
    ] = None,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Let everybody in who reaches the address.")
    ] = False,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Images of a batch; the model's if absent.")
    ] = None,
    max_wait_ms: Annotated[
        float, typer.Option(help="Milliseconds that a batch waits for images that are on their way.")
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Images in the service; beyond them clients get 503.")
    ] = 64,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", help="Bytes of a request; beyond them clients get 413.")
    ] = 32 << 20,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", help="Pixels of an image, by its header; beyond them 413.")
    ] = 50_000_000,
    reuse_port: Annotated[
        bool, typer.Option("--reuse-port", help="Share the port with other processes that say so.")
    ] = False,
    weights: MovedWeights = None,
    device: FittedDevice = None,
    engine: Engine = None,
    precision: Precision = None,
) -> None:
    """Answer over HTTP: POST /predict, GET /health, /model, /metrics, and a page to try it at /.

    Ctrl-C and SIGTERM answer what was taken, and refuse what is new. SIGHUP loads the model again. Clients
    on other machines need a token: an address that they reach is refused without one, unless
    --without-token is given.
    """
    for package in ("torch", "fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(package, "ensemblead serve")
    from ensemblead.images import BitDepthWarning
    from ensemblead.service.app import ServeSettings, Service
    from ensemblead.service.batching import Model
    from ensemblead.service.server import Server, bound_socket, is_loopback, url_of

    token = _token(token_file)
    if token is None and not without_token and not is_loopback(host):
        raise ValueError(
            f"host {host} is reached from other machines: give --token-file (or {_TOKEN}), or "
            "--without-token if everybody there may use it"
        )
    if token is not None and without_token:
        raise ValueError(f"--without-token contradicts the token of {token_file or _TOKEN}: leave one away")
    settings = ServeSettings(
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000.0,
        max_queue=max_queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        token=token,
    )

    def load() -> Model:
        detector, digest = load_identified(model, weights or (), device, engine, precision)
        facts = {
            "path": valid_text(str(model)),
            "manifest_sha256": digest,
            "served_by": f"ensemblead {__version__}",
        }
        return Model(detector, {**without_infinities(describe_model(detector)), **facts})

    # A damaged form is its client's matter, who is told.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with bound_socket(host, port, reuse_port=reuse_port) as bound:
        with reported_warnings(), Bars("loading the model"):
            service = Service(load(), settings)
        _say(f"{model} is served at {url_of(bound)}, Ctrl-C ends it")
        with warnings.catch_warnings():
            # It would be one for every image; the bits are those that the model was fitted with.
            warnings.simplefilter("ignore", BitDepthWarning)
            Server(service, load=load, say=_say).run(sockets=[bound])
        _say("everything that was taken is answered" if service.is_idle else "ended before all was answered")


def _say(text: str) -> None:
    print(f"ensemblead: {text}", file=sys.stderr, flush=True)


def _token(file: Path | None) -> str | None:
    """From a file, or from the environment; None without either."""
    if file is None:
        given = os.environ.get(_TOKEN)
        return None if given is None else given.strip()  # a line's end, of a file that it was read from
    token = file.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"token-file {file} is empty")
    return token
