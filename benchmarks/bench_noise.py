"""How far the features of one image depend on the batch that it comes in.

    python benchmarks/bench_noise.py --data FOLDER --weights FOLDER [--dtype float32] [--side 64] [--kernels]

16 photographs pass through each network in one batch, and again in batches of 15, 4, 3 and 1. Printed is the
largest Euclidean distance between the two feature vectors of a position, relative to the root mean square
norm of the layer's feature vectors (and to the vector's own norm, where that is a tenth of it or more).
Torch and oneDNN choose their kernels by the size of the whole batch and by the instruction set: run it again
under ONEDNN_MAX_CPU_ISA=AVX2. With --kernels the batch stays and the kernels change: the other memory layout,
and torch without oneDNN.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ensemblead.networks import FeatureExtractor
from ensemblead.networks.network import Network

LAYERS = {
    "resnet18": ("layer1", "layer2", "layer3"),
    "densenet169": ("features.denseblock1", "features.denseblock2", "features.denseblock3"),
    "squeezenet1_1": ("features.3", "features.5", "features.8"),
    "efficientnet_lite0": ("blocks.1", "blocks.2", "blocks.4"),
}
IMAGES, BATCHES = 16, (15, 4, 3, 1)


def photographs(folder: Path, side: int) -> torch.Tensor:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    chosen = paths[:: max(1, len(paths) // IMAGES)][:IMAGES]
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in chosen]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


Maps = list[torch.Tensor]


def by_batches(network: Network, pixels: torch.Tensor) -> Iterator[Maps]:
    """The layers' maps of all images, from batches of one size after the other."""
    extractor = network.extractor
    for size in (len(pixels), *BATCHES):
        parts = [extractor(extractor.normalize(part)) for part in pixels.split(size)]
        yield [torch.cat(layer) for layer in zip(*parts, strict=True)]


def by_kernels(network: Network, pixels: torch.Tensor) -> Iterator[Maps]:
    """The same by one kind of kernel after the other."""
    extractor = network.extractor.run_by("eager")
    for channels_last, onednn in ((True, True), (False, True), (True, False)):
        extractor.to("cpu", channels_last=channels_last)
        with torch.backends.mkldnn.flags(enabled=onednn):
            yield extractor(extractor.normalize(pixels))


def noise(results: Iterator[Maps]) -> tuple[float, float]:
    """The largest distance to the first result relative to the layer's norm, and to the vector's own."""
    whole = [maps.double() for maps in next(results)]
    largest, own = 0.0, 0.0
    for result in results:
        for found, reference in zip(result, whole, strict=True):
            distances = torch.linalg.vector_norm(found.double() - reference, dim=1)
            norms = torch.linalg.vector_norm(reference, dim=1)
            scale = float(norms.square().mean().sqrt())
            largest = max(largest, float(distances.max()) / scale)
            long = norms >= 0.1 * scale
            own = max(own, float((distances[long] / norms[long]).max()))
    return largest, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--side", nargs="*", type=int, default=[64, 128, 224])
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA', 'default')}")
    for name, layers in LAYERS.items():
        for dtype in options.dtype:
            extractor = FeatureExtractor(name, layers, weights=options.weights / f"{name}.safetensors")
            network = Network(extractor, "cpu", dtype)
            for side in options.side:
                results = by_kernels if options.kernels else by_batches
                largest, own = noise(results(network, photographs(options.data, side)))
                print(
                    f"{name:18} {dtype:8} {side:3} px: {largest:.1e} of the layer's norm, {own:.1e} of the "
                    "vector's own",
                    flush=True,
                )


if __name__ == "__main__":
    main()
