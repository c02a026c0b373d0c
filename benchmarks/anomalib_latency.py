"""anomalib's PatchCore for bench_latency.py: a program for the environment that has anomalib.

bench_latency.py starts it, and speaks with it in lines of JSON. The first line says what to make, the answer
what there is. Then every line asks for some calls in a row, and the answer has the seconds of each.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from anomalib.deploy import OpenVINOInferencer
from anomalib.models import Patchcore
from answering import answer_all, seconds_of_calls
from safetensors.torch import load_file
from torchvision.transforms.v2.functional import to_dtype, to_image

LAYERS = ("layer2", "layer3")
Predict = Callable[[Any], Any]


def fitted(task: dict[str, Any], images: Any) -> Patchcore:
    """A PatchCore with a bank of so many rows, with anomalib's settings but for that.

    They are drawn: its greedy selection took 20 GB for WideResNet50's rows, and no time depends on them.
    """
    model = Patchcore(task["network"], LAYERS, pre_trained=False)
    lacking, _ = model.model.feature_extractor.feature_extractor.load_state_dict(
        load_file(task["weights"]), strict=False
    )
    assert not [name for name in lacking if "num_batches_tracked" not in name], lacking
    model.model.train()
    with torch.no_grad():  # as in the validation in which anomalib fits
        for image in images:
            model.model(model.pre_processor.transform(tensor_of(image)[None]))
    known = torch.vstack(model.model.embedding_store)
    model.model.embedding_store.clear()
    model.model.memory_bank = known[torch.randperm(len(known))[: task["rows"]]]
    assert len(model.model.memory_bank) == task["rows"], len(known)
    model.eval()
    # What validation would find; its time does not depend on the values.
    for name, value in (("min", 0.0), ("max", 100.0)):
        getattr(model.post_processor, f"image_{name}").fill_(value)
        getattr(model.post_processor, f"pixel_{name}").fill_(value)
    model.post_processor._image_threshold.fill_(50.0)
    model.post_processor._pixel_threshold.fill_(50.0)
    return model


def tensor_of(image: Any) -> torch.Tensor:
    """An image uint8 `[H, W, 3]` as anomalib's TorchInferencer takes it to its model."""
    return to_dtype(to_image(image), torch.float32, scale=True)


def candidates(model: Patchcore, folder: Path, image: Any, threads: int) -> dict[str, Predict]:
    """All ways to predict an image uint8 `[H, W, 3]`, by name."""
    # Of one image: by default its export of this model takes two, and no other number.
    path = model.to_onnx(folder, input_size=image.shape[:2], dynamic_axes=None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name

    def by_torch(image: Any) -> Any:
        with torch.inference_mode():
            return model(tensor_of(image)[None])

    found = {
        "torch float32": by_torch,
        "ONNX export float32": lambda image: session.run(
            None, {given: OpenVINOInferencer.pre_process(image)}
        ),
    }
    # Its own conversion makes this model from that file, and reports its use to OpenVINO's makers besides.
    openvino.save_model(openvino.Core().read_model(path), folder / "model.xml", compress_to_fp16=False)
    hints = {"float32": {"INFERENCE_PRECISION_HINT": "f32"}, "as OpenVINO chooses": {}}
    for name, hint in hints.items():
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **hint}
        inferencer = OpenVINOInferencer(folder / "model.xml", "CPU", config)
        found[f"OpenVINO export {name}"] = partial(by_openvino, inferencer)
    return found


def by_openvino(inferencer: OpenVINOInferencer, image: Any) -> Any:
    """As its `predict`, up to the batch that this makes of the outputs, whose names it may mistake."""
    given = inferencer.pre_process(image)
    return inferencer.model({inferencer.input_blob.any_name: given}).to_tuple()


def start(task: dict[str, Any]) -> tuple[Any, Callable[[Any], list[float]]]:
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    images = np.load(task["images"])
    model = fitted(task, images)
    known = candidates(model, Path.cwd(), images[0], task["threads"])
    for predict in known.values():
        predict(images[0])

    def seconds_of(question: Any) -> list[float]:
        name, count = question
        return seconds_of_calls(known[name], images, count)

    names = ("anomalib", "torch", "onnxruntime", "openvino")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"candidates": list(known), "versions": versions}, seconds_of


if __name__ == "__main__":
    answer_all(start)
