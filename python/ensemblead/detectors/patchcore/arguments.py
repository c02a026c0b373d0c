"""Arguments of `PatchCore` that are checked beyond their kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from ensemblead.common.validation import one_of, whole_number
from ensemblead.detectors.parts import Seen
from ensemblead.kernels.maps import MAP_KINDS

_CHOICES = {
    "score": ("max", "reweighted", "topk"),
    "aggregation": ("adaptive", "concat"),
    "banks": ("joint", "per_layer"),
    "metric": ("l2", "cosine"),
    "map_kind": MAP_KINDS,
}


def check_per_layer(score: str, contamination: Any, defects: Any) -> None:
    """Raise ValueError for what does not go with `banks="per_layer"`."""
    if score == "reweighted":
        raise ValueError(
            'score="reweighted" looks at the rows of one bank; with banks="per_layer" take "topk" or "max"'
        )
    if contamination is not None:
        raise ValueError(
            'contamination judges images by the patches of one bank; with banks="per_layer" leave it None'
        )
    if defects is not None:
        raise ValueError(
            'defects are compared with the patches of one bank; with banks="per_layer" leave it None'
        )


# Height and width of images as a network takes them, and as they were before they were padded.
Sizes: TypeAlias = tuple[tuple[int, int], tuple[int, int] | None] | None


def check_choices(**given: Any) -> None:
    """Raise ValueError for arguments that are none of the names they may be."""
    for name, value in given.items():
        one_of(name, value, _CHOICES[name])


def check_padding(pad_to_grid: bool, foreground: Any, augment: Any) -> None:
    """Raise ValueError for what does not go with images that are padded."""
    if pad_to_grid and foreground is not None:
        raise ValueError(
            f"foreground={foreground!r} finds the object among all patches of an image, those of a padding "
            "too: give a size that fits the grid in place of pad_to_grid"
        )
    if pad_to_grid and augment not in (None, "brightness", ("brightness",)):
        raise ValueError(
            f"augment={augment!r} turns images, and a padding does not turn with them: give a size that fits "
            "the grid in place of pad_to_grid"
        )


def same_padding(known: Sizes, seen: Seen) -> Sizes:
    """The sizes of a batch of a fit. Raises ValueError where images are padded, but not all alike: the same
    part of all must be inspected.
    """
    own = seen.size, seen.shown
    if known is not None and own != known and (own[1] or known[1]):
        first, this = (f"{height} x {width}" for height, width in (known[1] or known[0], own[1] or own[0]))
        raise ValueError(
            f"pad_to_grid needs images of one size, got {first} and {this} pixels; give resize=(h, w)"
        )
    return own


def checked_foreground(value: Any, region: Any, defects: Any) -> str | None:
    """None or "auto". Raises ValueError for anything else, and for a region or known defects beside it."""
    if value is None:
        return None
    if region is not None:
        raise ValueError(
            f"foreground={value!r} finds the object in whole images, and region says already what is "
            "inspected: give one of them"
        )
    if defects is not None:
        raise ValueError(
            f"foreground={value!r} may leave parts of known defects outside of the object: give defects=None"
        )
    return one_of("foreground", value, ("auto",))


def checked_pretrain_dim(given: Any, num_layers: int) -> int | tuple[int, ...] | Literal["auto"]:
    """An int, one per layer, or "auto". Raises ValueError for anything else."""
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'pretrain_dim must be "auto", an int, or one int per layer, got {given!r}')
        return "auto"
    single = not isinstance(given, Iterable)
    sizes = tuple(whole_number("pretrain_dim", size) for size in ((given,) if single else given))
    if len(sizes) != (1 if single else num_layers) or any(size < 1 for size in sizes):
        raise ValueError(f"pretrain_dim must be positive, one per layer ({num_layers}), got {given!r}")
    return sizes[0] if single else sizes
