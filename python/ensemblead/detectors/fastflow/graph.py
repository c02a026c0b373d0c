"""FastFlow as standard operators, for export: the latent maps alone, without determinants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.detectors.fastflow.flow import Flow, Flows, Maps, Step, gain_of
from ensemblead.detectors.parts import GraphOutputs


class FlowsGraph(nn.Module):
    """A network's feature maps to grids of the images' size, by `anomaly_grids`."""

    def __init__(
        self,
        flows: Flows,
        size: tuple[int, int],
        anomaly_grids: Callable[[Maps, tuple[int, int]], Tensor],
    ) -> None:
        super().__init__()
        # Computed here: OpenVINO leaves out the beta of a softplus.
        self._gains = [[gain_of(step.scale) for step in _steps(flow)] for flow in flows.flows]
        self.flows, self._size, self._anomaly_grids = flows, size, anomaly_grids

    def forward(self, pixels: Sequence[Tensor], maps: Sequence[Tensor]) -> GraphOutputs:
        triples = zip(self.flows.flows, maps, self._gains, strict=True)
        latents = [_latent(flow, own, gains) for flow, own, gains in triples]
        return self._anomaly_grids(latents, self._size), None


def _steps(flow: nn.Module) -> list[Step]:
    assert isinstance(flow, Flow)
    return [step for step in flow.steps if isinstance(step, Step)]


def _latent(flow: nn.Module, values: Tensor, gains: Sequence[Tensor]) -> Tensor:
    """What `Flow` puts out first."""
    assert isinstance(flow, Flow)
    rows = functional.layer_norm(values.permute(0, 2, 3, 1), flow.shape, flow.norm_weight, flow.norm_bias)
    values = rows.permute(0, 3, 1, 2)
    for step, gain in zip(_steps(flow), gains, strict=True):
        values = _stepped(step, values, gain)
    return values


def _stepped(step: Step, values: Tensor, gain: Tensor) -> Tensor:
    """One step as its definition has it."""
    c1, c2 = step.halves
    first, second = values[:, :c1], values[:, c1:]
    net = step.conv2(torch.relu(step.conv1(first)))
    scale = 2.0 * torch.tanh(0.1 * net[:, :c2])
    merged = torch.cat((first, second * torch.exp(scale) + 0.1 * net[:, c2:]), 1)
    return (gain[:, None, None] * merged + step.offset[:, None, None]).index_select(1, step.permutation)
