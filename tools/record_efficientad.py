"""Record what anomalib's EfficientAD computes, for tests/detectors/test_efficientad.py.

    pip install anomalib==2.7.0      # in an environment of its own, beside this project
    PYTHONPATH=tests python tools/record_efficientad.py

Weights and images follow from a formula (tests/support/students.py), so only outputs are recorded: some of
the values of the networks, the three losses, and both maps.

The losses and maps are of images of 128 x 128 pixels, which are quicker. For them the autoencoder's last
convolution before its decoder has a kernel of 4, as ours has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anomalib.models.image.efficient_ad import torch_model
from safetensors.torch import save_file
from support.students import waves
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "tests" / "detectors" / "efficientad.safetensors"
SIZES = {"small": "S", "medium": "M"}
CHANNELS = 384
# Of images of a network alone, and of the losses; every how manieth value is kept.
SIDE, LOSS_SIDE, KEPT = 64, 128, 9973
ENCODER = {f"enconv{number}": f"encoder.{2 * number - 2}" for number in range(1, 7)}
DECODER = {f"deconv{number}": f"decoder.{number - 1}" for number in range(1, 7)}
AUTOENCODER = {**ENCODER, **DECODER, "deconv7": "smooth", "deconv8": "describe"}


def formula(name: str, shape: torch.Size) -> torch.Tensor:
    """What `support.students.fill` gives a tensor of that name."""
    values = waves(name, shape)
    return 0.1 * values if len(shape) == 1 else values * (6.0 / values[0].numel()) ** 0.5


@torch.no_grad()
def fill(module: nn.Module, role: str) -> None:
    """Weights by the formula, of the names that the tensors have here."""
    state = module.state_dict()
    for name, tensor in state.items():
        *_, layer, kind = name.split(".")
        if role == "autoencoder":
            tensor.copy_(formula(f"autoencoder.{AUTOENCODER[layer]}.{kind}", tensor.shape))
        elif role == "teacher":
            tensor.copy_(formula(name, tensor.shape))
        elif layer == max(
            name.split(".")[0] for name in state
        ):  # one for the teacher, one for the autoencoder
            half = torch.Size((CHANNELS, *tensor.shape[1:]))
            heads = [f"student.{head}.{kind}" for head in ("as_teacher", "as_autoencoder")]
            tensor.copy_(torch.cat([formula(head, half) for head in heads]))
        else:
            tensor.copy_(formula(f"student.body.{name}", tensor.shape))


def model_of(size: str, **options: Any) -> Any:
    model: Any = torch_model.EfficientAdModel(
        CHANNELS, torch_model.EfficientAdModelSize[SIZES[size]], **options
    ).eval()
    fill(model.teacher, "teacher")
    fill(model.student, "student")
    return model


def images(name: str, side: int) -> torch.Tensor:
    return (0.5 + 0.5 * waves(name, (1, 3, side, side))).float()


@torch.no_grad()
def record(size: str) -> dict[str, torch.Tensor]:
    found = {}
    for is_padded in (False, True):
        model = model_of(size, padding=is_padded)
        found[f"{size}.teacher.{is_padded}"] = model.teacher(images("image", SIDE)).flatten()[::197]
        if not is_padded:
            found[f"{size}.student"] = model.student(images("image", SIDE)).flatten()[::197]
    if size == "medium":
        return found
    model = model_of(size, pad_maps=False)
    fill(model.ae, "autoencoder")
    found["autoencoder"] = model.ae(images("image", 256), (256, 256)).flatten()[::KEPT]
    model.ae.encoder.enconv6 = nn.Conv2d(64, 64, 4)
    fill(model.ae, "autoencoder")
    model.mean_std["mean"].copy_(0.1 * waves("mean", (1, CHANNELS, 1, 1)))
    model.mean_std["std"].copy_(1.0 + 0.5 * waves("std", (1, CHANNELS, 1, 1)))
    image = images("image", LOSS_SIDE)
    model.choose_random_aug_image = lambda image: 0.9 * image
    output, distance = model.compute_student_teacher_distance(image)
    losses = model.compute_losses(image, images("penalty", LOSS_SIDE), distance)
    found["losses"] = torch.stack(losses)
    first, second = model.compute_maps(image, output, distance, normalize=False)
    found["maps"] = torch.cat([first, second])[:, 0, ::7, ::7]
    return found


def main() -> None:
    torch.set_num_threads(1)
    recorded = {**record("small"), **record("medium")}
    save_file({name: tensor.contiguous().clone() for name, tensor in recorded.items()}, OUT)
    print({name: tuple(tensor.shape) for name, tensor in recorded.items()}, OUT.stat().st_size, "bytes")
    print(recorded["losses"])


if __name__ == "__main__":
    main()
