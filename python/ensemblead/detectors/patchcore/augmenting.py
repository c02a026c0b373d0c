"""Learning of `PatchCore(augment=...)`: from images and from changed copies of them.

`augment="auto"` measures whether copies that are turned look like other images. docs/design/augment.md has
the rule, and what it decides on photographs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ensemblead.common.validation import one_of
from ensemblead.common.warnings import warn
from ensemblead.detectors.one_pass import one_pass
from ensemblead.detectors.parts import Fitted, Run
from ensemblead.detectors.patchcore.layer_banks import LayerBanks
from ensemblead.detectors.patchcore.object_learning import learned_banks
from ensemblead.detectors.patchcore.scoring import cells_of
from ensemblead.detectors.running import open_pool
from ensemblead.images import CHANGES, Augmented, Images, ImageSet, Turn, copies_of
from ensemblead.memory import MemoryBank

AUTO = "auto"
# Images that "auto" turns, and patches of each that it compares.
_IMAGES, _PATCHES = 8, 256
# The share of an image's patches, those farthest from others, that is compared.
_FARTHEST = 0.1
# Turned images may lie so much farther from the others than they do themselves.
LIMIT = 1.125
# A bank that keeps all rows needs a distance to see that several images have a row: it is then left out of
# none of their searches.
_EQUAL = float(np.finfo(np.float32).tiny)


def checked_augment(value: Any, position_radius: int | None) -> str | tuple[str, ...] | None:
    """None, "auto", the name of a change, or several. Raises ValueError for anything else, and for turns with
    a radius.
    """
    if value is None or (isinstance(value, str) and value == AUTO):
        names: tuple[str, ...] = ()
    elif isinstance(value, str) or not isinstance(value, Sequence):  # a set has no order to tell or to save
        names = (one_of("augment", value, (*CHANGES, AUTO)),)
    else:
        names = tuple(one_of("augment", name, CHANGES) for name in value)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"augment must be names of different changes, or None for none, got {value!r}")
    if position_radius is not None and (value == AUTO or "rotations" in names):
        raise ValueError(
            f"augment={value!r} turns images, and with position_radius={position_radius} a patch is compared "
            'with its own place: products that turn need position_radius=None, others augment="brightness"'
        )
    return value if value is None or isinstance(value, str) else names


def learn_augmented(detector: Any, images: ImageSet, run: Run, *, extending: bool) -> Fitted:
    """What a `PatchCore` learns of images and copies; `extend` changes new ones as the fit did."""
    names: tuple[str, ...]
    if extending:
        names = detector.augment_
    elif detector.augment == AUTO:
        names = ("rotations",) if _look_alike_turned(detector, images, run) else ()
    else:
        names = (detector.augment,) if isinstance(detector.augment, str) else detector.augment
    check = detector._check_batch if isinstance(images, Images) else None
    (fitted,) = one_pass(
        [detector], Augmented(images, copies_of(names)), run, extending=extending, check=check
    )
    for bank in banks_of(fitted.state):
        bank.augment_ = names
    return fitted


def banks_of(state: Any) -> tuple[MemoryBank, ...]:
    """All memory banks of a state."""
    learned = learned_banks(state)
    return learned.banks if isinstance(learned, LayerBanks) else (learned,)


def _look_alike_turned(detector: Any, images: ImageSet, run: Run) -> bool:
    """Whether images, turned, lie as near to others as they do themselves."""
    items = _chosen(images)
    if len(items) < 2:
        warn(
            'augment="auto" compares turned images with others, and there is one alone: it is not turned; '
            'augment="rotations" turns it'
        )
        return False
    measure = _Turned(detector, images)
    for done, item in enumerate(items, start=1):
        measure.add(item)
        run.progress("augment", done, len(items))
    ratio = measure.ratio()
    if ratio is None:
        warn('augment="auto": no patch is inspected in all turns, so that images are not turned')
        return False
    is_alike = ratio <= LIMIT
    run.note(
        f"augment: turned, images lie {ratio:.2f} times as far from others, and rotations "
        f"{'are learned' if is_alike else 'are left out'} (limit {LIMIT})",
        True,
    )
    return is_alike


def _chosen(images: ImageSet) -> list[int]:
    """One item each of some different images, evenly spread; of tiles the one in the middle."""
    items: dict[tuple[tuple[int, int], int], list[int]] = {}
    for item, (_, size, fingerprint) in enumerate(images.identities()):
        items.setdefault((size, fingerprint), []).append(item)
    middles = [own[len(own) // 2] for own in items.values()]
    which = np.linspace(0, len(middles) - 1, min(len(middles), _IMAGES)).round().astype(int)
    return [middles[place] for place in which]


class _Turned:
    """Distances of images and of their turned copies to other images, bank by bank.

    Only patches that are inspected in all turns are compared, in the image and in its copies, and of these
    the farthest tenth: a background under fixed light, which is most of many images, differs a little when
    it is turned.
    """

    def __init__(self, detector: Any, images: ImageSet) -> None:
        self._detector, self._images = detector, images
        self._frame = images.frame(detector.geometry)
        self._copies = copies_of(["rotations"])
        self._augmented = Augmented(images, self._copies)
        self._pool = open_pool([detector], images)
        self._banks: list[MemoryBank] = []
        # Bank by bank of every image its patches [turns, n, D].
        self._queries: list[list[tuple[int, torch.Tensor]]] = []

    def add(self, item: int) -> None:
        """Embed an image in all turns."""
        items = [item + number * len(self._images) for number in range(len(self._copies))]
        size = self._images.identities()[item][1]
        stretch = self._images.stretch(self._frame, size)
        turns = [Turn(copy.angle, stretch) for copy in self._copies]
        seen = []
        step = self._detector.batch_size
        for start in range(0, len(items), step):
            pixels, _ = self._augmented.read(self._frame, items[start : start + step])
            with self._pool.batch({self._frame: pixels}) as features:
                seen.append(self._detector._seen(pixels, self._frame, features))
        inside = self._detector.inside(seen[0])
        each = [torch.cat(values) for values in zip(*(one.values for one in seen), strict=True)]
        if not self._banks:
            self._banks = [MemoryBank(1.0) for _ in each]
            self._queries = [[] for _ in each]
        for bank, queries, embeddings in zip(self._banks, self._queries, each, strict=True):
            grid = (int(embeddings.shape[1]), int(embeddings.shape[2]))
            cells = [cells_of(turn, seen[0].size, inside, grid) for turn in turns]
            flat, device = embeddings.flatten(1, 2), embeddings.device
            bank.add(flat[0, torch.from_numpy(np.flatnonzero(cells[0])).to(device)], item)
            common = np.flatnonzero(np.logical_and.reduce(cells))
            some = np.linspace(0, len(common) - 1, min(len(common), _PATCHES)).round().astype(int)
            if len(common):
                queries.append((item, flat[:, torch.from_numpy(common[some]).to(device)]))

    def ratio(self) -> float | None:
        """How much farther than itself an image lies from the others when it is turned: the mean over turns
        and banks, the median over images. None where nothing could be compared.
        """
        found: dict[int, list[float]] = {}
        for bank, queries in zip(self._banks, self._queries, strict=True):
            bank.fit(noise_floor=_EQUAL)
            for item, patches in queries:
                distances, _ = bank.search(patches.flatten(0, 1), 1, exclude_image=item)
                apart = distances[:, 0].clamp_min(0).sqrt().view(len(patches), -1).double()
                means = apart.topk(math.ceil(apart.shape[1] * _FARTHEST)).values.mean(1).tolist()
                found.setdefault(item, []).append(_divided(float(np.mean(means[1:])), means[0]))
        return float(np.median([np.mean(own) for own in found.values()])) if found else None


def _divided(turned: float, upright: float) -> float:
    """A ratio of distances; that of an image that another equals is 1 only if the turned one is equal too."""
    if upright > 0:
        return turned / upright
    return 1.0 if turned == 0 else float("inf")


def note_of(names: Sequence[str]) -> str:
    """What was chosen, in words."""
    return f"augmented by {' and '.join(names)}" if names else "not augmented"
