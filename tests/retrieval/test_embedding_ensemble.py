"""Embedding ensembles: concatenation, whitening and discriminants against float64; saving; bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.embeddings import drawn, fusion, members, standardised, unit
from support.networks import NATIVE, TinyNet
from support.pictures import draw
from support.tampering import altered, set_tensors

import ensemblead as ead
from ensemblead.common.errors import (
    DamagedModelError,
    MissingExtraError,
    NotFittedError,
    UnreadableImageError,
)

MODES = ["concat", "fusion", "project", "ratios", "whiten", "lda"]
# Rounding of float32 embeddings of length 1.
CLOSE: dict[str, float] = {"rtol": 0.0, "atol": 1e-6}


def _fitted(mode: str, **changes: Any) -> ead.EmbeddingEnsemble:
    dim = None if mode in ("concat", "ratios", "lda") else 6
    ensemble = fusion(mode, **{"dim": dim, **changes})
    if mode == "concat":
        return ensemble
    vectors, labels = drawn()
    training = {"epochs": 2} if mode in ("fusion", "project", "ratios") else {}
    return ensemble.fit(vectors, labels, **training)


# Concatenation


def test_each_part_has_the_length_of_its_weight() -> None:
    vectors, _ = drawn()
    found = ead.EmbeddingEnsemble(members(), weights=(1, 3)).combine(vectors)
    expected = unit(np.concatenate([unit(vectors[0]), 3 * unit(vectors[1])], axis=1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_jointly_the_vectors_keep_their_lengths() -> None:
    vectors, _ = drawn()
    found = ead.EmbeddingEnsemble(members(), weights=(1, 3), normalize="joint").combine(vectors)
    np.testing.assert_allclose(found, unit(np.concatenate([vectors[0], 3 * vectors[1]], axis=1)), **CLOSE)


def test_only_the_ratios_of_weights_count() -> None:
    vectors, _ = drawn()
    equal = ead.EmbeddingEnsemble(members()).combine(vectors)
    np.testing.assert_allclose(
        ead.EmbeddingEnsemble(members(), weights=[5, 5]).combine(vectors), equal, **CLOSE
    )
    one = ead.EmbeddingEnsemble(members(), weights=np.array([0, 2])).combine(vectors)
    assert not one[:, :14].any()
    np.testing.assert_allclose(one[:, 14:], unit(vectors[1]), **CLOSE)


def test_values_of_any_size_have_a_direction() -> None:
    vectors, _ = drawn()
    tiny = [vectors[0].astype(np.float64) * 1e-200, vectors[1].astype(np.float64) * 1e200]
    expected = ead.EmbeddingEnsemble(members()).combine(vectors)
    np.testing.assert_allclose(ead.EmbeddingEnsemble(members()).combine(tiny), expected, **CLOSE)


def test_more_rows_than_are_joined_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemblead.retrieval import joining

    vectors, _ = drawn()
    expected = {mode: _fitted(mode).combine(vectors) for mode in ("concat", "lda", "project")}
    monkeypatch.setattr(joining, "_ROWS", 7)
    for mode, whole in expected.items():
        np.testing.assert_allclose(_fitted(mode).combine(vectors), whole, rtol=0, atol=1e-5)


# Closed forms


@pytest.mark.parametrize("per_class", [12, 4], ids=["more images", "more dimensions"])
def test_whitening_by_the_singular_vectors(per_class: int) -> None:
    vectors, _ = drawn(per_class)
    ensemble = fusion("whiten", dim=7).fit(vectors)
    z = standardised(vectors)
    centred = z - z.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:7].T / (sizes[:7] / np.sqrt(len(z) - 1))
    found = ensemble.combine(vectors)
    # Directions have no sign of their own.
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, unit(expected) * signs, rtol=0, atol=1e-5)
    before = z @ ensemble.weights_.T
    np.testing.assert_allclose(np.cov(before.T), np.eye(7), atol=1e-4)


def test_discriminants_by_the_generalised_eigenvalues() -> None:
    from scipy.linalg import eigh
    from sklearn.covariance import ledoit_wolf_shrinkage

    vectors, labels = drawn(per_class=15)
    found = fusion("lda").fit(vectors, labels).combine(vectors)
    z, y = standardised(vectors), np.array(labels)
    centred = z - z.mean(0)
    within, between, rest = np.zeros((33, 33)), np.zeros((33, 33)), []
    for label in np.unique(y):
        own = centred[y == label]
        rest.append(own - own.mean(0))
        within += rest[-1].T @ rest[-1] / len(y)
        between += len(own) * np.outer(own.mean(0), own.mean(0)) / len(y)
    shrinkage = ledoit_wolf_shrinkage(np.concatenate(rest), assume_centered=True)
    assert 0.01 < shrinkage < 1
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / 33 * np.eye(33)
    directions = eigh(between, shrunk)[1][:, :-5:-1]
    expected = unit(centred @ directions)
    assert found.shape == (75, 4)
    # Up to the signs of directions.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=1e-5)


def test_fewer_discriminants_are_the_first_ones() -> None:
    vectors, labels = drawn()
    whole, two = fusion("lda").fit(vectors, labels), fusion("lda", dim=2).fit(vectors, labels)
    np.testing.assert_allclose(two.weights_, whole.weights_[:2], rtol=1e-9)
    assert two.combine(vectors).shape == (60, 2)


def test_a_dimension_that_never_varies_counts_nothing() -> None:
    vectors, labels = drawn()
    constant = np.full((len(labels), 3), 0.1, dtype=np.float32)
    wider = [np.concatenate([vectors[0], constant], axis=1), vectors[1]]
    found = fusion("lda").fit(wider, labels).combine(wider)
    expected = fusion("lda").fit(vectors, labels).combine(vectors)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=0, atol=1e-5)


# Images


def _pair(**changes: Any) -> list[ead.Embedder]:
    other = TinyNet(1)
    other.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    common = {"device": "cpu", "batch_size": 3, **changes}
    return [
        ead.Embedder(TinyNet(), layer="second", **{**NATIVE, **common}),
        ead.Embedder(other, layer="first", resize=24, image_size=16, **common),
    ]


class _Counted:
    """A data set that counts how often each image is asked for."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.asked = images, [0] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        self.asked[index] += 1
        return self.images[index]


