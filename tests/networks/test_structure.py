"""Networks as data: built again without their package they compute the same, and hold nothing else."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from support.networks import TinyNet
from support.tampering import replace_file

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.networks.describing import NotDescribedError, describe
from ensemblead.networks.engines.folded import fold_batch_norms, watched_norms
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.needed import needed_tensors
from ensemblead.networks.reaching import reached
from ensemblead.networks.structure import Stepped, build

# Networks of both zoos, small ones where there are any, with layers of every kind.
NETWORKS = [
    ("resnet18", ("layer1", "layer2.0.bn1")),
    ("densenet121", ("features.denseblock1", "features.norm0.act")),
    ("squeezenet1_1", ("features.3", "features.5")),
    pytest.param("mobilenetv3_small_050", ("blocks.1", "blocks.2:input"), marks=pytest.mark.slow),
    ("test_vit", ("blocks.1", "blocks.2")),
    ("test_vit", ("blocks.2:normed",)),
    pytest.param("test_convnext", ("stages.0", "stages.1"), marks=pytest.mark.slow),
]
SIZE = (1, 3, 64, 96)


def extractor(name: str, layers: tuple[str, ...]) -> FeatureExtractor:
    made = FeatureExtractor(name, layers, weights=None)
    made(noise())
    return made


def noise() -> torch.Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(3))


def twin_of(made: FeatureExtractor, description: dict[str, Any]) -> nn.Module:
    module = build(reached(description, made.layers))
    state = made.module.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()}, assign=True)
    return module


@pytest.mark.parametrize(("name", "layers"), NETWORKS, ids=lambda value: str(value[0]))
def test_what_is_built_again_computes_the_same(name: str, layers: tuple[str, ...]) -> None:
    made = extractor(name, layers)
    description = made.description()
    assert description is not None
    document = json.loads(json.dumps(description, allow_nan=False))
    again = FeatureExtractor(twin_of(made, document), layers)
    for first, second in zip(made(noise()), again(noise()), strict=True):
        assert torch.equal(first, second)
    assert not any(
        type(part).__module__.startswith(("timm", "torchvision")) for part in again.module.modules()
    )
    assert again.state_dict().keys() == made.state_dict().keys()


def test_batch_norms_fold_in_what_is_built_again() -> None:
    made = extractor("densenet121", ("features.denseblock1",))
    description = made.description()
    assert description is not None
    module = twin_of(made, description)
    images = noise()
    with watched_norms(module) as pairs:
        FeatureExtractor(module, made.layers)(images)
    folded = fold_batch_norms(module, pairs)
    assert folded is not None
    kinds = [type(part).__name__ for part in folded.modules()]
    assert kinds.count("NormAct") < [type(part).__name__ for part in module.modules()].count("NormAct")
    first, second = FeatureExtractor(folded, made.layers)(images)[0], made(images)[0]
    assert torch.allclose(first, second, atol=1e-4 * float(second.abs().max()))


class Looks(TinyNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.second(self.first(images))
        return found if found.mean() > 0 else -found


class Makes(TinyNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images)) + torch.ones(1)


class Sorts(TinyNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sort(self.second(self.first(images)), dim=1)[0]


@pytest.mark.parametrize(
    ("network", "reason"), [(Looks, "TraceError"), (Makes, "made"), (Sorts, "calls sort")]
)
def test_networks_without_a_description(network: type[TinyNet], reason: str) -> None:
    made = FeatureExtractor(network().eval(), ("second",))
    part = made._part()
    with pytest.raises(NotDescribedError, match=reason):
        describe(part, noise(), needed_tensors(part, noise()))
    assert made.description() is None


def test_other_threads_may_run_the_network_meanwhile() -> None:
    """A description follows one thread: another that runs the same network gets what it always gets."""
    made = extractor("resnet18", ("layer1",))
    expected, found, end = made(noise())[0], [], threading.Event()

    def keep_running() -> None:
        while not end.is_set():
            found.append(torch.equal(made(noise())[0], expected))

    thread = threading.Thread(target=keep_running)
    thread.start()
    try:
        while not found:
            end.wait(0.01)
        for _ in range(3):
            part = made._part()
            describe(part, noise(), needed_tensors(part, noise()))
    finally:
        end.set()
        thread.join()
    assert all(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *given, **named: None)
        images = torch.randint(
            0, 256, (6, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        options = {"weights": None, "resize": 64, "coreset_fraction": 0.1, "device": "cpu"}
        detector = ead.PatchCore("resnet18", ("layer1",), **options).fit(images.numpy())
    folder = tmp_path_factory.mktemp("models") / "resnet"
    detector.save(folder)
    return folder


def test_a_saved_model_is_loaded_without_its_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(
        0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    expected = ead.load(model).predict(images.numpy())
    for name in ("timm", "torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    found = ead.load(model)
    assert (found.predict(images.numpy()).anomaly_score == expected.anomaly_score).all()
    assert isinstance(found.network_.module, Stepped)
    assert found.network_.source == {"kind": "state", "seed": 0, "name": "resnet18", "tag": "tv_in1k"}
    # Nothing behind the layer is built.
    assert "layer2" not in dict(found.network_.module.named_children())


def test_it_is_saved_again_without_its_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("timm", "torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    ead.load(model).save(tmp_path / "again")
    assert (tmp_path / "again/network.json").read_bytes() == (model / "network.json").read_bytes()
    assert ead.load(tmp_path / "again").threshold_ == ead.load(model).threshold_


DESCRIPTION: dict[str, Any] = {
    "class": "Small",
    "is": "steps",
    "inputs": 1,
    "tensors": {},
    "parts": {"first": {"is": "ReLU", "with": {"inplace": False}}},
    "steps": [["call", "first", [{"value": 0}], {}]],
    "output": {"value": 1},
}


def changed(**values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(DESCRIPTION), **values}


def step(*given: Any) -> dict[str, Any]:
    return changed(steps=[list(given)])


def test_a_small_description() -> None:
    module = build(DESCRIPTION)
    assert torch.equal(module(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    with pytest.raises(TypeError, match="expected 1 inputs, got 2"):
        module(1, 2)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "must state what it is"),
        (changed(**{"is": "system"}), "'system' are not known"),
        (changed(inputs=0), "inputs must be"),
        (changed(inputs=True), "inputs must be"),
        (step("function", "os.system", ["ls"], {}), "'os.system' is not known"),
        (step("function", "eval", ["1"], {}), "'eval' is not known"),
        (step("method", "__reduce_ex__", [{"value": 0}, 2], {}), "'__reduce_ex__' is not known"),
        (step("method", "numpy", [{"value": 0}], {}), "'numpy' is not known"),
        (step("attribute", "__class__", [{"value": 0}], {}), "'__class__' is not known"),
        (step("attribute", "shape", [], {}), "shape is of one value"),
        (step("tensor", "_modules", [], {}), "'_modules' is not known"),
        (step("call", "second", [{"value": 0}], {}), "'second' is not known"),
        (step("run", "first", [{"value": 0}], {}), "'run' 'first' is not known"),
        (step("call", "first", [{"value": 1}], {}), "value 1 is not known before its step"),
        (step("call", "first", [{"value": -1}], {}), "value -1 is not known"),
        (step("call", "first", [{"value": "0"}], {}), "value '0' is not known"),
        (step("call", "first", [{"code": "1"}], {}), "an argument cannot be"),
        (step("call", "first", [{"dtype": "load"}], {}), "no dtype 'load'"),
        (changed(output={"value": 9}), "value 9"),
        (changed(tensors={"w": [[1], "Tensor", True]}), "no dtype 'Tensor'"),
        (changed(parts={"first": {"is": "ReLU", "with": {"inplace": {"value": 0}}}}), "cannot take"),
    ],
)
def test_descriptions_that_lie(description: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build(description)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pow", [10, 10**9]),
        ("mod", ["%9000000000d", 5]),
        ("mul", [[1], 10**12]),
        ("imul", [2**64, 2**64]),
        ("add", [[0] * 65, [0]]),
    ],
)
def test_numbers_do_not_grow_without_an_end(name: str, arguments: list[Any]) -> None:
    module = build(step("function", name, arguments, {}))
    with pytest.raises(ValueError, match=f"the step '{name}' cannot take"):
        module(torch.zeros(1))


def test_operators_take_sides_and_tensors() -> None:
    given = torch.ones(2, 3)
    for name, arguments, expected in [
        ("add", [[2], [3]], (2, 3)),
        ("pow", [256, -0.5], 0.0625),
        ("pow", [3, 2], 9),
        ("mul", [{"value": 0}, 2], given * 2),
        ("floordiv", [9, 2], 4),
    ]:
        found = build(step("function", name, arguments, {}))(given)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_a_pass_that_takes_for_ever() -> None:
    inner: dict[str, Any] = {"is": "ReLU", "with": {"inplace": False}}
    for _ in range(60):
        call = ["call", "first", [{"value": 0}], {}]
        inner = changed(parts={"first": inner}, steps=[call, call])
    inner["parts"]["last"] = {"is": "ReLU", "with": {"inplace": False}}
    inner["steps"].append(["call", "last", [{"value": 2}], {}])
    with pytest.raises(ValueError, match="calls more than 50000 layers"):
        reached(inner, ["last"])


def test_layers_that_are_not_reached() -> None:
    with pytest.raises(ValueError, match="'second'"):
        reached(DESCRIPTION, ["second"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"{}",
        b'{"input_size": 1.5, "network": {}}',
        b'{"input_size": null, "network": []}',
        b"[" * 9999,
        (b'"eps": 1e-05', b'"eps": Infinity'),
        (b'"tensors": {}', b'"tensors": {"num_batches_tracked": [[100000, 1000000], "float32", true]}'),
    ],
)
def test_damaged_files(model: Path, tmp_path: Path, content: Any) -> None:
    shutil.copytree(model, tmp_path / "m")
    if type(content) is tuple:
        written = (model / "network.json").read_bytes()
        assert content[0] in written
        content = written.replace(*content, 1)
    replace_file(tmp_path / "m", "network.json", content)
    with pytest.raises(DamagedModelError):
        ead.load(tmp_path / "m")


def test_published_weights_are_found_where_they_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without weights names the file of the cache, and is loaded from it without the package."""
    from safetensors.torch import save_file

    from ensemblead.networks import zoo

    source = zoo._build(zoo._look_up("test_resnet"))
    file = tmp_path / "cached.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, file)
    monkeypatch.setattr(zoo, "_timm_pretrained", lambda _: source)
    monkeypatch.setattr(zoo, "_cached_on_disk", lambda _: str(file))
    images = torch.randint(
        0, 256, (9, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    options = {"resize": 64, "coreset_fraction": 0.1, "device": "cpu"}
    detector = ead.PatchCore("test_resnet", ("layer1", "layer2"), **options).fit(images.numpy())
    detector.save(tmp_path / "m")
    expected = detector.predict(images[:2].numpy()).anomaly_score
    with monkeypatch.context() as patch:
        for name in ("timm", "torchvision", "torchvision.models"):
            patch.setitem(sys.modules, name, None)
        found = ead.load(tmp_path / "m")
        assert (found.predict(images[:2].numpy()).anomaly_score == expected).all()
        assert found.network_.source == detector.network_.source
        assert found._networks()[0].network.key == detector._networks()[0].network.key
        # Others in their place are not taken, though all names and shapes fit, and neither is a missing file.
        # The package is needed then, which says so itself.
        save_file({name: tensor.contiguous() + 1 for name, tensor in source.state_dict().items()}, file)
        for _ in range(2):
            with pytest.raises(ead.EnsembleADError, match="need timm"):
                ead.load(tmp_path / "m").predict(images[:2].numpy())
            file.unlink(missing_ok=True)
