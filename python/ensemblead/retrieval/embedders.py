"""Embedders: a vector per image, read off one layer of a frozen network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ensemblead import store
from ensemblead.common.validation import one_of, whole_number
from ensemblead.config.registry import describe, register
from ensemblead.detectors.frozen import FrozenNetwork, share_networks
from ensemblead.detectors.parts import Progress
from ensemblead.detectors.quantizing import MAX_IMAGES, quantize
from ensemblead.detectors.saving import arguments, open_network, plain_parameters
from ensemblead.detectors.text import constructor_text
from ensemblead.images import Geometry, ImageBatch, ImageSource, iterate_batches, open_images
from ensemblead.networks.network import FeaturePool, check_device, require_finite
from ensemblead.networks.transfer import HostCopy, is_asynchronous, verified
from ensemblead.networks.vectors import POOLINGS, Pooling
from ensemblead.retrieval.checks import zero_vectors
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

# Called with the position of an image among those given, and why it has no embedding.
OnError = Callable[[int, Exception], object]
Vectors = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

# What "gabor" puts out last: it has no classifier.
_GABOR_LAST = "layer3"


@register("Embedder")
class Embedder:
    """A frozen network that turns an image into a vector.

    The vector is not normalised: `EmbeddingEnsemble` and `ImageIndex` do that.

    Args:
        backbone: a name (timm, then torchvision), "gabor", or a `torch.nn.Module`.
        layer: None reads what the classifier reads, as timm's `forward_head(x, pre_logits=True)`; of
            "gabor", which has no classifier, the mean of its last layer. A name, as `named_modules` gives it,
            reads that layer and pools it. A file of weights may end at the layer.
        weights: "default" for the published ones, a path, a state dict, or None for random ones.
        pool: how a layer's grid of places becomes one vector. "avg": the mean. "max". "gem": the generalised
            mean `(mean x^3)^(1/3)` of values floored at 1e-6 (Radenovic, Tolias and Chum, 2018). "token": a
            transformer's class token. With `layer=None` the network pools by itself, and this must be "avg".
        resize: an int makes the shorter side that long, `(h, w)` is an exact size, None keeps the native one.
            "auto", which the images of a fit decide, is refused: images added later must be seen alike.
        image_size: side of the centre crop, or its `(h, w)`; None keeps everything.
        device, precision: as for detectors: "auto" is the GPU if there is one, and half precision there.
        batch_size: images per forward pass.
        seed: of random weights.
        compile: run the network through `torch.compile`, which gains little on a CPU.
        engine: what runs the network: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph" (on
            GPUs), or "auto": OpenVINO on a CPU where it is installed. For precision "int8" call `quantize`.

    Raises ValueError or TypeError for what is none of these; ValueError, at the first use, for a layer that
    does not exist, for weights that do not reach it, and for `layer=None` with a network whose classifier
    is not known; WeightsUnavailableError for published weights that cannot be had.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
        >>> embedder = ead.Embedder("gabor", layer="layer2", resize=None, image_size=None, device="cpu")
        >>> embedder.dim
        90
        >>> embedder.embed(images).shape
        (3, 90)
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        layer: str | None = None,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        pool: str = "avg",
        resize: int | tuple[int, int] | None = 256,
        image_size: int | tuple[int, int] | None = 224,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
    ) -> None:
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"layer must be a name or None, got {layer!r}")
        self.layer, self.pool = layer, one_of("pool", pool, POOLINGS)
        if layer is None and pool != "avg":
            raise ValueError(f"pool={pool!r} goes with a layer; with layer=None the network pools by itself")
        if isinstance(resize, str):
            raise ValueError(
                f"resize must be a whole number, a pair (h, w) or None, got {resize!r}: an embedder is not "
                "fitted, so that no images could decide it"
            )
        self.geometry = Geometry(resize, image_size)
        self.resize, self.image_size = resize, image_size
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed, 0)
        pooling: Pooling = self.pool  # type: ignore[assignment]
        self._frozen = FrozenNetwork(
            backbone,
            _layers(backbone, layer),
            weights=weights,
            device=device,
            precision=precision,
            compile=compile,
            seed=self.seed,
            pooling=pooling,
            engine=engine,
        )
        self.backbone, self.weights = self._frozen.backbone, self._frozen.weights
        self.device, self.compile = self._frozen.device, compile
        for name, size in (("image_size", self.geometry.crop), ("resize", self.geometry.resize)):
            if isinstance(size, tuple):
                self._frozen.check_size(size, name)
                break

    def __repr__(self) -> str:
        return constructor_text(self)

    @property
    def precision(self) -> str:
        """What the network computes in."""
        return self._frozen.precision

    @property
    def engine(self) -> str:
        """What runs the network."""
        return self._frozen.engine

    @property
    def dim(self) -> int:
        """Length of the vectors. The network is loaded to see."""
        extractor = self._frozen.network.extractor
        side = self.geometry.crop or self.geometry.resize or extractor.input_size or 224
        assert not isinstance(side, str)
        return extractor.channels(side)[0]

    def embed(self, images: Any, *, progress: Progress | None = None) -> Vectors:
        """Vectors float32 `[N, dim]` of N images: a folder, a list of paths, uint8 `[N, H, W, 3]`, or a torch
        Dataset.

        Args:
            progress: called with "embed", how many images are done, and how many there are.

        Raises UnreadableImageError or FileNotFoundError for the first image that cannot be read,
        NonFiniteFeaturesError where the network puts out NaN or infinity.
        """
        return np.concatenate([vectors for _, vectors in self.embed_batches(images, progress=progress)])

    def embed_batches(
        self, images: Any, *, on_error: OnError | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[Positions, Vectors]]:
        """The same batch by batch, in order; memory does not grow with the number of images.

        Args:
            on_error: called with the position and the error of every image that cannot be read or decoded,
                which is then left out. None: the error is raised.

        Yields positions int64 `[b]` in the given images, and vectors float32 `[b, dim]`.
        """
        batches = read_vectors([self], images, self.batch_size, on_error=on_error, progress=progress)
        return ((positions, vectors[0]) for positions, vectors in batches)

    def quantize(
        self,
        images: Any,
        *,
        max_images: int = MAX_IMAGES,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Run the network in int8 from now on; see `Detector.quantize`. Its vectors are others than before:
        embed all images again.
        """

        def look(source: ImageSource) -> None:
            for _ in self.embed_batches(source, progress=progress):
                pass

        quantize([self._frozen], images, look, max_images, seed)
        return self

    def describe(self) -> dict[str, Any]:
        """The embedder as plain values, from which `ead.create` makes one like it.

        Raises ValueError for what has no plain form: a module as backbone, a state dict as weights.
        """
        return describe(self)

    def save(self, folder: str | os.PathLike[str], include_backbone: bool = False) -> None:
        """Write the embedder to a folder, whole or not at all; `ead.load(folder)` reads it back.

        Args:
            include_backbone: store the weights of published networks and of weights files too. Others are
                stored anyway.
        """
        store.save(self, folder, include_backbone=include_backbone)

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`."""
        own = {name: value for name, value in arguments(self).items() if name not in ("backbone", "weights")}
        return {"parameters": own, "network": self._frozen.network.to_store(writer)}

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`."""
        with reader.as_damage():
            own, network = plain_parameters(reader.state["parameters"]), reader.state["network"]
            source = network["source"]
            stored, given = own.pop("device"), reader.options.get("device")
            embedder = cls(source.get("name", source["kind"]), weights=None, **own)
            expected = embedder._frozen.layers or tuple(network["layers"][:1])
            if network["layers"] != list(expected) or network.get("pooling") != embedder.pool:
                raise ValueError(
                    f"its network reads {network['layers']}, and its layer is {embedder.layer!r}"
                )
        # Apart from the rest: whether this machine has the device says nothing of the folder.
        embedder.device = check_device(stored if given is None else given)
        open_network(embedder, reader)
        return embedder


def _layers(backbone: Any, layer: str | None) -> tuple[str, ...] | None:
    if layer is None:
        return (_GABOR_LAST,) if isinstance(backbone, str) and backbone == "gabor" else None
    return (layer,)


def read_vectors(
    members: Sequence[Embedder],
    images: Any,
    batch_size: int,
    *,
    on_error: OnError | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Positions, list[Vectors]]]:
    """Positions int64 `[b]` and one float32 `[b, D_k]` per member, batch by batch.

    Every image is decoded once, and resized once per geometry. Members of one network and geometry share the
    forward pass.
    """
    source = open_images(images)
    if on_error is not None and not callable(on_error):
        raise TypeError(f"on_error must be a function or None, got {on_error!r}")
    return _read(members, source, batch_size, on_error, progress)


def _read(
    members: Sequence[Embedder],
    source: ImageSource,
    batch_size: int,
    on_error: OnError | None,
    progress: Progress | None,
) -> Iterator[tuple[Positions, list[Vectors]]]:
    share_networks([member._frozen for member in members])
    networks = [member._frozen.network for member in members]
    geometries = [member.geometry for member in members]
    pool = FeaturePool(list(zip(networks, geometries, strict=True)))
    pinned = any(is_asynchronous(network.device) for network in networks)

    def see(batch: ImageBatch) -> list[torch.Tensor]:
        vectors = []
        with pool.batch(batch.images) as features:
            for network, geometry in zip(networks, geometries, strict=True):
                vector = features(network, geometry)[0].float()
                require_finite(vector, network.extractor)
                vectors.append(vector)
        return vectors

    done = 0
    with iterate_batches(
        source, geometries, batch_size, errors=on_error or "raise", pin_memory=pinned
    ) as batches:
        for batch, vectors in verified(batches, see):
            yield np.array(batch.indices, dtype=np.int64), HostCopy(vectors).wait()
            done += len(batch)
            if progress is not None:
                progress("embed", done + len(batches.skipped), len(source))
        if progress is not None and batches.skipped:
            progress("embed", len(source), len(source))  # the last images may be among those left out


def nonzero(
    batches: Iterator[tuple[Positions, list[Vectors]]],
    on_error: OnError | None,
    jointly: Sequence[int] | None = None,
) -> Iterator[tuple[Positions, list[Vectors]]]:
    """Batches of `read_vectors` without the images of which a member gives zeros: those have no direction.

    Each goes to `on_error` as a ValueError; None: it is raised. `jointly`: only those images are left out of
    which all these members give zeros.
    """
    for positions, vectors in batches:
        usable = np.ones(len(positions), dtype=bool)
        if jointly is None:
            parts = {f"members[{k}]": one for k, one in enumerate(vectors)}
        else:
            parts = {"the weighted concatenation": np.hstack([vectors[k] for k in jointly])}
        for what, one in parts.items():
            for row in np.flatnonzero(usable & ~one.any(axis=1)):
                error = zero_vectors(what, [positions[row]])
                if on_error is None:
                    raise error
                on_error(int(positions[row]), error)
                usable[row] = False
        if usable.all():
            yield positions, vectors
        elif usable.any():
            yield positions[usable], [one[usable] for one in vectors]
