"""`ead.load`: what a folder holds is found by its name in the registry, retrieval's classes too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ensemblead import store
from ensemblead.detectors import Detector

__all__ = ["load", "load_detector"]


def load(
    path: str | os.PathLike[str],
    weights: Any = None,
    backbone: Any = None,
    *,
    device: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    detector: Detector | None = None,
) -> Any:
    """What `save` wrote: a detector, ready to predict, an `Embedder`, an `EmbeddingEnsemble`, or a
    `DriftMonitor`.

    Args:
        path: the folder.
        weights: where the network's weights are now (a path, or a state dict), if not where they were at the
            fit.
        backbone: a module of the same architecture, for a model that was fitted with a module; the weights of
            the fit are loaded into a copy of it.
        device, engine, precision: in place of those given at the fit, of all networks. A bank and a threshold
            made by one engine hold for the others; docs/design/engines.md says how far scores move. Engines
            are for networks that read images; a RuntimeWarning names a detector without one.
        detector: of a monitor the detector that it watches; without one it can only be read.

    For an ensemble `weights` and `backbone` are lists of one per member, or mappings from member numbers. A
    single detector is number 0.

    Raises FileNotFoundError for nothing at `path`, DamagedModelError for a folder that is incomplete, was
    altered, or states what no detector can have, NewerFormatError for one of a later version,
    BackboneUnavailableError for a network that cannot be had from where it was, ValueError for a device that
    this machine lacks, for a published network that the installed packages do not know or know with other
    layers, and for options that do not go with the model.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... ).fit(images)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(f"{folder}/model")
        ...     loaded = ead.load(f"{folder}/model")
        >>> loaded.threshold_ == detector.threshold_
        True
    """
    options: dict[str, str | Mapping[int, Any] | Sequence[Any] | None] = {
        "device": device,
        "engine": engine,
        "precision": precision,
    }
    options |= {"weights": weights, "backbone": backbone}
    if detector is None:
        loaded = store.load(path, **options)
    else:
        loaded = store.load(path, **options, detector=detector)
        if not hasattr(loaded, "observe"):
            raise TypeError(f"detector: {path} holds a saved {type(loaded).__name__}, which watches none")
    known = ("embed_batches", "observe")
    if not isinstance(loaded, Detector) and not any(hasattr(loaded, name) for name in known):
        kind = type(loaded).__name__
        raise TypeError(f"{path} holds a saved {kind}, which is no detector and embeds nothing")
    return loaded


def load_detector(path: str | os.PathLike[str], **options: Any) -> Detector:
    """`load`, of a detector alone: raises TypeError for anything else."""
    detector = load(path, **options)
    if not isinstance(detector, Detector):
        raise TypeError(f"{path} holds a saved {type(detector).__name__}, which is no detector")
    return detector
