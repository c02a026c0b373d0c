"""Students and autoencoders that nelson1425/EfficientAD or anomalib has trained, by the names of either."""

from __future__ import annotations

import torch

from ensemblead.detectors.efficientad.imitators import Imitators, Plan, empty_imitators
from ensemblead.detectors.training.published import WeightFile
from ensemblead.networks.pdn import PDN

# Of the mean and deviation of the teacher's channels, and of the four quantiles.
_STATISTICS: dict[str, tuple[str, ...]] = {"mean_std.": ("mean", "std"), "teacher_": ("mean", "std")}
_QUANTILES: dict[str, tuple[str, ...]] = {
    "quantiles.": ("qa_st", "qb_st", "qa_ae", "qb_ae"),
    "q_": ("st_start", "st_end", "ae_start", "ae_end"),
}
_HEADS = ("as_teacher", "as_autoencoder")
# Places in the usual code's autoencoder: convolutions of the decoder stand after every resizing.
_FIRST_OF_DECODER, _APART, _SMOOTH, _DESCRIBE = 12, 3, 30, 32


def published_imitators(
    file: WeightFile, plan: Plan
) -> tuple[Imitators, tuple[torch.Tensor, ...], tuple[float, ...]]:
    """The networks, the teacher's statistics, and the quantiles.

    Raises ValueError for a file that does not fit, and for one whose statistics or quantiles are not set.
    """
    networks = empty_imitators(plan)
    own = networks.state_dict()
    places = _places(plan, by_number="student.0.weight" in file)
    autoencoder = file.prefix("ae.", "autoencoder.")
    theirs = {name: _name(name, places, autoencoder) for name in own}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in own.items():
        rows, *others = tensor.shape
        wanted[theirs[name]] = (rows * (2 if _is_head(name) else 1), *others)
    means, quantiles = (_names(file, choices) for choices in (_STATISTICS, _QUANTILES))
    wanted |= {name: (1, plan.channels, 1, 1) for name in means} | dict.fromkeys(quantiles, ())
    found = file.read(wanted, "an EfficientAD")
    for which in (means[1:], quantiles):
        if not any(bool(found[name].any()) for name in which):
            raise ValueError(f"weights: {file.path}: {', '.join(which)} are 0, since they were never set")
    tensors = {}
    for name in own:
        tensor = found[theirs[name]]
        if _is_head(name):  # one convolution there, one for each of its two purposes here
            tensor = tensor.chunk(2)[_HEADS.index(name.split(".")[1])].clone()
        tensors[name] = tensor
    networks.load_state_dict(tensors, assign=True)
    statistics = tuple(found[name].flatten() for name in means)
    return networks, statistics, tuple(float(found[name]) for name in quantiles)


def _names(file: WeightFile, choices: dict[str, tuple[str, ...]]) -> list[str]:
    prefix = file.prefix(*choices)
    return [f"{prefix}{name}" for name in choices[prefix]]


def _is_head(own: str) -> bool:
    return own.split(".")[1] in _HEADS


def _places(plan: Plan, *, by_number: bool) -> list[str]:
    """What the student's convolutions are called, in their order."""
    with torch.device("meta"):
        children = list(PDN(plan.size).named_children())
    return [
        str(place) if by_number else name
        for place, (name, _) in enumerate(children)
        if name.startswith("conv")
    ]


def _name(own: str, places: list[str], autoencoder: str) -> str:
    """What the file calls a tensor of the networks."""
    role, part, *place, kind = own.split(".")
    if role == "student":
        return f"student.{places[-1] if part in _HEADS else places[int(place[0][-1]) - 1]}.{kind}"
    number = int(place[0]) if place else 0
    if autoencoder == "ae.":
        layers = {
            "encoder": f"encoder.enconv{number // 2 + 1}",
            "decoder": f"decoder.deconv{number + 1}",
            "smooth": "decoder.deconv7",
            "describe": "decoder.deconv8",
        }
    else:
        layers = {
            "encoder": f"{number}",
            "decoder": f"{_FIRST_OF_DECODER + _APART * number}",
            "smooth": f"{_SMOOTH}",
            "describe": f"{_DESCRIBE}",
        }
    return f"{autoencoder}{layers[part]}.{kind}"
