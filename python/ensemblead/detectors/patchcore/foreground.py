"""The object in images: `PatchCore(foreground="auto")`.

The first principal component of patch features tells an object from its background, as in Damm et al.,
"AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", arXiv 2405.14529. It is found
anew in every image, for products that were chosen by looking. Here it is found once, in training images, with
its threshold; and whether it tells an object at all is measured. docs/design/regions.md compares both ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ensemblead.detectors.patchcore.scoring import SHORTEST, of_length_one
from ensemblead.kernels.object_cells import ObjectCells, between, dilated, on_grid, reached

# Images that the component is found in.
MOST_IMAGES = 16
# The rim of an image is so much of its side, and the middle what is farther from it than that.
_RIM, _MIDDLE = 1 / 16, 1 / 4
# An object takes at most so much of the rim, and at least so much of the middle.
_MOST_OF_RIM, _LEAST_OF_MIDDLE = 0.25, 0.35
# The patches of an object vary by so much more than its background, and the two lie apart by so much of the
# background's variance.
_LEAST_VARIED, _LEAST_APART = 1.1, 0.5
# Directions of embeddings that vary by less are the same but for rounding.
_ALIKE = 1e-9
# A cell that holds the object in so many of these images is inspected in every image.
_USUAL = 0.5


@dataclass(frozen=True)
class Foreground:
    """How patches of the object are told from those of the background.

    Attributes:
        direction: float32 `[D]`, of length 1; of embeddings of length 1, which way the object lies.
        threshold: of the object more than this lies in that direction.
        usual: bool `[h, w]`: where training images mostly have the object, as far as that hangs together
            with the middle; it is inspected in all.

    Raises ValueError for values that `find_foreground` never gives.
    """

    direction: torch.Tensor
    threshold: float
    usual: torch.Tensor

    def __post_init__(self) -> None:
        if self.direction.ndim != 1 or self.direction.dtype != torch.float32:
            given = f"{self.direction.dtype} {tuple(self.direction.shape)}"
            raise ValueError(f"direction must be float32 [D], got {given}")
        if not bool(torch.isfinite(self.direction).all()):
            raise ValueError("direction must be finite, got NaN or infinity")
        if self.usual.ndim != 2 or 0 in self.usual.shape or self.usual.dtype != torch.bool:
            given = f"{self.usual.dtype} {tuple(self.usual.shape)}"
            raise ValueError(f"usual must be bool [h, w], got {given}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")

    def fitting(self, dims: int) -> Foreground:
        """Itself. Raises ValueError for embeddings of other dimensions than its direction."""
        if len(self.direction) != dims:
            raise ValueError(f"direction must be [{dims}], as the embeddings, got [{len(self.direction)}]")
        return self

    def cells(self, embeddings: torch.Tensor) -> ObjectCells:
        """What is inspected of images, by their embeddings float32 `[B, h, w, D]`: the object, what lies
        between its parts, a cell around it, and where it usually is. Of an image without an object it is all.
        What looks like the object, but hangs together with nothing where it usually is, is not it.
        """
        direction = self.direction.to(embeddings.device, torch.float64)
        # In float64, whose rounding moves no cell, and image by image, which a processor's cache can hold.
        along = torch.stack([_along(one.double(), direction) for one in embeddings])
        object_ = along > self.threshold
        grid = (int(embeddings.shape[1]), int(embeddings.shape[2]))
        usual = on_grid(self.usual[None].to(embeddings.device), grid)
        found = dilated(between(reached(object_, usual))) | usual
        return ObjectCells(found & object_.flatten(1).any(1)[:, None, None])


def find_foreground(embeddings: Sequence[torch.Tensor] | torch.Tensor) -> tuple[Foreground | None, str]:
    """The foreground of images of one product, by the embeddings float32 `[h, w, D]` of each; or None where
    they show no object on a background, and why. One image at a time is taken in float64.

    Embeddings are divided by their lengths. Their first principal component is cut in two where the variance
    within both parts is least (Otsu 1979). The object is the part with more of the middle than of the rim.
    """
    height, width, dims = map(int, embeddings[0].shape)
    if min(height, width) < 3:
        return None, f"{height} x {width} patches have no middle"
    device, count = embeddings[0].device, len(embeddings) * height * width
    mean = torch.zeros(dims, dtype=torch.float64, device=device)
    for one in embeddings:
        mean += of_length_one(one).double().sum((0, 1))
    mean /= count
    spread = torch.zeros(dims, dims, dtype=torch.float64, device=device)
    for rows in _centred(embeddings, mean):
        spread.addmm_(rows.T, rows)
    values, vectors = torch.linalg.eigh(spread)
    if not float(values[-1]) > _ALIKE * count:
        return None, "all patches are alike"
    direction = vectors[:, -1]
    along = torch.stack([rows @ direction for rows in _centred(embeddings, mean)]).view(-1, height, width)
    rim, middle = _rim_and_middle(height, width, device)
    if float(along[:, middle].mean()) < float(along[:, rim].mean()):
        direction, along = -direction, -along
    cut = _otsu(along.flatten())
    object_ = along > cut
    if reason := _why_none(object_, _centred(embeddings, mean), rim, middle):
        return None, reason
    often = dilated(between(object_)).double().mean(0) >= _USUAL
    usual = reached(often[None], middle)[0]
    # The same order of operations as in `cells`: float32 embeddings against a float32 direction.
    direction = direction.float()
    threshold = float(cut + mean @ direction.double())
    return Foreground(direction.cpu(), threshold, usual.cpu()), ""


def _centred(embeddings: Sequence[torch.Tensor] | torch.Tensor, mean: torch.Tensor) -> Iterator[torch.Tensor]:
    """The patches of each image, of length 1, about the mean: float64 `[h w, D]`."""
    for one in embeddings:
        yield of_length_one(one).flatten(0, 1).double() - mean


def _why_none(
    object_: torch.Tensor, each: Iterable[torch.Tensor], rim: torch.Tensor, middle: torch.Tensor
) -> str:
    """Why cells bool `[N, h, w]` of patches, of each image `[h w, D]` about the mean of all, are no object on
    a background, or nothing.
    """
    on_rim, in_middle = (float(object_[:, where].double().mean()) for where in (rim, middle))
    if on_rim > _MOST_OF_RIM:
        return f"what differs most covers {on_rim:.0%} of the rim, of an object at most {_MOST_OF_RIM:.0%}"
    if in_middle < _LEAST_OF_MIDDLE:
        return f"what differs most covers {in_middle:.0%} of the middle, of an object {_LEAST_OF_MIDDLE:.0%}"
    # Of the background and of the object: how many patches, their sum, and that of their squares.
    counts = torch.stack([(~object_).sum(), object_.sum()]).double()
    sums: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0
    for rows, own in zip(each, object_.flatten(1), strict=True):
        parts = torch.stack([~own, own]).double()
        sums, squares = sums + parts @ rows, squares + parts @ rows.square().sum(1)
    means = sums / counts[:, None]
    background, varies = (squares / counts - means.square().sum(1)).tolist()
    if varies < _LEAST_VARIED * background:
        return (
            f"the variance of the middle is {varies / background:.2f} times that of the rim, of an object at "
            f"least {_LEAST_VARIED} times that of its background"
        )
    apart = float((means[1] - means[0]).square().sum())
    if apart < _LEAST_APART * background:
        return (
            f"middle and rim lie apart by {apart / background:.2f} of the variance of the rim, object and "
            f"background by {_LEAST_APART} of that of the background"
        )
    return ""


def _along(rows: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """How far vectors float64 `[..., D]`, divided by their lengths, go in a direction; of zeros 0."""
    lengths = torch.linalg.vector_norm(rows, dim=-1).clamp_min(SHORTEST)
    along: torch.Tensor = (rows @ direction) / lengths
    return along


def _rim_and_middle(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of a grid that lie on its rim, and those in its middle: bool `[h, w]` each."""
    far = [
        torch.minimum(torch.arange(side, device=device), torch.arange(side, device=device).flip(0))
        for side in (height, width)
    ]

    def within(share: float) -> torch.Tensor:
        rows, columns = (own < max(1, int(len(own) * share)) for own in far)
        return rows[:, None] | columns

    return within(_RIM), ~within(_MIDDLE)


def _otsu(values: torch.Tensor) -> float:
    """The threshold that leaves the least variance within the values float64 `[n]` on its two sides."""
    ordered = values.sort().values
    below = torch.arange(1, len(ordered), device=values.device)
    above = len(ordered) - below
    sums = ordered.cumsum(0)
    apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    place = int((below * above * apart.square()).argmax())
    return float(ordered[place : place + 2].mean())