def _images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 255, (count, 32, 40, 3), dtype=np.uint8)


def test_networks_of_other_sizes_share_the_decoding() -> None:
    images = _Counted(_images())
    ensemble = ead.EmbeddingEnsemble(_pair())
    found = ensemble.embed(images)
    assert images.asked == [1] * 8
    assert found.shape == (8, ensemble.dim) == (8, 24)
    expected = ensemble.combine([member.embed(images.images) for member in _pair()])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_batch_size_changes_rounding_alone() -> None:
    images = _images()
    expected = ead.EmbeddingEnsemble(_pair()).embed(images)
    for size in (1, 8):
        found = ead.EmbeddingEnsemble(_pair(batch_size=size)).embed(images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_fit_on_images_is_fit_on_their_embeddings() -> None:
    images, labels, steps = _images(), [3, 5] * 4, []
    ensemble = ead.EmbeddingEnsemble(_pair(), mode="lda")
    ensemble.fit(images, labels, progress=lambda *step: steps.append(step))
    same = ead.EmbeddingEnsemble(_pair(), mode="lda").fit([one.embed(images) for one in _pair()], labels)
    np.testing.assert_allclose(ensemble.embed(images), same.embed(images), rtol=0, atol=1e-4)
    assert ensemble.classes_ == (3, 5)
    assert steps == [("embed", 3, 8), ("embed", 6, 8), ("embed", 8, 8)]


def test_labels_go_with_the_images_that_are_left_out(tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{i}.png", (32, 40)) for i in range(7)]
    labels = ["a", "b", "a", "b", "a", "b", "a"]
    kept = [0, 1, 3, 4, 5, 6]
    expected = ead.EmbeddingEnsemble(_pair(), mode="lda").fit(
        [paths[i] for i in kept], [labels[i] for i in kept]
    )
    paths[2].write_bytes(b"no picture")
    left_out: list[int] = []
    found = ead.EmbeddingEnsemble(_pair(), mode="lda")
    with pytest.raises(UnreadableImageError, match=r"2\.png"):
        found.fit(paths, labels)
    assert not found.is_fitted
    found.fit(paths, labels, on_error=lambda position, _: left_out.append(position))
    assert left_out == [2]
    np.testing.assert_allclose(found.weights_, expected.weights_, rtol=1e-4, atol=1e-6)


def test_an_image_without_a_direction_is_named_or_left_out() -> None:
    net = TinyNet()
    net.first.bias.data.zero_()
    net.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    images = _images()
    images[5] = 0
    member = ead.Embedder(net, layer="first", device="cpu", batch_size=4, **NATIVE)
    assert not member.embed(images)[5].any()
    ensemble = ead.EmbeddingEnsemble([member])
    with pytest.raises(ValueError, match=r"members\[0\] has zero vectors.* at position 5"):
        ensemble.embed(images)
    errors: list[tuple[int, Exception]] = []
    batches = list(ensemble.embed_batches(images, on_error=lambda *error: errors.append(error)))
    assert [positions.tolist() for positions, _ in batches] == [[0, 1, 2, 3], [4, 6, 7]]
    assert [(place, type(error)) for place, error in errors] == [(5, ValueError)]
    # Jointly, where those members that have a weight see nothing.
    other = ead.Embedder("gabor", layer="layer1", device="cpu", batch_size=4, **NATIVE)
    both = [member, other]
    joint = ead.EmbeddingEnsemble(both, normalize="joint", weights=(1, 0))
    with pytest.raises(ValueError, match="the weighted concatenation has zero vectors.* at position 5"):
        joint.embed(images)
    batches = list(joint.embed_batches(images, on_error=lambda *error: errors.append(error)))
    assert [positions.tolist() for positions, _ in batches] == [[0, 1, 2, 3], [4, 6, 7]]
    assert [place for place, _ in errors] == [5, 5]


# Saving


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_described(mode: str, tmp_path: Path) -> None:
    ensemble, (vectors, _) = _fitted(mode), drawn()
    expected = ensemble.combine(vectors)
    ensemble.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.combine(vectors), expected)
    assert repr(loaded) == repr(ensemble)
    assert expected.shape[1] == (33 if mode == "concat" else loaded.dim)
    assert loaded.describe() == ensemble.describe()
    again = ead.create(ensemble.describe())
    assert again.is_fitted == (mode == "concat")
    assert again.describe() == ensemble.describe()
    if mode != "concat":
        assert (loaded.history_, loaded.best_epoch_, loaded.classes_) == (
            ensemble.history_,
            ensemble.best_epoch_,
            ensemble.classes_,
        )
        for (mean, std), (mean_before, std_before) in zip(loaded.scaler_, ensemble.scaler_, strict=True):
            np.testing.assert_array_equal([mean, std], [mean_before, std_before])


def test_members_are_saved_with_the_ensemble(tmp_path: Path) -> None:
    images = _images()
    ensemble = ead.EmbeddingEnsemble(_pair(), mode="whiten", dim=3).fit(images)
    ensemble.save(tmp_path / "model", include_backbone=True)
    other = TinyNet(5)
    other.pretrained_cfg = {}
    loaded = ead.load(tmp_path / "model", backbone=[TinyNet(4), other])
    np.testing.assert_array_equal(loaded.embed(images), ensemble.embed(images))
    with pytest.raises(ValueError, match=r"backbone must be one per member \(2\), got 1"):
        ead.load(tmp_path / "model", backbone=[TinyNet()])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(members=3),
        lambda state: state.update(members=1),
        lambda state: state.update(mode="concat"),
        lambda state: state.update(mode="median"),
        lambda state: state.update(learned=None),
        lambda state: state.update(weights=[1, 2]),
        lambda state: state["learned"]["values"].update(best_epoch="last"),
        lambda state: state.pop("seed"),
    ],
)
def test_a_folder_that_states_no_ensemble_is_damaged(change: Any, tmp_path: Path) -> None:
    _fitted("lda").save(tmp_path / "model")
    with pytest.raises(DamagedModelError):
        ead.load(altered(tmp_path / "model", tmp_path / "other", change))


