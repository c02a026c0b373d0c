"""`ensemblead fuse`: labelled images and networks in, a trained ensemble of their embeddings out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.embedders import (
    FROM_FOLDERS,
    Backbones,
    Device,
    EmbedderOptions,
    ImageSize,
    Layers,
    LeftOut,
    Resize,
    Settings,
    WeightFiles,
    described_skips,
    labelled_images,
    save_ensemble,
)
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.common.validation import one_of


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images, those of each class in a folder of their own.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write the ensemble to.")],
    backbone: Backbones = None,
    layers: Layers = None,
    weights: WeightFiles = None,
    labels: Annotated[
        str, typer.Option("--labels", help="from-folders: the folders between FOLDER and an image.")
    ] = FROM_FOLDERS,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            help="fusion (one trained layer), project (one for each network), ratios, lda, or whiten, which "
            "needs no labels.",
        ),
    ] = "fusion",
    dim: Annotated[int | None, typer.Option("--dim", help="Length of an embedding; 512 of fusion.")] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", help="supcon (if absent), proxy_anchor or softmax.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="At most; 30 if absent.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the training.")] = 0,
    resize: Resize = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="Store the networks' weights with the ensemble.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Train how the embeddings of networks are joined, so that images of one class become similar.

    The networks stay as they are. `ensemblead index FOLDER --out INDEX --fusion OUT` then embeds images by
    it. Index other images than those of the training to see how well it works.
    """
    values = {"resize": resize, "image_size": image_size, "device": device}
    options = EmbedderOptions(backbone, layers, weights, values, settings)
    training = {name: value for name, value in (("loss", loss), ("epochs", epochs)) if value is not None}
    with reported_warnings() as warned, Bars() as bars:
        run = _FuseRun(folder, out, options, labels, mode, dim, seed, training, skip_unreadable)
        summary = run.execute(bars, include_backbone=include_backbone, overwrite=overwrite)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        show(summary)


def show(summary: dict[str, Any]) -> None:
    """What was learned, and where it is."""
    best = ""
    if summary["best_epoch"] is not None:
        measured = summary["validation_map"]
        value = "" if measured is None else f", mAP@50 {measured:.3f} of the images held out for that"
        best = f"best after {summary['best_epoch']} epochs{value}\n"
    classes = f" of {summary['classes']} classes" if summary["classes"] else ""
    Console(highlight=False, soft_wrap=True, markup=False).print(
        valid_text(
            f"{described_skips(summary['skipped'])}"
            f"{summary['images']} images{classes} in {summary['seconds']:.1f} s; "
            f"{summary['dim']} dimensions\n{best}ensemble: {summary['model']}"
        )
    )


@dataclass
class _FuseRun:
    """One call of `fuse`; `execute` does it and returns its summary."""

    folder: Path
    out: Path
    options: EmbedderOptions
    labels: str
    mode: str
    dim: int | None
    seed: int
    training: dict[str, Any]
    skip_unreadable: bool

    def execute(self, bars: Bars, **saving: bool) -> dict[str, Any]:
        require("torch", "ensemblead fuse")
        from ensemblead.retrieval.incoming import list_images
        from ensemblead.retrieval.learning import MODES, TRAINED

        save = save_ensemble(self.out, "out", **saving)
        clock = Clock()
        one_of("mode", self.mode, MODES)
        one_of("labels", self.labels, (FROM_FOLDERS,))
        ensemble = self.options.ensemble(self.mode, dim=self.dim, seed=self.seed)
        bars.step("looking at the images")
        needs_none = self.mode == "whiten"
        listed = list_images(self.folder, None) if needs_none else labelled_images(self.folder, self.labels)
        left_out = LeftOut(listed.paths)
        ensemble.fit(
            listed.paths,
            None if needs_none else listed.labels,
            on_error=left_out if self.skip_unreadable else None,
            progress=bars,
            **self.training,
        )
        bars.step("saving")
        save(ensemble)
        trained = self.mode in TRAINED
        measured = [one.get("validation_map") for one in ensemble.history_] if trained else []
        return {
            "model": str(self.out),
            "mode": self.mode,
            "images": len(listed.paths) - len(left_out.skipped),
            "classes": len(ensemble.classes_),
            "dim": ensemble.dim,
            "best_epoch": ensemble.best_epoch_ if trained else None,
            "validation_map": measured[ensemble.best_epoch_ - 1] if trained else None,
            "history": ensemble.history_ if trained else [],
            "skipped": left_out.skipped,
            "seconds": round(clock(), 3),
        }
