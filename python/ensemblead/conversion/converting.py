"""From another tool's files to a saved model of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemblead.calibration import DEFAULT_RATE
from ensemblead.common.validation import one_of
from ensemblead.conversion.anomalib import NAME as ANOMALIB
from ensemblead.conversion.anomalib import read_detector
from ensemblead.conversion.patchcore_inspection import NAME as INSPECTION
from ensemblead.conversion.patchcore_inspection import read_members
from ensemblead.conversion.source import Converted
from ensemblead.conversion.verify import Progress, drawn_images, verify
from ensemblead.detectors import Detector
from ensemblead.detectors.provenance import record
from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.images import open_images
from ensemblead.store import check_target

TOOLS = (INSPECTION, ANOMALIB)
_FUSION = "minmax"
_COLOURS = "until then heat maps have no scale of colours (predict --scale LOW HIGH gives one)"


@dataclass(frozen=True)
class Conversion:
    """What `convert` has made.

    Attributes:
        detector: fitted; that of `out`, if it was written.
        notes: what was assumed, and what is other than in the tool it comes from, in sentences.
        verified_images: how many images were scored by the definition as well.
        largest_difference: between a score, or a value of a map, and the definition: relative to it, or to
            the scale of distances where that is larger.
    """

    detector: Detector
    notes: tuple[str, ...] = field(repr=False)
    verified_images: int
    largest_difference: float


def convert(
    tool: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    images: Any = None,
    false_alarm_rate: float = DEFAULT_RATE,
    backbone: str | None = None,
    layers: Sequence[str] | None = None,
    weights: Any = "default",
    num_neighbors: int | None = None,
    resize: int | tuple[int, int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    fusion: str = _FUSION,
    include_backbone: bool = False,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> Conversion:
    """Make a detector of a model that patchcore-inspection or anomalib 2 has fitted.

    Nothing in the files is run. Scores and maps of some images are computed a second time, by the tool's
    definition in float64, before anything is written. A model that cannot be represented is refused.

    Args:
        tool: "patchcore-inspection" (a folder with `patchcore_params.pkl` and
            `nnscorer_search_index.faiss`, or those of an ensemble) or "anomalib" (a checkpoint of PatchCore
            or PaDiM).
        source: the folder, or the file.
        out: where the model is saved, a new folder; None: it is not.
        images: normal images that it was not fitted on, in any form that `fit` takes, at least one; None:
            drawn ones. They are what is verified on, and where the tool's files have no threshold, it is
            calibrated on them. Without them such a detector has no threshold.
        false_alarm_rate: of that threshold, see `Detector.calibrate`.
        backbone, layers, num_neighbors: of anomalib, where the file is a bare state dict.
        weights: of patchcore-inspection, whose files do not hold them: as `PatchCore` takes them, or
            `{member: weights}`.
        resize, image_size: before the network, as `PatchCore` takes them. Of patchcore-inspection only
            `resize`, 256 where the input has 224 pixels; of anomalib where the file does not state them, 256
            x 256 and no crop.
        fusion: of an ensemble: "minmax" is what patchcore-inspection does, over the set that is evaluated.
            The others of `BackboneEnsemble` score single images; "calibrated", "max" and "rank" need
            `images`.
        include_backbone: save published weights with the model.
        device: where it runs.
        progress: called with a stage, how much is done, and how much there is.

    Raises FileNotFoundError for what is missing, ValueError for what is damaged or cannot be represented,
    ConversionError where scores are not those of the definition, and what loading a network raises.

    Example:
        >>> import pickle, tempfile
        >>> from pathlib import Path
        >>> import faiss
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> folder = Path(tempfile.mkdtemp())  # such as patchcore-inspection writes it
        >>> parameters = {
        ...     "backbone.name": "resnet10t",
        ...     "layers_to_extract_from": ["layer1", "layer2"],
        ...     "input_shape": (3, 64, 64),
        ...     "pretrain_embed_dimension": 96,
        ...     "target_embed_dimension": 80,
        ...     "patchsize": 3,
        ...     "patchstride": 1,
        ...     "anomaly_scorer_num_nn": 1,
        ... }
        >>> size = (folder / "patchcore_params.pkl").write_bytes(pickle.dumps(parameters))
        >>> index = faiss.IndexFlatL2(80)
        >>> index.add(np.random.default_rng(0).random((50, 80), np.float32))
        >>> faiss.write_index(index, str(folder / "nnscorer_search_index.faiss"))
        >>> made = ead.convert("patchcore-inspection", folder, weights=None, resize=64, device="cpu")
        >>> made.detector.score, made.detector.memory_bank_.rows_.shape, made.verified_images
        ('max', torch.Size([50, 80]), 4)
    """
    one_of("tool", tool, TOOLS)
    if out is not None and any(check_target(out).glob("*")):
        raise ValueError(f"out: there is a model in {out} already; give another folder")
    path = Path(source)
    if tool == INSPECTION:
        _refuse(tool, backbone=backbone, layers=layers, num_neighbors=num_neighbors)
        members = read_members(path, weights=weights, resize=resize, image_size=image_size, device=device)
    else:
        _refuse(tool, weights=None if weights == "default" else weights)
        converted = read_detector(
            path,
            backbone=backbone,
            layers=layers,
            num_neighbors=num_neighbors,
            resize=resize,
            image_size=image_size,
            device=device,
        )
        members = [converted]
    detector = _joined(members, fusion, images)
    record(detector, "convert")
    found = open_images(drawn_images() if images is None else images)
    count, largest = verify(members, found, progress)
    notes = list(dict.fromkeys(note for member in members for note in member.notes))
    notes.append(_set_threshold(detector, images, false_alarm_rate, progress))
    if out is not None:
        detector.save(out, include_backbone=include_backbone)
    return Conversion(detector, tuple(notes), count, largest)


def _refuse(tool: str, **arguments: Any) -> None:
    """Arguments that say what a tool's files say."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} is in the files of {tool}; leave it out")


def _joined(members: Sequence[Converted], fusion: str, images: Any) -> Detector:
    """One detector of the members; a single one needs no fusion."""
    if len(members) == 1:
        if fusion != _FUSION:
            raise ValueError(f"fusion is of ensembles, but the model is one detector; got {fusion!r}")
        only: Detector = members[0].detector
        return only
    ensemble = BackboneEnsemble([member.detector for member in members], fusion=fusion)
    if images is None and fusion not in ("minmax", "mean"):
        raise ValueError(f"fusion={fusion!r} needs images, from which the members' scales are taken")
    return ensemble


def _set_threshold(detector: Detector, images: Any, rate: float, progress: Progress | None) -> str:
    """Calibrate a detector that has no threshold, if there are images; a sentence on its threshold."""
    if images is None and isinstance(detector, BackboneEnsemble) and detector.fusion == _FUSION:
        return (
            'the ensemble scales scores over the set that evaluate is given (fusion="minmax"): single images '
            "have no score, and there is no threshold; another fusion and images give both"
        )
    if np.isfinite(detector.threshold_):
        return f"calibrate sets the threshold by images of your own; {_COLOURS}"
    if images is None:
        without = "it has no threshold: nothing is called anomalous until calibrate sets one by good images"
        return f"{without}; {_COLOURS}"
    detector.calibrate(images, rate, progress=progress)
    known = detector.calibration_
    return (
        f"threshold {known.threshold:.6g}: from {len(known.scores)} images given, false alarms at most "
        f"{known.false_alarm_rate:.2g}"
    )
