"""Record what anomalib's FastFlow computes, for tests/detectors/test_fastflow.py.

    pip install anomalib==2.7.0      # in an environment of its own, beside this project
    PYTHONPATH=python:tests python tools/record_fastflow.py

Weights, permutations and feature maps follow from a formula (tests/support/students.py), so only outputs are
recorded: some of the latent values, log-determinants, the loss, the map, and the losses of five updates.
"""

from __future__ import annotations

from pathlib import Path

import torch
from anomalib.models.image.fastflow.anomaly_map import AnomalyMapGenerator
from anomalib.models.image.fastflow.loss import FastflowLoss
from anomalib.models.image.fastflow.torch_model import create_fast_flow_block
from safetensors.torch import save_file
from support.students import feature_maps, filled
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "tests" / "detectors" / "fastflow.safetensors"
# Of the layers; an odd number has halves that differ.
CHANNELS, GRID, STEPS, HIDDEN_RATIO = (8, 13, 16), 16, 8, 0.75
# Every how manieth latent value is kept, and updates.
KEPT, UPDATES = 37, 5
PARTS = {"global_scale": "scale", "global_offset": "offset", "subnet.0": "conv1", "subnet.2": "conv2"}


class FastFlow(nn.Module):
    """anomalib's norms and flows, without the frozen network."""

    def __init__(self, conv3x3_only: bool) -> None:
        super().__init__()
        shapes = [[own, GRID >> number, GRID >> number] for number, own in enumerate(CHANNELS)]
        self.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
        self.flows = nn.ModuleList(
            create_fast_flow_block(shape, conv3x3_only, HIDDEN_RATIO, STEPS) for shape in shapes
        )
        for number, (norm, flow) in enumerate(zip(self.norms, self.flows, strict=True)):
            fill(norm, flow, f"flows.{number}")

    def forward(self, maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        pairs = [flow(norm(own)) for norm, flow, own in zip(self.norms, self.flows, maps, strict=True)]
        return [latent for latent, _ in pairs], [determinants for _, determinants in pairs]


@torch.no_grad()
def fill(norm: nn.LayerNorm, flow: nn.Module, place: str) -> None:
    """Give a flow the weights that ours has by the formula."""
    channels, height, width = norm.weight.shape
    for name, parameter in norm.named_parameters():
        ours = filled(f"{place}.norm_{name}", (height, width, channels))
        parameter.copy_(ours.permute(2, 0, 1))
    for number, block in enumerate(flow.module_list):
        step = f"{place}.steps.{number}"
        matrix = torch.eye(channels)[filled(f"{step}.permutation", (channels,))]
        for name, parameter in block.named_parameters():
            if name.startswith("w_perm"):
                own = matrix if name == "w_perm" else matrix.T
            else:
                part = next(part for part in PARTS if name.startswith(part))
                shape = (channels,) if part.startswith("global") else parameter.shape
                own = filled(f"{step}.{PARTS[part]}{name.removeprefix(part)}", shape)
            parameter.copy_(own.reshape(parameter.shape))


def record(conv3x3_only: bool) -> dict[str, torch.Tensor]:
    network, maps = FastFlow(conv3x3_only), feature_maps(CHANNELS, GRID)
    with torch.no_grad():
        latents, determinants = network(maps)
    found = {f"latent{number}": latent.flatten()[::KEPT] for number, latent in enumerate(latents)}
    found["determinants"] = torch.stack(determinants)
    found["loss"] = FastflowLoss()(latents, determinants)
    found["map"] = AnomalyMapGenerator((64, 64))(latents)[:, 0, ::5, ::5]
    parameters = [one for one in network.parameters() if one.requires_grad]
    adam = torch.optim.Adam(parameters, 0.001, weight_decay=1e-5)
    losses = []
    for step in range(UPDATES):
        loss = FastflowLoss()(*network(feature_maps(CHANNELS, GRID, 4, step)))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    found["losses"] = torch.stack(losses)
    kind = "3x3" if conv3x3_only else "alternating"
    return {f"{kind}.{name}": tensor.contiguous().clone() for name, tensor in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    recorded = record(True) | record(False)
    save_file(recorded, OUT)
    print({name: tuple(tensor.shape) for name, tensor in recorded.items()}, OUT.stat().st_size, "bytes")
    print(recorded["3x3.losses"], recorded["3x3.determinants"], recorded["3x3.map"].flatten()[:5])


if __name__ == "__main__":
    main()
