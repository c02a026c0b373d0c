"""The images of a request: read within limits of bytes, number and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from ensemblead.common.files import valid_text
from ensemblead.images import EncodedImage

# Of the rest of a body that is too large so many bytes more are read and dropped, in units of the limit:
# a client that is cut off while it sends does not see the answer.
_DROPPED = 2


async def read_images(
    request: Request, max_bytes: int, max_images: int, seconds: float
) -> list[EncodedImage]:
    """The images of a request: the files of a form (multipart/form-data), or one as the body (image/...).

    Raises HTTPException: 413 for a body of more than `max_bytes`, 415 for another type, 400 for a form that
    is damaged or holds no file or more than `max_images`, 408 where it takes longer than `seconds`;
    ClientDisconnect where the client goes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not is_form and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(
            415, f"send multipart/form-data, or one image as image/*, got {kind or 'no type'}"
        )
    limited = Request(request.scope, _limited(request.receive, max_bytes))
    try:
        reading = _form(limited, max_bytes, max_images) if is_form else _raw(limited)
        return await asyncio.wait_for(reading, seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {seconds:g} s") from None


def _limited(receive: Callable[[], Awaitable[Any]], max_bytes: int) -> Callable[[], Awaitable[Any]]:
    """`receive` of a request, that raises 413 beyond a number of bytes."""
    total = 0

    async def counted() -> Any:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total <= max_bytes:
            return message
        while message.get("more_body", False) and total <= (1 + _DROPPED) * max_bytes:
            message = await receive()
            total += len(message.get("body", b""))
        raise HTTPException(413, f"the body has more than max_bytes = {max_bytes} bytes")

    return counted


async def _raw(request: Request) -> list[EncodedImage]:
    return [EncodedImage("the image", await request.body())]


async def _form(request: Request, max_bytes: int, max_images: int) -> list[EncodedImage]:
    parser = MultiPartParser(request.headers, request.stream(), max_files=max_images, max_fields=max_images)
    parser.spool_max_size = max_bytes  # in memory: not every container has a disk to write to
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    except (FormParserError, UnicodeError) as error:  # the latter by what it says of its letters
        raise HTTPException(400, f"the form is damaged: {error}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    images = [EncodedImage(valid_text(file.filename or "unnamed"), await file.read()) for file in files]
    await form.close()
    if not images:
        raise HTTPException(400, "the form holds no file")
    return images
