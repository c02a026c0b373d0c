"""Record what anomalib's models compute, for tests/detectors/test_published.py.

    pip install anomalib==2.7.0      # in an environment of its own, beside this project
    PYTHONPATH=tests python tools/record_published.py

Weights follow from the names that anomalib gives them (tests/support/published.py), and images from a
formula. So only outputs are recorded, and a digest of the names and shapes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from anomalib.models.image.draem.torch_model import (
    DiscriminativeSubNetwork,
    DraemModel,
    ReconstructiveSubNetwork,
)
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize
from anomalib.models.image.fastflow.torch_model import FastflowModel
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
from safetensors.torch import save_file
from support.published import DRAEM_WIDTH, KEPT, SIDES, digest_of, pixels, value
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "tests" / "detectors" / "published.safetensors"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.no_grad()
def fill(model: nn.Module) -> str:
    """Give all tensors their values; the digest of the names."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(value(name, tensor.shape))
    return digest_of({name: tuple(tensor.shape) for name, tensor in state.items()})


def images(method: str) -> torch.Tensor:
    """As models see them; EfficientAD's networks normalise them themselves."""
    scaled = pixels(SIDES[method]).float() / 255.0
    if method in ("DRAEM", "EfficientAD"):
        return scaled
    mean, std = (torch.tensor(own)[:, None, None] for own in (MEAN, STD))
    return (scaled - mean) / std


@torch.no_grad()
def outputs() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    found, digests = {}, {}
    side = (SIDES["ReverseDistillation"],) * 2
    model = ReverseDistillationModel(
        "resnet18", side, ["layer1", "layer2", "layer3"], AnomalyMapGenerationMode.ADD, pre_trained=False
    ).eval()
    digests["ReverseDistillation"] = fill(model)
    restored = model.decoder(model.bottleneck(list(model.encoder(images("ReverseDistillation")).values())))
    for number, own in enumerate(restored):
        found[f"restored{number}"] = own.flatten()[::KEPT]
    side = (SIDES["FastFlow"],) * 2
    flows = FastflowModel(side, "resnet18", pre_trained=False, flow_steps=2).eval()
    digests["FastFlow"] = fill(flows)
    found["flows"] = flows(images("FastFlow")).anomaly_map[:, 0, ::5, ::5]
    imitators = EfficientAdModel(384, EfficientAdModelSize.S, pad_maps=False).eval()
    digests["EfficientAD"] = fill(imitators)
    maps = imitators.get_maps(images("EfficientAD"), normalize=False)
    found["distances"] = torch.cat(maps)[:, 0, ::13, ::13]
    medium = EfficientAdModel(384, EfficientAdModelSize.M)
    digests["EfficientAD medium"] = fill(medium)
    networks = DraemModel()
    networks.reconstructive_subnetwork = ReconstructiveSubNetwork(3, 3, DRAEM_WIDTH)
    networks.discriminative_subnetwork = DiscriminativeSubNetwork(6, 2, DRAEM_WIDTH // 2)
    digests["DRAEM"] = fill(networks.eval())
    found["probabilities"] = networks(images("DRAEM")).anomaly_map.flatten()[::KEPT]
    return {name: own.contiguous().clone() for name, own in found.items()}, digests


def main() -> None:
    torch.set_num_threads(1)
    found, digests = outputs()
    save_file(found, OUT, metadata=digests)
    print({name: (tuple(own.shape), float(own.abs().max())) for name, own in found.items()}, digests)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
