"""Networks that embed images, by options that the commands of image search share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblead.cli.options import layers_per_member, weights_per_member
from ensemblead.common.files import valid_text
from ensemblead.common.validation import one_of, some_of
from ensemblead.config.documents import Problems, Source
from ensemblead.config.settings import Node, typed_setting, with_settings

if TYPE_CHECKING:
    from ensemblead.retrieval.embedders import Embedder
    from ensemblead.retrieval.ensemble import EmbeddingEnsemble
    from ensemblead.retrieval.incoming import Listed

FROM_FOLDERS = "from-folders"

Backbones = Annotated[
    list[str] | None,
    typer.Option("-b", "--backbone", help="A network's name; repeat it for an ensemble of several."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "-le",
        "--layer",
        help="[I.]LAYER of each network, pooled; with several I is its number. If absent, or auto, what its "
        "classifier reads.",
    ),
]
WeightFiles = Annotated[
    list[str] | None, typer.Option("--weights", help="[I.]PATH of a weights file, or none for random ones.")
]
Resize = Annotated[
    str | None, typer.Option("--resize", help="Shorter side in pixels, HxW, or none; 256 if absent.")
]
ImageSize = Annotated[
    str | None, typer.Option("--image-size", help="Centre crop after it: N, HxW, or none; 224 if absent.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="[I.]NAME=VALUE: any parameter of Embedder and EmbeddingEnsemble, as pool=gem. Repeat it.",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")]


@dataclass(frozen=True)
class EmbedderOptions:
    """What a command line says of the networks; None is "not said"."""

    backbones: Sequence[str] | None
    layers: Sequence[str] | None = None
    weights: Sequence[str] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)  # of parameters, by name
    sets: Sequence[str] | None = None

    @property
    def names_networks(self) -> bool:
        """Whether it says which networks and how they see images, not just where they are and run."""
        seen = (value for name, value in self.values.items() if name != "device")
        return bool(self.backbones or self.layers or self.sets) or any(value is not None for value in seen)

    def embedder(self) -> Embedder | EmbeddingEnsemble:
        """One network, or the weighted concatenation of several. None is loaded."""
        one = len(self.backbones or ()) == 1
        made: Embedder | EmbeddingEnsemble = self._made(
            self._members()[0] if one else self._ensemble("concat")
        )
        return made

    def ensemble(self, mode: str, **parameters: Any) -> EmbeddingEnsemble:
        """An ensemble of one network or several, with these parameters where they are not None."""
        given = {name: value for name, value in parameters.items() if value is not None}
        made: EmbeddingEnsemble = self._made({**self._ensemble(mode), **given})
        return made

    def _ensemble(self, mode: str) -> Node:
        return {"type": "EmbeddingEnsemble", "members": self._members(), "mode": mode}

    def _members(self) -> list[Node]:
        if not self.backbones:
            raise ValueError("backbone must be given: -b NAME, such as -b resnet18, once for each network")
        members: list[Node] = []
        for backbone, layers in zip(
            self.backbones, layers_per_member(self.layers, self.backbones), strict=True
        ):
            if layers is not None and len(layers) > 1:
                raise ValueError(f"an embedding is read off one layer, got {', '.join(layers)} of {backbone}")
            members.append({"type": "Embedder", "backbone": backbone, "layer": layers[0] if layers else None})
        for number, path in weights_per_member(self.weights or [], len(members)).items():
            members[number]["weights"] = path
        return members

    def _made(self, description: Node) -> Any:
        from ensemblead.config.registry import create

        typed = [f"{name}={value}" for name, value in self.values.items() if value is not None]
        problems = Problems(Source({}, "command line"))
        settings = [typed_setting(text) for text in (*typed, *(self.sets or ()))]
        complete = with_settings(description, settings, problems)
        problems.raise_any()
        return create(complete)


def labelled_images(folder: Path, labels: str) -> Listed:
    """The images below a folder, each with the folders between as its label.

    Raises ValueError for an image without one.
    """
    from ensemblead.retrieval.incoming import list_images

    listed = list_images(folder, one_of("labels", labels, (FROM_FOLDERS,)))
    bare = [path for path, label in zip(listed.paths, listed.labels, strict=True) if label is None]
    if bare:
        raise ValueError(
            f"labels: {len(bare)} images lie in {folder} itself, where no folder labels them "
            f"({some_of(bare, 3)}); put the images of each class into a folder of its own"
        )
    return listed


class LeftOut:
    """Images that could not be read, as they are reported. It is an `on_error` function of embedders.

    Attributes:
        skipped: path and reason of each.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.skipped: list[dict[str, str]] = []
        self._paths = paths

    def __call__(self, position: int, error: Exception) -> None:
        self.skipped.append({"path": valid_text(self._paths[position]), "reason": str(error)})

    @property
    def first(self) -> str:
        """The reason of the first."""
        return self.skipped[0]["reason"]


def described_skips(skipped: Sequence[Mapping[str, str]], most: int = 5) -> str:
    """Lines that name images that were left out; "" for none."""
    if not skipped:
        return ""
    from ensemblead.retrieval.incoming import Skipped

    lines = [f"{len(skipped)} image(s) left out:"]
    lines += [f"  {Skipped(one['path'], one['reason'])}" for one in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more (--json has all)")
    return "\n".join(lines) + "\n"


def save_ensemble(
    folder: Path, argument: str, *, overwrite: bool, include_backbone: bool = False
) -> Callable[[EmbeddingEnsemble], None]:
    """What writes an ensemble to a folder; ValueError, before any work, if another model is there to stay."""
    from ensemblead.store import MANIFEST, check_target

    check_target(folder)
    if (folder / MANIFEST).exists() and not overwrite:
        raise ValueError(f"{argument}: there is a model in {folder} already: --overwrite replaces it")
    return lambda ensemble: ensemble.save(folder, include_backbone=include_backbone)
