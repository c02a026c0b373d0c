"""`ensemblead fit`: a folder of good images in, a saved model out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.console import Bars, Clock, print_json, threshold_to_come, told_warnings
from ensemblead.cli.models import describe_learned, describe_model
from ensemblead.cli.options import DetectorOptions, build_detector, read_config
from ensemblead.common.extras import require

_NETWORK, _BANK, _TILES, _RUN = "Networks", "Memory bank and score", "Tiles", "Run"


def option(*names: str, panel: str, text: str, **more: Any) -> Any:
    """An option in one of the help's panels."""
    return typer.Option(*names, rich_help_panel=panel, help=text, **more)


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of normal images.")],
    model: Annotated[Path, typer.Option("--model", help="The folder to write the model to.")],
    method: Annotated[
        str | None, option("--method", panel=_NETWORK, text="patchcore, or padim (with resnet18).")
    ] = None,
    backbone: Annotated[
        list[str] | None,
        option("-b", "--backbone", panel=_NETWORK, text="A network's name; repeat it for an ensemble."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        option("-le", "--layer", panel=_NETWORK, text="[I.]LAYER; with several backbones I is its number."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        option("--weights", panel=_NETWORK, text="[I.]PATH of a weights file, or none for random ones."),
    ] = None,
    preset: Annotated[
        str | None,
        option("--preset", panel=_NETWORK, text="mission: the paper's three large backbones at 320 pixels."),
    ] = None,
    resize: Annotated[
        str | None, option("--resize", panel=_NETWORK, text="Shorter side in pixels, HxW, or none.")
    ] = None,
    image_size: Annotated[
        str | None, option("--image-size", panel=_NETWORK, text="Centre crop after it: N, HxW, or none.")
    ] = None,
    patch_size: Annotated[int | None, option("--patch-size", panel=_NETWORK, text="Odd.")] = None,
    pretrain_dim: Annotated[
        str | None, option("--pretrain-dim", panel=_NETWORK, text="Values per layer: N or auto.")
    ] = None,
    target_dim: Annotated[
        int | None,
        option("--target-dim", panel=_NETWORK, text="Length of an embedding: 1024, for ensembles 384."),
    ] = None,
    num_dimensions: Annotated[
        int | None, option("--num-dimensions", panel=_NETWORK, text="Channels that padim keeps: 100.")
    ] = None,
    aggregation: Annotated[
        str | None, option("--aggregation", panel=_NETWORK, text="adaptive or concat.")
    ] = None,
    coreset_fraction: Annotated[
        float | None,
        option("-p", "--coreset-fraction", panel=_BANK, text="Share of the patches to keep: 0.01."),
    ] = None,
    num_neighbors: Annotated[
        int | None, option("--num-neighbors", panel=_BANK, text="Neighbours that a distance averages.")
    ] = None,
    score: Annotated[str | None, option("--score", panel=_BANK, text="max, reweighted or topk.")] = None,
    index: Annotated[
        str | None, option("--index", panel=_BANK, text="flat, ivf, ivfpq, hnsw or sq16.")
    ] = None,
    fusion: Annotated[
        str | None, option("--fusion", panel=_BANK, text="Of an ensemble: calibrated, mean, max or rank.")
    ] = None,
    tile_size: Annotated[
        str | None,
        option("--tile-size", panel=_TILES, text="N or HxW: a detector per tile of the --image-size (512)."),
    ] = None,
    stride: Annotated[
        str | None, option("--stride", panel=_TILES, text="Between tiles, N or HxW; half a tile.")
    ] = None,
    shared_tiles: Annotated[
        bool | None, option("--shared-tiles", panel=_TILES, text="One detector for all tiles.")
    ] = None,
    tile_score: Annotated[
        str | None, option("--tile-score", panel=_TILES, text="mean or max over the tiles.")
    ] = None,
    tile_normalization: Annotated[
        str | None, option("--tile-normalization", panel=_TILES, text="tile, image or none.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        option("--calibrate", panel=_BANK, text="Fresh normal images to take the threshold from."),
    ] = None,
    false_alarm_rate: Annotated[
        float | None, option("--false-alarm-rate", panel=_BANK, text="With --calibrate; 0.01.")
    ] = None,
    seed: Annotated[int | None, option("--seed", panel=_RUN, text="Of everything random; 0.")] = None,
    device: Annotated[str | None, option("--device", panel=_RUN, text="auto, cpu, cuda, cuda:1.")] = None,
    precision: Annotated[
        str | None, option("--precision", panel=_RUN, text="auto, float32, bfloat16 or float16.")
    ] = None,
    batch_size: Annotated[int | None, option("--batch-size", panel=_RUN, text="Images per pass; 16.")] = None,
    compile_: Annotated[
        bool | None,
        option("--compile/--no-compile", panel=_RUN, text="Run the networks through torch.compile."),
    ] = None,
    config: Annotated[
        Path | None,
        option(
            "--config",
            panel=_RUN,
            text="A YAML or JSON file of these options, or of a detector by its type. Paths in it are "
            "relative to it.",
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, option("--skip-unreadable", panel=_RUN, text="Leave out images that cannot be read.")
    ] = False,
    include_backbone: Annotated[
        bool, option("--include-backbone", panel=_RUN, text="Store the networks' weights with the model.")
    ] = False,
    as_json: Annotated[bool, option("--json", panel=_RUN, text="Print a JSON summary.")] = False,
) -> None:
    """Learn what normal looks like from a folder of good images.

    An ensemble, as PatchCore's own command line writes it: -b wideresnet101 -b resnext101 -b densenet201
    -le 0.layer2 -le 0.layer3 -le 1.layer2 -le 1.layer3 -le 2.features.denseblock2 -le 2.features.denseblock3
    """
    given = DetectorOptions(
        preset=preset,
        method=method,
        backbone=backbone or None,
        layers=layers or None,
        weights=weights or None,
        resize=resize,
        image_size=image_size,
        patch_size=patch_size,
        pretrain_dim=pretrain_dim,
        num_dimensions=num_dimensions,
        target_dim=target_dim,
        aggregation=aggregation,
        coreset_fraction=coreset_fraction,
        num_neighbors=num_neighbors,
        score=score,
        index=index,
        fusion=fusion,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        tile_size=tile_size,
        stride=stride,
        shared_tiles=shared_tiles or None,
        tile_score=tile_score,
        tile_normalization=tile_normalization,
        compile=compile_,
    )
    if config is not None:
        given = given.over(read_config(config))
    if false_alarm_rate is not None and calibrate is None:
        raise ValueError("false-alarm-rate needs --calibrate FOLDER with fresh normal images")
    run = FitRun(data, model, given, calibrate, false_alarm_rate, skip_unreadable, include_backbone)
    with told_warnings() as warned:
        summary = run.execute()
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        show_summary(summary)


class FitRun:
    """One call of `fit`; `execute` does it and returns its summary."""

    def __init__(
        self,
        data: Path,
        model: Path,
        options: DetectorOptions,
        calibrate: Path | None = None,
        false_alarm_rate: float | None = None,
        skip_unreadable: bool = False,
        include_backbone: bool = False,
    ) -> None:
        self.data, self.model, self.options = data, model, options
        self.calibrate, self.false_alarm_rate = calibrate, false_alarm_rate
        self.skip_unreadable, self.include_backbone = skip_unreadable, include_backbone

    def execute(self) -> dict[str, Any]:
        require("torch", "ensemblead fit")
        from ensemblead.calibration import DEFAULT_RATE, odd_images
        from ensemblead.images import check_normal_folder, open_images
        from ensemblead.store import check_target

        clock = Clock()
        # What can be refused at once is refused before hours of work.
        check_target(self.model)
        check_normal_folder(self.data)
        source = open_images(self.data)
        fresh = None if self.calibrate is None else open_images(self.calibrate)
        detector = build_detector(self.options)
        if getattr(detector, "fusion", None) == "minmax":
            raise ValueError(
                "fusion minmax scales over an evaluated set, so predict could not use the model: fit with "
                "another fusion, or evaluate with this one"
            )
        errors: Any = "skip" if self.skip_unreadable else "raise"
        with Bars() as bars:
            with nullcontext() if fresh is None else threshold_to_come():
                detector.fit(source, errors=errors, progress=bars)
            skipped = list(detector.skipped_)
            odd = odd_images(detector.calibration_, len(source), [image.index for image in skipped])
            if fresh is not None:
                rate = DEFAULT_RATE if self.false_alarm_rate is None else self.false_alarm_rate
                detector.calibrate(fresh, rate, errors=errors, progress=bars)
                skipped += detector.skipped_
        detector.save(self.model, include_backbone=self.include_backbone)
        return {
            "model": str(self.model),
            "images": len(source),
            "ignored_files": source.ignored,
            "skipped": [{"path": image.path, "reason": image.reason} for image in skipped],
            "odd_images": [{"path": source.paths[index], "score": score} for index, score in odd],
            "seconds": round(clock(), 3),
            **describe_model(detector),
        }


def show_summary(summary: dict[str, Any]) -> None:
    """The model in a table."""
    console = Console()
    table = Table("backbone", "layers", "learned", "dimensions", box=None, pad_edge=False)
    for member in summary["members"]:
        cells = member["backbone"], " ".join(member["layers"]), describe_learned(member)
        table.add_row(*map(escape, cells), f"{member['dimensions']}")
    console.print(table)
    for tiles in {str(member["tiles"]): member["tiles"] for member in summary["members"]}.values():
        if tiles is not None:
            (rows, columns), size = tiles["grid"], "x".join(map(str, tiles["tile_size"]))
            console.print(f"{rows} x {columns} tiles of {size}, learned in all together", highlight=False)
    if summary["odd_images"]:
        head = "training images least like the others, with their scores (are these parts good?):"
        console.print(head, soft_wrap=True)
    for odd in summary["odd_images"]:
        console.print(f"  {escape(odd['path'])}  {odd['score']:.4g}", highlight=False, soft_wrap=True)
    console.print(
        f"{summary['images'] - len(summary['skipped'])} images in {summary['seconds']:.1f} s; "
        f"threshold {summary['threshold']:.4g}, false alarms {summary['false_alarm_rate']:.2g} "
        f"({summary['false_alarm_rate_is']})\nmodel: {escape(summary['model'])}",
        highlight=False,
        soft_wrap=True,
    )
