"""Locations of a tiled ensemble as units of work: ranges of them are fitted apart, and joined here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ensemblead.calibration import DEFAULT_RATE, NormalSample, sampled_positions, set_digest
from ensemblead.config.registry import create
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.holdout import held_out
from ensemblead.detectors.learning import Learned, settle
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.parts import Run
from ensemblead.detectors.regions import inside_of
from ensemblead.distributed.files import with_contents
from ensemblead.distributed.units import Task, Unit
from ensemblead.distributed.working import no_progress
from ensemblead.ensembles.tile_joining import TileJoin
from ensemblead.ensembles.tile_learning import TiledLearning
from ensemblead.ensembles.tile_plan import Location, TilePlan, settle_in_tile
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.ensembles.units import (
    Job,
    given_images,
    plain_description,
    read_images,
    readers_of,
    skipped_document,
    write_images,
)
from ensemblead.images import Geometry, Images
from ensemblead.store import FolderReader, FolderWriter


def fit_tiles(ensemble: Detector, plan: TilePlan, device: torch.device, job: Job) -> None:
    """Fit the locations of a tiled ensemble on an executor, and give it what they have learned."""
    if plan.shared:
        raise ValueError("executor= fits locations apart; with shared=True all of a scale have one detector")
    description = plain_description(ensemble, "member")
    job.open()
    plan = replace(plan, geometry=_settled(plan, job))
    frame = plan.frame_for(_first_size(plan, job))
    document = {"unit": "tile", "detector": with_contents(description), **job.identity()}
    units = [
        Unit.of(job.workdir, f"tile{number}", {**document, "location": number}) for number in frame.numbers
    ]
    tasks = [
        {
            **job.common(description),
            "locations": [frame.numbers[place] for place in places],
            "units": [units[place].plain() for place in places],
        }
        for places in job.divided(units)
    ]
    job.run(fit_locations, units, tasks)
    _join(ensemble, plan, frame, units, device, job)


def _first_size(plan: TilePlan, job: Job) -> tuple[int, int]:
    """Of the images as they are cut: of the first that can be read."""
    if isinstance(plan.geometry.resize, tuple):
        return plan.geometry.output_size(1, 1)
    for index in range(len(job.source)):
        try:
            if job.errors == "skip":  # the header may be whole where the pixels are not
                job.source.read(index)
            return plan.geometry.output_size(*job.source.size(index))
        except (OSError, ValueError):
            if job.errors == "raise":
                raise
    raise ValueError(f"images: none of the {len(job.source)} images can be read")


def _settled(plan: TilePlan, job: Job) -> Geometry:
    """How images come into their frame: polygons are drawn on photographs of the size of the first."""
    if plan.geometry.is_decided:
        return plan.geometry
    return plan.geometry.decided([_first_size(replace(plan, geometry=Geometry(None, None)), job)])


def fit_locations(task: Task) -> None:
    """On a worker: fit those of some locations that are not there. Images are decoded once."""
    with given_images(task) as (work, listed, source):
        ensemble: Any = create(task["detector"])
        plan: TilePlan = ensemble.plan()
        memory = ensemble.spool_bytes
        with Images(source, plan.geometries, errors=task["errors"], memory_bytes=memory) as data:
            share = ensemble.holdout
            sampled = sampled_positions(len(source)) if share is None else held_out(data, share)
            learning = TiledLearning(plan, data, Run(no_progress, len(source), sampled))
            for number, plain in zip(task["locations"], task["units"], strict=True):
                unit = Unit(**plain)
                if unit.read() is not None:
                    continue
                location = learning.location(number)
                listed.check("was changed while it was learned")

                def fill(writer: FolderWriter, location: Location = location) -> dict[str, Any]:
                    write_images(writer, data.identities())
                    skipped = skipped_document(data.skipped)
                    return {**_write_location(writer, location), "skipped": skipped, **work.record()}

                unit.write(fill)


def _write_location(writer: FolderWriter, location: Location) -> dict[str, Any]:
    writer.child("member", location.member)
    samples = []
    for part, sample in enumerate(location.samples):
        tensors, values = sample.results()
        writer.tensors(f"held_out{part}.safetensors", tensors)
        samples.append(values)
    return {
        "samples": samples,
        "positions": list(location.positions),
        "origins": list(location.origins),
        "threshold_warnings": dict(location.warnings),
        "left_out": [one.plain() for one in location.left_out],
    }


def _read_location(reader: FolderReader, plan: TilePlan, device: torch.device) -> Location:
    state = reader.state
    lent = iter([network.network for network in plan.member._networks()])
    member = reader.child("member", networks=lent)
    settle_in_tile(member)
    regions = [None if part.region is None else inside_of(part.geometry) for part in member._parts()]
    samples = [
        NormalSample.of_results(reader.tensors(f"held_out{number}.safetensors"), values, device, inside)
        for (number, values), inside in zip(enumerate(state["samples"]), regions, strict=True)
    ]
    return Location(
        member,
        tuple(samples),
        tuple(state["positions"]),
        tuple(state["origins"]),
        state["threshold_warnings"],
        left_out=tuple(LeftOut.of(one) for one in state["left_out"]),
    )


def _join(
    ensemble: Detector,
    plan: TilePlan,
    frame: TilePyramid,
    units: Sequence[Unit],
    device: torch.device,
    job: Job,
) -> None:
    readers = readers_of(units)
    read = read_images(readers, job.source)
    locations = [_read_location(reader, plan, device) for reader in readers]
    fitted = TileJoin(plan, frame, locations, job.progress).fitted()
    digest = set_digest(*zip(*read.identities, strict=True))
    learned = Learned(
        [fitted.state],
        [fitted.sample.calibration(DEFAULT_RATE, fitted.origin, digest, fitted.positions)],
        list(fitted.warnings.values()),
        (plan.geometry,),
        read.identities,
        read.skipped,
        left_out=(fitted.left_out,),
    )
    settle(ensemble, learned, job.source)
