"""What made a result: the detector with its parameters, weights and history, this library, this machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ensemblead.common.processor import processor_name
from ensemblead.common.threads import available_cores


def made_by(detector: Any) -> dict[str, Any]:
    """All that a detector's results come from, in JSON's types.

    Keys: `detector` (one line), `parameters` (as `describe` gives them; None where it cannot), `weights` (a
    `network` and the `sha256` of the weights that it reads, for every frozen network), `learned_images` (how
    many different images it has learned), `history` (steps, see `history_`), `model` (the checksum of the
    saved model that it was loaded from), `date` (UTC), `versions`, `machine`. What a detector of the
    caller's does not say is None, or missing in a list. Results travel: of paths only the last name is kept.
    """
    from ensemblead.detectors import Detector
    from ensemblead.detectors.provenance import FIRST_ACTIONS, loaded_model, now, versions
    from ensemblead.detectors.text import constructor_text

    run = {"date": now(), "versions": versions(), "machine": machine()}
    if not isinstance(detector, Detector):
        unknown = dict.fromkeys(("parameters", "learned_images", "model"))
        return {"detector": type(detector).__name__, **unknown, "weights": [], "history": [], **run}
    history = detector.history_
    # A converted model, or one of an early version, does not know its images.
    known = not history or history[0].action in FIRST_ACTIONS
    count = len(detector._fingerprints)
    parameters, text = _parameters(detector), constructor_text(detector)
    for path in _paths(parameters):
        text = text.replace(repr(path), repr(_last_name(path)))
    return {
        "detector": text,
        "parameters": _without_folders(parameters),
        "weights": list(_weights(detector)),
        "learned_images": count if known and count else None,
        "history": [asdict(step) for step in history],
        "model": loaded_model(detector),
        **run,
    }


def machine() -> dict[str, Any]:
    """This machine in JSON's types: `system`, `processor`, `cores` of this process, `gpus`."""
    torch = sys.modules.get("torch")  # where it was not needed, no GPU was
    count = torch.cuda.device_count() if torch is not None and torch.cuda.is_available() else 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": available_cores(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)] if torch else [],
    }


def _parameters(detector: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = detector.describe()
    except ValueError:  # a module or a state dict, which have no plain form
        return None
    return found


def _paths(value: Any) -> Iterator[str]:
    """Absolute paths in a description."""
    if isinstance(value, str) and os.path.isabs(value):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _paths(one)


def _without_folders(value: Any) -> Any:
    """A description with the last names of its absolute paths."""
    if isinstance(value, dict):
        return {name: _without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return _last_name(value) if isinstance(value, str) and os.path.isabs(value) else value


def _last_name(path: str) -> str:
    return os.path.basename(os.path.normpath(path))


def _weights(detector: Any) -> Iterator[dict[str, str]]:
    """Every network once, with the hash of the weights that it reads. The filters have none."""
    from ensemblead.networks.engines.engine import digest_of

    seen = set()
    for one in detector._networks():
        extractor = one.network.extractor
        key = (id(extractor.module), extractor.layers)
        if key in seen or extractor.source["kind"] == "gabor":
            continue
        seen.add(key)
        tag = extractor.source.get("tag")
        name = f"{extractor.name}.{tag}" if tag else extractor.name
        yield {"network": name, "sha256": digest_of(extractor.state_dict())}
