"""How well the memory bank of a `PatchCore` covers the patches of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ensemblead.detectors.parts import Progress
from ensemblead.detectors.patchcore.object_learning import objects_in
from ensemblead.detectors.patchcore.scoring import patch_places
from ensemblead.detectors.running import scored_batches
from ensemblead.kernels.inside import Inside
from ensemblead.memory import Coverage
from ensemblead.memory.buffer import row_labels


def coverage_of(detector: Any, images: Any, errors: Any, progress: Progress | None) -> Coverage:
    """For `PatchCore.verify`."""
    bank = detector.memory_bank_
    measure: Any = bank.coverage_measure()
    for _, (seen,) in scored_batches(detector, images, errors, progress, "verify"):
        inside, shape = detector.inside(seen), seen.embeddings.shape
        rows = inspected(seen.embeddings, inside).flatten(0, 2)
        places = patch_places(bank, shape[0], (shape[1], shape[2]), inside)
        objects = objects_in(detector.state_, seen)
        if objects is not None:
            rows, chosen = objects.take(seen.embeddings), objects.cells.flatten().cpu().numpy()
            places = None if places is None else places[chosen]
        measure.add(rows, row_labels(0, places, len(rows)))
    coverage: Coverage = measure.coverage()
    # The certificate is of all that was learned, and copies do not pass here.
    known = coverage.certificate == 1.0 or not bank.augment_
    return coverage if known else replace(coverage, certificate=None)


def inspected(embeddings: torch.Tensor, inside: Inside | None) -> torch.Tensor:
    """Of embeddings `[B, h, w, D]` those in a region, as `Inside.take` gives them; all without one."""
    return embeddings if inside is None else inside.take(embeddings)
