"""Parameters of PatchCore that are checked at some length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ensemblead.common.validation import whole_number


def check_per_layer(score: str, contamination: Any, defects: Any) -> None:
    """Raise ValueError for what needs one bank, with `banks="per_layer"`."""
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


def check_pretrain_dim(given: Any, num_layers: int) -> int | tuple[int, ...] | Literal["auto"]:
    """ "auto", a size, or a size for every layer. Raises ValueError for anything else."""
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'pretrain_dim must be "auto", an int, or one int per layer, got {given!r}')
        return "auto"
    single = not isinstance(given, Iterable)
    sizes = tuple(whole_number("pretrain_dim", size) for size in ((given,) if single else given))
    if len(sizes) != (1 if single else num_layers) or any(size < 1 for size in sizes):
        raise ValueError(f"pretrain_dim must be positive, one per layer ({num_layers}), got {given!r}")
    return sizes[0] if single else sizes
