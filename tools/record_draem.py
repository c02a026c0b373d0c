"""Record what anomalib's DRAEM computes, for tests/detectors/test_draem*.py.

    pip install anomalib==2.7.0      # in an environment of its own, beside this project
    PYTHONPATH=tests python tools/record_draem.py

Weights and images follow from a formula (tests/support/students.py), so only outputs are recorded: some of
the values of both networks, in eval and in train mode, the losses of three updates by Adam, and Perlin noise
of given directions. All is computed in float64, since batch norms of few values and Adam enlarge rounding.

Anomalib's second network sees the image before the reconstruction: of its first convolution the weights are
permuted. Its focal loss and the border of its SSIM differ from the authors', and are not taken.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from anomalib.data.utils.generators import perlin
from anomalib.models.image.draem.torch_model import DiscriminativeSubNetwork, ReconstructiveSubNetwork
from safetensors.torch import save_file
from support.students import fill, waves
from torch import nn
from torch.nn import functional

OUT = Path(__file__).resolve().parent.parent / "tests" / "detectors" / "draem.safetensors"
# Width, side of the images, every how manieth value is kept, updates.
WIDTH, SIDE, KEPT, UPDATES = 8, 64, 97, 3
CELLS = (4, 8)


def our_names(module: nn.Module, network: str) -> dict[str, str]:
    """What the tensors of anomalib's network are called in ours."""
    names = {}
    for name in module.state_dict():
        half, stage, *place, kind = name.split(".")
        if stage == "fin_out":
            names[name] = f"{network}.restore.{kind}"
            continue
        number = 0 if stage[-1] == "b" else int(stage[-1]) - 1
        if half.startswith("decoder") and network == "discriminate" and stage[-1] != "b":
            number += 1  # "up_b" comes before "up1"
        layer = int(place[0])
        if stage.startswith("up"):
            ours, layer = f"{network}.grow.{number}", layer - 1
        elif stage.startswith("db"):
            ours = f"{network}.decode.{number}.{layer // 3}"
        else:
            ours = f"{network}.encode.{number}.{layer // 3}"
        names[name] = f"{ours}.{'norm' if layer % 3 else 'convolution'}.{kind}"
    return names


def images(name: str) -> torch.Tensor:
    return waves(name, (2, 3, SIDE, SIDE)) / 2 + 0.5


def main() -> None:
    torch.set_num_threads(1)
    first = ReconstructiveSubNetwork(3, 3, WIDTH).double()
    second = DiscriminativeSubNetwork(6, 2, WIDTH // 2).double()
    fill(first, our_names(first, "reconstruct"))
    fill(second, our_names(second, "discriminate"))
    entrance = second.encoder_segment.block1[0].weight
    with torch.no_grad():
        entrance.copy_(entrance.roll(3, 1))

    def run(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        restored = first(batch)
        return restored, second(torch.cat([batch, restored], 1))

    recorded = {}
    for mode in ("eval", "train"):
        for network in (first, second):
            network.train(mode == "train")
        with torch.no_grad():
            outputs = run(images("image"))
        for kind, own in zip(("restored", "logits"), outputs, strict=True):
            recorded[f"{mode}.{kind}"] = own.flatten()[::KEPT].clone()
    fill(first, our_names(first, "reconstruct"))
    fill(second, our_names(second, "discriminate"))
    with torch.no_grad():
        entrance.copy_(entrance.roll(3, 1))
    adam = torch.optim.Adam(itertools.chain(first.parameters(), second.parameters()), 1e-4, fused=True)
    losses = []
    for step in range(UPDATES):
        batch = images(f"image {step}")
        restored, logits = run(batch)
        wanted = (batch[:, 0] > 0.5).long()
        loss = functional.mse_loss(restored, batch) + functional.cross_entropy(logits, wanted)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    recorded["losses"] = torch.stack(losses)
    turns = (waves("directions", (CELLS[0] + 1, CELLS[1] + 1)) / 2 + 0.5).float()
    perlin.torch.rand = lambda *_, **__: turns
    recorded["noise"] = perlin.generate_perlin_noise(SIDE, SIDE, CELLS, torch.device("cpu"))[::5, ::7].clone()
    save_file({name: tensor.float().contiguous() for name, tensor in recorded.items()}, OUT)
    print({name: tuple(tensor.shape) for name, tensor in recorded.items()}, OUT.stat().st_size, "bytes")
    print(recorded["losses"])


if __name__ == "__main__":
    main()
