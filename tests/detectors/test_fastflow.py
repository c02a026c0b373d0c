"""FastFlow: against anomalib's recorded outputs, against its definition in float64, and as a detector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from support.students import feature_maps, fill
from support.textures import normal_images
from support.trained import LAYERS, Pyramid
from torch.nn import functional

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.fastflow import detector as method
from ensemblead.detectors.fastflow.flow import Flows, Plan, Step, empty_flows, new_flows
from ensemblead.networks.zoo import blueprint

RECORDED = load_file(Path(__file__).with_name("fastflow.safetensors"))
KINDS = {"3x3": True, "alternating": False}
# As recorded: channels of the layers, the grid of the first, and every how manieth value is kept.
CHANNELS, GRID, KEPT = (8, 13, 16), 16, 37
SIDE = 32
HALVES = ("bfloat16", "float16")


def alike(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """One texture in noise."""
    noise = np.random.default_rng(seed).normal(0, 6, (count, SIDE, SIDE, 3))
    return np.clip(normal_images(1, side=SIDE) + noise, 0, 255).astype(np.uint8)


TRAIN, GOOD, BAD = alike(20, 0), alike(4, 1), alike(4, 2)
BAD[:, 8:24, 8:24] = (60, 30, 40)


pytestmark = pytest.mark.usefixtures("one_thread")


# The flows


def plan(channels: tuple[int, ...] = CHANNELS, grid: int = GRID, **options: Any) -> Plan:
    sides = tuple(grid >> number for number in range(len(channels)))
    defaults: dict[str, Any] = {
        "steps": 8,
        "hidden_ratio": 0.75,
        "conv3x3_only": True,
        "norm_affine": True,
    }
    return Plan(channels, sides, sides, **(defaults | options))


def filled(kind: str) -> Flows:
    flows = empty_flows(plan(conv3x3_only=KINDS[kind])).to_empty(device="cpu")
    fill(flows)
    return flows


@pytest.mark.parametrize("kind", KINDS)
def test_forward_loss_and_map_are_anomalibs(kind: str) -> None:
    flows, maps = filled(kind), feature_maps(CHANNELS, GRID)
    with torch.no_grad():
        outputs = flows(maps)
    for number, latent in enumerate(outputs[:3]):
        assert latent.shape == maps[number].shape
        expected = RECORDED[f"{kind}.latent{number}"]
        torch.testing.assert_close(latent.flatten()[::KEPT], expected, rtol=1e-5, atol=1e-5)
    expected = RECORDED[f"{kind}.determinants"]
    # Sums of thousands of values that cancel.
    torch.testing.assert_close(torch.stack(outputs[3:]), expected, rtol=1e-5, atol=2e-4)
    loss = sum(method.negative_log_likelihoods(outputs))
    torch.testing.assert_close(loss, RECORDED[f"{kind}.loss"], rtol=1e-5, atol=0.0)
    found = method.anomaly_grids(outputs[:3], (64, 64))[:, ::5, ::5]
    torch.testing.assert_close(found, RECORDED[f"{kind}.map"], rtol=1e-5, atol=1e-5)


def test_one_changed_weight_is_seen() -> None:
    flows = filled("3x3")
    with torch.no_grad():
        flows.flows[1].steps[2].conv1.weight.view(-1)[5] += 0.01
        latent = flows(feature_maps(CHANNELS, GRID))[1]
    assert (latent.flatten()[::KEPT] - RECORDED["3x3.latent1"]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_five_updates_are_anomalibs(kind: str) -> None:
    flows = filled(kind)
    assert (method.Likelihood.betas, method.Likelihood.weight_decay) == ((0.9, 0.999), 1e-5)
    adam = torch.optim.Adam(flows.parameters(), 0.001, weight_decay=1e-5, fused=True)
    for step, expected in enumerate(RECORDED[f"{kind}.losses"].tolist()):
        loss = sum(method.negative_log_likelihoods(flows(feature_maps(CHANNELS, GRID, 4, step))))
        adam.zero_grad()
        loss.backward()
        adam.step()
        # Adam's first updates are signs of gradients: where one is next to nothing, rounding decides it.
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-3 if step else 1e-5)


@pytest.mark.parametrize(
    ("channels", "conv3x3_only", "flow", "norm"),
    [
        ((64, 128, 256), True, 4.657, 0.918),
        ((64, 128, 256), False, 2.593, 0.918),
        ((256, 512, 1024), True, 74.368, 3.670),
        ((256, 512, 1024), False, 41.338, 3.670),
    ],
)
def test_flows_are_as_large_as_the_papers(
    channels: tuple[int, ...], conv3x3_only: bool, flow: float, norm: float
) -> None:
    for affine in (True, False):
        flows = empty_flows(
            plan(channels, 64, conv3x3_only=conv3x3_only, hidden_ratio=1.0, norm_affine=affine)
        )
        sizes = {name: parameter.numel() for name, parameter in flows.named_parameters()}
        norms = sum(size for name, size in sizes.items() if "norm" in name)
        assert round(norms / 1e6, 3) == (norm if affine else 0.0)
        assert round((sum(sizes.values()) - norms) / 1e6, 3) == flow


def by_definition(step: Step, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A step as the paper and its codes have it, float64: output and log-determinants."""
    c1, c2 = step.halves
    first, second = values[:, :c1], values[:, c1:]
    net = step.conv2(step.conv1(first).relu())
    growth = 2.0 * torch.tanh(0.1 * net[:, :c2])
    changed = second * growth.exp() + 0.1 * net[:, c2:]
    gain = 0.1 * functional.softplus(step.scale, beta=0.5)
    merged = torch.cat((first, changed), 1) * gain[:, None, None] + step.offset[:, None, None]
    cells = values.shape[2] * values.shape[3]
    return merged[:, step.permutation], growth.sum((1, 2, 3)) + cells * gain.log().sum()


