"""`ensemblead serve`: the routes, who is let in, and what is answered."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ensemblead.common.validation import positive_number, whole_number
from ensemblead.images import EncodedImage
from ensemblead.kernels.build import __version__
from ensemblead.service.answers import Answer, MapKind, Problem, describe_result
from ensemblead.service.batching import Batcher, Model, Outcome
from ensemblead.service.bodies import read_images
from ensemblead.service.metrics import Metrics
from ensemblead.service.page import page_of
from ensemblead.service.scoring import check_servable

# Seconds after which a client that was refused may come again.
_RETRY_SECONDS = 1
_MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)
# A client that has gone gets this status, which only the metrics see.
_GONE = 499
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The form is damaged, or holds no file, or too many."},
    401: {"model": Problem, "description": "The token is missing, or another."},
    408: {"model": Problem, "description": "The body did not arrive in time."},
    413: {"description": "Too many bytes, or the only image has too many pixels."},
    415: {"model": Problem, "description": "Neither a form nor an image."},
    422: {"description": "None of the images can be read, or `map` is no kind of map."},
    503: {"model": Problem, "description": "The queue is full, or the service is stopping; Retry-After."},
}


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a service.

    Attributes:
        max_batch: images of a batch; None: the detector's.
        max_wait: seconds for which a batch that is not full waits for images that are on their way.
        max_queue: images in the service, from the first byte of their request to the answer.
        max_bytes: of the body of a request.
        max_pixels: of an image, by its header.
        body_seconds: in which a body must arrive.
        token: what clients must show (`Authorization: Bearer TOKEN`); None: nothing.
    """

    max_batch: int | None = None
    max_wait: float = 0.005
    max_queue: int = 64
    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    body_seconds: float = 30.0
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_bytes", "max_pixels"):
            if (value := getattr(self, name)) is not None:
                whole_number(name, value, 1)
        positive_number("body_seconds", self.body_seconds)
        if not 0 <= self.max_wait < float("inf"):
            raise ValueError(f"max_wait must be a number of seconds, at least 0, got {self.max_wait}")
        if self.token is not None and not self.token:
            raise ValueError("token must not be empty")


