"""Tiles of images in batches, as the members of tiled ensembles see them in `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from ensemblead.detectors.parts import Part, Seen
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.images import AS_IS
from ensemblead.networks.network import FeaturePool
from ensemblead.networks.summaries import rows_of


def tile_batches(
    parts: Sequence[Part],
    pool: FeaturePool,
    scaled: Sequence[torch.Tensor],
    frame: TilePyramid,
    batch_size: int,
) -> Iterator[tuple[int, slice, list[Seen]]]:
    """All tiles of images `[B, 3, H, W]`, given at every scale: number, whose they are, and what the parts
    see of them.
    """
    places = [(number, image) for number in frame.numbers for image in range(len(scaled[0]))]
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        cut = torch.stack([frame.cut([own[image] for own in scaled], number) for number, image in chosen])
        with pool.batch({AS_IS: cut}) as features, rows_of([image for _, image in chosen]):
            seen = [part._seen(cut, AS_IS, features) for part in parts]
        done = 0
        for number, run in groupby(chosen, lambda place: place[0]):
            images = [image for _, image in run]
            which = slice(done, done + len(images))
            yield number, slice(images[0], images[-1] + 1), [one.rows(which) for one in seen]
            done += len(images)
