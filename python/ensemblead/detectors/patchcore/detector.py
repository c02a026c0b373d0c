"""PatchCore: distance of every patch to a memory bank of normal patches.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ensemblead.common.validation import one_of, whole_number
from ensemblead.common.warnings import warn
from ensemblead.config.registry import register
from ensemblead.detectors.detector import Errors
from ensemblead.detectors.method import Accumulator, Scores, Seen
from ensemblead.detectors.parts import Progress
from ensemblead.detectors.patchcore.accumulator import BankAccumulator
from ensemblead.detectors.patchcore.arguments import (
    check_choices,
    check_padding,
    check_per_layer,
    checked_foreground,
    checked_pretrain_dim,
)
from ensemblead.detectors.patchcore.augmenting import checked_augment
from ensemblead.detectors.patchcore.bank_method import BankMethod
from ensemblead.detectors.patchcore.defects import (
    DefectLook,
    Paths,
    check_pair,
    checked_paths,
    learn_defects,
    read_looks,
)
from ensemblead.detectors.patchcore.graph import bank_graph
from ensemblead.detectors.patchcore.layer_banks import (
    LayerBanks,
    LayerBanksGraph,
    LayerBanksState,
    LayersAccumulator,
)
from ensemblead.detectors.patchcore.object_learning import (
    ObjectAccumulator,
    ObjectBankState,
    ObjectLayersState,
    learned_banks,
    objects_in,
    refuse_objects,
)
from ensemblead.detectors.patchcore.robust import checked_contamination
from ensemblead.detectors.patchcore.saving import (
    in_half,
    state_from_saved,
    state_of_format1,
    state_to_save,
)
from ensemblead.detectors.patchcore.scoring import PatchScoring, of_length_one
from ensemblead.detectors.patchcore.verifying import coverage_of, inspected
from ensemblead.images import Change, Region, RegionLike
from ensemblead.kernels.maps import MapKind
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.memory import Coverage, MemoryBank
from ensemblead.memory.bank import DEFAULT_FRACTION, DTYPES, MEMORY_BUDGET
from ensemblead.memory.state import BankState
from ensemblead.networks.noise import relative_noise
from ensemblead.store import FolderReader


@register("PatchCore")
class PatchCore(BankMethod):
    """Memory bank of normal patch embeddings; an image is as anomalous as its strangest patch.

    Args:
        backbone: a network's name (timm, torchvision, "gabor") or a `torch.nn.Module`.
        layers: names of its layers; the first sets the grid of patches. "auto": the last ones of strides 8
            and 16 (of a ResNet layer2 and layer3), of a transformer blocks at 1/2 and 3/4 of its depth.
            `ensemblead layers NAME` lists them. A module has no "auto".
        weights: "default" | None | path | state dict; see `FeatureExtractor`.
        image_size: centre crop of the resized image: int = square, `(h, w)`, or None for no crop.
        resize: "auto": the whole image at 256 x 256 pixels, or, where the training images' median aspect
            ratio is beyond 1.5, about as many pixels in that ratio; settled by `fit` and saved. int = shorter
            side, `(h, w)` = exact, None = native.
        region: what is inspected of photographs: the path of a mask, bool or uint8 `[H, W]`, or a list of
            polygons of points `(x, y)`, all in pixels of the photographs, which must have one size. Pixels
            outside take the colour of the nearest one inside before the network sees them; patches outside
            are neither learned nor scored; the map is zero there. docs/design/regions.md has the rules.
        foreground: "auto": the object is found in every image, by the first principal component of training
            images' patches (as AnomalyDINO does in each image). Patches outside are neither learned nor
            scored; the map is zero there. `fit` measures whether images show an object on a background; where
            they do not, it warns, and all is inspected. It holds all patches at once, within
            `memory_budget`. A defect of the background is missed, and so may be a part that the object lacks.
            It does not go with `region`, nor in a `TiledEnsemble`. docs/design/regions.md has what it does.
        patch_size: side of a patch's neighbourhood in its feature map, odd.
        pretrain_dim: values each layer is pooled to: int, one per layer, or "auto": a layer of fewer than 512
            channels to their number, any other to 1024.
        target_dim: length of an embedding (with "auto", at most what the layers give).
        aggregation: "adaptive" (the paper's implementation) or "concat" (averaged neighbourhoods, channels as
            they are: with `patch_size=1` a layer's values are left as they are).
        banks: "joint": a patch is what all layers have there, and there is one bank of such patches.
            "per_layer": every layer has patches of its own, on its own grid, and a bank of them, with its own
            coreset. A layer's distances are divided by their mean over normal images, each scored without its
            own rows; that scale stays in `extend`. The mean over the layers, on the first one's grid, makes
            score and map. `coreset_size` and `memory_budget` are then of each bank.
        metric: "l2", or "cosine": embeddings and bank rows are divided by their Euclidean norms, and the
            distance is 1 - cos, in 0..2, whatever `score` is. Vectors of zeros are an error in `fit`; in
            `predict` they have the distance 1.
        coreset_fraction, coreset_size, index: see `MemoryBank`. A bank of fewer than 50 rows gives `fit` a
            threshold that is too high for many defects, and it warns; `calibrate` does not depend on that.
            Of many images give a `coreset_size`, such as 16384: predict takes as long as the bank is large. A
            SlowPredictWarning says where it takes more than 100 GFLOP an image.
        bank_dtype: "float32", or "float16": bank rows in half the memory, and a smaller file. Distances are
            exact for the rounded rows; with metric "cosine" they are half of the squared L2 distances to
            these. Needs index "flat".
        memory_budget: bytes that `fit` holds at most, beyond the network, a batch of images and its feature
            maps, and all patches of images of known defects; in `extend` the bank and the rows that enter it
            come on top. Where the embeddings of all images fit, all patches are selected among at once. Where
            they do not, they are selected among group by group (see `MemoryBank`); a quarter of the budget
            then holds images that give the threshold, 100 at least. A budget that is too small is refused
            after the first batch. Members of a `BackboneEnsemble` have a budget each.
        position_radius: compare a patch only with bank rows from at most so many cells away, in y and in x,
            on the grid of patches (of stride 8: 8 pixels a cell), with `banks="per_layer"` on each layer's
            own. For cameras and products that do not move. Where fewer than `num_neighbors` rows lie within
            it, the radius grows for that place until they do. All images must give one grid. Search takes
            less time the smaller it is, so that a bank can be larger. Needs index "flat". None: rows of all
            places.
        num_neighbors: a patch's distance is the mean over so many nearest bank rows.
        score: of metric "l2" (see `metric` for the other). "topk": *squared* L2 distances, the image's score
            is the mean over the largest 1 % (at least one). "max": squared distances, the largest one (the
            reference implementation). "reweighted": L2 distances, the largest one weighted by how alone its
            nearest bank row is (the paper's eq. 7).
        augment: changed copies of every image that are learned beside it: "rotations", by multiples of 45
            degrees about the middle (AnomalyDINO's); "brightness", every value times 0.8 and 1.2 (the ends of
            SuperADD's range); or both, in all combinations. Patches that a turn has brought in from beyond
            the edge are not learned. An image is scored without its own copies, and only images as they are
            give statistics. "auto": rotations, if some of the images, turned, lie no farther from the others
            than they do themselves, but for a tenth; `augment_` has what was chosen, and `extend` keeps to
            it. `fit` takes as many times as long as there are copies, 8, 3 or 24; members of an ensemble that
            are augmented do not share passes. Rotations do not go with `position_radius`. None: images as
            they are. docs/design/augment.md has the rule and figures.
        contamination: "auto", or a share between 0 and 0.5: `fit` leaves out training images that are odd
            among the others, such as defective ones, and lists them in `left_out_`. Each is judged by small
            banks of parts of the images that it is not in. "auto" leaves out those more than six robust
            deviations above the median, of clean sets up to 3 %; a share so many of the different
            images, rounded up. It takes ten different images, and a `memory_budget` for all patches. A member
            of an ensemble, or a tile location, judges for itself; `extend` learns all that it is given. Needs
            one bank for all layers. None: all are learned. docs/design/robust.md has what it does.
        defects: images of known defects, a folder or paths, which `fit` reads: patches nearer to them than to
            normal ones score higher, by as much as they are nearer (twice as much at most). Statistics and
            threshold include it. The rows are saved, the images are not. In an ensemble each member learns
            them; tiles do not. `learn_defects` adds more. docs/design/robust.md has what it gains.
        defect_masks: where these are defective: a folder in MVTec AD's layout, or a path for each path of
            `defects`. Patches that a mask covers by half are learned. None: those above the pixel threshold,
            and the oddest 1 % of each image; the normal patches beside a defect may be among them.
        reweight_neighbors: bank rows around the nearest one that "reweighted" looks at, itself included.
        map_kind: "bilinear" (the reference implementation), or as anomalib makes maps "nearest": distances
            are repeated, not interpolated, before the blur, which reflects about the edge pixels.
        device: "auto" is the GPU if there is one and this version has kernels for it (see `ensemblead info`),
            else the CPU.
        precision: of the network: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, half on a
            GPU (bfloat16 where its tensor cores have it, else float16). Embeddings and all that is done with
            them are float32.
        batch_size: images per forward pass.
        seed: of everything random.
        compile: run the network through `torch.compile`, which gains little on a CPU. The first batch then
            takes long; where it cannot be done, a CompilationError at that batch says why.
        engine: of the network: "torch", "openvino" (on CPUs; the extra openvino), "cuda-graph" (on GPUs), or
            "auto": OpenVINO on a CPU where it is installed. docs/design/engines.md has their speed. For
            precision "int8" fit in float32 and call `quantize`.
        pad_to_grid: images of a size that the network does not take, such as a transformer's patches leave,
            are padded below and on the right by their last rows and columns, up to the next size that it does
            (timm's `dynamic_img_pad` pads by black). Patches of padding alone are neither learned nor scored,
            and maps have the images' size. False: such a size is refused.

    Attributes: `memory_bank_` (with `banks="per_layer"` `memory_banks_`), `augment_`, `calibration_`,
    `threshold_` after `fit`; `network_`, the extractor, once it is needed.

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

    State: type = BankState
    has_bank = True

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2",
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None = "default",
        image_size: int | tuple[int, int] | None = None,
        resize: int | tuple[int, int] | Literal["auto"] | None = "auto",
        region: RegionLike = None,
        foreground: Literal["auto"] | None = None,
        patch_size: int = 3,
        pretrain_dim: int | Sequence[int] | Literal["auto"] = "auto",
        target_dim: int = 1024,
        aggregation: Literal["adaptive", "concat"] = "adaptive",
        banks: Literal["joint", "per_layer"] = "joint",
        metric: Literal["l2", "cosine"] = "l2",
        coreset_fraction: float = DEFAULT_FRACTION,
        coreset_size: int | None = None,
        bank_dtype: Literal["float32", "float16"] = "float32",
        num_neighbors: int = 1,
        position_radius: int | None = None,
        score: Literal["max", "reweighted", "topk"] = "topk",
        reweight_neighbors: int = 9,
        augment: Literal["auto"] | Change | Sequence[Change] | None = None,
        contamination: float | Literal["auto"] | None = None,
        defects: Paths = None,
        defect_masks: Paths = None,
        map_kind: MapKind = "bilinear",
        index: str = "flat",
        memory_budget: int = MEMORY_BUDGET,
        device: str | torch.device = "auto",
        precision: str = "auto",
        batch_size: int = 16,
        seed: int = 0,
        compile: bool = False,
        engine: str = "torch",
        pad_to_grid: bool = False,
    ) -> None:
        super().__init__(locals())
        patch_size = whole_number("patch_size", patch_size)
        if patch_size < 1 or patch_size % 2 == 0:
            raise ValueError(f"patch_size must be odd and positive, got {patch_size}")
        check_choices(aggregation=aggregation, banks=banks, metric=metric, score=score, map_kind=map_kind)
        if banks == "per_layer":
            check_per_layer(score, contamination, defects)
            self.State, self.has_scale = LayerBanksState, True
        self.foreground = checked_foreground(foreground, self.region, defects)
        if self.foreground is not None:
            self.State = ObjectLayersState if banks == "per_layer" else ObjectBankState
        self.patch_size, self.aggregation = patch_size, aggregation
        self.banks, self.metric = banks, metric
        self.target_dim = whole_number("target_dim", target_dim, 1)
        self.pretrain_dim = checked_pretrain_dim(pretrain_dim, len(self.layers))
        self.coreset_fraction, self.index = float(coreset_fraction), index
        self.num_neighbors = whole_number("num_neighbors", num_neighbors, 1)
        self.position_radius = position_radius
        self.score = score
        self.contamination = checked_contamination(contamination)
        self.defects = checked_paths("defects", defects)
        self.defect_masks = checked_paths("defect_masks", defect_masks)
        check_pair(self.defects, self.defect_masks)
        self.reweight_neighbors = whole_number("reweight_neighbors", reweight_neighbors, 1)
        self.map_kind = map_kind
        self.coreset_size, self.memory_budget = coreset_size, memory_budget
        self.bank_dtype = one_of("bank_dtype", bank_dtype, DTYPES)
        bank = self.new_bank()  # checks its own parameters
        self.coreset_size, self.memory_budget = bank.coreset_size, bank.memory_budget
        self.position_radius = bank.position_radius
        self.augment = checked_augment(augment, self.position_radius)
        check_padding(pad_to_grid, self.foreground, self.augment)

    @property
    def extending_lowers_scores(self) -> bool:
        # Distances only fall, but the weight of "reweighted" may grow. And where a radius had to grow, rows
        # nearer in place take the part of rows nearer in distance.
        return self.score != "reweighted" and self.position_radius is None

    def new_bank(self) -> MemoryBank:
        """An empty bank of this detector's parameters."""
        return MemoryBank(
            self.coreset_fraction,
            coreset_size=self.coreset_size,
            index=self.index,
            num_neighbors=self.num_neighbors,
            seed=self.seed,
            memory_budget=self.memory_budget,
            position_radius=self.position_radius,
            dtype=self.bank_dtype,
        )

    def verify(self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None) -> Coverage:
        """How well the memory bank covers the patches of images: of those of the fit, in a second pass that
        holds one batch, or of others.

        Args:
            images, errors, progress: as for `predict`.

        Returns the largest distance and quantiles of all distances, in the space that the bank was selected
        in, and a certificate: of the images of the fit, no bank of as many rows comes closer than the radius
        divided by it. With `augment` it is None, since changed copies do not pass, unless the radius is 0.

        Raises ValueError with `banks="per_layer"`: `memory_banks_` have a `verify` each, of embeddings.
        """
        self._require_fitted("verify")
        if self.banks == "per_layer":
            raise ValueError('verify is of one bank, and with banks="per_layer" there is one per layer')
        return coverage_of(self, images, errors, progress)

    def learn_defects(self, images: Paths, masks: Paths = None) -> PatchCore:
        """Learn known defects beside those of the fit, such as missed ones; the normal bank stays.

        The statistics stay too, though scores of normal images may have risen: a warning says so, and
        `calibrate` takes them anew. A new `fit` knows those of the parameter `defects` alone.

        Args:
            images, masks: as the parameters `defects` and `defect_masks`.

        Raises ValueError for images that were learned as normal ones, or are all known.
        """
        learn_defects(self, [self], images, masks)
        return self

    @property
    def _scoring(self) -> PatchScoring:
        return PatchScoring(self.score, self.num_neighbors, self.reweight_neighbors, self.metric)

    def _take_region(self, region: Region | None) -> None:
        checked_foreground(self.foreground, region, self.defects)
        super()._take_region(region)

    # The method

    def embed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        found = [
            aggregate_patches(
                [feature_maps[i] for i in group],
                patch_size=self.patch_size,
                pretrain_dim=self._pretrain_dim_of(group),
                target_dim=self.target_dim,
                mode=self.aggregation,
            )
            for group in self._groups
        ]
        if self.metric == "cosine":
            found = [of_length_one(one) for one in found]
        return tuple(found) if self.banks == "per_layer" else found[0]

    @property
    def _groups(self) -> list[range]:
        """The layers of each bank, by number."""
        count = len(self.layers)
        return [range(i, i + 1) for i in range(count)] if self.banks == "per_layer" else [range(count)]

    def _pretrain_dim_of(self, group: range) -> int | list[int] | Literal["auto"]:
        given = self.pretrain_dim
        return [given[i] for i in group] if isinstance(given, tuple) else given

    def start(self, state: Any = None) -> Accumulator:
        banks, known = [self.new_bank() for _ in self._groups], learned_banks(state)
        scales = None
        if isinstance(known, LayerBanks):
            banks, scales = [bank.copy() for bank in known.banks], known.scales
        elif known is not None:
            banks = [known.copy()]
        parts = [
            BankAccumulator(
                self._scoring,
                bank,
                self.batch_size,
                self._relative_noise,
                self.map_kind,
                inside=self.inside,
                contamination=self.contamination if state is None else None,
                defects=self._known_defects if state is None and self.defects is not None else None,
            )
            for bank in banks
        ]
        inner: BankAccumulator | LayersAccumulator = parts[0]
        if self.banks == "per_layer":
            inner = LayersAccumulator(parts, scales, self._scoring, self.map_kind)
        return inner if self.foreground is None else ObjectAccumulator(inner, state, self.new_bank)

    def _known_defects(self, seen: Seen) -> list[DefectLook]:
        """In the geometry of a batch of the fit."""
        return read_looks(self, seen.frame, self.defects, self.defect_masks, seen.bits)

    def _relative_noise(self) -> float:
        return relative_noise(self.network_.dtype, self.network_.precision)

    def held_bytes(self, seen: Seen, total: int) -> int | None:
        bank, inside = self.new_bank(), self.inside(seen)
        each = [inspected(one[:1], inside)[0, :, :, 0].numel() for one in seen.values]
        fits = all(bank.fits(total * n, one.shape[3]) for n, one in zip(each, seen.values, strict=True))
        return None if fits else self.memory_budget // 4

    def scores(self, state: Any, seen: Seen) -> Scores:
        inside, objects, banks = self.inside(seen), objects_in(state, seen), learned_banks(state)
        if isinstance(banks, LayerBanks):
            return banks.scores(self._scoring, seen.values, inside, objects)
        return self._scoring.inspected(banks, seen.embeddings, inside, objects)

    def graph(self, state: Any, size: tuple[int, int]) -> nn.Module:
        if self.index != "flat":
            warn(f'index="{self.index}" finds nearest rows approximately, and the exported graph exactly')
        refuse_objects(state)
        known = learned_banks(state)
        banks = known.banks if isinstance(known, LayerBanks) else (known,)
        graphs = [
            bank_graph(self, bank, group, size) for bank, group in zip(banks, self._groups, strict=True)
        ]
        return (
            LayerBanksGraph(graphs, known.scales, self._scoring) if self.banks == "per_layer" else graphs[0]
        )

    # Saving: the bank's rows, without the structures that are searched

    def _state_to_save(self) -> Any:
        return state_to_save(self.State, self.state_)

    def _in_half(self, state: Any) -> tuple[Any, Sequence[str]]:
        return (state, ()) if self.bank_dtype == "float16" else in_half(state)

    def _state_from_saved(self, saved: Any) -> Any:
        return state_from_saved(saved, self.new_bank().parameters(), len(self._groups))

    @classmethod
    def _state_from_format1(cls, reader: FolderReader) -> BankState:
        return state_of_format1(reader)
