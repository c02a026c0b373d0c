"""Whether two embedders give the same vectors, so that one index may hold those of both."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ensemblead.retrieval.ensemble import EmbeddingEnsemble

# Parameters that say where and how a network runs, not what it puts out beyond rounding.
_PLACEMENT = ("device", "batch_size", "compile", "precision")


def described(embedder: Any) -> Any:
    """The description of an embedder, as JSON has it."""
    return json.loads(json.dumps(embedder.describe(), default=str))


def difference(there: Any, given: Any, place: str = "") -> str:
    """The first difference of two descriptions, in words; "" if their embedders give the same vectors."""
    if isinstance(there, dict) and isinstance(given, dict) and there.get("type") == given.get("type"):
        names = [name for name in {**there, **given} if name not in _PLACEMENT]
        pairs = [(there.get(name), given.get(name), f"{place}.{name}".strip(".")) for name in names]
    elif isinstance(there, list) and isinstance(given, list) and len(there) == len(given):
        pairs = [(*both, f"{place}[{i}]") for i, both in enumerate(zip(there, given, strict=True))]
    elif there == given:
        return ""
    else:
        shown = [one.get("type", one) if isinstance(one, dict) else one for one in (there, given)]
        return f"{place or 'networks'} {shown[0]!r}, got {shown[1]!r}"
    return next(filter(None, (difference(*pair) for pair in pairs)), "")


def is_fitted_otherwise(there: Any, given: Any) -> bool:
    """Whether two embedders of one description have learned other things."""
    return any(
        not np.array_equal(one, other) for one, other in zip(_learned(there), _learned(given), strict=True)
    )


def has_learned(embedder: Any) -> bool:
    """Whether a description does not say all of it."""
    return isinstance(embedder, EmbeddingEnsemble) and embedder.mode != "concat"


def _learned(ensemble: Any) -> list[Any]:
    weights = ensemble.weights_
    scaler = [values for pair in ensemble.scaler_ for values in pair]
    return [*(weights if isinstance(weights, list) else [weights]), *scaler]
