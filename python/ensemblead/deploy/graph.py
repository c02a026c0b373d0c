"""A fitted detector as modules in a row: pixels to network inputs, networks, and all that follows them.

In a row they are one graph. Apart, other networks can stand in the middle: those in int8.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ensemblead.calibration import Calibration
from ensemblead.common.errors import NotExportableError
from ensemblead.deploy.heads import FusionHead, Head, MethodHead, Results, Values
from ensemblead.deploy.resizing import Resize
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.method import Method
from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.images import Geometry
from ensemblead.networks.engines.engine import Part
from ensemblead.networks.engines.traced import Traced
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.grids import TokenLayout
from ensemblead.networks.network import Network


@dataclass(frozen=True)
class Frame:
    """What a network or a method sees of images of one size."""

    geometry: Geometry
    size: tuple[int, int]


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
        self.networks = nn.ModuleList(NetworkGraph(one) for one in self.passes)
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
        self.views = nn.ModuleList(
            nn.Identity() if resized else Resize(frame.geometry, native) for frame in used
        )
        self.scales = nn.ModuleList(_Normalized(one.network.extractor) for one in passes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).float()
        views = [view(pixels) for view in self.views]
        inputs = [scale(views[i]) for scale, i in zip(self.scales, self._inputs, strict=True)]
        return (*(views[i] for i in self._frames), *inputs)


class _Normalized(nn.Module):
    """See `FeatureExtractor.normalize`."""

    scale: Tensor

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        scale = torch.tensor([extractor.mean, extractor.std], dtype=torch.float32, device="cpu")
        self.register_buffer("scale", scale.mul(255.0).view(2, 1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.scale[0]) / self.scale[1]


class NetworkGraph(nn.Module):
    """A network as far as its layers, float32 `[B, 3, h, w]` to their outputs."""

    def __init__(self, one: Pass) -> None:
        super().__init__()
        extractor, place = one.network.extractor, torch.device("cpu")
        module = extractor.module
        if not extractor.is_at(place, torch.float32):
            module = copy.deepcopy(module).to(place, torch.float32)
        part = Part(module, one.layers, extractor.name, place, torch.float32, "float32")
        self.traced, self._layers = Traced(part), one.layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.traced(images)
        return tuple(outputs[layer] for layer in self._layers)


class After(nn.Module):
    """The pixels of frames, and layers' outputs, to results."""

    limit: Tensor

    def __init__(
        self, head: Head, frames: Sequence[Frame], passes: Sequence[Pass], calibration: Calibration
    ) -> None:
        super().__init__()
        self.head, self._frames, self._passes = head, frames, passes
        self._layouts = [TokenLayout(one.network.extractor.module) for one in passes]
        self._calibration = calibration

    def forward(self, *values: Tensor) -> Results:
        named: Values = dict(zip(self._frames, values, strict=False))
        place = len(self._frames)
        for number, (one, layout) in enumerate(zip(self._passes, self._layouts, strict=True)):
            for layer in one.layers:
                named[number, layer] = layout.to_grid(values[place], layer, one.frame.size)
                place += 1
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

    def head(self, detector: Detector) -> Head:
        detector._require_single_image_scores()
        if isinstance(detector, Method):
            return self._of_method(detector, self._frame(detector.geometry))
        if isinstance(detector, BackboneEnsemble):
            return self._of_ensemble(detector)
        raise NotExportableError(f"{type(detector).__name__} cannot be exported")

    def _of_method(self, method: Method, frame: Frame) -> MethodHead:
        method.check_size(frame.size, "image_size")
        inner = method.graph(method.state_, frame.size)
        networks = method._own_networks()
        layers = [key for one in networks for key in self._layers(one.network, frame)]
        if not networks and frame not in self.seen:
            self.seen.append(frame)
        return MethodHead(inner, [] if networks else [frame], layers, frame.size, method.map_sigma)

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

    def _of_ensemble(self, ensemble: BackboneEnsemble) -> FusionHead:
        if ensemble.fusion == "rank":
            raise NotExportableError(
                "fusion='rank' cannot be exported, for it looks every score up among those of normal images; "
                "use fusion='calibrated', which needs no new fit: BackboneEnsemble(ensemble.members)"
            )
        heads = [self.head(member) for member in ensemble.members]
        calibrations = [member.calibration_ for member in ensemble.members]
        return FusionHead(heads, ensemble.fusion, calibrations, ensemble.weights)

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
