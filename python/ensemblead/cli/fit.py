"""`ensemblead fit`: a folder of good images in, a saved model out."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings, without_threshold_warnings
from ensemblead.cli.fit_summary import show_coverage, show_summary
from ensemblead.cli.models import describe_model, reads_weights_elsewhere
from ensemblead.cli.options import DetectorOptions, build_detector, byte_count, read_config, typed_options
from ensemblead.common.extras import require
from ensemblead.common.validation import some_of
from ensemblead.config.presets import preset_notes

_NETWORK, _BANK, _TILES, _RUN = "Networks", "Memory bank and threshold", "Tiles", "Run"


def option(*names: str, panel: str, text: str, **more: Any) -> Any:
    """An option in one of the help's panels."""
    return typer.Option(*names, rich_help_panel=panel, help=text, **more)


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of normal images.")],
    model: Annotated[Path, typer.Option("--model", help="The folder to write the model to.")],
    method: Annotated[
        str | None, option("--method", panel=_NETWORK, text="A method's name; patchcore if absent.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            panel=_RUN,
            text="[I.]NAME=VALUE: any parameter of the method, its ensembles and tiles (tile_NAME); I: of "
            "member I alone. Repeat it. VALUE is a number, text, true, none, HxW, or [A, B].",
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        option("-b", "--backbone", panel=_NETWORK, text="A network's name; repeat it for an ensemble."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        option(
            "-le",
            "--layer",
            panel=_NETWORK,
            text="[I.]LAYER; with several backbones I is its number. If absent, the layers that "
            "`ensemblead layers NAME` marks.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        option("--weights", panel=_NETWORK, text="[I.]PATH of a weights file, or none for random ones."),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            "--preset",
            panel=_NETWORK,
            text="A published method by name: patchcore-large, anomaly_dino, rad, superadd.",
        ),
    ] = None,
    resize: Annotated[
        str | None, option("--resize", panel=_NETWORK, text="Shorter side in pixels, HxW, or none.")
    ] = None,
    image_size: Annotated[
        str | None, option("--image-size", panel=_NETWORK, text="Centre crop after it: N, HxW, or none.")
    ] = None,
    region: Annotated[
        str | None,
        option(
            "--region",
            panel=_NETWORK,
            text="A mask of what to inspect, as large as the photographs: black is left out.",
        ),
    ] = None,
    patch_size: Annotated[str | None, option("--patch-size", panel=_NETWORK, text="Odd.")] = None,
    pretrain_dim: Annotated[
        str | None, option("--pretrain-dim", panel=_NETWORK, text="Values per layer: N or auto.")
    ] = None,
    target_dim: Annotated[
        str | None,
        option("--target-dim", panel=_NETWORK, text="Length of an embedding: 1024, for ensembles 384."),
    ] = None,
    coreset_fraction: Annotated[
        str | None,
        option("-p", "--coreset-fraction", panel=_BANK, text="Share of the patches to keep: 0.01."),
    ] = None,
    coreset_size: Annotated[
        str | None,
        option("--coreset-size", panel=_BANK, text="How many patches to keep, instead of a share."),
    ] = None,
    memory_budget: Annotated[
        str | None,
        option("--memory-budget", panel=_BANK, text="What patches may take in memory: 2GB, 500MB; 1.45GB."),
    ] = None,
    num_neighbors: Annotated[
        str | None, option("--num-neighbors", panel=_BANK, text="Neighbours that a distance averages.")
    ] = None,
    tile_size: Annotated[
        str | None,
        option(
            "--tile-size",
            panel=_TILES,
            text="N or HxW: a detector per tile of the --image-size (512), "
            "or with --shared-tiles one for all tiles; --scales 1 .5 adds tiles of smaller images.",
        ),
    ] = None,
    stride: Annotated[
        str | None, option("--stride", panel=_TILES, text="Between tiles, N or HxW; half a tile.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        option("--calibrate", panel=_BANK, text="Fresh normal images to take the threshold from."),
    ] = None,
    false_alarm_rate: Annotated[
        float | None, option("--false-alarm-rate", panel=_BANK, text="With --calibrate; 0.01.")
    ] = None,
    seed: Annotated[str | None, option("--seed", panel=_RUN, text="Of everything random; 0.")] = None,
    device: Annotated[str | None, option("--device", panel=_RUN, text="auto, cpu, cuda, cuda:1.")] = None,
    config: Annotated[
        Path | None,
        option(
            "--config",
            panel=_RUN,
            text="A YAML or JSON file of preset, method, backbone, layers, weights and parameters, or of a "
            "detector by its type. Paths in it are relative to it.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        option(
            "--checkpoint",
            panel=_RUN,
            text="Of methods that are trained: a folder to keep the training in. After an interrupt the same "
            "command goes on from there.",
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        option(
            "--exclude",
            panel=_RUN,
            text="A .txt with a path or pattern on each line, below DATA or absolute: images to leave out. "
            "Or the .json of marks that a page exports: its missed defects are left out.",
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, option("--skip-unreadable", panel=_RUN, text="Leave out images that cannot be read.")
    ] = False,
    include_backbone: Annotated[
        bool,
        option(
            "--include-backbone",
            panel=_RUN,
            text="Store the networks' weights with the model, for machines that do not have them.",
        ),
    ] = False,
    half: Annotated[
        bool, option("--half", panel=_RUN, text="Store the memory bank in half precision, half as large.")
    ] = False,
    overwrite: Annotated[
        bool, option("--overwrite", panel=_RUN, text="Replace the model that is in the folder.")
    ] = False,
    verbose: Annotated[
        bool,
        option("-v", "--verbose", panel=_RUN, text="Say how well memory banks cover what they learned."),
    ] = False,
    as_json: Annotated[bool, option("--json", panel=_RUN, text="Print a JSON summary.")] = False,
) -> None:
    """Learn what normal looks like from a folder of good images.

    An ensemble, as PatchCore's own command line writes it: -b wideresnet101 -b resnext101 -b densenet201
    -le 0.layer2 -le 0.layer3 -le 1.layer2 -le 1.layer3 -le 2.features.denseblock2 -le 2.features.denseblock3
    """
    parameters = {
        "resize": resize,
        "image_size": image_size,
        "region": region,
        "patch_size": patch_size,
        "pretrain_dim": pretrain_dim,
        "target_dim": target_dim,
        "coreset_fraction": coreset_fraction,
        "coreset_size": coreset_size,
        "memory_budget": None if memory_budget is None else str(byte_count("memory-budget", memory_budget)),
        "num_neighbors": num_neighbors,
        "tile_size": tile_size,
        "stride": stride,
        "seed": seed,
        "device": device,
    }
    names = {"preset": preset, "method": method, "backbone": backbone, "layers": layers, "weights": weights}
    if false_alarm_rate is not None and calibrate is None:
        raise ValueError("false-alarm-rate needs --calibrate FOLDER with fresh normal images")
    with reported_warnings() as warned, Bars() as bars:
        run = FitRun(
            data,
            model,
            typed_options(parameters, settings or (), **names),
            None if config is None else read_config(config),
            calibrate,
            false_alarm_rate,
            skip_unreadable,
            include_backbone,
            overwrite,
            checkpoint,
            half,
            exclude,
        )
        summary = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        show_summary(summary)
        if verbose:
            show_coverage(summary)


@dataclass
class FitRun:
    """One call of `fit`; `execute` does it and returns its summary."""

    data: Path
    model: Path
    options: DetectorOptions
    config: DetectorOptions | None = None
    calibrate: Path | None = None
    false_alarm_rate: float | None = None
    skip_unreadable: bool = False
    include_backbone: bool = False
    overwrite: bool = False
    checkpoint: Path | None = None
    half: bool = False
    exclude: Path | None = None

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead fit")
        from ensemblead.detectors.learning import fit
        from ensemblead.detectors.training.checkpoint import opened
        from ensemblead.images import check_normal_folder, open_images

        clock = Clock()
        # Everything that can be refused at once comes before hours of work.
        self._check_model()
        check_normal_folder(self.data)
        source, excluded = self._opened()
        fresh = None if self.calibrate is None else open_images(self.calibrate)
        if fresh is not None:
            own = {os.path.realpath(str(path)) for path in source.paths}
            both = [str(path) for path in fresh.paths if os.path.realpath(str(path)) in own]
            if both:
                raise ValueError(
                    f"images: the detector would be fitted on {len(both)} of those to calibrate by "
                    f"({some_of(both)}), so that no false-alarm rate could be guaranteed; give images that "
                    "the fit does not see"
                )
        detector = build_detector(self.options, self.config)
        given = [one.preset for one in (self.options, self.config) if one is not None]
        if preset := next(filter(None, given), None):
            bars.note(f"{preset} needs {preset_notes(preset)}", True)
        if getattr(detector, "fusion", None) == "minmax":
            raise ValueError(
                "fusion minmax scales over an evaluated set, so predict could not use the model: fit with "
                "another fusion, or evaluate with this one"
            )
        errors: Any = "skip" if self.skip_unreadable else "raise"
        bars.step("loading networks")
        # Whatever fails before the model is saved, the checkpoint keeps what was trained.
        with opened(self.checkpoint) as kept:
            with nullcontext() if fresh is None else without_threshold_warnings():
                fit(detector, source, errors, bars, extending=False, checkpoint=kept)
            skipped = list(detector.skipped_)
            images = _named_images(detector.calibration_, source)
            images["inspected_share"] = _inspected_share(detector, source, skipped)
            left_out = [one for one in detector.left_out_ if not one.partly]
            learned = len(source) - len(skipped) - len(left_out)
            if fresh is not None:
                skipped += self._calibrate(detector, fresh, bars)
            bars.step("saving")
            detector.save(self.model, include_backbone=self.include_backbone, half=self.half)
            if kept is not None:
                kept.remove()
        return {
            "model": str(self.model),
            "images": len(source),
            "learned": learned,
            "ignored_files": source.ignored,
            "ignored": source.describe_ignored(),
            "below": sum(os.path.dirname(str(path)) != os.fspath(self.data) for path in source.paths)
            if self.data.is_dir()
            else 0,
            "skipped": [{"path": image.path, "reason": image.reason} for image in skipped],
            "excluded": excluded,
            "left_out": [
                {"path": one.path, "deviations": one.score, "by": list(one.by), "partly": one.partly}
                for one in detector.left_out_
            ],
            **images,
            "seconds": round(clock(), 3),
            "include_backbone": self.include_backbone or not reads_weights_elsewhere(detector),
            **describe_model(detector),
        }

    def _opened(self) -> tuple[Any, list[str]]:
        """The images to learn, and the paths of those that are left out."""
        from ensemblead.images import open_images, read_list, without_images

        source = open_images(self.data)
        if self.exclude is None:
            return source, []
        listed = read_list(self.exclude)
        return without_images(source, listed.missed if listed.is_marks else listed.entries, self.data)

    def _check_model(self) -> None:
        from ensemblead.store import MANIFEST, check_target

        check_target(self.model)
        if (self.model / MANIFEST).exists() and not self.overwrite:
            raise ValueError(f"there is a model in {self.model} already: --overwrite replaces it")
        model = self.model.absolute()
        if self.checkpoint is not None and model in (own := self.checkpoint.absolute(), *own.parents):
            raise ValueError(
                f"checkpoint must lie outside of the model's folder {self.model}, got {self.checkpoint}"
            )

    def _calibrate(self, detector: Any, fresh: Any, bars: Bars) -> list[Any]:
        """Take the threshold from fresh images; those that were left out."""
        from ensemblead.calibration import DEFAULT_RATE

        rate = DEFAULT_RATE if self.false_alarm_rate is None else self.false_alarm_rate
        errors: Any = "skip" if self.skip_unreadable else "raise"
        detector.calibrate(
            fresh, rate, errors=errors, progress=lambda _, done, total: bars("calibrating", done, total)
        )
        return list(detector.skipped_)


def _inspected_share(detector: Any, source: Any, skipped: list[Any]) -> float:
    """The share of a photograph that the detector sees, of the first that could be read."""
    left_out = {image.index for image in skipped}
    first = next(index for index in range(len(source)) if index not in left_out)
    return float(detector.geometry.share(*source.size(first)))


def _named_images(calibration: Any, source: Any) -> dict[str, Any]:
    """The images least like the others, and those that decide the threshold of `fit`, with their scores."""
    from ensemblead.calibration import deciding_images, odd_images

    odd = odd_images(calibration)
    deciding, without = deciding_images(calibration)

    def named(found: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"path": source.paths[index], "score": score} for index, score in found]

    return {
        # Both lists are the highest scores, so the longer one has the shorter one.
        "odd_images": named(max(odd, deciding, key=len)),
        "deciding_images": named(deciding),
        "threshold_without_deciding": without if deciding else None,
    }
