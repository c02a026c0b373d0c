"""Record what anomalib's Reverse Distillation computes, for tests/detectors/test_reverse_distillation.py.

    pip install anomalib==2.7.0      # in an environment of its own, beside this project
    PYTHONPATH=python:tests python tools/record_reverse_distillation.py

Weights and feature maps follow from a formula (tests/support/students.py), so only outputs are recorded: some
of the values that the student restores, the loss, the map before the blur, and the losses of five updates by
Adam with the authors' betas.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from anomalib.models.components.backbone.resnet_decoder import get_decoder
from anomalib.models.image.reverse_distillation import anomaly_map
from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from safetensors.torch import save_file
from support.students import feature_maps, fill
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "tests" / "detectors" / "reverse_distillation.safetensors"
CASES = {"resnet18": (64, 128, 256), "resnet50": (256, 512, 1024)}
# The convolutions outside of blocks, and their batch norms, by our names.
FUSION = {"1": "fuse1.0.0", "2": "fuse1.1.0", "3": "fuse2.0"}
# The grid of the first layer, every how manieth value is kept, and updates.
GRID, KEPT, UPDATES = 16, 997, 5


def our_names(module: nn.Module) -> dict[str, str]:
    """What the tensors of anomalib's module are called in our student."""
    names = {}
    for name in module.state_dict():
        place, kind = name.rsplit(".", 1)
        parts = place.split(".")
        if len(parts) == 1:  # conv1, bn1: of the fusion; the fourth is never run
            is_norm, number = parts[0].startswith("bn"), parts[0][-1]
            unit = FUSION.get(number, "unused")
            names[name] = f"{unit}.{int(is_norm)}.{kind}"
            continue
        stage = "embed" if parts[0] == "bn_layer" else f"decode.{int(parts[0][-1]) - 1}"
        if parts[2] == "downsample" or parts[2] == "upsample":
            unit, is_norm = "skip", parts[3] == "1"
        else:
            unit, is_norm = f"body.{(int(parts[2][-1]) - 1) * 2}", parts[2].startswith("bn")
        names[name] = f"{stage}.{parts[1]}.{unit}.{int(is_norm)}.{kind}"
    return names


def record(backbone: str, channels: tuple[int, ...]) -> dict[str, torch.Tensor]:
    parts = [get_bottleneck_layer(backbone), get_decoder(backbone)]
    for part in parts:
        fill(part, our_names(part))
        part.eval()
    embedding, decoder = parts
    maps = feature_maps(channels, GRID)
    found = {}
    with torch.no_grad():
        restored = decoder(embedding(maps))
    for number, own in enumerate(restored):
        found[f"{backbone}.restored{number}"] = own.flatten()[::KEPT].clone()
    found[f"{backbone}.loss"] = ReverseDistillationLoss()(maps, restored)
    # Without the blur, whose border rule differs.
    anomaly_map.GaussianBlur2d = lambda **_: nn.Identity()
    generator = anomaly_map.AnomalyMapGenerator((64, 64), mode=anomaly_map.AnomalyMapGenerationMode.ADD)
    found[f"{backbone}.map"] = generator(restored, maps)[:, 0, ::5, ::5].clone()
    for part in parts:
        part.train()
    adam = torch.optim.Adam(itertools.chain(*(part.parameters() for part in parts)), 0.005, (0.5, 0.999))
    losses = []
    for step in range(UPDATES if backbone == "resnet18" else 0):
        batch = feature_maps(channels, GRID, 4, step)
        loss = ReverseDistillationLoss()(batch, decoder(embedding(batch)))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    if losses:
        found[f"{backbone}.losses"] = torch.stack(losses)
    return found


def main() -> None:
    torch.set_num_threads(1)
    recorded: dict[str, torch.Tensor] = {}
    for backbone, channels in CASES.items():
        recorded |= {name: tensor.contiguous() for name, tensor in record(backbone, channels).items()}
    save_file(recorded, OUT)
    print({name: tuple(tensor.shape) for name, tensor in recorded.items()}, OUT.stat().st_size, "bytes")
    print(recorded["resnet18.losses"])


if __name__ == "__main__":
    main()
