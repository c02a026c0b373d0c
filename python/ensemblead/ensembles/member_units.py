"""Members of a backbone ensemble as units of work: each is fitted apart, to the same bits as together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ensemblead.calibration import sampled_positions
from ensemblead.config.registry import create
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.learning import Learned, learned_from, settle
from ensemblead.detectors.one_pass import SharedPass, shared_pass
from ensemblead.detectors.parts import Run
from ensemblead.distributed.files import with_contents
from ensemblead.distributed.units import Task, Unit
from ensemblead.distributed.working import no_progress
from ensemblead.ensembles.units import (
    Job,
    given_images,
    plain_description,
    read_images,
    readers_of,
    skipped_document,
    write_images,
)
from ensemblead.images import ImageBatch
from ensemblead.store import FolderWriter


def fit_members(ensemble: Detector, members: Sequence[Detector], job: Job) -> None:
    """Fit the members of an ensemble on an executor, and give it what they have learned."""
    for i, member in enumerate(members):
        if any(part.has_learned for part in member._parts()):
            raise ValueError(
                f"members[{i}] is fitted already: executor= fits members that have learned nothing; "
                "make new ones"
            )
    descriptions = [plain_description(member, f"members[{i}]") for i, member in enumerate(members)]
    job.open()
    shared = asdict(shared_pass(ensemble, job.source, job.errors))
    units = [
        Unit.of(
            job.workdir,
            f"member{i}-{one['type']}",
            {"unit": "member", "detector": with_contents(one), "shared": shared, **job.identity()},
        )
        for i, one in enumerate(descriptions)
    ]
    tasks = [
        {
            **job.common(descriptions[place]),
            "shared": shared,
            "unit": units[place].plain(),
        }
        for place, unit in enumerate(units)
        if unit.read() is None
    ]
    job.run(fit_member, units, tasks)
    _take(ensemble, members, units, job)


def fit_member(task: Task) -> None:
    """On a worker: fit one member, unless it is there."""
    unit = Unit(**task["unit"])
    with given_images(task) as (work, listed, source):
        if unit.read() is not None:
            return
        member: Detector = create(task["detector"])
        run = Run(no_progress, len(source), sampled_positions(len(source)))
        learned = learned_from(member, source, task["errors"], run, shared=SharedPass(**task["shared"]))
        listed.check("was changed while it was learned")
        member._take(list(learned.states), learned.reading(source))
        member._accept(list(learned.calibrations))

        def fill(writer: FolderWriter) -> dict[str, Any]:
            writer.child("member", member)
            write_images(writer, learned.identities)
            doubts, skipped = list(learned.warnings), skipped_document(learned.skipped)
            return {"threshold_warnings": doubts, "skipped": skipped, **work.record()}

        unit.write(fill)


def _take(ensemble: Detector, members: Sequence[Detector], units: Sequence[Unit], job: Job) -> None:
    readers = readers_of(units)
    read = read_images(readers, job.source)
    _check_frames(ensemble, read.identities, job)
    fitted: list[Any] = []
    for member, reader in zip(members, readers, strict=True):
        lent = iter([network.network for network in member._networks()])
        fitted += reader.child("member", networks=lent)._parts()
    learned = Learned(
        [part.state_ for part in fitted],
        [part.calibration_ for part in fitted],
        [message for reader in readers for message in reader.state["threshold_warnings"]],
        tuple(part.geometry for part in fitted),
        read.identities,
        read.skipped,
        left_out=tuple(part.left_out_ for part in fitted),
    )
    settle(ensemble, learned, job.source)


def _check_frames(
    ensemble: Detector, identities: Sequence[tuple[int, tuple[int, int], int]], job: Job
) -> None:
    """Raise where the members cannot agree on an image, as a fit together does."""
    positions, sizes, looks = (list(one) for one in zip(*identities, strict=True))
    paths = [job.source.paths[position] for position in positions]
    ensemble._check_batch(ImageBatch(positions, paths, sizes, looks, {}))