class Service:
    """A model that answers requests: `app` is the ASGI application.

    All methods but `replace` belong to the event loop.
    """

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        check_servable(model.detector)
        self.settings = settings
        token = settings.token or ""
        # A header has bytes: curl sends those of the terminal, most often UTF-8, other clients Latin-1.
        self._tokens = [_digest(token.encode(one, "replace")) for one in ("utf-8", "latin-1")]
        self.stopping = False
        self._inside = 0
        self.metrics = Metrics(lambda: self.batcher.queued, lambda: self._inside)
        self.batcher = Batcher(
            model,
            max_batch=settings.max_batch or model.detector.batch_size,
            max_wait=settings.max_wait,
            max_pixels=settings.max_pixels,
            expected=lambda: self._inside,
            on_batch=self.metrics.batch,
        )
        self.app = _application(self)

    @property
    def is_idle(self) -> bool:
        """Whether every image that was taken has been answered."""
        return self._inside == 0

    @property
    def is_ready(self) -> bool:
        """Whether images are taken."""
        return not self.stopping and self.batcher.is_alive

    def replace(self, model: Model) -> None:
        """Predict with another model from the next batch on. Every image is predicted by one model, whole."""
        check_servable(model.detector)
        self.batcher.model = model

    def authorize(self, request: Request) -> None:
        """Raises 401 where the token is missing, or another."""
        if self.settings.token is None:
            return
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        given = _digest(text.encode("latin-1").strip())
        # Of digests, whose length tells nothing.
        same = any([hmac.compare_digest(given, own) for own in self._tokens])
        if kind.lower() != "bearer" or not same:
            raise HTTPException(
                401, "show the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def predict(self, request: Request, kind: str) -> Response:
        """Answer one request, or refuse it, and count it."""
        start, status = time.perf_counter(), 500
        try:
            self.authorize(request)
            response = await self._predict(request, _map_kind(kind))
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = _GONE
            return Response(status_code=status)
        finally:
            self.metrics.answered(status, time.perf_counter() - start)

    async def _predict(self, request: Request, kind: MapKind) -> Response:
        settings = self.settings
        # One place before anything is read: the bodies in memory are as many as there are places.
        async with self._places() as take:
            images = await read_images(request, settings.max_bytes, settings.max_queue, settings.body_seconds)
            take(len(images) - 1)
            outcomes = await self._outcomes(request, images)
            answers = await run_in_threadpool(_describe, images, outcomes, kind)
        for answer in answers:
            self.metrics.image(
                "error" if "error" in answer else "anomalous" if answer["is_anomalous"] else "normal"
            )
        failed = [answer["error"]["status"] for answer in answers if "error" in answer]
        status = failed[0] if len(failed) == len(answers) else 200
        return JSONResponse({"images": answers}, status)

    @asynccontextmanager
    async def _places(self) -> AsyncIterator[Callable[[int], None]]:
        """One place of the queue, and a function that takes more; 503 where there are none."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            # A request that has its place is answered, though the service stops while its body arrives.
            if (self.stopping and not taken) or not self.batcher.is_alive:
                raise _busy("the service is stopping")
            if self._inside + count > self.settings.max_queue:
                raise _busy(f"the queue of {self.settings.max_queue} images is full")
            self._inside += count
            taken += count

        take(1)
        try:
            yield take
        finally:
            self._inside -= taken

    async def _outcomes(self, request: Request, images: Sequence[EncodedImage]) -> list[Outcome]:
        """The outcomes of all images; ClientDisconnect as soon as the client goes."""
        answers = [asyncio.wrap_future(self.batcher.put(image)) for image in images]
        waiting: asyncio.Future[list[Outcome]] = asyncio.gather(*answers)
        gone = asyncio.ensure_future(_disconnected(request))
        both: list[asyncio.Future[Any]] = [waiting, gone]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
            return waiting.result()
        finally:
            for task in both:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _disconnected(request: Request) -> None:
    """Until the client has gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _map_kind(given: str) -> MapKind:
    for kind in _MAP_KINDS:
        if kind == given:
            return kind
    raise HTTPException(422, f"map must be one of {', '.join(_MAP_KINDS)}, got {given}")


def _describe(
    images: Sequence[EncodedImage], outcomes: Sequence[Outcome], kind: MapKind
) -> list[dict[str, Any]]:
    pairs = zip(images, outcomes, strict=True)
    return [describe_result(image.name, outcome, kind) for image, outcome in pairs]


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason}; try again later", {"Retry-After": str(_RETRY_SECONDS)})


_Map = Annotated[str, Query(alias="map", json_schema_extra={"enum": list(_MAP_KINDS)})]


def _application(service: Service) -> FastAPI:
    # FastAPI's own pages of documentation load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="ensemblead", version=__version__, docs_url=None, redoc_url=None)
    guarded = [Depends(service.authorize)]
    form = {"schema": {"type": "object", "properties": {"files": _FILES}}}
    body = {"multipart/form-data": form, "image/*": {"schema": {"type": "string", "format": "binary"}}}

    @app.post(
        "/predict",
        response_model=Answer,
        responses=_PROBLEMS,
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def predict(request: Request, kind: _Map = "none") -> Response:
        """Score one or several images: the files of a form, or one as the body.

        An image that cannot be read has an `error` in its place. Where that is all of them, its status is
        that of the answer.
        """
        return await service.predict(request, kind)

    @app.get("/health")
    async def health() -> Response:
        """Whether images are taken and predicted: 200, or 503. Any answer says that the process lives."""
        ready = service.is_ready and not service.batcher.is_failing
        return JSONResponse({"live": True, "ready": ready}, 200 if ready else 503)

    @app.get("/model", dependencies=guarded)
    async def model() -> dict[str, Any]:
        """What the model is, and where it comes from."""
        return dict(service.batcher.model.description)

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        """Counters, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(page_of(service.batcher.model))

    return app


_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
