"""Embedding ensembles: the vectors of several networks joined to one, by weights or by what was learned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblead import store
from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import one_of, whole_number
from ensemblead.config.registry import describe, register
from ensemblead.detectors.frozen import per_member
from ensemblead.detectors.parts import Progress
from ensemblead.detectors.text import constructor_text
from ensemblead.images import open_images
from ensemblead.retrieval.checks import Label, Matrix, are_embeddings, check_embeddings
from ensemblead.retrieval.embedders import Embedder, OnError, Positions, Vectors, nonzero, read_vectors
from ensemblead.retrieval.joining import Learned, concatenated
from ensemblead.retrieval.learning import DIMS, MODES, TRAINED, check_start, learn
from ensemblead.retrieval.training import Training
from ensemblead.store import FolderReader, FolderWriter, load_state, save_state

if TYPE_CHECKING:
    from typing_extensions import Self

_NORMALIZE = ("each", "joint")


@register("EmbeddingEnsemble")
class EmbeddingEnsemble:
    """Several networks' vectors of an image, joined to one of length 1.

    With `x_k` the vector of network k, the embedding is

    - mode "concat": `L2(concat_k w_k x_k / |x_k|)`, or with `normalize="joint"` `L2(concat_k w_k x_k)`;
    - "fusion": `L2(W z + b)`, trained on labels;
    - "project": the same with one matrix per network, whose outputs are concatenated;
    - "ratios": `L2(concat_k w_k z_k)`, w trained on labels;
    - "whiten": the first principal components of z, each divided by its standard deviation; no labels;
    - "lda": linear discriminant analysis of z, in closed form.

    `z_k` is `x_k`, standardised per dimension by the images of `fit`, then of length 1, and z their
    concatenation. Losses are those of pytorch-metric-learning, the extra `retrieval`: "supcon" (Khosla et
    al., 2020), "proxy_anchor" (Kim et al., 2020), "softmax" (normalised: Zhai and Wu, 2019).

    Args:
        members: embedders. Each image is decoded once for all of them.
        mode: one of the above.
        weights: of "concat", one per member, not negative, as `search_weights(...).best.weights`
            has them; None: all equal.
        normalize: of "concat": "each" or "joint".
        dim: length of the embedding. None: 512 of "fusion" and "project" (which splits it evenly, remainder
            to the first), 64 of "whiten", one less than there are classes of "lda". "concat" and "ratios"
            have the sum of the members'.
        seed: of training.

    Attributes, once fitted: `scaler_`, per network mean and standard deviation float64 `[D_k]`. `weights_`,
    the matrix `[dim, D]`, of "project" a list of one per network, of "ratios" and "concat" `[K]`. `classes_`,
    the labels. `history_`, per epoch a dict of `epoch`, `loss` and, with a validation part,
    `validation_map`. `best_epoch_`, from 1.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        >>> images[::2] //= 4
        >>> common = {"resize": None, "image_size": None, "device": "cpu"}
        >>> members = [ead.Embedder("gabor", layer=layer, **common) for layer in ("layer1", "layer2")]
        >>> ead.EmbeddingEnsemble(members, weights=(1, 2)).embed(images).shape
        (12, 132)
        >>> ensemble = ead.EmbeddingEnsemble(members, mode="lda").fit(images, ["dark", "bright"] * 6)
        >>> ensemble.embed(images).shape
        (12, 1)
    """

    def __init__(
        self,
        members: Sequence[Embedder],
        *,
        mode: str = "concat",
        weights: Sequence[float] | None = None,
        normalize: str = "each",
        dim: int | None = None,
        seed: int = 0,
    ) -> None:
        self.members = list(members)
        if not self.members:
            raise ValueError("members must not be empty")
        for i, member in enumerate(self.members):
            if not isinstance(member, Embedder):
                raise TypeError(f"members[{i}] must be an Embedder, got {type(member).__name__}")
        self.mode = one_of("mode", mode, ("concat", *MODES))
        self.normalize = one_of("normalize", normalize, _NORMALIZE)
        if mode != "concat" and (weights is not None or normalize != "each"):
            what = "normalize" if weights is None else "weights"
            raise ValueError(f"{what} goes with mode 'concat', got mode {mode!r}")
        self.weights = None if weights is None else _checked_weights(weights, len(self.members))
        self._dim = None if dim is None else whole_number("dim", dim, 1)
        if dim is not None and mode in ("concat", "ratios"):
            raise ValueError(f"dim follows from the members in mode {mode!r}, got {dim}")
        if mode == "project" and self._given_dim < len(self.members):
            raise ValueError(f"dim must be at least 1 per member ({len(self.members)}), got {dim}")
        self.seed = whole_number("seed", seed, 0)
        self.batch_size = min(member.batch_size for member in self.members)
        self._learned: Learned | None = None

    def __repr__(self) -> str:
        return constructor_text(self) + ("" if self.is_fitted else ", not fitted")

    @property
    def is_fitted(self) -> bool:
        """Whether `embed` can be called; mode "concat" needs no fit."""
        return self.mode == "concat" or self._learned is not None

    @property
    def dim(self) -> int:
        """Length of the embeddings. Raises ValueError where only a fit decides it."""
        if self._learned is not None:
            return self._learned.dim
        if self.mode in ("concat", "ratios"):
            return sum(member.dim for member in self.members)
        if self.mode == "lda" and self._dim is None:
            raise ValueError("dim: in mode 'lda' it follows from the labels; call fit first, or give dim")
        return self._given_dim

    @property
    def scaler_(self) -> list[tuple[Any, Any]]:
        return [(scaler.mean, scaler.std) for scaler in self._require_fitted("scaler_").scalers]

    @property
    def weights_(self) -> Any:
        if self.mode == "concat":
            return np.array(self._concat_weights())
        maps = [one.numpy() for one in self._require_fitted("weights_").maps]
        return maps if self.mode == "project" else maps[0]

    @property
    def classes_(self) -> tuple[Label, ...]:
        return self._require_fitted("classes_").classes

    @property
    def history_(self) -> list[dict[str, float]]:
        learned = self._require_fitted("history_")
        history: list[dict[str, float]] = [
            {"epoch": epoch, "loss": loss} for epoch, loss in enumerate(learned.losses, 1)
        ]
        for entry, value in zip(history, learned.validation_maps, strict=False):
            entry["validation_map"] = value
        return history

    @property
    def best_epoch_(self) -> int:
        return self._require_fitted("best_epoch_").best_epoch

    def fit(
        self,
        images_or_embeddings: Any,
        labels: Any = None,
        *,
        loss: str = "supcon",
        epochs: int = 30,
        learning_rate: float = 1e-3,
        validation: float = 0.2,
        patience: int = 3,
        balanced: bool = False,
        batch_size: int = 128,
        refit: bool = True,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn how to join. A fit that fails or is interrupted leaves the ensemble as it was.

        Args:
            images_or_embeddings: images, in any form that `embed` takes, or a list of arrays `[N, D_k]`, one
                per member, as their `embed` gives them.
            labels: one string or whole number per image; mode "whiten" needs none.
            loss: "supcon" (needs two images of every class), "proxy_anchor" or "softmax".
            epochs, learning_rate, batch_size: of AdamW; ratios learn a hundred times as fast.
            validation: the share of every class whose mAP at 50, searched for among all images, decides
                when to stop; 0 runs all epochs.
            patience: epochs without a better validation mAP after which training stops.
            balanced: batches of as many images of each class, at least four, instead of natural ones.
            refit: train anew on all images, for as many epochs as were best; else keep the trained weights.
            on_error: as for `embed_batches`; the labels of images left out are left out too.
            progress: called with "embed", "train" or "refit", how much is done, and how much there is.

        With equal images, labels and seed, on one machine with as many threads, weights are equal to the bit.

        Raises ValueError for labels of one class or another number, classes too small for the loss, vectors
        of zeros or other dimensions, values that are not finite, and a `dim` larger than the mode can have;
        NonFiniteLossError for a training that diverges.
        """
        if self.mode == "concat":
            raise ValueError("mode 'concat' has nothing to fit; its weights come from search_weights")
        settings = Training(loss, epochs, learning_rate, validation, patience, balanced, batch_size, refit)
        if self.mode not in TRAINED and settings != Training():
            names = (one.name for one in fields(Training) if getattr(settings, one.name) != one.default)
            raise ValueError(f"{next(names)} goes with training, and mode {self.mode!r} has none")
        if labels is None and self.mode != "whiten":
            raise ValueError(f"labels must be given: mode {self.mode!r} learns from them")
        if are_embeddings(images_or_embeddings):
            vectors = check_embeddings(images_or_embeddings, len(self.members))
        else:
            source = open_images(images_or_embeddings)
            check_start(self.mode, labels, len(source), settings)  # before hours of reading
            positions, vectors = self._read(source, on_error, progress)
            if labels is not None:
                own = list(labels)
                labels = [own[place] for place in positions]
        self._learned = learn(
            self.mode,
            vectors,
            labels,
            settings,
            dim=self._dim,
            seed=self.seed,
            device=self.members[0].device,
            progress=progress,
        )
        return self

    def embed(self, images: Any, *, progress: Progress | None = None) -> Vectors:
        """Embeddings float32 `[N, dim]`, of length 1; arguments and errors as `Embedder.embed`.

        Raises ValueError, naming the image, for a member's vector of zeros as well; under
        `normalize="joint"` only where all members that have a weight give zeros.
        """
        return np.concatenate([vectors for _, vectors in self.embed_batches(images, progress=progress)])

    def embed_batches(
        self, images: Any, *, on_error: OnError | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[Positions, Vectors]]:
        """The same batch by batch, in order; arguments and results as `Embedder.embed_batches`. An image that
        has no direction by `embed` goes to `on_error` too.
        """
        self._require_ready()
        batches = self._usable(images, on_error, progress)
        return ((positions, self._join(vectors)) for positions, vectors in batches)

    def combine(self, embeddings: Sequence[Matrix]) -> Vectors:
        """Embeddings float32 `[N, dim]` from the members' own: a list of arrays `[N, D_k]`.

        Raises ValueError, naming positions, for vectors of zeros and values that are not finite, and for
        dimensions other than those that were learned; NotFittedError before a fit.
        """
        self._require_ready()
        return self._join(check_embeddings(embeddings, len(self.members), zeros=self._takes_zeros))

    def describe(self) -> dict[str, Any]:
        """The ensemble as plain values, from which `ead.create` makes an unfitted one like it."""
        return describe(self)

    def save(self, folder: str | os.PathLike[str], include_backbone: bool = False) -> None:
        """Write the fitted ensemble to a folder, as `Embedder.save`; `ead.load(folder)` reads it back."""
        self._require_ready()
        store.save(self, folder, include_backbone=include_backbone)

    def constructor_arguments(self) -> dict[str, Any]:
        """For `describe`: `dim` as it was given."""
        return {"dim": self._dim}

    # Inside

    @property
    def _given_dim(self) -> int:
        return DIMS.get(self.mode, 0) if self._dim is None else self._dim

    @property
    def _takes_zeros(self) -> bool:
        """Whether one network's vector may be zero, if others' are not."""
        return self.mode == "concat" and self.normalize == "joint"

    def _concat_weights(self) -> tuple[float, ...]:
        return (1.0,) * len(self.members) if self.weights is None else self.weights

    def _require_fitted(self, what: str) -> Learned:
        if self._learned is None:
            need = "has none" if self.mode == "concat" else "is not fitted; call fit first"
            raise NotFittedError(f"{what}: this EmbeddingEnsemble of mode {self.mode!r} {need}")
        return self._learned

    def _require_ready(self) -> None:
        if self.mode != "concat":
            self._require_fitted("embed")

    def _join(self, vectors: Sequence[Matrix]) -> Vectors:
        if self._learned is None:
            return concatenated(vectors, self._concat_weights(), self.normalize)
        return self._learned.join(vectors)

    def _usable(
        self, images: Any, on_error: OnError | None, progress: Progress | None
    ) -> Iterator[tuple[Positions, list[Vectors]]]:
        """The members' vectors, batch by batch, without images that have no direction."""
        options: Any = {"on_error": on_error, "progress": progress}
        batches = read_vectors(self.members, images, self.batch_size, **options)
        counted = [k for k, weight in enumerate(self._concat_weights()) if weight > 0]
        return nonzero(batches, on_error, counted if self._takes_zeros else None)

    def _read(
        self, images: Any, on_error: OnError | None, progress: Progress | None
    ) -> tuple[Positions, list[Matrix]]:
        read = list(self._usable(images, on_error, progress))
        if not read:
            raise ValueError("images: none of the images can be read")
        parts = zip(*(vectors for _, vectors in read), strict=True)
        return np.concatenate([positions for positions, _ in read]), [np.concatenate(one) for one in parts]

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`."""
        for i, member in enumerate(self.members):
            writer.child(f"member{i}", member)
        return {
            "members": len(self.members),
            "mode": self.mode,
            "weights": None if self.weights is None else list(self.weights),
            "normalize": self.normalize,
            "dim": self._dim,
            "seed": self.seed,
            "learned": None
            if self._learned is None
            else save_state(writer, "learned", self._learned, Learned),
        }

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`; there, `weights` and `backbone` are one per member (None: as stored)."""
        state, names = reader.state, ("mode", "weights", "normalize", "dim", "seed")
        count, learned = state["members"], state["learned"]
        own = {name: state[name] for name in names}
        with reader.as_damage():
            # Before room is made for so many.
            held = type(count) is int and reader.has(f"member{count - 1}")
            if not held or reader.has(f"member{count}"):
                raise ValueError(f"it states {count} members, but holds others")
        given = {name: per_member(name, reader.options.get(name), count) for name in ("weights", "backbone")}
        members = [
            reader.child(f"member{i}", **{name: values[i] for name, values in given.items()})
            for i in range(count)
        ]
        with reader.as_damage():
            ensemble = cls(members, **own)
            if (learned is None) != (ensemble.mode == "concat"):
                raise ValueError(f"learned must be there, and for mode 'concat' null; got {learned!r}")
            if learned is not None:
                ensemble._learned = load_state(reader, "learned", learned, Learned)
                if len(ensemble._learned.dims) != count:
                    raise ValueError(f"learned is of {len(ensemble._learned.dims)} networks, not of {count}")
        return ensemble


def _checked_weights(given: Any, members: int) -> tuple[float, ...]:
    try:
        weights = tuple(float(one) for one in given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"weights must be numbers, one per member, got {given!r}") from error
    if len(weights) != members:
        raise ValueError(f"weights must be one per member ({members}), got {len(weights)}")
    if not all(0 <= one < float("inf") for one in weights) or not any(weights):
        raise ValueError(f"weights must be finite, not negative and not all zero, got {weights}")
    return weights
