"""The part of a described network that a pass to some of its layers reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemblead.networks.engines.engine import INPUT_SUFFIX, NORMED_SUFFIX
from ensemblead.networks.structure import NORM_ACT, ROW, STEPS

# Of layers, in one pass; real networks have a few thousand. Layers that call layers twice, and so on, would
# otherwise take for ever.
_MOST_CALLS = 50_000


def reached(description: Any, layers: Sequence[str]) -> dict[str, Any]:
    """The description without what comes behind the last of `layers`, as `FeatureExtractor` names them.

    Raises ValueError for layers that the network never calls, and for a pass that takes for ever.
    """
    walk = _Walk(layers)
    short = walk.through(description, "")
    if walk.wanted:
        raise ValueError(f"layers {sorted(walk.wanted)} are not in the network's description")
    if walk.needs_norm and "norm" not in short["parts"]:
        short["parts"]["norm"] = description["parts"]["norm"]
    return short


class _Walk:
    """Follows a pass, and ends when nothing is wanted any more."""

    def __init__(self, layers: Sequence[str]) -> None:
        self.wanted = {layer.removesuffix(NORMED_SUFFIX) for layer in layers}
        self.calls = 0
        self.needs_norm = any(layer.endswith(NORMED_SUFFIX) for layer in layers)

    def through(self, node: Any, name: str) -> dict[str, Any]:
        """A layer that is called, as far as the pass goes in it."""
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise ValueError(f"a pass to {sorted(self.wanted)} calls more than {_MOST_CALLS} layers")
        self.wanted.discard(name + INPUT_SUFFIX)
        if not self.wanted:
            return {"is": "Identity", "with": {}}  # the pass ends before it
        parts = node.get("parts", {})
        short = dict(node)
        if node["is"] == ROW:
            kept: dict[str, Any] = {}
            for part in parts:
                if not self.wanted:
                    break
                kept[part] = self.through(parts[part], _under(name, part))
            short["parts"] = kept
        elif node["is"] == STEPS:
            self._steps(node, name, short)
        elif node["is"] == NORM_ACT:
            for part in parts:
                self.wanted.discard(_under(name, part))
        self.wanted.discard(name)
        return short

    def _steps(self, node: Any, name: str, short: dict[str, Any]) -> None:
        steps: list[Any] = []
        parts: dict[str, Any] = {}
        for step in node["steps"]:
            if not self.wanted:
                break
            steps.append(step)
            if step[0] == "call":
                target = step[1].split(".")
                part = self.through(_at(node, target), _under(name, step[1]))
                _put(parts, node, target, part)
        short["parts"] = parts
        if len(steps) < len(node["steps"]):
            short["steps"] = steps
            short["output"] = {"value": node["inputs"] + len(steps) - 1}


def _under(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _at(node: Any, target: Sequence[str]) -> Any:
    for part in target:
        node = node["parts"][part]
    return node


def _put(parts: dict[str, Any], node: Any, target: Sequence[str], short: dict[str, Any]) -> None:
    """Put a layer that is called by a path of names under those names, in what holds it."""
    for part in target[:-1]:
        node = node["parts"][part]
        parts = parts.setdefault(part, {**node, "parts": {}})["parts"]
    known = parts.get(target[-1])
    # A layer that is called again may have been left early only the last time.
    if known is None:
        parts[target[-1]] = short
