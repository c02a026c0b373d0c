"""PatchCore: distance of every patch to a memory bank of normal patches.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ensemblead.common.validation import whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.method import Accumulator, Fitted, Method, NormalSample, Run, Scores, Seen
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.memory import MemoryBank, start_rows
from ensemblead.memory.state import BankState
from ensemblead.networks.noise import moved_distance, relative_noise
from ensemblead.store import FolderReader

_SCORES = ("max", "reweighted", "topk")
_AGGREGATIONS = ("adaptive", "concat")
_TOP_SHARE = 0.01
# With fewer rows in the bank than this, leave-one-out thresholds lie far above fresh images' scores. It is
# their number that matters, from however many images they come; docs/design/thresholds.md has the figures.
_FEW_ROWS = 50


@register("PatchCore")
class PatchCore(Method):
    """Memory bank of normal patch embeddings; an image is as anomalous as its strangest patch.

    Args:
        backbone: a network's name (timm, torchvision, "gabor") or a `torch.nn.Module`.
        layers: names of its layers; the first sets the grid of patches. "auto": the last ones of strides 8
            and 16 (of a ResNet layer2 and layer3), of a transformer blocks at 1/2 and 3/4 of its depth.
            `ensemblead layers NAME` lists them. A module has no "auto".
        weights: "default" | None | path | state dict; see `FeatureExtractor`.
        image_size: centre crop of the resized image: int = square, `(h, w)`, or None for no crop.
        resize: "auto": the whole image at 256 x 256 pixels, or, where the training images' median aspect
        ratio
            is beyond 1.5, about as many pixels in that ratio; settled by `fit` and saved. int = shorter side,
            `(h, w)` = exact, None = native.
        patch_size: side of a patch's neighbourhood in its feature map, odd.
        pretrain_dim: values each layer is pooled to: int, one per layer, or "auto": a layer of fewer than 512
            channels to their number, any other to 1024.
        target_dim: length of an embedding (with "auto", at most what the layers give).
        aggregation: "adaptive" (the paper's implementation) or "concat" (averaged neighbourhoods, channels as
            they are).
        coreset_fraction, index: see `MemoryBank`. A bank of fewer than 50 rows gives `fit` a threshold that
            is too high for many defects, and it warns; `calibrate` does not depend on that.
        num_neighbors: a patch's distance is the mean over so many nearest bank rows.
        score: "topk": *squared* L2 distances, the image's score is the mean over the largest 1 % (at least
            one). "max": squared distances, the largest one (the reference implementation). "reweighted": L2
            distances, the largest one weighted by how alone its nearest bank row is (the paper's eq. 7).
        reweight_neighbors: bank rows around the nearest one that "reweighted" looks at, itself included.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the network: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU (bfloat16 where its tensor cores have it, else float16). Embeddings and all that is done with
            them are float32.
        batch_size: images per forward pass.
        seed: of everything random.
        compile: run the network through `torch.compile`. The first batch then takes long; where it cannot be
            done, a CompilationError at that batch says why.

    Attributes: `memory_bank_`, `calibration_`, `threshold_` after `fit`; `network_`, the extractor, once it
    is needed.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (13, 64, 64, 3), dtype=np.uint8)
        >>> images[12, 20:40, 20:40] = 200
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... )
        >>> found = detector.fit(images[:12]).predict(images[12:])
        >>> found.anomaly_score.shape, found.anomaly_map.shape, found.is_anomalous
        ((1,), (1, 64, 64), array([ True]))
    """

    State = BankState

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = "auto",
        patch_size: int = 3,
        pretrain_dim: int | Sequence[int] | Literal["auto"] = "auto",
        target_dim: int = 1024,
        aggregation: Literal["adaptive", "concat"] = "adaptive",
        coreset_fraction: float = 0.01,
        num_neighbors: int = 1,
        score: Literal["max", "reweighted", "topk"] = "topk",
        reweight_neighbors: int = 9,
        index: str = "flat",
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__(locals())
        patch_size = whole_number("patch_size", patch_size)
        if patch_size < 1 or patch_size % 2 == 0:
            raise ValueError(f"patch_size must be odd and positive, got {patch_size}")
        if aggregation not in _AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(_AGGREGATIONS)}, got {aggregation!r}")
        if score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(_SCORES)}, got {score!r}")
        self.patch_size, self.aggregation = patch_size, aggregation
        self.target_dim = whole_number("target_dim", target_dim, 1)
        self.pretrain_dim = _check_pretrain_dim(pretrain_dim, len(self.layers))
        self.coreset_fraction, self.index = float(coreset_fraction), index
        self.num_neighbors = whole_number("num_neighbors", num_neighbors, 1)
        self.score = score
        self.reweight_neighbors = whole_number("reweight_neighbors", reweight_neighbors, 1)
        self.new_bank()  # checks its own parameters

    @property
    def memory_bank_(self) -> MemoryBank:
        """The fitted bank; its rows are the embeddings of normal patches."""
        bank: MemoryBank = self.state_
        return bank

    @property
    def learned_(self) -> dict[str, int]:
        bank = self.memory_bank_
        return {"bank_rows": len(bank), "dimensions": int(bank.rows_.shape[1])}

    @property
    def extending_lowers_scores(self) -> bool:
        return self.score != "reweighted"  # distances only fall, but the weight may grow

    def new_bank(self) -> MemoryBank:
        """An empty bank of this detector's parameters."""
        return MemoryBank(
            self.coreset_fraction, index=self.index, num_neighbors=self.num_neighbors, seed=self.seed
        )

    # The method

    def embed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        given = self.pretrain_dim
        embedded: torch.Tensor = aggregate_patches(
            feature_maps,
            patch_size=self.patch_size,
            pretrain_dim=list(given) if isinstance(given, tuple) else given,
            target_dim=self.target_dim,
            mode=self.aggregation,
        )
        return embedded

    def start(self, state: MemoryBank | None = None) -> Accumulator:
        return BankAccumulator(self, self.new_bank() if state is None else state.copy())

    def scores(self, state: MemoryBank, seen: Seen) -> Scores:
        return self.patch_scores(state, seen.embeddings)

    def patch_scores(
        self, bank: MemoryBank, patches: torch.Tensor, exclude_images: Sequence[int] | None = None
    ) -> Scores:
        """Scores of embeddings `[B, h, w, D]`, each without the bank rows of its own number among
        `exclude_images`.
        """
        images, height, width, dims = patches.shape
        queries = patches.reshape(-1, dims)
        own = None if exclude_images is None else np.repeat(exclude_images, height * width)
        distances, found = bank.search(queries, exclude_image=own)
        if self.score == "reweighted":
            distances = distances.sqrt()
        per_patch = distances.mean(1).view(images, -1)
        grids = per_patch.view(images, height, width)
        if self.score == "topk":
            count = max(1, int(per_patch.shape[1] * _TOP_SHARE))
            return Scores(grids, per_patch.topk(count, dim=1).values.mean(1))
        largest, place = per_patch.max(1)
        if self.score == "max":
            return Scores(grids, largest)
        # The strangest patch of every image, and the bank row nearest to it.
        strangest = torch.arange(images, device=place.device) * per_patch.shape[1] + place
        weight = self._reweighting(bank, queries[strangest], found[strangest, 0], exclude_images)
        return Scores(grids, largest * weight)

    def _reweighting(
        self,
        bank: MemoryBank,
        patches: torch.Tensor,
        winners: torch.Tensor,
        exclude_images: Sequence[int] | None,
    ) -> torch.Tensor:
        """`1 - softmax(distances)[0]` over a patch's distances to the bank rows around its winning one."""
        available = min([len(bank), *map(bank.rows_without, exclude_images or ())])
        count = min(self.reweight_neighbors, available)
        if count == 1:
            return torch.ones(len(patches), device=patches.device)
        _, around = bank.search(bank.rows_[winners], count, exclude_image=exclude_images)
        # An approximate index, or rows that are equal, may not put the winner first.
        is_winner = around == winners[:, None]
        others = torch.argsort(is_winner.to(torch.int8), dim=1, stable=True)[:, : count - 1]
        around = torch.cat([winners[:, None], around.gather(1, others)], 1)
        distances = torch.linalg.vector_norm(bank.rows_[around] - patches[:, None], dim=2)
        return 1.0 - torch.softmax(distances, dim=1)[:, 0]

    # Saving: the bank's rows, without the structures that are searched

    def _state_to_save(self) -> BankState:
        return self.memory_bank_.state()

    def _state_from_saved(self, saved: BankState) -> MemoryBank:
        return MemoryBank.from_state(self.new_bank().parameters(), saved)

    @classmethod
    def _state_from_format1(cls, reader: FolderReader) -> BankState:
        known, tensors = reader.state["bank"], reader.tensors("bank.safetensors")
        return BankState(
            rows=tensors["rows"],
            images=tensors["images"],
            projection=tensors.get("projection"),
            radius=known["radius"],
            num_added=known["num_added"],
            index=reader.data("bank.faiss") if reader.has("bank.faiss") else None,
        )


