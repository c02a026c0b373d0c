"""A fitted detector as modules in a row: pixels to network inputs, networks, and all that follows them.

In a row they are one graph. Apart, other networks can stand in the middle: those in int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ensemblead.calibration import Calibration
from ensemblead.common.errors import NotExportableError
from ensemblead.deploy.heads import FusionHead, Head, MethodHead, Results, Values
from ensemblead.deploy.resizing import Fill, Resize
from ensemblead.deploy.tiles import Cut, TilesHead
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.method import Method
from ensemblead.detectors.regions import inside_of
from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.ensembles.tiles import TiledEnsemble
from ensemblead.images import Geometry
from ensemblead.networks.graphs import Grids, NetworkGraph, Normalized
from ensemblead.networks.network import Network


@dataclass(frozen=True)
class Frame:
    """What a network or a method sees of images of one size: all of them, or their tiles.

    Attributes:
        geometry: how images are resized and cropped.
        size: height and width of what is seen, whole or a tile.
        tiles: where tiles lie in the resized image, at every scale. A batch has all images of the first tile,
            then all of the second, and so on.
    """

    geometry: Geometry
    size: tuple[int, int]
    tiles: TilePyramid | None = None


@dataclass
class Pass:
    """One network over one frame, as far as all the layers that anything reads."""

    network: Network
    frame: Frame
    layers: tuple[str, ...]


class DetectorGraph(nn.Module):
    """Images uint8 `[B, H, W, 3]` to scores float32 `[B]`, maps float32 `[B, h, w]`, and verdicts bool `[B]`.

    Args:
        detector: fitted.
        native: height and width of the images.
        resized: whether they are resized and cropped already, and `native` is the size of the result.

    Attributes: `before`, images to frames and network inputs; `networks`, one module per pass; `after`,
    frames and layers' outputs to results. `passes` says what the networks are.

    Raises NotExportableError for what has no graph, ValueError for sizes that do not do.
    """

    def __init__(self, detector: Detector, native: tuple[int, int], *, resized: bool) -> None:
        super().__init__()
        builder = _Builder(native, resized)
        head = builder.head(detector)
        self.passes = builder.passes
        frames = builder.seen
        self.before = Before(native, frames, self.passes, resized=resized)
        self.networks = nn.ModuleList(NetworkGraph(one.network.extractor, one.layers) for one in self.passes)
        self.after = After(head, frames, self.passes, detector.calibration_)

    def forward(self, images: Tensor) -> Results:
        values = self.before(images)
        count = len(values) - len(self.passes)
        outputs = list(values[:count])
        for network, own in zip(self.networks, values[count:], strict=True):
            outputs += network(own)
        results: Results = self.after(*outputs)
        return results


class Before(nn.Module):
    """Images uint8 `[B, H, W, 3]` to the pixels of frames, then the normalised inputs of networks."""

    def __init__(
        self, native: tuple[int, int], frames: Sequence[Frame], passes: Sequence[Pass], *, resized: bool
    ) -> None:
        super().__init__()
        used = list(dict.fromkeys([*frames, *(one.frame for one in passes)]))
        self._frames = [used.index(frame) for frame in frames]
        self._inputs = [used.index(one.frame) for one in passes]
        self.views = nn.ModuleList(_View(frame, native, resized) for frame in used)
        self.scales = nn.ModuleList(Normalized(one.network.extractor) for one in passes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).float()
        views = [view(pixels) for view in self.views]
        inputs = [scale(views[i]) for scale, i in zip(self.scales, self._inputs, strict=True)]
        return (*(views[i] for i in self._frames), *inputs)


class _View(nn.Module):
    """Images as a frame has them, float32 `[B, 3, H, W]` in 0..255."""

    def __init__(self, frame: Frame, native: tuple[int, int], resized: bool) -> None:
        super().__init__()
        self.fill = nn.Identity() if resized or frame.geometry.region is None else Fill(frame.geometry.region)
        self.resize = nn.Identity() if resized else Resize(frame.geometry, native)
        self.cut = nn.Identity() if frame.tiles is None else Cut(frame.tiles)

    def forward(self, pixels: Tensor) -> Tensor:
        view: Tensor = self.cut(self.resize(self.fill(pixels)))
        return view


class After(nn.Module):
    """The pixels of frames, and layers' outputs, to results."""

    def __init__(
        self, head: Head, frames: Sequence[Frame], passes: Sequence[Pass], calibration: Calibration
    ) -> None:
        super().__init__()
        self.head, self._frames, self._passes = head, frames, passes
        self._grids = [Grids(one.network.extractor, one.layers, one.frame.size) for one in passes]
        self._calibration = calibration

    def forward(self, *values: Tensor) -> Results:
        named: Values = dict(zip(self._frames, values, strict=False))
        place = len(self._frames)
        for number, (one, grids) in enumerate(zip(self._passes, self._grids, strict=True)):
            outputs = values[place : place + len(one.layers)]
            place += len(outputs)
            named |= {
                (number, layer): grid for layer, grid in zip(one.layers, grids.of(outputs), strict=True)
            }
        scores, maps = self.head(named)
        return scores, maps, self._calibration.is_anomalous(scores)


