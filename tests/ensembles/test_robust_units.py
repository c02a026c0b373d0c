"""Robust fits on executors leave out the same images, to the same bits as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.textures import normal_images, with_defects
from support.units import SIZES, Inline, assert_same

pytest.importorskip("torch")
from PIL import Image

import ensemblead as ead


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    bad, _ = with_defects(normal_images(2, seed=3, side=32))
    for number, image in enumerate(np.concatenate([bad, normal_images(12, side=32)])):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


def core(**options: Any) -> ead.PatchCore:
    options = {"coreset_fraction": 0.2, "batch_size": 4, **SIZES, **options}
    return ead.PatchCore("gabor", ("layer1",), **options)


def ensemble() -> ead.BackboneEnsemble:
    return ead.BackboneEnsemble([core(contamination=0.2), core(contamination="auto", seed=1), core()])


def tiles() -> ead.TiledEnsemble:
    return ead.TiledEnsemble(core(contamination="auto"), 16, 16, image_size=32)


@pytest.mark.parametrize("make", [ensemble, tiles])
def test_executors_leave_out_the_same(make: Any, images: Path, tmp_path: Path) -> None:
    here = make().fit(images)
    apart = make().fit(images, executor=Inline(), workdir=tmp_path / "work")
    assert here.left_out_ == apart.left_out_
    assert {one.index for one in here.left_out_} >= {0, 1}
    assert here.left_out_[0].path == str(images / f"{here.left_out_[0].index:02}.png")
    assert_same(apart, here, normal_images(2, seed=9, side=32))
    here.save(tmp_path / "model")
    assert ead.load(tmp_path / "model").left_out_ == here.left_out_


def test_executors_learn_the_same_known_defects(images: Path, tmp_path: Path) -> None:
    defects = [images / "00.png", images / "01.png"]
    normal = sorted(set(images.iterdir()) - set(defects))

    def made() -> ead.BackboneEnsemble:
        return ead.BackboneEnsemble([core(defects=defects), core(seed=1)])

    here = made().fit(normal)
    apart: Any = made().fit(normal, executor=Inline(), workdir=tmp_path / "work")
    assert apart.members[0].memory_bank_.defects_.images.unique().tolist() == [0, 1]
    assert apart.members[1].memory_bank_.defects_ is None
    assert_same(apart, here, normal_images(2, seed=9, side=32))
