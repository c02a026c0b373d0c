"""Training of a fusion layer over fixed embeddings: losses of metric learning, early stopping by mAP."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ensemblead.common.errors import NonFiniteLossError
from ensemblead.common.precision import exact_products
from ensemblead.common.validation import one_of, positive_number, some_of, whole_number
from ensemblead.detectors.parts import Progress
from ensemblead.networks.modes import default_modes, own_generator

Integers = npt.NDArray[np.int64]
# Class of pytorch-metric-learning, whether it takes classes and dimensions, and images that a class needs.
LOSSES: Mapping[str, tuple[str, bool, int]] = {
    "supcon": ("SupConLoss", False, 2),
    "proxy_anchor": ("ProxyAnchorLoss", True, 1),
    "softmax": ("NormalizedSoftmaxLoss", True, 1),
}
# A ratio is one number for hundreds of dimensions: by steps as long as a matrix's it would hardly move.
_RATIOS_FASTER = 100.0
# Images of a class in a balanced batch, unless there are few classes.
_PER_CLASS = 4
# Of the validation mAP: the length of a result list, and the most queries.
_NEIGHBOURS, _MOST_QUERIES, _QUERIES_AT_ONCE = 50, 2048, 256


@dataclass(frozen=True)
class Training:
    """How a fusion is trained: the keywords of `EmbeddingEnsemble.fit`, checked."""

    loss: str = "supcon"
    epochs: int = 30
    learning_rate: float = 1e-3
    validation: float = 0.2
    patience: int = 3
    balanced: bool = False
    batch_size: int = 128
    refit: bool = True

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        whole_number("epochs", self.epochs, 1)
        positive_number("learning_rate", self.learning_rate)
        if isinstance(self.validation, bool) or not isinstance(self.validation, (int, float)):
            raise TypeError(f"validation must be a number, got {self.validation!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and below 1, got {self.validation}")
        whole_number("patience", self.patience, 1)
        for name in ("balanced", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        whole_number("batch_size", self.batch_size, 2)


@dataclass(frozen=True)
class Trained:
    """The maps and offset of the best epoch, and every epoch's loss and validation mAP (none without one)."""

    maps: tuple[torch.Tensor, ...]
    offset: torch.Tensor | None
    losses: tuple[float, ...]
    validation_maps: tuple[float, ...]
    best_epoch: int


