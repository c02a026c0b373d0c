"""The page on which a service can be tried."""

from __future__ import annotations

import json
from html import escape

from ensemblead.evaluation.gallery import color_scale, describe_threshold
from ensemblead.report.pictures import COLORS
from ensemblead.report.template import filled
from ensemblead.service.batching import Model


def page_of(model: Model) -> str:
    """The page, as one HTML text that loads nothing but what it asks the service for."""
    name = str(model.description.get("detector", type(model.detector).__name__))
    try:
        scale = color_scale(model.detector)
    except ValueError:  # no statistics of normal images: every map has colours of its own
        scale = None
    origin = describe_threshold(model.detector)
    data = json.dumps({"colors": COLORS, "scale": scale}).replace("<", "\\u003c")
    parts = {
        "title": escape(name),
        "lead": escape(f"The threshold is {origin}." if origin else "The model has no threshold."),
        "data": data,
    }
    styles, scripts = ("page.css", "serve.css"), ("overlay.js", "serve.js")
    return "".join(filled("serve.html", parts, styles=styles, scripts=scripts, is_live=True))
