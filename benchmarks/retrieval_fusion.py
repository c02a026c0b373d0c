"""Embedding ensembles on labelled photographs: the parts "fusion" and "build" of bench_retrieval.py.

fusion: the published experiments in kind. build: how fast embedding is.

`--data` holds products as `<product>/train/good` and `<product>/test/<type>`. The class of an image is its
product and type. `--weights` holds `<network>.safetensors`. Embeddings, and the rows of every seed, are kept
in `--cache`: a run that was stopped goes on there, and a row is measured anew where its entry is removed.

Every seed splits each class into halves. All that is learned or chosen comes from one; each image of the
other is searched for among its other images. mAP@50 is divided by min(R, 50). Intervals are of the mean over
seeds, by Student's t at 95 %.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import interleaved
from record import FiguresOf, write_text

import ensemblead as ead
from ensemblead.images import iterate_batches, open_images

Matrix = npt.NDArray[np.float32]
# Networks, and the last layer of each that shortened files of weights reach; None: before the classifier.
LAYERS = {
    "resnet18": "layer3",
    "densenet169": "features.denseblock3",
    "squeezenet1_1": "features.12",
    "efficientnet_lite0": None,
}
THREE = ("resnet18", "densenet169", "squeezenet1_1")
FOUR = tuple(LAYERS)
SIDE, K, GRID, RANK = 224, 50, range(1, 6), 60
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

# --- images and embeddings ------------------------------------------------------------------------


def photographs(data: Path) -> tuple[list[Path], npt.NDArray[np.int64], list[str]]:
    """Paths, the number of each one's class, and the classes."""
    paths = sorted(
        path
        for path in data.glob("*/t*/*/*")
        if path.parts[-3] in ("train", "test") and path.suffix.lower() in SUFFIXES
    )
    names = [f"{path.parts[-4]}/{path.parts[-2]}" for path in paths]
    classes = sorted(set(names))
    return paths, np.array([classes.index(name) for name in names], dtype=np.int64), classes


def embedder(name: str, weights: Path) -> ead.Embedder:
    whole = {"resize": (SIDE, SIDE), "image_size": None, "device": "cpu"}
    return ead.Embedder(name, layer=LAYERS[name], weights=weights / f"{name}.safetensors", **whole)


def embeddings(data: Path, weights: Path, cache: Path) -> tuple[dict[str, Matrix], npt.NDArray[np.int64]]:
    """Every network's embeddings of all photographs: of one pass, or of an earlier run."""
    paths, labels, classes = photographs(data)
    listed = "\n".join(str(path.relative_to(data)) for path in paths)
    key = hashlib.sha256(f"{listed}{LAYERS}{SIDE}".encode()).hexdigest()[:12]
    kept = cache / f"embeddings-{key}.npz"
    if not kept.exists():
        print(f"embedding {len(paths)} images of {len(classes)} classes", flush=True)
        members = [embedder(name, weights) for name in LAYERS]
        parts = {name: member.embed(paths) for name, member in zip(LAYERS, members, strict=True)}
        cache.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}")
        np.savez(temporary, **parts)
        temporary.replace(kept)
    with np.load(kept) as file:
        return {name: file[name] for name in LAYERS}, labels


# --- measures -------------------------------------------------------------------------------------


def scores(found: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """mAP@50 over items, and the mean over classes, of embeddings or of result lists."""
    metrics = ead.retrieval_metrics(found, labels, k=K, replicates=0)
    return metrics.map, metrics.macro_map


def merged(vectors: Sequence[Matrix]) -> npt.NDArray[np.int64]:
    """Reciprocal rank fusion of the networks' result lists, as lists `[N, N]` with the query behind all."""
    total = np.zeros((len(vectors[0]), len(vectors[0])))
    for one in vectors:
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -math.inf)
        total += 1.0 / (RANK + 1 + np.argsort(np.argsort(-similar, axis=1, kind="stable"), axis=1))
    return np.argsort(-total, axis=1, kind="stable")


# --- rows -----------------------------------------------------------------------------------------

Row = Callable[["Split"], tuple[float, float]]


