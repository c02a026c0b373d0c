"""Training of a fusion: it wins where it must, is equal to the bit, stops early, and leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from support.embeddings import drawn, fusion, mean_average_precision, standardised, unit

import ensemblead as ead
from ensemblead.common.errors import MissingExtraError, NonFiniteLossError
from ensemblead.retrieval import training

pytest.importorskip("pytorch_metric_learning")

TRAINED = ["fusion", "project", "ratios"]
LOSSES = ["supcon", "proxy_anchor", "softmax"]


def _labels(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize("mode", ["fusion", "project"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_learned_fusion_beats_concatenation(mode: str, loss: str) -> None:
    vectors, labels = drawn(per_class=24)
    queries, expected = drawn(per_class=24, seed=1)
    ensemble = fusion(mode, dim=8).fit(vectors, labels, loss=loss, learning_rate=3e-2, batch_size=40)
    learned = mean_average_precision(ensemble.combine(queries), expected)
    plain = mean_average_precision(ead.EmbeddingEnsemble(ensemble.members).combine(queries), expected)
    assert plain < 0.4
    assert learned > plain + 0.25
    assert ensemble.history_[-1]["loss"] < ensemble.history_[0]["loss"]


def test_ratios_find_the_network_that_sees_nothing() -> None:
    (good, _), labels = drawn(per_class=24, dims=(6, 6), spread=0.5)
    noise = np.random.default_rng(2).normal(size=good.shape).astype(np.float32)
    ensemble = fusion("ratios").fit([good, noise], labels, validation=0.0)
    first, second = ensemble.weights_
    assert first > 1.5 > 0.5 > second > 0
    assert first + second == pytest.approx(2)


@pytest.mark.parametrize("mode", TRAINED)
def test_embeddings_are_as_defined(mode: str) -> None:
    vectors, labels = drawn()
    dim = None if mode == "ratios" else 7
    ensemble = fusion(mode, dim=dim).fit(vectors, labels, epochs=2)
    z = standardised(vectors)
    offset = ensemble._learned.offset
    if mode == "ratios":
        assert offset is None
        expected = z * np.repeat(ensemble.weights_, (14, 19))
    elif mode == "fusion":
        assert ensemble.weights_.shape == (7, 33)
        expected = z @ ensemble.weights_.T + offset.numpy()
    else:
        # The remainder goes to the first.
        assert [one.shape for one in ensemble.weights_] == [(4, 14), (3, 19)]
        parts = [part @ one.T for part, one in zip((z[:, :14], z[:, 14:]), ensemble.weights_, strict=True)]
        expected = np.concatenate(parts, axis=1) + offset.numpy()
    np.testing.assert_allclose(ensemble.combine(vectors), unit(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", TRAINED)
def test_equal_to_the_bit_by_the_seed_and_no_generator_is_touched(mode: str) -> None:
    vectors, labels = drawn()
    dim = None if mode == "ratios" else 6

    def learned(seed: int) -> list[np.ndarray]:
        ensemble = fusion(mode, dim=dim, seed=seed).fit(vectors, labels, loss="proxy_anchor", epochs=3)
        return [np.asarray(one) for one in ensemble._learned.maps]

    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    first = learned(0)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    with torch.no_grad():  # nor do the caller's modes matter
        second = learned(0)
    for one, other, third in zip(first, second, learned(1), strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.array_equal(one, third)


def test_training_stops_where_validation_no_longer_improves() -> None:
    vectors, labels = drawn()
    steps: list[tuple[str, int, int]] = []
    ensemble = fusion("fusion", dim=8).fit(
        vectors, labels, epochs=60, learning_rate=1e-2, patience=2, progress=lambda *step: steps.append(step)
    )
    history, best = ensemble.history_, ensemble.best_epoch_
    maps = [entry["validation_map"] for entry in history]
    assert [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
    assert len(history) == best + 2 < 60
    assert best == 1 + int(np.argmax(maps))
    trained = [(done, total) for stage, done, total in steps if stage == "train"]
    assert trained == [*((done, 60) for done in range(1, len(history) + 1)), (60, 60)]
    assert [(done, total) for stage, done, total in steps if stage == "refit"] == [
        (done, best) for done in range(1, best + 1)
    ]


def test_a_refit_is_training_on_everything_for_as_many_epochs() -> None:
    vectors, labels = drawn()
    refit = fusion("fusion", dim=8).fit(vectors, labels, epochs=8)
    kept = fusion("fusion", dim=8).fit(vectors, labels, epochs=8, refit=False)
    everything = fusion("fusion", dim=8).fit(vectors, labels, epochs=refit.best_epoch_, validation=0.0)
    np.testing.assert_array_equal(refit.weights_, everything.weights_)
    assert not np.array_equal(refit.weights_, kept.weights_)
    assert kept.history_ == refit.history_
    assert "validation_map" not in everything.history_[0]
    assert everything.best_epoch_ == len(everything.history_) == refit.best_epoch_


def test_the_validation_map_is_the_definition() -> None:
    vectors, labels = drawn(per_class=6)
    numbers = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    vectors[0][:2] = vectors[0][2]  # ties
    inputs = torch.from_numpy(vectors[0])
    found = training._validation_map(torch.nn.Identity(), inputs, torch.from_numpy(numbers), np.arange(30))
    assert found == pytest.approx(mean_average_precision(unit(vectors[0]), labels), abs=0.02)
    inputs = torch.from_numpy(vectors[1])
    found = training._validation_map(torch.nn.Identity(), inputs, torch.from_numpy(numbers), np.arange(30))
    assert found == pytest.approx(mean_average_precision(unit(vectors[1]), labels), abs=1e-6)


def test_the_validation_part_leaves_what_a_loss_needs() -> None:
    labels = _labels([0] * 10 + [1] * 3 + [2] * 2)
    part = training.held_out(training.Training(validation=0.4), labels, 0)
    assert np.bincount(labels[part], minlength=3).tolist() == [4, 1, 0]
    part = training.held_out(training.Training(validation=0.9, loss="softmax"), labels, 0)
    assert np.bincount(labels[part], minlength=3).tolist() == [9, 2, 1]
    others = [training.held_out(training.Training(validation=0.4), labels, seed) for seed in (0, 1)]
    assert not np.array_equal(*others)
    with pytest.raises(ValueError, match=r"validation=0.2 leaves nothing of 4 images to stop by"):
        training.held_out(training.Training(), _labels([0, 0, 1, 1]), 0)


def test_natural_batches_are_all_images_once() -> None:
    batches = list(training.natural_batches(_labels([0] * 9), 4, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [4, 5]  # none of one image
    assert sorted(np.concatenate(batches).tolist()) == list(range(9))


@pytest.mark.parametrize(("size", "classes"), [(8, 5), (12, 3), (64, 5)])
def test_balanced_batches_have_as_many_of_each_class(size: int, classes: int) -> None:
    labels = np.repeat(np.arange(classes), [40, *[3] * (classes - 1)])
    batches = list(training.balanced_batches(labels, size, np.random.default_rng(0)))
    each = max(4, size // classes)
    seen = np.zeros(classes, dtype=int)
    for batch in batches:
        counts = np.bincount(labels[batch], minlength=classes)
        assert set(counts[counts > 0]) == {each}
        seen += counts
    assert len(batches) == -(-len(labels) // size)
    assert (seen > 0).sum() == min(classes, len(batches) * max(2, size // each))
    large = np.concatenate([batch[labels[batch] == 0] for batch in batches])
    assert len(set(large[:40].tolist())) == min(40, len(large))  # none again before all were drawn


def test_balanced_training_learns_from_small_classes() -> None:
    vectors, labels = drawn(per_class=16)
    kept = [i for i, label in enumerate(labels) if label != "class 0"] + [
        i for i, label in enumerate(labels) if label == "class 0"
    ][:3]
    few, own = [one[kept] for one in vectors], [labels[i] for i in kept]
    natural = fusion("fusion", dim=8).fit(few, own, epochs=3)
    balanced = fusion("fusion", dim=8).fit(few, own, epochs=3, balanced=True, batch_size=20)
    assert not np.array_equal(natural.weights_, balanced.weights_)


def test_an_interrupted_fit_changes_nothing() -> None:
    vectors, labels = drawn()
    ensemble = fusion("fusion", dim=6).fit(vectors, labels, epochs=2)
    before, history = ensemble.weights_.copy(), ensemble.history_

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensemble.fit(vectors, labels, progress=interrupt, learning_rate=1e-2)
    np.testing.assert_array_equal(ensemble.weights_, before)
    assert ensemble.history_ == history
    fresh = fusion("fusion", dim=6)
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(vectors, labels, progress=interrupt)
    assert not fresh.is_fitted


def test_a_class_of_one_image_needs_another_loss() -> None:
    vectors, labels = drawn()
    labels[0] = "alone"
    with pytest.raises(ValueError, match="'supcon' needs 2 images of every class.* 'alone'; leave them out"):
        fusion("fusion", dim=6).fit(vectors, labels)
    ensemble = fusion("fusion", dim=6).fit(vectors, labels, loss="proxy_anchor", epochs=2)
    assert "alone" in ensemble.classes_


def test_a_training_that_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = drawn()
    with pytest.raises(NonFiniteLossError, match=r"the loss softmax became (nan|inf) in epoch \d"):
        fusion("fusion", dim=6).fit(vectors, labels, loss="softmax", learning_rate=1e30)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    vectors, labels = drawn()
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    fusion("lda").fit(vectors, labels)
    with pytest.raises(MissingExtraError, match=r'training a fusion needs .* pip install "\.\[retrieval\]"'):
        fusion("fusion", dim=6).fit(vectors, labels)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"loss": "subcon"},
            ValueError,
            "loss must be one of supcon, .*, got 'subcon'; did you mean supcon?",
        ),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number, got '1e-3'"),
        ({"validation": 1.0}, ValueError, "validation must be at least 0 and below 1, got 1.0"),
        ({"validation": True}, TypeError, "validation must be a number, got True"),
        ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        ({"balanced": 1}, TypeError, "balanced must be a bool, got 1"),
        ({"refit": None}, TypeError, "refit must be a bool, got None"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 2, got 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    vectors, labels = drawn()
    with pytest.raises(error, match=message):
        fusion("fusion", dim=6).fit(vectors, labels, **arguments)