@pytest.mark.parametrize("channels", [2, 5])
def test_gradients_of_a_step(channels: int) -> None:
    flows = new_flows(plan((channels, 4), 4, steps=1), seed=1)
    fill(flows)
    step = flows.flows[0].steps[0]
    exact = copy.deepcopy(step).double()
    (values,) = feature_maps((channels,), 4)
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found, expected = values.clone().requires_grad_(), values.double().requires_grad_()
    rows = found.permute(0, 2, 3, 1).reshape(-1, channels)
    *halves, determinants = step(*rows.split(step.halves, 1), (2, 4, 4))
    output = torch.cat(halves, 1).view(2, 4, 4, channels).permute(0, 3, 1, 2)
    images = torch.tensor([1.0, -3.0])
    ((output * weights.float()).sum() + (determinants * images).sum()).backward()
    wanted, logarithms = by_definition(exact, expected)
    ((wanted * weights).sum() + (logarithms * images).sum()).backward()

    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(determinants.double(), logarithms, rtol=1e-5, atol=1e-4)
    pairs = {"values": (found.grad, expected.grad)}
    others = dict(exact.named_parameters())
    pairs |= {name: (own.grad, others[name].grad) for name, own in step.named_parameters()}
    for name, (own, other) in pairs.items():
        assert own is not None, name
        assert other is not None, name
        most = 1e-5 * max(1.0, float(other.abs().max()))
        torch.testing.assert_close(own.double(), other, rtol=1e-5, atol=most)


def test_log_determinants_are_those_of_the_jacobian() -> None:
    flows = new_flows(plan((3, 2), 2, steps=1), seed=2)
    fill(flows)
    step = flows.flows[0].steps[0]
    exact = copy.deepcopy(step).double()
    (values,) = feature_maps((3,), 2, count=1)
    jacobian = torch.autograd.functional.jacobian(lambda own: by_definition(exact, own)[0], values.double())
    expected = torch.linalg.slogdet(jacobian.reshape(12, 12)).logabsdet
    with torch.no_grad():
        rows = values.permute(0, 2, 3, 1).reshape(-1, 3)
        found = step(*rows.split(step.halves, 1), (1, 2, 2))[2]
    torch.testing.assert_close(found.double(), expected[None], rtol=1e-5, atol=1e-5)


