"""A page as one file that loads nothing: a template, its styles and scripts, and what forbids others."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any, BinaryIO

from ensemblead.common.files import valid_text
from ensemblead.kernels.build import __version__

_LIVE = " blob:; connect-src 'self'"


def filled(
    template: str,
    parts: Mapping[str, str | Iterable[str]],
    *,
    styles: Sequence[str] = ("page.css",),
    scripts: Sequence[str] = (),
    is_live: bool = False,
) -> Iterator[str]:
    """The pieces of a page: a template of `assets` with `{{name}}` replaced by the part of that name.

    `{{name.html}}` stands for another file of `assets`, such as the head that all pages share. Parts are
    HTML, at once or piece by piece. The template's own are `style`, `script`, `version`, and `policy`: a
    Content-Security-Policy by which no other style or script runs, and nothing is loaded but data URLs.
    A page that `is_live` also shows files that its reader has chosen, and asks where it comes from.
    """
    style, script = ("".join(map(_asset, names)) for names in (styles, scripts))
    own = {
        "policy": (
            f"default-src 'none'; img-src data:{_LIVE if is_live else ''}; style-src '{_hash(style)}'; "
            f"script-src {_quoted(script)}; base-uri 'none'; form-action 'none'"
        ),
        "version": escape(__version__),
        "style": style,
        "script": script,
    }
    whole = re.sub(r"\{\{(\w+\.html)\}\}", lambda found: _asset(found[1]), _asset(template))
    for position, piece in enumerate(re.split(r"\{\{(\w+)\}\}", whole)):
        if position % 2 == 0:
            yield piece
            continue
        part = own[piece] if piece in own else parts[piece]
        yield from (part,) if isinstance(part, str) else part


def write_pieces(pieces: Iterable[str], file: BinaryIO) -> None:
    """Write them as UTF-8; see `valid_text`."""
    file.writelines(valid_text(one).encode() for one in pieces)


def stamp() -> str:
    """Which version wrote a page, and when."""
    return f"ensemblead {__version__} · {datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')}"


def json_in_html(value: Any) -> str:
    """JSON that no HTML parser takes for a tag or a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _quoted(script: str) -> str:
    return f"'{_hash(script)}'" if script else "'none'"


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what is between two tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