@dataclass
class _Held:
    """The embedding `[1, h, w, D]` of an image that will be scored without its own bank rows."""

    number: int
    patches: torch.Tensor
    size: tuple[int, int]


class BankAccumulator:
    """Gathers patches of normal images for a bank, new or to be extended."""

    def __init__(self, detector: PatchCore, bank: MemoryBank) -> None:
        self._detector = detector
        self._bank = bank
        self._first = int(bank.images_.max()) + 1 if bank.is_fitted else 0
        self._held: list[_Held] = []
        self._contents: list[int] = []  # of the images,
        self._counts: list[int] = []  # and how many patches each has

    def add(self, seen: Seen) -> None:
        patches = seen.embeddings
        per_image = patches.shape[1] * patches.shape[2]
        self._contents += seen.contents
        self._counts += [per_image] * len(patches)
        own = np.array(seen.numbers, dtype=np.int64) + self._first
        self._bank.add(
            patches.reshape(-1, patches.shape[3]),
            own.repeat(per_image),
            copy=False,
            known_finite=True,  # or this batch would not have come here
        )
        for i, chosen in enumerate(seen.sampled):
            if chosen:
                held = patches[i : i + 1]
                # A copy where the rest of the batch can go when its group has left the bank's buffer.
                held = held if all(seen.sampled) else held.clone()
                self._held.append(_Held(int(own[i]), held, seen.size))

    def finish(self, run: Run) -> Fitted:
        bank, few, extending = self._bank, False, self._bank.is_fitted
        floor = relative_noise(self._detector.network_.dtype) * float(bank.mean_square_norm()) ** 0.5
        if bank.is_fitted:
            bank.extend(noise_floor=floor)
        else:
            starts = None
            if bank.holds_all_rows:  # the same images in another order give the same bank
                starts = start_rows(self._contents, self._counts, seed=bank.seed)
            bank.fit(
                start_indices=starts,
                noise_floor=floor,
                progress=lambda done, total: run.progress("select", done, total),
            )
            # Of a bank that has every distinct patch there are no more to be had.
            num_patches = sum(self._counts)
            wanted = int(num_patches * bank.coreset_fraction)
            few = wanted <= len(bank) < min(_FEW_ROWS, num_patches)
        needed = self._detector.num_neighbors
        if len(bank) < needed:
            raise ValueError(
                f"num_neighbors is {needed}, but the memory bank has only {len(bank)} rows; "
                "give more images or a larger coreset_fraction"
            )
        fair = sum(bank.rows_without(held.number) >= needed for held in self._held)
        sample = NormalSample()
        done = 0
        for batch, alone in self._batches(bank):
            patches = torch.cat([held.patches for held in batch])
            numbers = [held.number for held in batch] if alone else None
            scores = self._detector.patch_scores(bank, patches, numbers)
            sample.add_grids(scores.images, scores.grids, batch[0].size, counted=alone or not fair)
            done += len(batch)
            run.progress("calibrate", done, len(self._held))
        self._held = []
        sample.rounding = self._rounding(floor, sample.largest_score())
        return Fitted(bank, sample, warnings={} if extending else self._warnings(fair, few))

    def _rounding(self, floor: float, largest: float) -> float:
        """How far rounding moves scores like these, where it moves an embedding by `floor`."""
        squared = self._detector.score != "reweighted"
        distance = max(largest, 0.0) ** 0.5 if squared else largest
        moved = moved_distance(floor, distance, int(self._bank.rows_.shape[1]))
        return (distance + moved) ** 2 - distance**2 if squared else moved

    def _warnings(self, fair: int, few: bool) -> dict[str, str]:
        """Why the threshold says little: few images could be scored without themselves, or few rows."""
        if not fair:
            return {
                "none": "no training image can be scored without its own memory bank rows (it is one alone, "
                "or copies of one, or too few rows are others'), so the statistics and the threshold are of "
                "images that the bank knows, and too low; give more images, or call calibrate"
            }
        if fair == 1:
            return {
                "one": "a single training image gives the statistics and the threshold, so they say nothing "
                "of how much normal images differ; give more images, or call calibrate"
            }
        if few:
            return {
                "few": f"the memory bank has only {len(self._bank)} rows, and an image that is scored "
                "without its own finds no others in their place: the threshold is probably far too high; set "
                f"a larger coreset_fraction or give more images, for {_FEW_ROWS} rows at least, "
                "or call calibrate"
            }
        return {}

    def _batches(self, bank: MemoryBank) -> Iterator[tuple[list[_Held], bool]]:
        """Images that can be scored together, `batch_size` at most: of one size, with as many neighbours to
        be reweighted by, and all of them with enough rows of others, or none.
        """

        def kind(held: _Held) -> tuple[Any, ...]:
            others = bank.rows_without(held.number)
            neighbours = min(self._detector.reweight_neighbors, others)
            return others >= self._detector.num_neighbors, neighbours, held.size, held.patches.shape

        for (alone, *_), alike in groupby(self._held, kind):
            group = list(alike)
            for start in range(0, len(group), self._detector.batch_size):
                yield group[start : start + self._detector.batch_size], alone


def _check_pretrain_dim(given: Any, num_layers: int) -> int | tuple[int, ...] | Literal["auto"]:
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'pretrain_dim must be "auto", an int, or one int per layer, got {given!r}')
        return "auto"
    single = not isinstance(given, Iterable)
    sizes = tuple(whole_number("pretrain_dim", size) for size in ((given,) if single else given))
    if len(sizes) != (1 if single else num_layers) or any(size < 1 for size in sizes):
        raise ValueError(f"pretrain_dim must be positive, one per layer ({num_layers}), got {given!r}")
    return sizes[0] if single else sizes