class Split:
    """Halves of every class by a seed: one to learn from, one to search in."""

    def __init__(self, vectors: dict[str, Matrix], labels: npt.NDArray[np.int64], seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.seed, learned = seed, np.zeros(len(labels), dtype=bool)
        for one in np.unique(labels):
            places = generator.permutation(np.flatnonzero(labels == one))
            learned[places[: len(places) // 2]] = True
        self.train = {name: one[learned] for name, one in vectors.items()}
        self.test = {name: one[~learned] for name, one in vectors.items()}
        self.train_labels, self.test_labels = labels[learned], labels[~learned]

    def score(self, networks: Sequence[str], ensemble: ead.EmbeddingEnsemble) -> tuple[float, float]:
        return scores(ensemble.combine([self.test[name] for name in networks]), self.test_labels)


def ensemble_of(networks: Sequence[str], **arguments: Any) -> ead.EmbeddingEnsemble:
    """Its networks are never loaded: embeddings are ready."""
    return ead.EmbeddingEnsemble([ead.Embedder(name, layer=LAYERS[name]) for name in networks], **arguments)


def single(network: str) -> Row:
    return lambda split: scores(split.test[network], split.test_labels)


def concat(networks: Sequence[str], **arguments: Any) -> Row:
    return lambda split: split.score(networks, ensemble_of(networks, **arguments))


def grid(networks: Sequence[str]) -> Row:
    def row(split: Split) -> tuple[float, float]:
        vectors = [split.train[name] for name in networks]
        table = ead.search_weights(vectors, split.train_labels, grid=GRID, k=K, holdout=0)
        return split.score(networks, ensemble_of(networks, weights=table.best.weights))

    return row


def ranks(networks: Sequence[str]) -> Row:
    return lambda split: scores(merged([split.test[name] for name in networks]), split.test_labels)


def learned(networks: Sequence[str], mode: str, dim: int | None = None, **training: Any) -> Row:
    def row(split: Split) -> tuple[float, float]:
        ensemble = ensemble_of(networks, mode=mode, dim=dim, seed=split.seed)
        ensemble.fit([split.train[name] for name in networks], split.train_labels, **training)
        return split.score(networks, ensemble)

    return row


def rows() -> Iterator[tuple[str, Row]]:
    """What is measured: each of the published experiments in kind, those that take longest last."""
    for name in FOUR:
        yield f"single: {name}", single(name)
    for pair in itertools.combinations(THREE, 2):
        yield f"concat: {' + '.join(pair)}", concat(pair)
    for networks, said in ((THREE, "three"), (FOUR, "four")):
        yield f"concat: {said}, each L2", concat(networks)
        yield f"concat: {said}, joint L2", concat(networks, normalize="joint")
        yield f"concat: {said}, grid weights of the other half", grid(networks)
        yield f"rank fusion (k = 60): {said}", ranks(networks)
        yield f"LDA: {said}", learned(networks, "lda")
        yield f"fusion 512, SupCon: {said}", learned(networks, "fusion", 512)
    yield "whitening to 64: three", learned(THREE, "whiten", 64)
    yield "ratios, SupCon: three", learned(THREE, "ratios")
    yield "project 512, SupCon: three", learned(THREE, "project", 512)
    yield "fusion 512, SupCon, without refit: three", learned(THREE, "fusion", 512, refit=False)
    yield "fusion 512, SupCon, balanced: three", learned(THREE, "fusion", 512, balanced=True)
    yield "fusion 512, ProxyAnchor: three", learned(THREE, "fusion", 512, loss="proxy_anchor")
    yield "fusion 512, softmax: three", learned(THREE, "fusion", 512, loss="softmax")
    for pair in itertools.combinations(THREE, 2):
        yield f"fusion 512, SupCon: {' + '.join(pair)}", learned(pair, "fusion", 512)
    for networks, said in ((THREE, "three"), (FOUR, "four")):
        for dim in (1024, 2048):
            yield f"fusion {dim}, SupCon: {said}", learned(networks, "fusion", dim)


def measure(
    vectors: dict[str, Matrix], labels: npt.NDArray[np.int64], seeds: Sequence[int], cache: Path
) -> dict[str, dict[str, list[float]]]:
    """mAP and macro mAP of every row, by seed."""
    kept = cache / "rows.json"
    found: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    splits = [Split(vectors, labels, seed) for seed in seeds]
    for name, row in rows():
        for split in splits:
            own = found.setdefault(name, {})
            if str(split.seed) not in own:
                own[str(split.seed)] = list(row(split))
                write_text(kept, json.dumps(found, indent=1))
        print(f"{name}: {np.mean([one[0] for one in own.values()]):.3f}", flush=True)
    return found


def fusion(figures: FiguresOf, data: Path, weights: Path, cache: Path, seeds: int = 5) -> None:
    vectors, labels = embeddings(data, weights, cache)
    found = measure(vectors, labels, range(seeds), cache)
    add = figures.add
    for name, _ in rows():
        values = np.array([found[name][str(seed)] for seed in range(seeds)])
        spread = (
            T_95.get(seeds, 1.96) * values.std(axis=0, ddof=1) / math.sqrt(seeds) if seeds > 1 else [0, 0]
        )
        columns = {
            "mAP@50": f"{values[:, 0].mean():.3f}",
            "+-": f"{spread[0]:.3f}",
            "macro": f"{values[:, 1].mean():.3f}",
            "macro +-": f"{spread[1]:.3f}",
        }
        add(name, values[:, 0].mean(), "mAP@50", columns=columns, seeds=values.tolist())
    gain = {
        name: np.mean(
            [
                found["fusion 512, SupCon: three"][str(seed)][0] - found[name][str(seed)][0]
                for seed in range(seeds)
            ]
        )
        for name in ("concat: three, each L2", "LDA: three")
    }
    add("fusion 512 above concatenation", gain["concat: three, each L2"], "mAP@50", at_least=0.25)
    add("fusion 512 above LDA", gain["LDA: three"], "mAP@50", at_least=0.0)


def _decoded(paths: Sequence[str | Path], member: ead.Embedder) -> list[Any]:
    with iterate_batches(open_images(paths), [member.geometry], member.batch_size) as batches:
        return [batch.images[member.geometry] for batch in batches]


def build(figures: FiguresOf, data: Path, weights: Path, images: int = 128) -> None:
    """Embedding from files against forward passes over the same images, decoded and resized before."""
    paths, _, _ = photographs(data)
    paths = paths[:: max(1, len(paths) // images)][:images]
    add = figures.add
    for name in FOUR:
        member = embedder(name, weights)
        extractor = member._frozen.network.extractor
        decode = functools.partial(_decoded, paths, member)
        pixels = decode()
        times = interleaved(
            {
                "decode": decode,
                "embed": lambda member=member: member.embed(paths),
                "forward": lambda run=extractor, pixels=pixels: [run(run.normalize(one)) for one in pixels],
            },
            repeats=3,
        )
        ratio = min(times["forward"].seconds) / min(times["embed"].seconds)
        rate = len(paths) / min(times["embed"].seconds)
        decoding = min(times["decode"].seconds) / min(times["forward"].seconds)
        note = f"{rate:.1f} images a second; decoding alone takes {decoding:.2f} of the forward passes' time"
        add(f"embed {name} / forward passes", ratio, at_least=0.9, note=note, timings=times)
