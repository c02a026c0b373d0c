"""`ensemblead layers`: the layers of a network that can be tapped, without its weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json
from ensemblead.cli.options import DEFAULT_METHOD, typed_size
from ensemblead.common.extras import require
from ensemblead.common.validation import pair

_SIZE = (224, 224)
_EVERY_DEPTH = 1 << 10


def command(
    backbone: Annotated[str, typer.Argument(metavar="NAME", help="A network's name, as -b takes it.")],
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", help="N or HxW: of the images, for the grids; 224 where it is taken."),
    ] = None,
    nested: Annotated[bool, typer.Option("--all", help="Layers within blocks as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The layers of a network that can be tapped, and those that are by default.

    A stride is the pixels of the image per cell of the grid. It needs no weights, and no download.
    """
    with Bars("looking at the network"):
        description = describe(backbone, image_size, nested)
    if as_json:
        print_json(description)
    else:
        _show(description)


def describe(backbone: str, image_size: str | None, nested: bool) -> dict[str, Any]:
    """The layers in JSON's types."""
    require("torch", "ensemblead layers")
    from ensemblead.networks.engines.engine import last_norm
    from ensemblead.networks.layers import network_to_list, taps_of
    from ensemblead.networks.sizes import check_size, sizes_taken

    module = network_to_list(backbone)
    if image_size is None:
        taken, _ = sizes_taken(backbone, (), _SIZE)
        size = _SIZE if _SIZE in taken or not taken else taken[-1]
    else:
        size = pair("image_size", typed_size("image_size", image_size))
        check_size(backbone, (), size, "image_size")
    taps = taps_of(module, size, depth=_EVERY_DEPTH if nested else 2)
    defaults, missing = _defaults(backbone)
    known = {tap.name for tap in taps}
    lacking = {layer for layers in defaults.values() for layer in layers} - known
    if lacking:  # deeper than the others, as the blocks of torchvision's transformers
        taps = [tap for tap in taps_of(module, size, depth=_EVERY_DEPTH) if tap.name in known | lacking]
    layers = [
        {
            **asdict(tap),
            "grid": list(tap.grid),
            "default": tap.name in defaults.get(DEFAULT_METHOD, ()),
            "default_of": [method for method, names in defaults.items() if tap.name in names],
        }
        for tap in taps
    ]
    return {
        "backbone": backbone,
        "image_size": list(size),
        "layers": layers,
        "no_default": missing,
        "normed": last_norm(module) is not None,
    }


def _defaults(backbone: str) -> tuple[dict[str, tuple[str, ...]], str | None]:
    """For every method whose layers are "auto" these layers; or why there are none."""
    from ensemblead.config.names import detector_names, registered_class
    from ensemblead.config.signatures import parameters
    from ensemblead.networks.layers import default_layers

    found: dict[str, tuple[str, ...]] = {}
    for name in detector_names():
        cls: Any = registered_class(name)
        layers = parameters(cls).get("layers")
        if layers is None or layers.default != "auto":
            continue
        try:
            found[name] = default_layers(backbone, cls.auto_strides)
        except ValueError as error:
            return {}, str(error)
    return found, None


def _show(description: dict[str, Any]) -> None:
    console = Console()
    height, width = description["image_size"]
    table = Table("layer", "channels", "stride", "grid", "default of", box=None, pad_edge=False)
    for layer in description["layers"]:
        rows, columns = layer["grid"]
        methods = ", ".join(layer["default_of"])
        table.add_row(
            escape(layer["name"]),
            f"{layer['channels']}",
            f"{layer['stride']}",
            f"{rows} x {columns}",
            methods,
        )
    console.print(f"{escape(description['backbone'])}, images of {height} x {width}", highlight=False)
    console.print(table)
    if description["normed"]:
        text = "\nNAME:normed is a layer's output behind the last norm, of transformers of one width."
        console.print(text, highlight=False, soft_wrap=True)
    if description["no_default"] is not None:
        console.print("\nNone is tapped by default: name them by -le.", highlight=False)
