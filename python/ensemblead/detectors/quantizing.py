"""Networks to int8: what they see of some images is recorded, and their ranges are read from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from ensemblead.common.extras import require
from ensemblead.common.validation import whole_number
from ensemblead.common.warnings import ThresholdWarning, warn
from ensemblead.detectors.frozen import FrozenNetwork, share_networks
from ensemblead.detectors.parts import Progress, Tree
from ensemblead.detectors.running import scored_batches
from ensemblead.images import ImageSource, chosen_images, open_images
from ensemblead.networks.engines.engine import Part
from ensemblead.networks.engines.quantization import quantized

# Images that ranges are read from by default.
MAX_IMAGES = 100


def quantize(
    networks: Sequence[FrozenNetwork],
    images: Any,
    look: Callable[[ImageSource], None],
    max_images: Any,
    seed: Any,
) -> None:
    """Run networks in int8 from now on, quantized by what they see while `look` runs over images.

    Networks that compute the same become one, of all layers that any of them reads. All are quantized, or
    none. At most `max_images` images are drawn, and of what a network sees of them, as many.
    """
    limit, seed = whole_number("max_images", max_images, 1), whole_number("seed", seed, 0)
    require("openvino", "quantize")
    source = chosen_images(open_images(images), limit, seed)
    before = [one.network for one in networks]
    for one in networks:
        _check(one)
    try:
        for one in networks:
            one.replace(one.network.by_torch())
        share_networks(networks)
        groups: dict[Any, list[FrozenNetwork]] = {}
        for one in networks:
            groups.setdefault(one.network.key, []).append(one)
        samples = {key: _Sample(limit, seed) for key in groups}
        with ExitStack() as stack:
            for key, members in groups.items():
                stack.enter_context(members[0].network.extractor.recorded(samples[key].add))
            look(source)
        made = {key: _quantized(members, samples[key].widened()) for key, members in groups.items()}
    finally:
        for one, network in zip(networks, before, strict=True):
            one.replace(network)
    for key, members in groups.items():
        for one in members:
            one.quantize(made[key])


def quantize_and_score(
    detector: Tree,
    networks: Sequence[FrozenNetwork],
    images: Any,
    max_images: Any,
    seed: Any,
    errors: Any,
    progress: Progress | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `quantize`; the scores of the images before and after, `[N]` each.

    Where it fails, in int8 too, the networks are as they were.
    """
    seen: list[tuple[ImageSource, torch.Tensor]] = []

    def look(source: ImageSource) -> None:
        seen.append((source, _image_scores(detector, source, errors, progress, "quantize")))

    before = [(one, one.network, one.engine, one.precision) for one in networks]
    try:
        quantize(networks, images, look, max_images, seed)
        ((source, exact),) = seen
        return exact, _image_scores(detector, source, errors, progress, "predict")
    except BaseException:
        for one, network, engine, precision in before:
            one.replace(network)
            one.engine, one.precision = engine, precision
        raise


def _image_scores(
    detector: Tree, images: ImageSource, errors: Any, progress: Progress | None, stage: str
) -> torch.Tensor:
    batches = scored_batches(detector, images, errors, progress, stage)
    return torch.cat([detector._combine(detector._results(seen))[0] for _, seen in batches])


def warn_of_changes(detector: Tree, exact: torch.Tensor, found: torch.Tensor) -> None:
    """Say how many of the images that a detector was quantized with change their verdict by it."""
    is_anomalous = detector.calibration_.is_anomalous
    changed = int((is_anomalous(found) != is_anomalous(exact)).sum())
    if changed:
        warn(
            f"in int8 {changed} of the {len(exact)} images that quantize has seen are on the other side of "
            "the threshold, which was made in float32: call calibrate, or take precision='bfloat16'",
            ThresholdWarning,
        )


class _Sample:
    """A sample of all images that a network sees, each as likely, by Vitter's algorithm R.

    `widened` adds each mirrored at the mean colour. A defect goes beyond the values of normal images, where
    int8 cuts off; mirrored images widen the ranges. docs/design/engines.md has what that is worth.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self.images: list[torch.Tensor] = []
        self._limit, self._seen = limit, 0
        self._random = np.random.default_rng(seed)

    def add(self, batch: torch.Tensor) -> None:
        for image in torch.split(batch, 1):
            self._seen += 1
            if len(self.images) < self._limit:
                self.images.append(image.clone(memory_format=torch.contiguous_format))
            elif (place := int(self._random.integers(self._seen))) < self._limit:
                self.images[place] = image.clone(memory_format=torch.contiguous_format)

    def widened(self) -> list[torch.Tensor]:
        """The images, and each mirrored."""
        return [form for image in self.images for form in (image, -image)]


def _check(one: FrozenNetwork) -> None:
    network = one.network
    if network.device.type != "cpu":
        raise ValueError(f"quantize is for CPUs, and the network is on {network.device}; use device='cpu'")
    if network.dtype != torch.float32:
        raise ValueError(
            f"quantize needs networks in float32, but {network.extractor.name} is in "
            f"{network.extractor.precision}; give precision='float32', to ead.load too"
        )
    if one.compile:
        raise ValueError("quantize: compile=True goes with engine='torch', and int8 needs OpenVINO")


def _quantized(members: Sequence[FrozenNetwork], images: Sequence[torch.Tensor]) -> Any:
    layers = tuple(dict.fromkeys(layer for one in members for layer in one.network.layers))
    network = members[0].network
    whole = network.extractor.with_layers(layers)
    part = Part(whole.module, layers, whole.name, network.device, network.dtype, "float32")
    return quantized(part, images, whole.state_dict())