def test_learned_tensors_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    _fitted("whiten").save(tmp_path / "model")
    set_tensors(tmp_path / "model", "learned.safetensors", offset=torch.zeros(9, dtype=torch.float64))
    with pytest.raises(DamagedModelError, match="do not fit to networks"):
        ead.load(tmp_path / "model")


def test_one_line() -> None:
    text = repr(fusion("lda", count=1))
    member = "Embedder(backbone='gabor', layer='layer1', device='cpu')"
    assert text == f"EmbeddingEnsemble(members=[{member}], mode='lda'), not fitted"
    assert "dim" not in repr(_fitted("lda"))
    assert "dim=6" in repr(_fitted("whiten"))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "fussion"}, ValueError, "mode must be one of .*, got 'fussion'; did you mean fusion?"),
        ({"normalize": "all"}, ValueError, "normalize must be one of each, joint, got 'all'"),
        ({"weights": (0, 0)}, ValueError, r"weights must be .* not all zero, got \(0.0, 0.0\)"),
        ({"weights": (1, -1)}, ValueError, "weights must be finite, not negative"),
        ({"weights": (1, float("nan"))}, ValueError, "weights must be finite"),
        ({"weights": (1, 2, 3)}, ValueError, r"weights must be one per member \(2\), got 3"),
        ({"weights": "12x"}, TypeError, "weights must be numbers"),
        ({"weights": (1, 2), "mode": "lda"}, ValueError, "weights goes with mode 'concat', got mode 'lda'"),
        ({"normalize": "joint", "mode": "lda"}, ValueError, "normalize goes with mode 'concat'"),
        ({"dim": 8}, ValueError, "dim follows from the members in mode 'concat', got 8"),
        ({"dim": 0, "mode": "fusion"}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 1.5, "mode": "fusion"}, TypeError, "dim must be a whole number, got 1.5"),
        ({"dim": 1, "mode": "project"}, ValueError, r"dim must be at least 1 per member \(2\), got 1"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
        ({"members": []}, ValueError, "members must not be empty"),
        ({"members": ["resnet18"]}, TypeError, r"members\[0\] must be an Embedder, got str"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.EmbeddingEnsemble(arguments.pop("members", members()), **arguments)


def _changed(value: float, k: int = 1) -> list[np.ndarray]:
    vectors, _ = drawn()
    vectors[k][[4, 9]] = value
    return vectors


@pytest.mark.parametrize("mode", ["concat", "whiten"])
@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (_changed(0), ValueError, r"embeddings\[1\] has zero vectors.* at positions 4, 9"),
        (_changed(np.inf), ValueError, r"embeddings\[1\] must be finite.* at positions 4, 9"),
        (drawn()[0][:1], ValueError, r"embeddings must be one array per member \(2\), got 1"),
        (
            [drawn()[0][0], drawn()[0][1][:50]],
            ValueError,
            r"embeddings\[0\] has 60 vectors and .*\[1\] has 50",
        ),
        (
            [drawn()[0][0], drawn()[0][1][0]],
            ValueError,
            r"embeddings\[1\] must be \[N, D\], got shape \(19,\)",
        ),
        ([np.zeros((0, 3))] * 2, ValueError, r"embeddings\[0\] must be \[N, D\], got shape \(0, 3\)"),
        ([np.array([["a"]])] * 2, TypeError, r"embeddings\[0\] must hold numbers"),
        ([np.ones((3, 2), bool)] * 2, TypeError, r"embeddings\[0\] must be numbers, got bool"),
        (["a.png"], TypeError, "embeddings must be a list of arrays .* got a list of str"),
        (drawn()[0][0], TypeError, "embeddings must be a list of arrays .* got ndarray"),
    ],
)
def test_wrong_embeddings(mode: str, embeddings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _fitted(mode).combine(embeddings)


def test_jointly_one_network_may_see_nothing() -> None:
    joint = ead.EmbeddingEnsemble(members(), normalize="joint")
    found = joint.combine(_changed(0))
    np.testing.assert_allclose(found[4, :14], unit(drawn()[0][0][4:5])[0], **CLOSE)
    both = [_changed(0, 0)[0], _changed(0, 1)[1]]
    with pytest.raises(ValueError, match=r"the weighted concatenation has zero vectors.* 4, 9"):
        joint.combine(both)


def test_embeddings_of_other_dimensions_than_learned() -> None:
    vectors, _ = drawn()
    with pytest.raises(
        ValueError, match=r"embeddings\[1\] must have the 19 dimensions that were learned, got 18"
    ):
        _fitted("whiten").combine([vectors[0], vectors[1][:, 1:]])
    with pytest.raises(
        ValueError, match=r"embeddings\[0\] must have the 14 dimensions that were learned, got 42"
    ):
        _fitted("whiten").embed(np.full((1, 64, 64, 3), 9, dtype=np.uint8))


def test_an_embedding_that_equals_the_mean() -> None:
    vectors, labels = drawn()
    ensemble = fusion("lda").fit(vectors, labels)
    vectors[1] = vectors[1].astype(np.float64)
    vectors[1][3] = ensemble.scaler_[1][0]
    with pytest.raises(
        ValueError, match=r"embeddings\[1\], less the mean of those learned, has zero .* position 3"
    ):
        ensemble.combine(vectors)


@pytest.mark.parametrize(
    ("mode", "labels", "error", "message"),
    [
        ("lda", ["a"] * 60, ValueError, "labels must be of two classes at least, got 'a' alone"),
        ("lda", ["a", "b"], ValueError, r"labels must be one per image \(60\), got 2"),
        ("lda", None, ValueError, "labels must be given: mode 'lda' learns from them"),
        ("lda", "a" * 60, TypeError, "labels must be a sequence of strings or whole numbers, got str"),
        ("lda", [1.5] * 60, TypeError, "labels must be all strings or all whole numbers, got 1.5"),
        ("lda", ["a", 1] * 30, TypeError, "labels must be all strings or all whole numbers, got 1"),
        ("lda", list(range(60)), ValueError, "mode 'lda' needs a class of two different images"),
        ("whiten", ["a"] * 60, ValueError, "labels must be of two classes"),
        ("fusion", ["a"] * 59 + ["b"], ValueError, "'supcon' needs 2 images of every class.* fewer of 'b'"),
    ],
)
def test_wrong_labels(mode: str, labels: Any, error: type[Exception], message: str) -> None:
    ensemble = fusion(mode, dim=4 if mode == "whiten" else None)
    with pytest.raises(error, match=message):
        ensemble.fit(drawn()[0], labels)
    assert not ensemble.is_fitted


def test_labels_are_checked_before_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _Counted(_images())
    with pytest.raises(ValueError, match=r"labels must be one per image \(8\), got 3"):
        ead.EmbeddingEnsemble(_pair(), mode="lda").fit(images, ["a", "b", "a"])
    fusion_of_images = ead.EmbeddingEnsemble(_pair(), mode="fusion")
    with pytest.raises(ValueError, match="needs 2 images of every class"):
        fusion_of_images.fit(images, ["a"] * 7 + ["b"])
    with pytest.raises(ValueError, match=r"validation=0.01 leaves nothing"):
        fusion_of_images.fit(images, ["a", "b"] * 4, validation=0.01)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtraError, match="retrieval"):
        fusion_of_images.fit(images, ["a", "b"] * 4)
    assert images.asked == [0] * 8