def test_untrained_flows() -> None:
    flows = new_flows(plan(), seed=3)
    step = flows.flows[2].steps[1]
    assert 0.9 < float(step.conv1.weight.detach().abs().max()) * (8 * 9) ** 0.5 <= 1.0
    assert torch.allclose(0.1 * functional.softplus(step.scale, beta=0.5), torch.ones(16), rtol=1e-5)
    assert not step.offset.any()
    orders = [step.permutation.tolist() for flow in flows.flows for step in flow.steps]
    assert all(sorted(order) == list(range(len(order))) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    again, other = new_flows(plan(), seed=3), new_flows(plan(), seed=4)
    for name, tensor in flows.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert other.flows[2].steps[1].permutation.tolist() != step.permutation.tolist()


def test_maps_by_hand() -> None:
    latents = [torch.full((1, 4, 2, 2), 2.0), torch.zeros(1, 3, 1, 1)]
    latents[0][0, :, 0, 0] = 0.0
    found = method.anomaly_grids(latents, (4, 4))
    edge, flat = -np.exp(-2.0), -1.0  # of the first layer; the second is -1 everywhere
    assert found[0, 0, 0] == pytest.approx((flat - 1.0) / 2)
    assert found[0, 3, 3] == pytest.approx((edge - 1.0) / 2)
    inner = 0.75 * (0.75 * flat + 0.25 * edge) + 0.25 * edge  # a quarter of the way along rows and columns
    assert found[0, 1, 1] == pytest.approx((inner - 1.0) / 2)


# The detector


def flowing(net: torch.nn.Module | None = None, **options: Any) -> ead.FastFlow:
    defaults: dict[str, Any] = {
        "steps": 12,
        "batch_size": 4,
        "resize": None,
        "device": "cpu",
        "flow_steps": 2,
    }
    return ead.FastFlow(net or Pyramid(), LAYERS, **(defaults | options))


@pytest.mark.parametrize("options", [{}, {"norm_affine": False, "conv3x3_only": True, "hidden_ratio": 0.5}])
def test_it_learns_what_is_normal(options: dict[str, Any]) -> None:
    detector = flowing(steps=60, learning_rate=0.01, **options).fit(TRAIN)
    assert detector.losses_[-1] < detector.losses_[0]
    good, bad = detector.predict(GOOD), detector.predict(BAD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()
    assert good.anomaly_map.min() >= -1.0
    assert bad.anomaly_map.max() <= 0.0
    np.testing.assert_array_equal(bad.anomaly_score, bad.anomaly_map.max((1, 2)))
    assert detector.learned_ == {
        "parameters": sum(own.numel() for own in detector.state_.flows().parameters())
    }


def test_steps_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ead.FastFlow, "epochs", 3)
    assert len(flowing(steps="paper").fit(TRAIN).losses_) == 3 * 5  # of eighteen images, in fours
    assert ead.FastFlow("resnet18").steps == "paper"


def test_kernels_follow_from_the_network() -> None:
    assert method.has_basic_blocks(blueprint("resnet18"))
    assert not method.has_basic_blocks(blueprint("wide_resnet50_2"))

    def kernels(**options: Any) -> list[int]:
        state = flowing(steps=1, **options).fit(TRAIN).state_
        return [step.conv1.kernel_size[0] for step in state.flows().flows[0].steps]

    class BasicBlock(Pyramid):
        pass

    assert kernels() == kernels(net=BasicBlock(), conv3x3_only=False) == [3, 1]
    assert kernels(conv3x3_only=True) == kernels(net=BasicBlock()) == [3, 3]


def test_precision() -> None:
    first = [float(flowing(precision=name, steps=1).fit(TRAIN).losses_) for name in HALVES]
    assert first == pytest.approx([float(flowing(steps=1).fit(TRAIN).losses_)] * 2, rel=1e-2)
    # No update is lost to a scale of the loss by which the gradients of sums overflow.
    losses = [flowing(precision=name, steps=6).fit(TRAIN).losses_ for name in ("float32", "float16")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    detector = flowing(precision="bfloat16", steps=60, learning_rate=0.01).fit(TRAIN)
    assert detector.predict(BAD).anomaly_score.min() > detector.predict(GOOD).anomaly_score.max()


def alone(**options: Any) -> ead.FastFlow:
    defaults: dict[str, Any] = {"steps": 4, "batch_size": 4, "resize": None, "flow_steps": 2}
    return ead.FastFlow("gabor", device="cpu", **(defaults | options))


FORMS: dict[str, Callable[[], Any]] = {
    "alone": alone,
    "backbones": lambda: ead.BackboneEnsemble(
        [alone(), ead.PatchCore("gabor", resize=None, coreset_fraction=0.1, device="cpu")]
    ),
    "tiles": lambda: ead.TiledEnsemble(alone(), SIDE, SIDE, image_size=(SIDE, 2 * SIDE)),
}


@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_it_is_the_same(form: str, tmp_path: Path) -> None:
    detector = FORMS[form]().fit(TRAIN)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    found, expected = again.predict(BAD), detector.predict(BAD)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    assert again.threshold_ == detector.threshold_
    assert detector.calibration_.origin == "held_out"
    with pytest.raises(ValueError, match="FastFlow cannot be extended, since it learns in many"):
        again.extend(GOOD)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_training_ends_as_an_uninterrupted_one(precision: str, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 7):
            raise KeyboardInterrupt

    detector = flowing(precision=precision)
    with pytest.raises(KeyboardInterrupt, match="stands at step 7"):
        detector.fit(TRAIN, progress=stop, checkpoint=tmp_path / "c")
    counts: list[int] = []
    detector.fit(
        TRAIN,
        progress=lambda stage, done, total: counts.append(done) if stage == "train" else None,
        checkpoint=tmp_path / "c",
    )
    assert counts == list(range(8, 13))
    whole = flowing(precision=precision).fit(TRAIN)
    for own, other in zip(detector.state_.weights, whole.state_.weights, strict=True):
        assert torch.equal(own, other)
    np.testing.assert_array_equal(detector.predict(BAD).anomaly_map, whole.predict(BAD).anomaly_map)


def spoiled(state: method.TrainedFlows, kind: str) -> method.TrainedFlows:
    state, weights = copy.copy(state), state.weights
    order = next(number for number, own in enumerate(weights) if not own.is_floating_point())
    twice = (*weights[:order], torch.zeros_like(weights[order]), *weights[order + 1 :])
    changed: dict[str, Any] = {
        "a weight less": {"weights": weights[:-1]},
        "another shape": {"weights": (weights[0][:-1], *weights[1:])},
        "more steps": {"plan": replace(state.plan, steps=10**9)},
        "a channel twice": {"weights": twice},
        "losses of no steps": {"losses": state.losses[None]},
    }
    for name, value in changed[kind].items():
        object.__setattr__(state, name, value)
    return state


MESSAGES = {
    "a weight less": "weights must have the sha",
    "another shape": "weights must have the sha",
    "more steps": "weights must have the sha",
    "a channel twice": "permutations must have every channel once",
    "losses of no steps": "losses must be one float32 for every step",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_weights_of_other_flows_are_damage(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = flowing(steps=1).fit(TRAIN)
    state = spoiled(detector.state_, kind)
    monkeypatch.setattr(detector, "_state_to_save", lambda: state)
    detector.save(tmp_path / "m")
    with pytest.raises(DamagedModelError, match=MESSAGES[kind]):
        ead.load(tmp_path / "m", backbone=Pyramid())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": "all"}, ValueError, "steps must be a whole number or \"paper\", got 'all'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": "1"}, TypeError, "learning_rate must be a number, got '1'"),
        ({"flow_steps": 0}, ValueError, "flow_steps must be at least 1, got 0"),
        ({"flow_steps": 1.5}, TypeError, "flow_steps must be a whole number, got 1.5"),
        ({"conv3x3_only": 1}, TypeError, 'conv3x3_only must be a bool or "auto", got 1'),
        ({"norm_affine": "yes"}, TypeError, "norm_affine must be a bool, got 'yes'"),
        ({"hidden_ratio": float("inf")}, ValueError, "hidden_ratio must be positive and finite, got inf"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.FastFlow(Pyramid(), LAYERS, **options)


@pytest.mark.parametrize(
    ("layers", "grids"), [(("three", "two"), "three 2 x 2, two 4 x 4"), (("two",), "two 4 x 4")]
)
def test_layers_of_which_flows_cannot_be_made(layers: tuple[str, ...], grids: str) -> None:
    detector = ead.FastFlow(Pyramid(), layers, resize=None, device="cpu")
    with pytest.raises(ValueError, match=f"layers must be two or more .*got {grids}; transformers"):
        detector.fit(TRAIN)


def test_images_of_another_size_are_refused() -> None:
    detector = flowing(steps=1).fit(TRAIN)
    with pytest.raises(
        ValueError, match="images must all have one size, .* one 8 x 8, two 4 x 4, three 2 x 2, .* 48 x 48"
    ):
        detector.predict(normal_images(2, side=48))


def test_it_keeps_some_promises_of_detectors() -> None:
    names = ["description_is_inverse", "global_random_state_stays", "one_image_is_enough"]
    assert ead.check_detector(alone(), checks=names) == names


@pytest.mark.slow
def test_it_keeps_all_promises_of_detectors() -> None:
    ead.check_detector(alone(steps=40, batch_size=8, resize=SIDE, learning_rate=0.01))