class Linear(nn.Module):
    """Mode "fusion", one map over all networks; or mode "project", one for each, their outputs in a row."""

    def __init__(self, dims: list[int], widths: list[int]) -> None:
        super().__init__()
        self.dims = dims
        pairs = zip(dims, widths, strict=True)
        self.layers = nn.ModuleList(nn.Linear(own, width) for own, width in pairs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        parts = zip(self.layers, torch.split(inputs, self.dims, dim=1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], dim=1)

    def learned(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        layers: list[nn.Linear] = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        offsets = [layer.bias.detach().cpu() for layer in layers]  # `cat` copies
        return tuple(layer.weight.detach().cpu().clone() for layer in layers), torch.cat(offsets)


class Ratios(nn.Module):
    """Mode "ratios": one positive factor per network, their mean 1."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(torch.zeros(len(dims)))
        self.register_buffer("networks", torch.repeat_interleave(torch.tensor(dims)), persistent=False)
        self.networks: torch.Tensor

    def ratios(self) -> torch.Tensor:
        return functional.softmax(self.logarithms, dim=0) * len(self.logarithms)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.ratios()[self.networks]

    def learned(self) -> tuple[tuple[torch.Tensor, ...], None]:
        return (self.ratios().detach().cpu().clone(),), None


def check_classes(settings: Training, labels: Integers, classes: tuple[str | int, ...]) -> None:
    """Raise ValueError naming classes of fewer images than the loss needs."""
    needed = LOSSES[settings.loss][2]
    counts = np.bincount(labels)
    few = [repr(classes[i]) for i in np.flatnonzero(counts < needed)]
    if few:
        raise ValueError(
            f"labels: loss {settings.loss!r} needs {needed} images of every class, but there are fewer of "
            f"{some_of(few)}; leave them out, or take loss 'proxy_anchor'"
        )


def held_out(settings: Training, labels: Integers, seed: int) -> npt.NDArray[np.bool_]:
    """Which images are the validation part: a share of every class, drawn by the seed.

    Every class keeps as many as the loss needs. Raises ValueError where nothing is left for validation.
    """
    needed, generator = LOSSES[settings.loss][2], np.random.default_rng([seed, 0])
    chosen = np.zeros(len(labels), dtype=bool)
    for label in range(int(labels.max()) + 1):
        places = np.flatnonzero(labels == label)
        count = min(round(settings.validation * len(places)), len(places) - needed)
        chosen[generator.permutation(places)[:count]] = True
    if settings.validation > 0 and not chosen.any():
        raise ValueError(
            f"validation={settings.validation} leaves nothing of {len(labels)} images to stop by; give a "
            "larger part, or 0 for all epochs"
        )
    return chosen


def train(
    module: Linear | Ratios,
    inputs: npt.NDArray[np.float32],
    labels: Integers,
    settings: Training,
    *,
    dim: int,
    seed: int,
    device: torch.device,
    progress: Progress | None,
) -> Trained:
    """Train `module` on inputs `[N, D]`; it is changed.

    With a validation part, the epoch of the best mAP there is found first, and training ends `patience`
    epochs behind it. Under `refit` the module is then trained anew on all images for as many epochs; else
    that epoch's values are kept. Without a validation part all epochs are run.
    """
    outside = held_out(settings, labels, seed)
    report = progress or (lambda _stage, _done, _total: None)
    with default_modes(), torch.enable_grad(), exact_products():
        data = _Data(torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device), dim, seed)
        start = copy.deepcopy(module)
        trial = _run(module.to(device), data, settings, outside, settings.epochs, report, "train")
        if not (settings.refit and outside.any()):
            return trial
        everything = np.zeros_like(outside)
        final = _run(start.to(device), data, settings, everything, trial.best_epoch, report, "refit")
    return replace(trial, maps=final.maps, offset=final.offset)


@dataclass(frozen=True)
class _Data:
    """What is trained on: inputs `[N, D]`, numbers of labels `[N]`, the embedding's length, a seed."""

    inputs: torch.Tensor
    labels: torch.Tensor
    dim: int
    seed: int


def _run(
    module: Linear | Ratios,
    data: _Data,
    settings: Training,
    outside: npt.NDArray[np.bool_],
    epochs: int,
    report: Progress,
    stage: str,
) -> Trained:
    """Train on all images but those `outside`, which judge every epoch, if there are any."""
    loss = _loss(settings.loss, int(data.labels.max()) + 1, data.dim, data.seed).to(data.inputs.device)
    rate = settings.learning_rate * (_RATIOS_FASTER if isinstance(module, Ratios) else 1.0)
    groups = [
        {"params": list(module.parameters()), "lr": rate},
        {"params": list(loss.parameters()), "lr": settings.learning_rate},
    ]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]])
    inside, judges = np.flatnonzero(~outside), np.flatnonzero(outside)
    losses: list[float] = []
    maps: list[float] = []
    best = Trained((), None, (), (), 0)
    for epoch in range(1, epochs + 1):
        losses.append(_epoch(module, loss, optimiser, data, inside, settings, epoch))
        if not math.isfinite(losses[-1]):
            raise NonFiniteLossError(f"the loss {settings.loss} became {losses[-1]} in epoch {epoch}")
        if len(judges):
            maps.append(_validation_map(module, data.inputs, data.labels, judges))
        if not maps or maps[-1] > max(maps[:-1], default=-1.0):
            matrices, offset = module.learned()
            best = Trained(matrices, offset, (), (), epoch)
        report(stage, epoch, epochs)
        if epoch - best.best_epoch >= settings.patience:
            break
    if len(losses) < epochs:
        report(stage, epochs, epochs)
    return replace(best, losses=tuple(losses), validation_maps=tuple(maps))