def test_more_dimensions_than_there_are() -> None:
    vectors, labels = drawn()
    with pytest.raises(ValueError, match="dim must be at most 33, the rank of these 60 embeddings, got 34"):
        fusion("whiten", dim=34).fit(vectors)
    with pytest.raises(ValueError, match="dim must be at most 9, the rank of these 10 embeddings, got 10"):
        fusion("whiten", dim=10).fit([one[:10] for one in vectors])
    with pytest.raises(ValueError, match="dim must be at most 4 with 5 classes and mode 'lda', got 5"):
        fusion("lda", dim=5).fit(vectors, labels)


def test_dimensions_before_a_fit() -> None:
    assert fusion("fusion").dim == 512
    assert fusion("whiten", dim=5).dim == 5
    assert fusion("lda", dim=2).dim == 2
    assert fusion("ratios").dim == ead.EmbeddingEnsemble(members()).dim == sum(one.dim for one in members())
    with pytest.raises(ValueError, match="dim: in mode 'lda' it follows from the labels; call fit first"):
        _ = fusion("lda").dim


def test_nothing_to_fit_or_not_fitted(tmp_path: Path) -> None:
    vectors, labels = drawn()
    with pytest.raises(ValueError, match="mode 'concat' has nothing to fit"):
        ead.EmbeddingEnsemble(members()).fit(vectors, labels)
    with pytest.raises(NotFittedError, match="history_: this EmbeddingEnsemble of mode 'concat' has none"):
        _ = ead.EmbeddingEnsemble(members()).history_
    unfitted = fusion("fusion")
    for use in (
        lambda: unfitted.combine(vectors),
        lambda: unfitted.embed(_images()),
        lambda: unfitted.embed_batches(_images()),
        lambda: unfitted.save(tmp_path / "model"),
        lambda: unfitted.weights_,
        lambda: unfitted.scaler_,
        lambda: unfitted.best_epoch_,
    ):
        with pytest.raises(NotFittedError, match="is not fitted; call fit first"):
            use()


def test_training_keywords_need_training() -> None:
    vectors, labels = drawn()
    with pytest.raises(ValueError, match="loss goes with training, and mode 'lda' has none"):
        fusion("lda").fit(vectors, labels, loss="softmax")
