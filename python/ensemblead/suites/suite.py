"""A suite: which detectors are measured on which data sets, read from a configuration and checked whole.

seed: 0                        # of everything random, where an entry has none
bootstrap: 1000
gallery: 100                   # images on each page
detectors:
  - name: small
    type: PatchCore            # any detector, its constructor's keywords as keys
    backbone: resnet18
    layers: [layer2, layer3]
  - name: both
    type: BackboneEnsemble
    members:
      - {type: PatchCore, backbone: resnet18}
      - {type: PatchCore, backbone: densenet169, layers: [features.denseblock2, features.denseblock3]}
  - name: large                # an ensemble that is known to be good
    preset: patchcore-large
  - name: from the line
    model: models/line3        # a saved model, or a folder of one per category
datasets:
  - {type: MVTecAD, root: /data/mvtec}                          # all categories
  - {type: VisA, root: /data/visa, category: [candle, pcb1]}
  - {type: Folder, root: /data/own, normal: good, anomalous: bad, masks: masks}

Paths in a file (data sets, saved models, weights) are relative to the folder of that file; those in a mapping
that was no file, and on the command line, to the working directory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ensemblead.common.files import StrPath, as_file_name
from ensemblead.common.validation import did_you_mean
from ensemblead.config.documents import KeyPath, Problems, Source, read_source
from ensemblead.config.signatures import Parameter, check_keys, check_value, parameters
from ensemblead.datasets import Category, Dataset, Folder, MVTecAD, VisA
from ensemblead.evaluation.measure import Options, check_category

DATASETS: Mapping[str, Callable[..., Dataset]] = {"MVTecAD": MVTecAD, "VisA": VisA, "Folder": Folder}

GALLERY = 300  # pictures that a cell keeps, and the default number on a page


@dataclass(frozen=True)
class Settings:
    """How a suite measures; the keys beside `detectors` and `datasets`.

    Attributes:
        seed: Of everything random: detectors, hold-outs and the bootstrap, where an entry gives none.
        bootstrap, confidence, memory_limit, errors: As for `evaluate`; `errors` for fitting, too.
        device: For every detector that gives none: "auto", "cpu", "cuda".
        gallery: Images on each page of `reports`, errors first; 0 for none. No number depends on it: cells
            keep `GALLERY` anyway, and one that keeps too few for a larger gallery is run again.
    """

    seed: int = 0
    bootstrap: int = 1000
    confidence: float = 0.95
    memory_limit: int = 2 << 30
    errors: Literal["raise", "skip"] = "raise"
    device: str = "auto"
    gallery: int = GALLERY

    def __post_init__(self) -> None:
        self.options()  # which checks them

    def options(self) -> Options:
        """Those of `evaluate`."""
        return Options(**{one.name: getattr(self, one.name) for one in fields(Options)})


@dataclass(frozen=True)
class SavedModel:
    """The keys of a detector that is fitted already: a model's folder, or a folder of one per category."""

    model: str
    device: str = "auto"


@dataclass(frozen=True)
class Entry:
    """A detector of a suite: how it is called, and a checked description or the place of saved models."""

    name: str
    description: Mapping[str, Any]

    @property
    def is_saved(self) -> bool:
        return "model" in self.description


@dataclass(frozen=True)
class Cell:
    """One detector on one category of one data set."""

    entry: Entry
    dataset: str
    category: Category

    def __str__(self) -> str:
        place = self.dataset if self.dataset == self.category.name else f"{self.dataset}/{self.category.name}"
        return f"{self.entry.name} on {place}"


