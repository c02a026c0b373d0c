"""anomalib's trained detectors for bench_training.py: a program for the environment that has anomalib.

bench_training.py starts it and speaks with it in lines of JSON (answering.py). The first line says which
method to make. Then every line asks for some updates or predictions in a row, and the answer has the seconds
of each by the clock and of the process. An update is its LightningModule's `training_step` between the
transform of its pre-processor and its own optimizer. Its images lie decoded and resized in memory; a
prediction begins with a decoded photograph.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.models import Draem, EfficientAd, Fastflow, ReverseDistillation
from answering import answer_all
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2.functional import to_dtype, to_image

TEXTURES = 8


def reverse_distillation(task: dict[str, Any]) -> Any:
    model = ReverseDistillation(task["network"], pre_trained=False)
    load(model.model.encoder.feature_extractor, task["weights"])
    return model


def fastflow(task: dict[str, Any]) -> Any:
    model = Fastflow(task["network"], pre_trained=False, conv3x3_only=task["conv3x3_only"])
    load(model.model.feature_extractor, task["weights"])
    return model


def efficientad(task: dict[str, Any]) -> Any:
    """With a teacher that is not trained, since its weights are a download: they are as fast."""
    model = EfficientAd()
    # What its start of training finds or downloads: statistics of the teacher, and other images.
    channels = torch.ones(1, model.model.teacher_out_channels, 1, 1)
    model.model.mean_std.update({"mean": 0.0 * channels, "std": channels})
    model.imagenet_iterator = itertools.repeat((torch.rand(1, 3, 256, 256),))
    for name, value in {"qa_st": 0.0, "qb_st": 1.0, "qa_ae": 0.0, "qb_ae": 1.0}.items():
        model.model.quantiles[name].data.fill_(value)
    return model


def draem(task: dict[str, Any]) -> Any:
    """With textures that are drawn, since its own are a download."""
    folder = Path("textures")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(TEXTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return Draem(dtd_dir=folder.resolve())


METHODS = {
    "ReverseDistillation": reverse_distillation,
    "FastFlow": fastflow,
    "EfficientAD": efficientad,
    "DRAEM": draem,
}


def load(network: torch.nn.Module, weights: str) -> None:
    lacking, _ = network.load_state_dict(load_file(weights), strict=False)
    assert not [name for name in lacking if "num_batches_tracked" not in name], lacking


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    if isinstance(model, EfficientAd):  # its own method asks the trainer, for a schedule
        parameters = [*model.model.student.parameters(), *model.model.ae.parameters()]
        return torch.optim.Adam(parameters, model.lr, weight_decay=model.weight_decay)
    found: Any = model.configure_optimizers()
    return found[0][0] if isinstance(found, tuple) else found


class Training:
    """Updates and predictions of one model."""

    def __init__(self, model: Any, images: Any, photographs: Any, batch: int) -> None:
        self._model, self._batch = model, batch
        self._photographs = itertools.cycle(photographs)
        self._optimizer = optimizer_of(model)
        values = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._values = values.float().div_(255.0).contiguous()
        self._drawn = itertools.cycle(range(len(images)))
        # What validation would find; no time depends on the values.
        for name in ("image_min", "pixel_min"):
            getattr(model.post_processor, name).fill_(0.0)
        for name in ("image_max", "pixel_max"):
            getattr(model.post_processor, name).fill_(1.0)
        for name in ("_image_threshold", "_pixel_threshold"):
            getattr(model.post_processor, name).fill_(0.5)

    def update(self) -> None:
        self._model.train()
        items = [next(self._drawn) for _ in range(self._batch)]
        given = self._model.pre_processor.transform(self._values[items])
        loss = self._model.training_step(ImageBatch(image=given))["loss"]
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def predict(self) -> None:
        self._model.eval()
        image = to_dtype(to_image(next(self._photographs)), torch.float32, scale=True)
        with torch.inference_mode():
            self._model(image[None])


def start(task: dict[str, Any]) -> tuple[Any, Callable[[Any], list[list[float]]]]:
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    images, photographs = (np.load(task[name]) for name in ("images", "photographs"))
    training = Training(METHODS[task["method"]](task), images, photographs, task["batch"])

    def seconds_of(question: Any) -> list[list[float]]:
        name, count = question
        call = getattr(training, name)
        seconds = []
        for _ in range(count):
            begin = time.perf_counter(), time.process_time()
            call()
            seconds.append([time.perf_counter() - begin[0], time.process_time() - begin[1]])
        return seconds

    versions = {name: importlib.metadata.version(name) for name in ("anomalib", "torch")}
    return {"versions": versions}, seconds_of


if __name__ == "__main__":
    answer_all(start)
