"""Students that the authors' code (hq-deng/RD4AD) or anomalib has trained, by the names of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ensemblead.detectors.reverse_distillation.student import Plan, Student
from ensemblead.detectors.training.published import WeightFile

# The embedding, which the authors call bn, after their name for its blocks.
_EMBEDDINGS = ("bottleneck.", "bn.")
_FUSION = {("fuse1", "0"): 1, ("fuse1", "1"): 2, ("fuse2", "0"): 3}
# Anomalib has fewer blocks in the embedding of ResNet34, and narrower ones in that of WideResNet50.
_ANOMALIB_BLOCKS, _ANOMALIB_SHARE = 2, 0.25


def published_student(
    file: WeightFile, channels: Sequence[int], network: nn.Module, layers: Sequence[str]
) -> Student:
    """A student in eval mode, with its batch norms, for a network whose layers have so many channels.

    Raises ValueError for a file that does not fit.
    """
    embedding = file.prefix(*_EMBEDDINGS)
    plan = _plan(file, embedding, Plan.of(channels, network, layers))
    with torch.device("meta"):
        student = Student(plan)
    own = student.state_dict()
    theirs = {name: _name(name, embedding) for name in own if not name.endswith("num_batches_tracked")}
    # Registered behind the concatenation by both codes, and run by neither.
    unused = f"{embedding}conv4.", f"{embedding}bn4."
    found = file.read(
        {theirs[name]: own[name].shape for name in theirs},
        "a ReverseDistillation",
        lambda name: name.startswith(unused),
    )
    counts = {name: torch.tensor(0) for name in own if name not in theirs}
    student.load_state_dict({name: found[theirs[name]] for name in theirs} | counts, assign=True)
    return student.eval()


def _plan(file: WeightFile, embedding: str, plan: Plan) -> Plan:
    """The plan, with anomalib's embedding where the file has it."""
    blocks, *others = plan.depths
    first = f"{embedding}bn_layer.0.conv1.weight"
    if plan.bottleneck:
        narrow = round(2 * plan.channels[-1] * _ANOMALIB_SHARE)
        is_narrow = plan.bottleneck > _ANOMALIB_SHARE and file.length(first) == narrow
        return replace(plan, embedding=_ANOMALIB_SHARE) if is_narrow else plan
    if file.length(first) and f"{embedding}bn_layer.{_ANOMALIB_BLOCKS}.conv1.weight" not in file:
        blocks = min(blocks, _ANOMALIB_BLOCKS)
    return replace(plan, depths=(blocks, *others))


def _name(own: str, embedding: str) -> str:
    """What both codes call a tensor of the student."""
    part, *place, is_norm, kind = own.split(".")
    unit = "bn" if is_norm == "1" else "conv"
    if part.startswith("fuse"):
        number = _FUSION[part, place[0] if part == "fuse1" else "0"]
        return f"{embedding}{unit}{number}.{kind}"
    if part == "embed":
        stage, skip = f"{embedding}bn_layer", "downsample"
    else:
        stage, skip = f"decoder.layer{int(place.pop(0)) + 1}", "upsample"
    block, *inner = place
    if inner[0] == "skip":
        return f"{stage}.{block}.{skip}.{is_norm}.{kind}"
    return f"{stage}.{block}.{unit}{int(inner[1]) // 2 + 1}.{kind}"