@dataclass(frozen=True)
class Suite:
    """The content of a configuration; see the module for its form.

    Attributes:
        detectors: In the order of the configuration.
        datasets: By name, in that order.
        settings: Everything else.
    """

    detectors: tuple[Entry, ...]
    datasets: Mapping[str, Dataset]
    settings: Settings = Settings()

    def __repr__(self) -> str:
        return f"Suite({len(self.detectors)} detectors, {len(self.datasets)} data sets)"

    @classmethod
    def read(cls, path: StrPath) -> Suite:
        """From a YAML file (or JSON, by its suffix). Errors as for `parse`, with lines."""
        return cls.parse(read_source(path))

    @classmethod
    def parse(cls, configuration: Mapping[str, Any] | Source) -> Suite:
        """From a mapping of the same form. Its paths are relative to the working directory; those of a
        `Source` that was read from a file, to that file.

        Raises:
            ValueError: With all that is wrong: unknown keys (near matches named), missing ones, values of the
                wrong kind or that a constructor refuses, names used twice, data sets that are not as they
                should be (masks of another size than their images included), models that are not there.
        """
        source = configuration if isinstance(configuration, Source) else Source(configuration)
        problems = Problems(source)
        if not isinstance(source.value, Mapping):
            raise ValueError(
                f"{source.name} must hold a mapping with detectors and datasets, "
                f"got {type(source.value).__name__}"
            )
        suite = _parse(source.value, problems)
        problems.raise_any()
        assert suite is not None
        return suite

    def cells(self) -> Iterator[Cell]:
        """Every detector on every category, data set by data set."""
        for name, dataset in self.datasets.items():
            for entry in self.detectors:
                for category in dataset.categories:
                    yield Cell(entry, name, category)


def is_suite(value: Any) -> bool:
    """Whether a configuration is meant as a suite, and not as one detector."""
    return isinstance(value, Mapping) and ("detectors" in value or "datasets" in value)


def _parse(given: Mapping[str, Any], problems: Problems) -> Suite | None:
    required = Parameter(list, Parameter.NONE)
    lists = {"detectors": required, "datasets": required}
    values = _checked(given, {**lists, **parameters(Settings)}, (), problems, unchecked=lists)
    settings = Settings()
    if not len(problems):
        try:
            settings = Settings(**values)
        except ValueError as error:
            problems.add((), f"{error}")
    entries = _parse_list(given, "detectors", _parse_detector, settings, problems)
    datasets = _parse_list(given, "datasets", _parse_dataset, settings, problems)
    for path, entry in entries:
        if entry.is_saved:
            _check_models(entry, [dataset for _, dataset in datasets], (*path, "model"), problems)
    if len(problems):
        return None
    return Suite(tuple(one for _, one in entries), {one.name: one for _, one in datasets}, settings)


def _checked(
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    path: KeyPath,
    problems: Problems,
    unchecked: Iterable[str] = (),
) -> dict[str, Any]:
    """The values of the known keys that are given, checked."""
    check_keys(given, known, path, problems)
    names = [name for name in known if name in given and name not in unchecked]
    return {name: check_value(given[name], known[name].hint, (*path, name), problems) for name in names}


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Entry = TypeVar("_Entry", bound=_Named)


def _parse_list(
    given: Mapping[str, Any],
    key: str,
    parse: Callable[[Any, KeyPath, Settings, Problems], _Entry | None],
    settings: Settings,
    problems: Problems,
) -> list[tuple[KeyPath, _Entry]]:
    """What the items of a list describe, each with its place, and each with a name of its own."""
    value = given.get(key)
    if key in given and (not isinstance(value, list) or not value):
        problems.add((key,), f"must be a list of at least one, got {value!r}")
        return []
    found: list[tuple[KeyPath, _Entry]] = []
    for i, item in enumerate(value or []):
        one = parse(item, (key, i), settings, problems)
        if one is not None:
            found.append(((key, i), one))
    counts = Counter(one.name for _, one in found)
    for path, one in found:
        if counts[one.name] > 1:
            more = counts[one.name] - 1
            problems.add(path, f"is called {one.name!r}, as {more} more: give each a name of its own")
    return found


# Detectors