class _Builder:
    """Walks over a detector and collects what its graph needs: frames, and passes of networks.

    Attributes: `seen`, frames whose pixels a method looks at; `passes`.
    """

    def __init__(self, native: tuple[int, int], resized: bool) -> None:
        self._native, self._resized = native, resized
        self._geometry: Geometry | None = None
        self.seen: list[Frame] = []
        self.passes: list[Pass] = []

    def head(self, detector: Detector, tile: Frame | None = None) -> Head:
        """What follows the networks; `tile`: what the members of a tiled ensemble see."""
        detector._require_single_image_scores()
        if isinstance(detector, Method):
            return self._of_method(detector, self._frame(detector.geometry) if tile is None else tile)
        if isinstance(detector, BackboneEnsemble):
            return self._of_ensemble(detector, tile)
        if isinstance(detector, TiledEnsemble):
            return self._of_tiles(detector)
        raise NotExportableError(f"{type(detector).__name__} cannot be exported")

    def _of_tiles(self, ensemble: TiledEnsemble) -> TilesHead:
        frame, state = self._frame(ensemble.geometry), ensemble.state_
        tiles = ensemble._frame_of(frame.size)
        tile = Frame(frame.geometry, tiles.tile_size, tiles)
        members = [self.head(member, tile) for member in state.members]
        return TilesHead(members, ensemble.plan().merger(tiles, state.statistics))

    def _of_method(self, method: Method, frame: Frame) -> MethodHead:
        method.check_size(frame.size, "image_size")
        inner = method.graph(method.state_, frame.size)
        networks = method._own_networks()
        layers = [key for one in networks for key in self._layers(one.network, frame)]
        if not networks and frame not in self.seen:
            self.seen.append(frame)
        return MethodHead(
            inner,
            [] if networks else [frame],
            layers,
            frame.size,
            method.map_sigma,
            method.map_kind,
            inside_of(method.geometry),
        )

    def _layers(self, network: Network, frame: Frame) -> list[tuple[int, str]]:
        """The names of a network's feature maps of a frame."""
        known = [(one.network.key, one.frame) for one in self.passes]
        if (network.key, frame) not in known:
            known.append((network.key, frame))
            self.passes.append(Pass(network, frame, ()))
        number = known.index((network.key, frame))
        one = self.passes[number]
        one.layers = tuple(dict.fromkeys((*one.layers, *network.layers)))
        return [(number, layer) for layer in network.layers]

    def _of_ensemble(self, ensemble: BackboneEnsemble, tile: Frame | None) -> FusionHead:
        if ensemble.fusion == "rank":
            raise NotExportableError(
                "fusion='rank' cannot be exported, for it looks every score up among those of normal images; "
                "use fusion='calibrated', which needs no new fit: BackboneEnsemble(ensemble.members)"
            )
        heads = [self.head(member, tile) for member in ensemble.members]
        calibrations = [member.calibration_ for member in ensemble.members]
        insides = [ensemble._inside(member) for member in ensemble.members]
        return FusionHead(heads, ensemble.fusion, calibrations, ensemble.weights, insides)

    def _frame(self, geometry: Geometry) -> Frame:
        if not self._resized:
            return Frame(geometry, geometry.output_size(*self._native))
        if self._geometry is None:
            self._geometry = geometry
        if geometry != self._geometry:
            raise NotExportableError(
                "input='resized' needs members that resize images alike, but one does by "
                f"{self._geometry}, another by {geometry}; use input='image'"
            )
        return Frame(geometry, self._native)
