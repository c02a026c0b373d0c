"""An index goes on with embedders that give the same vectors, and with no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from support.labelled import draw_classes

import ensemblead as ead

SEEN = {"resize": None, "image_size": None, "device": "cpu"}


def lda(images: Path) -> ead.EmbeddingEnsemble:
    members = [ead.Embedder("gabor", layer=layer, **SEEN) for layer in ("layer1", "layer3")]
    paths = sorted(images.rglob("*.png"))
    return ead.EmbeddingEnsemble(members, mode="lda").fit(paths, [path.parent.name for path in paths])


def test_what_an_ensemble_has_learned_must_be_the_same(tmp_path: Path) -> None:
    few, more = draw_classes(tmp_path / "few", 3), draw_classes(tmp_path / "more", 5)
    first, other = lda(few), lda(more)
    assert first.describe() == other.describe()
    with ead.ImageIndex.build(few, first, tmp_path / "index") as index:
        assert len(index) == 9
    with ead.ImageIndex.build(more, lda(few), tmp_path / "index") as index:
        assert len(index) == 9 + 15
        vector = index.search(more / "dark/0.png").similarities
    for refused in (
        lambda: ead.ImageIndex.build(few, other, tmp_path / "index"),
        lambda: ead.ImageIndex.open(tmp_path / "index", embedder=other),
    ):
        with pytest.raises(
            ValueError, match="embedder is not the one .*: its learned.safetensors has other contents"
        ):
            refused()
    with ead.ImageIndex.open(tmp_path / "index", embedder=ead.load(tmp_path / "index/embedder")) as index:
        np.testing.assert_array_equal(index.search(more / "dark/0.png").similarities, vector)


def test_where_a_network_runs_makes_no_difference(tmp_path: Path) -> None:
    images = draw_classes(tmp_path / "images", 2)
    with ead.ImageIndex.build(images, ead.Embedder("gabor", **SEEN), tmp_path / "index"):
        pass
    with ead.ImageIndex.open(
        tmp_path / "index", embedder=ead.Embedder("gabor", **SEEN, batch_size=2)
    ) as index:
        assert len(index) == index.add(images) + 6
    with pytest.raises(ValueError, match="its state.parameters.layer is 'layer3', not None"):
        ead.ImageIndex.open(
            tmp_path / "index", embedder=ead.Embedder("gabor", layer="layer3", pool="max", **SEEN)
        )