def _parse_detector(given: Any, path: KeyPath, settings: Settings, problems: Problems) -> Entry | None:
    if not isinstance(given, Mapping):
        problems.add(path, f"must be a mapping with type, preset or model, got {type(given).__name__}")
        return None
    rest = {key: value for key, value in given.items() if key != "name"}
    before = len(problems)
    describe = _saved if "model" in rest else _described
    description = describe(rest, path, settings, problems)
    name = given.get("name", _usual_name(rest))
    if not isinstance(name, str) or not name.strip():
        problems.add((*path, "name"), f"must be a string, got {name!r}")
    return Entry(name, description) if len(problems) == before else None


def _usual_name(given: Mapping[str, Any]) -> str:
    if "model" in given:
        return Path(str(given["model"])).name
    parts = [given.get("preset", given.get("type")), given.get("backbone")]
    return " ".join(str(part) for part in parts if part is not None)


def _described(
    given: Mapping[str, Any], path: KeyPath, settings: Settings, problems: Problems
) -> Mapping[str, Any]:
    from ensemblead.config.registry import resolve_detector

    return resolve_detector(given, path, problems, {"seed": settings.seed, "device": settings.device})


def _saved(
    given: Mapping[str, Any], path: KeyPath, settings: Settings, problems: Problems
) -> Mapping[str, Any]:
    """{model: path, device: ...}; where the model lies is checked when the categories are known."""
    kept = _checked(given, parameters(SavedModel), path, problems)
    if isinstance(model := kept.get("model"), str):
        kept["model"] = problems.source.place(model)
    return {"device": settings.device, **kept}


def model_for(entry: Entry, category: Category) -> Path:
    """The folder of the saved model for a category: that of the entry, or the one of its name below it."""
    folder = Path(entry.description["model"])
    return folder if (folder / "model.json").is_file() else folder / as_file_name(category.name)


def _check_models(entry: Entry, datasets: list[Dataset], path: KeyPath, problems: Problems) -> None:
    folder = entry.description["model"]
    wanted = [category for dataset in datasets for category in dataset.categories]
    absent = [one.name for one in wanted if not (model_for(entry, one) / "model.json").is_file()]
    if absent:
        problems.add(
            path, f"must be a saved model or hold one per category: {folder} has none for {absent[0]}"
        )


# Data sets


def _parse_dataset(given: Any, path: KeyPath, settings: Settings, problems: Problems) -> Dataset | None:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(kind, str) or kind not in DATASETS:
        problems.add(path, f"must have a type, got {kind!r}; {did_you_mean(kind, DATASETS)}")
        return None
    make = DATASETS[kind]
    known = parameters(make)
    before = len(problems)
    check_keys(given, known, path, problems, also=("type", "name"))
    arguments: dict[str, Any] = {"seed": settings.seed} if "seed" in known else {}
    for key, value in given.items():
        if key == "category" and "category" in known and isinstance(value, list):
            check_value(value, list[str], (*path, key), problems)
        elif key in known:
            arguments[key] = check_value(value, known[key].hint, (*path, key), problems)
    name = check_value(given.get("name"), str | None, (*path, "name"), problems)
    if len(problems) > before:
        return None
    arguments["root"] = problems.source.place(arguments["root"])
    try:
        chosen = given.get("category")
        several = chosen if isinstance(chosen, list) else None
        parts = [make(**arguments)] if several is None else [make(**arguments, category=c) for c in several]
        dataset = Dataset(
            name or (parts[0].name if several is None else Path(arguments["root"]).absolute().name),
            [category for part in parts for category in part.categories],
        )
        _check_categories(dataset, settings)
    except (ValueError, OSError) as error:
        problems.add(path, f"({given['type']}): {error}")
        return None
    return dataset


def _check_categories(dataset: Dataset, settings: Settings) -> None:
    """Refuse what `evaluate` would refuse before it decodes an image."""
    if not dataset.categories:
        raise ValueError("category must name at least one, got none")
    for name, count in Counter(category.name for category in dataset.categories).items():
        if count > 1:
            raise ValueError(f"category {name!r} is named {count} times")
    for category in dataset.categories:
        check_category(category, settings.options())


def settings_dict(settings: Settings) -> dict[str, Any]:
    """The settings in JSON's types."""
    return {one.name: getattr(settings, one.name) for one in fields(settings)}
