"""Known defects: their images read, and which of their patches go into the bank of defects.

docs/design/robust.md has what was measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import adaptive_avg_pool2d, pad

from ensemblead.common.files import StrPath
from ensemblead.common.validation import some_of
from ensemblead.common.warnings import ThresholdWarning, warn
from ensemblead.datasets.masks import MaskFolder, pair_masks
from ensemblead.detectors.one_pass import contents_of
from ensemblead.detectors.parts import Seen
from ensemblead.detectors.patchcore.scoring import PatchScoring, is_zero, patch_places, top_count
from ensemblead.detectors.provenance import record
from ensemblead.images import Geometry, Images, ImageSource, open_images
from ensemblead.images.masks import Mask, read_mask
from ensemblead.kernels.inside import Inside
from ensemblead.memory import DefectRows, MemoryBank
from ensemblead.networks.modes import default_modes
from ensemblead.networks.network import FeaturePool

# A folder, or paths.
Paths: TypeAlias = StrPath | Sequence[StrPath] | None
# A patch belongs to a defect if its mask covers so much of the patch's cell.
_COVERED = 0.5
_AT_ONCE = 4096  # bank rows that are taken in float64


def checked_paths(name: str, given: Any) -> str | tuple[str, ...] | None:
    """A folder or paths as JSON has them; nothing is read. Raises TypeError or ValueError for others."""
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        if not os.fspath(given):
            raise ValueError(f"{name} must not be an empty path")
        return os.fspath(given)
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} must be a folder, a list of paths or None, got {type(given).__name__}")
    if not given:
        raise ValueError(f"{name} must not be empty, got an empty list")
    for i, one in enumerate(given):
        if not isinstance(one, (str, os.PathLike)) or not os.fspath(one):
            raise TypeError(f"{name}[{i}] must be a path, got {one!r}")
    return tuple(os.fspath(one) for one in given)


def check_pair(defects: Any, masks: Any) -> None:
    """Raise ValueError for masks without defects, and for a list of them that does not fit."""
    if masks is None:
        return
    if defects is None:
        raise ValueError("defect_masks are of defects, and defects is None")
    if isinstance(masks, tuple) and not (isinstance(defects, tuple) and len(masks) == len(defects)):
        have = f"{len(defects)} paths" if isinstance(defects, tuple) else f"the folder {defects}"
        raise ValueError(
            f"defect_masks must be a folder, or one path for each path of defects: got {len(masks)} masks "
            f"and {have}"
        )


@dataclass(frozen=True)
class DefectLook:
    """What a detector sees of an image of a known defect.

    Attributes:
        path: of its file.
        content: 64 bits of the pixels, as in `Seen.contents`.
        fingerprint: of the photograph, as in `ImageBatch`.
        patches: embeddings of the inspected patches, float32 `[n, D]`.
        grid: height and width of the grid that they are of.
        inside: the region; None: all are inspected.
        covered: which share of every patch's cell the mask covers, float32 `[n]`; None: there is no mask.
    """

    path: str
    content: int
    fingerprint: int
    patches: torch.Tensor
    grid: tuple[int, int]
    inside: Inside | None
    covered: torch.Tensor | None


def read_looks(
    detector: Any, frame: Geometry, defects: Any, masks: Any, bits: int | None = None
) -> list[DefectLook]:
    """The images of known defects through a detector's network, in a geometry that is decided.

    Raises FileNotFoundError, UnreadableImageError, and ValueError for a folder without images, an image
    without its mask, and a mask of another size, without anything white, or outside of what is inspected.
    """
    try:
        source = open_images(defects, bits=bits)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"defects: {error}") from error
    paths = [str(path) for path in source.paths]
    pairs = [None] * len(paths) if masks is None else _masks_of(defects, source, masks)
    pool = FeaturePool([(one.network, frame) for one in detector._own_networks()])
    looks: list[DefectLook] = []
    with default_modes(), Images(source) as data:
        for batch in data.batches([frame], detector.batch_size):
            pixels = batch.images[frame]
            with pool.batch(batch.images) as features:
                seen = detector._seen(pixels, frame, features)
            embeddings, inside = seen.embeddings, detector.inside(seen)
            grid = (int(embeddings.shape[1]), int(embeddings.shape[2]))
            inspected = (embeddings if inside is None else inside.take(embeddings)).flatten(1, 2)
            rows = zip(batch.indices, contents_of(pixels), batch.fingerprints, batch.sizes, strict=True)
            for own, (index, content, fingerprint, size) in zip(inspected, rows, strict=True):
                path, mask = paths[index], pairs[index]
                covered = None
                if mask is not None:
                    covered = _covered(mask, path, size, seen, grid, inside).to(own.device)
                looks.append(DefectLook(path, content, fingerprint, own.clone(), grid, inside, covered))
    return looks


def _masks_of(defects: Any, source: ImageSource, masks: Any) -> list[str]:
    """The mask of every image: by name, where they are a folder."""
    if isinstance(masks, tuple):
        return list(masks)
    truth, images = Path(masks), [Path(str(path)) for path in source.paths]
    if not truth.is_dir():
        raise FileNotFoundError(f"defect_masks: no such folder: {truth}")
    if isinstance(defects, str) and os.path.isdir(defects):
        found = pair_masks(images, Path(defects), truth)[0]
    else:  # as MVTec AD has them: in a folder of the defect's type, or all in one
        places = [below if (below := truth / path.parent.name).is_dir() else truth for path in images]
        folders = {place: MaskFolder(place) for place in places}
        found = [folders[place].find(path) for place, path in zip(places, images, strict=True)]
    lacking = [str(path) for path, mask in zip(images, found, strict=True) if mask is None]
    if lacking:
        raise ValueError(
            f"defect_masks: {truth} has no mask of {len(lacking)} images, such as {some_of(lacking, 1)}: a "
            "mask is named like its image, or with _mask at the end, in a folder of the same name"
        )
    return [mask for mask in found if mask is not None]


def _covered(
    path: str,
    image: str,
    size: tuple[int, int],
    seen: Seen,
    grid: tuple[int, int],
    inside: Inside | None,
) -> torch.Tensor:
    """See `DefectLook`."""
    mask: Mask = read_mask(path)
    if mask.shape != tuple(size):
        have, want = (" x ".join(map(str, one)) for one in (mask.shape, size))
        raise ValueError(f"defect_masks: {path} has {have} pixels (H x W), and its image {image} {want}")
    if not mask.any():
        raise ValueError(f"defect_masks: {path} has no pixel that is not black, so it marks no defect")
    in_frame = torch.from_numpy(seen.frame.apply_mask(mask)).float()
    padding = (0, seen.size[1] - in_frame.shape[1], 0, seen.size[0] - in_frame.shape[0])
    shares = adaptive_avg_pool2d(pad(in_frame, padding)[None], grid)
    covered = (shares if inside is None else inside.take(shares)).flatten()
    if not bool((covered > 0).any()):
        raise ValueError(f"defect_masks: nothing of what {path} marks lies where images are inspected")
    return covered


def chosen_rows(
    looks: Sequence[DefectLook],
    bank: MemoryBank,
    scoring: PatchScoring,
    limit: Callable[[], float],
    noise: float,
) -> DefectRows:
    """The patches of known defects that the bank of defects has.

    With a mask: those whose cell it covers by half or more, or else the one it covers most. Without: those
    farther from the normal bank than `limit`, and the farthest hundredth (one at least). Patches within
    `noise` of the normal bank differ from normal ones by rounding alone, and are left out. For cosine so
    are vectors of zeros, which have no direction.

    Args:
        bank: of normal rows, without `defects_`.
        limit: asked once, if any image has no mask.

    Raises ValueError where nothing is left.
    """
    beyond = limit() if any(look.covered is None for look in looks) else 0.0
    rows, images = [], []
    for number, look in enumerate(looks):
        places = patch_places(bank, 1, look.grid, look.inside)
        apart = scoring.scores(bank, look.patches[None, None], places=places).grids.flatten()
        if look.covered is None:
            chosen = apart > beyond
            chosen[apart.topk(top_count(len(apart))).indices] = True
        else:
            chosen = look.covered >= min(_COVERED, float(look.covered.max()))
        chosen &= apart > noise
        if scoring.is_cosine:
            chosen &= ~is_zero(look.patches)
        own = look.patches[chosen]
        rows.append(own)
        images += [number] * len(own)
    if not images:
        raise ValueError(
            f"defects: no patch of the {len(looks)} images differs from normal ones, so there is nothing to "
            "learn of them"
        )
    kept = torch.cat(rows)
    contents = np.array([look.content for look in looks], dtype=np.uint64).view(np.int64)
    numbers = torch.tensor(images, dtype=torch.int64, device=kept.device)
    found = DefectRows(kept, numbers, torch.from_numpy(contents.copy()).to(kept.device))
    if bank.rows_.dtype == torch.float16:
        found.check_half("bank_dtype")
    return found.to(kept.device, bank.rows_.dtype)


def bank_with(detector: Any, images: Any, masks: Any) -> tuple[MemoryBank, int]:
    """A copy of the bank of a fitted detector, with more known defects, and how many images they are of."""
    name = "learn_defects"
    detector._require_fitted(name)
    if detector.banks == "per_layer":
        raise ValueError(f'{name}: known defects go with one bank, and banks="per_layer" has one per layer')
    defects, masks = checked_paths("images", images), checked_paths("masks", masks)
    if defects is None:
        raise TypeError("images must be a folder or a list of paths, got None")
    check_pair(defects, masks)
    looks = read_looks(detector, detector.geometry, defects, masks, detector.bits_)
    refuse_normal(looks, {look.fingerprint for look in looks} & set(detector._fingerprints.tolist()))
    bank = detector.memory_bank_.copy()
    before, bank.defects_ = bank.defects_, None
    if before is not None:
        known = set(before.contents.cpu().numpy().view(np.uint64).tolist())
        fresh = [look for look in looks if look.content not in known]
        if not fresh:
            raise ValueError(f"images: all {len(looks)} are known defects already; give others")
        if len(fresh) < len(looks):
            warn(f"{len(looks) - len(fresh)} of the images are known defects already, and stay as they are")
        looks = fresh
    scoring, rows = detector._scoring, bank.rows_
    # Some at a time: in float64 they would take twice the bank, or of half precision four times.
    squares = sum(float(some.double().square().sum()) for some in rows.split(_AT_ONCE))
    floor = detector._relative_noise() * math.sqrt(squares / len(rows))
    noise = scoring.moved(0.0, floor, int(rows.shape[1]))
    found = chosen_rows(looks, bank, scoring, detector.calibration_.pixel_threshold, noise)
    bank.defects_ = found if before is None else before.joined(found)
    return bank, len(looks)


def learn_defects(detector: Any, members: Sequence[Any], images: Any, masks: Any) -> None:
    """Have members of a detector, or itself, know more defects; all of them or, after an error, none."""
    for member in members:
        if member.foreground is not None:
            raise ValueError(
                f"foreground={member.foreground!r} may leave parts of known defects outside of the object: "
                "they cannot be learned"
            )
    found = [bank_with(member, images, masks) for member in members]
    for member, (bank, _) in zip(members, found, strict=True):
        member._state = bank
        own = member.calibration_
        member._accept([replace(own, origin="leave_one_out") if own.is_guaranteed else own])
    record(detector, "learn_defects", max(count for _, count in found))
    warn(
        "scores of normal images that look like known defects may have risen, and the threshold is of "
        "before: call calibrate",
        ThresholdWarning,
    )


def refuse_normal(looks: Sequence[DefectLook], fingerprints: Collection[int]) -> None:
    """Raise ValueError for images of known defects that were learned as normal ones."""
    equal = [look.path for look in looks if look.fingerprint in fingerprints]
    if equal:
        raise ValueError(
            f"images: {len(equal)} of the defects were learned as normal images ({some_of(equal, 3)}): fit "
            "again without them"
        )


def refuse_equal(
    looks: Sequence[DefectLook],
    known: DefectRows | None,
    normal: Iterable[tuple[int, int]],
    describe: Callable[[int], str],
) -> None:
    """Raise ValueError for normal images, pairs of content and number, that equal those of known defects."""
    paths = {look.content: look.path for look in looks}
    if known is not None:
        contents: npt.NDArray[np.uint64] = known.contents.cpu().numpy().view(np.uint64)
        paths |= dict.fromkeys(contents.tolist(), "a known defect")
    equal = {number: paths[content] for content, number in normal if content in paths}
    if equal:
        pairs = [f"{describe(number)} equals {path}" for number, path in equal.items()]
        raise ValueError(
            f"defects: {len(equal)} of the normal images are defects as well ({some_of(pairs, 3)}): leave "
            "them out of one or the other"
        )
