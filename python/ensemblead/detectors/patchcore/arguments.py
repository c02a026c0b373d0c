"""Arguments of `PatchCore` that are checked beyond their kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ensemblead.common.validation import one_of, whole_number


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
