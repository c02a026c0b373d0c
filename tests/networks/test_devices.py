"""Detectors from end to end on every device that torch has, and from one device to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import TinyNet
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.networks import placement
from ensemblead.networks.network import resolve_device

NATIVE: dict[str, Any] = {"image_size": None, "resize": None, "coreset_fraction": 0.05, "batch_size": 4}
BAD, MASKS = with_defects(normal_images(4, seed=5))
GOOD = normal_images(4, seed=6)


def _gabor(device: str, **options: Any) -> ead.PatchCore:
    return ead.PatchCore("gabor", ("layer1", "layer2"), device=device, **(NATIVE | options))


def _lies_on(detector: ead.PatchCore, device: str) -> bool:
    place = resolve_device(device)
    bank = detector.memory_bank_
    tensors = [bank.rows_, bank.images_] + ([] if bank.projection_ is None else [bank.projection_])
    return all(tensor.device == place for tensor in tensors) and detector.network_.device == place


def test_more_threads_than_the_quota_grants_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(placement, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(placement, "available_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.warns(
        RuntimeWarning, match=r"runs 64 threads, but .* grants 1\.5 cores.*set_num_threads\(1\)"
    ):
        placement.warn_of_threads(cpu)
    placement.warn_of_threads(gpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    placement.warn_of_threads(cpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(placement, "cpu_quota", lambda: None)
    placement.warn_of_threads(cpu)


@pytest.mark.parametrize("score", ["max", "reweighted", "topk"])
def test_a_model_of_one_device_says_the_same_on_the_cpu(
    torch_device: str, tmp_path: Path, score: str
) -> None:
    detector = _gabor(torch_device, precision="float32", score=score).fit(normal_images(8))
    assert _lies_on(detector, torch_device)
    detector.save(tmp_path / "m")
    here, there = ead.load(tmp_path / "m"), ead.load(tmp_path / "m", device="cpu")
    assert isinstance(here, ead.PatchCore)
    assert isinstance(there, ead.PatchCore)
    assert _lies_on(here, torch_device)
    assert _lies_on(there, "cpu")
    expected = there.predict(BAD)
    for one in (detector, here):
        found = one.predict(BAD)
        np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-3)
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-3, atol=1e-4)
    here.extend(255 - normal_images(3, seed=4))
    assert _lies_on(here, torch_device)
    assert len(here.memory_bank_) > len(detector.memory_bank_)


@pytest.mark.parametrize("fusion", ["calibrated", "max", "mean", "rank"])
def test_ensembles(torch_device: str, fusion: str) -> None:
    members = [
        _gabor(torch_device),
        ead.PatchCore(TinyNet(), ("first", "second"), device=torch_device, **NATIVE),
    ]
    ensemble = ead.BackboneEnsemble(members, fusion=fusion).fit(normal_images(10))
    bad, good = ensemble.predict(BAD), ensemble.predict(GOOD)
    assert bad.anomaly_score.min() > good.anomaly_score.max()
    for heat, mask in zip(bad.anomaly_map, MASKS, strict=True):
        assert mask[np.unravel_index(heat.argmax(), mask.shape)]
    (said,) = ensemble.predict_members(BAD)
    assert [len(one) for one in said] == [4, 4]


def test_members_on_two_devices(torch_device: str) -> None:
    members = [_gabor(torch_device, precision="float32"), _gabor("cpu", precision="float32")]
    ensemble = ead.BackboneEnsemble(members).fit(normal_images(10))
    alone = [member.predict(BAD).anomaly_map for member in members]
    assert np.corrcoef(alone[0].ravel(), alone[1].ravel())[0, 1] > 0.98
    assert ensemble.predict(BAD).is_anomalous.all()


def test_many_images_through_a_small_buffer(torch_device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 60, generator=generator)
    banks = {}
    for buffer_bytes in (10**9, 4000 * 60 * 8 // 6):
        bank = ead.MemoryBank(0.02, memory_budget=buffer_bytes, projection_dim=20)
        for i, part in enumerate(rows.to(torch_device).split(50)):
            bank.add(part, i)
        banks[buffer_bytes] = bank.fit()
        assert len(bank) == 80
    reach = [float(bank.search(rows.to(torch_device))[0].max()) for bank in banks.values()]
    assert reach[1] < 1.4 * reach[0]


def test_rows_of_another_device_are_refused(cuda_torch: Any) -> None:
    bank = ead.MemoryBank(0.5)
    bank.add(torch.randn(10, 4).cuda())
    with pytest.raises(ValueError, match="embeddings are on cpu, but those before are on cuda:0"):
        bank.add(torch.randn(10, 4))
    bank.fit()
    with pytest.raises(ValueError, match="queries are on cpu, but the bank is on cuda:0"):
        bank.search(torch.randn(3, 4))


def test_the_second_gpu(cuda_torch: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    detector = _gabor("cuda:1").fit(normal_images(6))
    assert _lies_on(detector, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert detector.predict(BAD).is_anomalous.all()
    mixed = ead.BackboneEnsemble([_gabor("cuda:0"), detector.__class__("gabor", device="cuda:1", **NATIVE)])
    assert mixed.fit(normal_images(6)).predict(BAD).is_anomalous.all()


def test_another_stream_than_the_first(cuda_torch: Any) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        detector = _gabor("cuda", precision="float32").fit(normal_images(6))
        found = detector.predict(BAD)
    np.testing.assert_allclose(found.anomaly_map, detector.predict(BAD).anomaly_map, rtol=1e-4, atol=1e-5)


def test_the_command_line(torch_device: str, tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from PIL import Image
    from typer.testing import CliRunner

    from ensemblead.cli.app import app

    for place, images in {"good": normal_images(6), "new": BAD}.items():
        (tmp_path / place).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / place / f"{i}.png")

    def call(*arguments: Any) -> dict[str, Any]:
        outcome = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert outcome.exit_code == 0, outcome.stderr
        document: dict[str, Any] = json.loads(outcome.stdout)
        return document

    options = ["-b", "gabor", "--resize", "none", "--image-size", "none", "--device", torch_device]
    call("fit", tmp_path / "good", "--model", tmp_path / "m", *options)
    model = ead.load(tmp_path / "m")
    assert isinstance(model, ead.PatchCore)
    assert _lies_on(model, torch_device)
    call("predict", tmp_path / "m", tmp_path / "new", "--out", tmp_path / "out")
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 5
