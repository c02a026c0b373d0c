"""Networks that the authors' code (VitjanZ/DRAEM) or anomalib has trained, by the names of either.

The authors read images as blue, green, red, and show the discrimination the restored image first, as here.
Anomalib reads red, green, blue, and shows it the image first.
"""

from __future__ import annotations

import torch

from ensemblead.detectors.draem.networks import Networks
from ensemblead.detectors.training.published import WeightFile

_ANOMALIB = {"reconstruct": "reconstructive_subnetwork.", "discriminate": "discriminative_subnetwork."}
_SEGMENT = {"reconstruct": "", "discriminate": "_segment"}
# The layers that see or put out an image's three channels.
_IMAGES = {"reconstruct.encode.0.0.convolution.weight": 1, "discriminate.encode.0.0.convolution.weight": 1}
_IMAGES |= {"reconstruct.restore.weight": 0, "reconstruct.restore.bias": 0}


def published_networks(file: WeightFile, width: int) -> Networks:
    """The networks in eval mode, with their batch norms. Raises ValueError for a file that does not fit."""
    is_anomalib = file.has_below(*_ANOMALIB.values())
    with torch.device("meta"):
        networks = Networks(width)
    own = networks.state_dict()
    theirs = {name: _name(name, is_anomalib) for name in own if not name.endswith("num_batches_tracked")}
    found = file.read({theirs[name]: own[name].shape for name in theirs}, "a DRAEM")
    tensors = {name: _reordered(name, found[theirs[name]], is_anomalib) for name in theirs}
    counts = {name: torch.tensor(0) for name in own if name not in theirs}
    networks.load_state_dict(tensors | counts, assign=True)
    return networks.eval()


def _reordered(own: str, tensor: torch.Tensor, is_anomalib: bool) -> torch.Tensor:
    """With channels in the order that they have here."""
    if own not in _IMAGES:
        return tensor
    side = _IMAGES[own]
    images = torch.split(tensor, 3, side)
    images = images[::-1] if is_anomalib else tuple(one.flip(side) for one in images)
    return torch.cat(images, side)


def _name(own: str, is_anomalib: bool) -> str:
    """What both codes call a tensor of the networks."""
    network, part, *place, kind = own.split(".")
    prefix, segment = _ANOMALIB[network] if is_anomalib else "", _SEGMENT[network]
    if part == "restore":
        return f"{prefix}decoder{segment}.fin_out.0.{kind}"
    number, *inner, layer = place
    after = int(layer == "norm")
    if part == "encode":
        return f"{prefix}encoder{segment}.block{int(number) + 1}.{3 * int(inner[0]) + after}.{kind}"
    # The discrimination's decoder begins with a stage of its own, called b.
    stage = str(int(number) + 1) if network == "reconstruct" else "_b" if number == "0" else number
    if part == "grow":
        return f"{prefix}decoder{segment}.up{stage}.{1 + after}.{kind}"
    return f"{prefix}decoder{segment}.db{stage}.{3 * int(inner[0]) + after}.{kind}"