def _loss(name: str, classes: int, dim: int, seed: int) -> nn.Module:
    from pytorch_metric_learning import losses

    made, has_classes, _ = LOSSES[name]
    sizes = {"num_classes": classes, "embedding_size": dim} if has_classes else {}
    with own_generator(seed):
        loss: nn.Module = getattr(losses, made)(**sizes)
    return loss


def _epoch(
    module: nn.Module,
    loss: nn.Module,
    optimiser: torch.optim.Optimizer,
    data: _Data,
    places: Integers,
    settings: Training,
    epoch: int,
) -> float:
    """One pass over the images at `places`; the mean loss of its batches."""
    device = data.inputs.device
    numbers = data.labels[torch.from_numpy(places).to(device)].cpu().numpy()
    draw = balanced_batches if settings.balanced else natural_batches
    losses = []
    for rows in draw(numbers, settings.batch_size, np.random.default_rng([data.seed, epoch])):
        batch = torch.from_numpy(places[rows]).to(device)
        value = loss(functional.normalize(module(data.inputs[batch])), data.labels[batch])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.detach())
    return float(torch.stack(losses).mean())


def natural_batches(labels: Integers, size: int, generator: np.random.Generator) -> Iterator[Integers]:
    """All images in a random order, `size` at a time; a last one alone goes to the batch before."""
    order = generator.permutation(len(labels))
    ends = list(range(size, len(order), size))
    if ends and len(order) - ends[-1] == 1:
        ends.pop()
    yield from np.split(order, ends)


def balanced_batches(labels: Integers, size: int, generator: np.random.Generator) -> Iterator[Integers]:
    """Batches of as many images of each class: four, or more where the classes are too few to fill a batch.

    As pytorch-metric-learning's MPerClassSampler, but with a generator of its own. As many batches as
    `natural_batches` gives. Classes take turns, and so do the images of a class, so that small ones repeat.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    each = max(_PER_CLASS, size // len(members))
    queues: list[list[int]] = [[] for _ in members]
    turns: list[int] = []
    for _ in range(math.ceil(len(labels) / size)):
        batch: list[int] = []
        chosen: list[int] = []
        while len(chosen) < min(len(members), max(2, size // each)):
            if not turns:
                turns = [int(one) for one in generator.permutation(len(members))]
            if (one := turns.pop()) not in chosen:
                chosen.append(one)
        for one in chosen:
            while len(queues[one]) < each:
                queues[one] += [int(place) for place in generator.permutation(members[one])]
            batch += queues[one][:each]
            del queues[one][:each]
        yield np.array(batch, dtype=np.int64)


def _validation_map(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, places: Integers) -> float:
    """Mean average precision at 50 of the images at `places`, each searched for among all others.

    Divided by min(R, 50), R the other images of the label; queries without any are left out.
    """
    with torch.no_grad():
        vectors = functional.normalize(module(inputs))
        step = math.ceil(len(places) / _MOST_QUERIES)
        found = [
            _average_precisions(vectors, labels, torch.from_numpy(rows).to(labels.device))
            for rows in np.split(
                places[::step], range(_QUERIES_AT_ONCE, len(places[::step]), _QUERIES_AT_ONCE)
            )
        ]
        return float(torch.cat(found).mean())


def _average_precisions(vectors: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    similar = vectors[rows] @ vectors.T
    similar.scatter_(1, rows[:, None], -math.inf)  # not itself
    k = min(_NEIGHBOURS, len(vectors) - 1)
    hits = (labels[similar.topk(k).indices] == labels[rows, None]).float()
    ranks = torch.arange(1, k + 1, device=hits.device)
    relevant = torch.bincount(labels)[labels[rows]] - 1
    precisions = (hits * hits.cumsum(1) / ranks).sum(1)
    return precisions[relevant > 0] / relevant[relevant > 0].clamp(max=k)
