"""One core of OpenVINO, so that an interrupt finds a stack."""

from __future__ import annotations

import gc
import signal

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
from support.networks import NATIVE, TinyNet
from support.textures import normal_images

import ensemblead as ead


def test_an_interrupt_comes_when_engines_have_come_and_gone() -> None:
    images = normal_images(3, side=32)
    kept = []
    for _ in range(3):  # the older one goes first
        detector = ead.PatchCore(TinyNet(), ("first", "second"), engine="openvino", device="cpu", **NATIVE)
        detector.fit(images)
        kept = [*kept[-1:], detector]
        gc.collect()
    del kept, detector
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
