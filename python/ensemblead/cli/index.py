"""`ensemblead index`: a folder of images in, an index out that finds them by example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Resize,
    Settings,
    WeightFiles,
    described_skips,
)
from ensemblead.cli.models import moved_weights
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.common.validation import one_of

if TYPE_CHECKING:
    from ensemblead.retrieval.index import ImageIndex


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images, with those in the folders below.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the index.")],
    backbone: Backbones = None,
    layers: Layers = None,
    weights: WeightFiles = None,
    fusion: Annotated[
        Path | None,
        typer.Option("--fusion", help="Instead of -b: an ensemble that fuse or weights --model has written."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="flat (exact), or ivf, hnsw, pq, usearch, which find most of the nearest images sooner. "
            "flat if absent.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="from-folders: an image's label is the folders between FOLDER and it."),
    ] = None,
    resize: Resize = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    remove_gone: Annotated[
        bool,
        typer.Option("--remove-gone", help="Remove images in or below FOLDER whose files are gone."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Index the images of a folder, to be found by example.

    Where OUT is an index already, new and changed images are added, by the networks that it was built with:
    name them again or leave them out. Images that are gone stay in it, unless there is --remove-gone. After
    an interrupt the same command goes on.
    """
    values = {"resize": resize, "image_size": image_size, "device": device}
    options = EmbedderOptions(backbone, layers, weights, values, settings)
    with reported_warnings() as warned, Bars() as bars:
        run = _IndexRun(folder, out, options, fusion, kind, labels, skip_unreadable, remove_gone)
        summary = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    removed = f", {summary['removed']} that are gone removed" if remove_gone else ""
    Console(highlight=False, soft_wrap=True, markup=False).print(
        valid_text(
            f"{described_skips(summary['skipped'])}"
            f"{summary['embedded']} images embedded in {summary['seconds']:.1f} s"
            f"{removed}; the index has "
            f"{summary['images']} images, as vectors of {summary['dim']} dimensions\n"
            f"index: {summary['index']}"
        )
    )


@dataclass
class _IndexRun:
    """One call of `index`; `execute` does it and returns its summary."""

    folder: Path
    out: Path
    options: EmbedderOptions
    fusion: Path | None
    kind: str | None
    labels: str | None
    skip_unreadable: bool
    remove_gone: bool

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead index")
        from ensemblead.retrieval.index import ImageIndex
        from ensemblead.retrieval.layout import MANIFEST

        if self.labels is not None:
            one_of("labels", self.labels, (FROM_FOLDERS,))
        if self.fusion is not None and (self.options.backbones or self.options.layers):
            raise ValueError("fusion brings its networks and layers: leave out -b and -le")
        clock = Clock()
        bars.step("looking at the images")
        adding: dict[str, Any] = {
            "labels": self.labels,
            "errors": "skip" if self.skip_unreadable else "raise",
            "progress": bars,
        }
        try:
            if (self.out / MANIFEST).exists():
                index = self._opened()
                embedded = index.add(self.folder, **adding)
            else:
                index = ImageIndex.build(
                    self.folder, self._embedder(), self.out, kind=self.kind or "flat", **adding
                )
                embedded = len(index)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept(self.out)) from None
        with index:
            if index.skipped_ and not len(index):
                first = index.skipped_[0]
                raise ValueError(f"images: none of {len(index.skipped_)} can be indexed, the first: {first}")
            removed = len(index.remove_gone(self.folder)) if self.remove_gone else 0
            return {
                "index": str(self.out),
                "images": len(index),
                "embedded": embedded,
                "removed": removed,
                "dim": index.dim,
                "kind": index.kind,
                "skipped": [{"path": one.path, "reason": one.reason} for one in index.skipped_],
                "seconds": round(clock(), 3),
            }

    def _embedder(self) -> Any:
        """The networks that the options name."""
        if self.fusion is None:
            return self.options.embedder()
        from ensemblead.ensembles.loading import load

        values = {name: value for name, value in self.options.values.items() if name != "device"}
        if self.options.sets or any(value is not None for value in values.values()):
            raise ValueError("fusion brings all settings of its networks: leave out the others")
        found = load(
            self.fusion,
            weights=moved_weights(self.options.weights or ()),
            device=self.options.values["device"],
        )
        if not hasattr(found, "embed_batches"):
            raise TypeError(f"fusion: {self.fusion} holds a {type(found).__name__}, which embeds no images")
        return found

    def _opened(self) -> ImageIndex:
        """The index that is there; ValueError if the options name another kind, or other networks."""
        from ensemblead.retrieval.index import ImageIndex

        if self.fusion is not None or self.options.names_networks:
            index = ImageIndex.open(self.out, embedder=self._embedder())
        else:
            weights = moved_weights(self.options.weights or ())
            index = ImageIndex.open(self.out, weights=weights, device=self.options.values["device"])
        if self.kind not in (None, index.kind):
            index.close()
            raise ValueError(
                f"out: {self.out} is an index of kind {index.kind}, got {self.kind}; leave that out, or give "
                "another folder"
            )
        return index


def _kept(out: Path) -> str:
    """What an interrupt has left."""
    from ensemblead.retrieval.index import ImageIndex

    try:
        with ImageIndex.open(out) as index:
            return f"{len(index)} images are in {out}; the same command goes on"
    except (OSError, EnsembleADError):
        return f"nothing is in {out} yet"
