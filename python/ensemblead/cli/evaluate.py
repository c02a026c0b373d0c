"""`ensemblead evaluate`: a model, or a configuration to fit, measured on a data set with known defects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json, reported_warnings
from ensemblead.cli.division import PART_HELP, parse_part
from ensemblead.cli.models import load_model, moved_weights
from ensemblead.cli.options import DetectorOptions, build_detector, options_of, typed_options
from ensemblead.cli.shared import Bootstrap, BootstrapSeed, MissingMasks, MovedWeights, SkipUnreadable
from ensemblead.cli.suite import run_suite, show_suite
from ensemblead.cli.testsets import good_and_bad, untrained
from ensemblead.common.extras import require
from ensemblead.common.files import as_file_name, file_names, valid_text
from ensemblead.config.documents import Source, read_source

if TYPE_CHECKING:
    from ensemblead.detectors.detector import Errors
    from ensemblead.evaluation import Category, Dataset, Report, ScoredImage
    from ensemblead.retrieval.index import ImageIndex

_BY_TYPE = ("image_auroc", "pixel_auroc", "aupro")
_SHOWN = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate", "images_per_second")


def command(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL] [DATA]",
            help="MODEL (a folder that fit wrote, or a folder of one per category; none with --config) and "
            "DATA (a category in MVTec layout, or a root of several; none with a suite or --good).",
        ),
    ] = None,
    good: Annotated[
        Path | None, typer.Option("--good", help="Instead of DATA: normal images to test MODEL on.")
    ] = None,
    bad: Annotated[Path | None, typer.Option("--bad", help="With --good: anomalous images.")] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="With --bad: masks, named as the images are.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A YAML or JSON file: a detector as fit reads it, to be fitted per category; or a suite of "
            "detectors and datasets, which resumes where it stopped. Paths in it are relative to it.",
        ),
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="One category out of a root of several.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="How DATA is laid out: mvtec or visa.")] = "mvtec",
    missing_masks: MissingMasks = "raise",
    bootstrap: Bootstrap = 1000,
    seed: BootstrapSeed = 0,
    gallery: Annotated[
        int, typer.Option("--gallery", help="Images on a page of results, errors first; 0 for none.", min=0)
    ] = 300,
    similar: Annotated[
        Path | None,
        typer.Option(
            "--similar",
            metavar="INDEX",
            help="An index of normal images (`ensemblead index DATA/train/good --out INDEX -b NAME`): the "
            "page shows the three most similar to each finding.",
        ),
    ] = None,
    similar_weights: Annotated[
        list[str] | None,
        typer.Option(
            "--similar-weights", help="[I.]PATH: where the weights of the index's networks are now."
        ),
    ] = None,
    weights: MovedWeights = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda.")] = None,
    skip_unreadable: SkipUnreadable = False,
    part: Annotated[
        str | None, typer.Option("--part", metavar="K/N", help=f"Of a suite: its cells alone. {PART_HELP}")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure a detector: AUROC of images and pixels, AUPRO, false alarms, misses.

    Writes OUT/report.html (tables, curves, a gallery of the images), results.csv, results.json, results.md,
    types.csv (by type of defect), curves in OUT/figures and examples in OUT/contact_sheets. A suite
    (detectors and datasets in FILE) writes the four tables, OUT/reports/*.html, and each finished cell (a
    detector on a category) to OUT/cells.
    """
    paths = places or []
    suite: Any = None
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead evaluate")
        from ensemblead.images.folders import check_output_outside
        from ensemblead.suites.suite import is_suite

        source = None if config is None else read_source(config)
        if source is not None and is_suite(source.value):
            given = ["DATA"] if paths else []
            suite = run_suite(context, source, given, out, gallery, parse_part(part), bars)
        else:
            if part is not None:
                raise ValueError("--part divides a suite: give --config FILE with detectors and datasets")
            _check_paths(paths, source, good, bad, masks)
            if similar_weights and similar is None:
                raise ValueError("--similar-weights goes with --similar INDEX")
            if out.exists() and not out.is_dir():
                raise ValueError(f"out must be a folder, got the file {out}")
            if good is not None:
                dataset = good_and_bad(good, bad, masks, missing_masks)
            else:
                dataset = _dataset(paths[-1], layout, category, missing_masks, fitting=source is not None)
            check_output_outside(out, dataset.folders)
            errors: Errors = "skip" if skip_unreadable else "raise"
            detector: Any
            if source is None:
                bars.step("loading the model")
                detector = _models(paths[0], dataset, weights or [], device)
            else:
                chosen = typed_options({"device": device}, weights=weights)
                detector = fitter(chosen, options_of(source), bars, errors)
            options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "gallery": gallery}
            with (
                nullcontext()
                if similar is None
                else opened_index(similar, similar_weights or (), device) as index
            ):
                report = measure(detector, dataset, out, bars, **options, errors=errors, similar=index)
    if suite is not None:
        show_suite(suite, out, warned if as_json else None)
    elif as_json:
        print_json({**results(report, out), "warnings": warned})
    else:
        show_report(report, out)


def _check_paths(
    paths: Sequence[Path], source: Source | None, good: Path | None, bad: Path | None, masks: Path | None
) -> None:
    """Raise ValueError for paths that do not go together."""
    if good is None and (bad is not None or masks is not None):
        raise ValueError(f"--{'bad' if bad is not None else 'masks'} goes with --good FOLDER")
    if masks is not None and bad is None:
        raise ValueError("--masks goes with --bad FOLDER")
    if good is not None and source is not None:
        raise ValueError("--good tests a saved MODEL: leave out --config, or give DATA with training images")
    if good is not None:
        number, wanted = 1, "MODEL alone with --good"
    elif source is not None:
        number, wanted = 1, "DATA alone"
    else:
        number, wanted = 2, "MODEL and DATA (or --config FILE and DATA, or MODEL and --good FOLDER)"
    if len(paths) != number:
        raise ValueError(f"evaluate takes {wanted}, got {len(paths)} paths")


def _dataset(root: Path, layout: str, category: str | None, missing_masks: str, *, fitting: bool) -> Dataset:
    from ensemblead.evaluation import MVTecAD, VisA

    layouts: dict[str, Callable[..., Dataset]] = {"mvtec": MVTecAD, "visa": VisA}
    if layout not in layouts:
        raise ValueError(f"layout must be one of {', '.join(layouts)}, got {layout!r}")
    if layout == "mvtec" and not fitting:
        found = untrained(root, category, missing_masks)
        if found is not None:
            return found
    return layouts[layout](root, category, missing_masks=missing_masks)


def fitter(
    options: DetectorOptions, config: DetectorOptions, bars: Bars, errors: Errors = "raise"
) -> Callable[[Category], Any]:
    """A function that fits a new detector on a category's training images."""
    build_detector(options, config)  # so that wrong options show before anything is run

    def fit(category: Category) -> Any:
        bars.prefix(f"{category.name}:")
        detector = build_detector(options, config).fit(list(category.train), errors=errors, progress=bars)
        bars.prefix("")  # evaluate gives the name itself
        return detector

    return fit


def opened_index(path: Path, weights: Sequence[str], device: str | None) -> ImageIndex:
    """An index that embeds queries, its networks loaded: what is wrong with it shows before the work."""
    from ensemblead.common.errors import BackboneUnavailableError
    from ensemblead.retrieval.index import ImageIndex

    index = ImageIndex.open(path, weights=moved_weights(weights), device=device)
    try:
        if not len(index):
            raise ValueError(f"similar: {path} has no images, or none yet")
        _ = index.embedder
    except BackboneUnavailableError as error:
        index.close()
        place = re.sub(r"pass ead\.load\(.*\) with", "give --similar-weights PATH with", str(error))
        raise BackboneUnavailableError(f"similar: {place}") from error
    except BaseException:
        index.close()
        raise
    return index


def _models(path: Path, dataset: Dataset, weights: list[str], device: str | None) -> Any:
    """The model at `path` for all categories, or, in a folder of models, one for each."""
    own = {category.name: path / as_file_name(category.name) for category in dataset.categories}
    if (path / "model.json").exists() or not all((one / "model.json").exists() for one in own.values()):
        return load_model(path, weights, device)
    return {name: load_model(one, weights, device) for name, one in own.items()}


def measure(
    detector: Any,
    dataset: Dataset,
    out: Path,
    bars: Bars,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    per_type: int = 3,
    errors: Errors = "raise",
    gallery: int = 300,
    similar: ImageIndex | None = None,
) -> Report:
    """`ead.evaluate`, with every file of results written to `out`."""
    from ensemblead.evaluation import evaluate
    from ensemblead.evaluation.gallery import color_scale
    from ensemblead.report.figures import ContactSheet

    sheets: dict[str, ContactSheet] = {}
    used: dict[str, Any] = dict(detector) if isinstance(detector, dict) else {}

    def fitted(category: Category) -> Any:
        used[category.name] = detector(category)
        return used[category.name]

    def draw(image: ScoredImage) -> None:
        if image.category not in sheets:
            own = used.get(image.category, detector)
            sheets[image.category] = ContactSheet(own.geometry, per_type, getattr(own, "bits_", None))
        sheets[image.category](image)

    def progress(name: str, done: int, total: int) -> None:
        bars(f"{name}: evaluating", done, total)
        if done >= total:
            bars.step(f"{name}: computing metrics")

    bars.prefix("")
    report = evaluate(
        fitted if callable(detector) else detector,
        dataset,
        bootstrap=bootstrap,
        seed=seed,
        errors=errors,
        gallery=gallery,
        on_image=draw,
        progress=progress,
    )
    _write(report, out, bars, max_images=gallery, similar=similar)
    files = file_names(list(sheets))
    for number, (name, sheet) in enumerate(sheets.items()):
        bars("writing contact sheets", number, len(sheets))
        shown = report.details[name].pictures
        scale = shown.scale if shown is not None else color_scale(used.get(name, detector))
        sheet.save(out / "contact_sheets" / f"{files[number]}.png", report[name].pixel_f1_threshold, scale)
    return report


def _write(report: Report, out: Path, bars: Bars, **page: Any) -> None:
    """Write every form of a report; `page` are options of `to_html`."""
    steps: list[Callable[[], Any]] = [
        lambda: report.to_csv(out / "results.csv"),
        lambda: report.to_csv(out / "types.csv", by_type=True),
        lambda: report.to_json(out / "results.json"),
        lambda: report.to_markdown(out / "results.md", intervals=True),
        lambda: report.to_html(out / "report.html", **page),
        lambda: report.figures(out / "figures"),
    ]
    for number, step in enumerate(steps):
        bars("writing results", number, len(steps))
        step()
    bars("writing results", len(steps), len(steps))


def results(report: Report, out: Path) -> dict[str, Any]:
    """The rows of the report, in JSON's types."""
    from dataclasses import asdict

    categories = [
        {**asdict(row), "types": [asdict(one) for one in report.details[row.category].types]}
        for row in report.rows
    ]
    return {"out": str(out), "summary": asdict(report.summary), "categories": categories}


def show_report(report: Report, out: Path) -> None:
    """The main columns in a table, and a table of types for every category of several."""
    console = Console()
    console.print(report_table(report))
    tables = type_tables(report)
    for table in tables:
        console.print()
        console.print(table)
    if tables:
        console.print()
    console.print(
        f"report: {out / 'report.html'}; results, figures and contact sheets beside it",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def report_table(report: Report) -> Table:
    """A line per category, and their mean."""
    titles = [name.replace("_", " ") for name in _SHOWN]
    table = Table("category", *titles, box=None, pad_edge=False)
    rows = [*report.rows, report.summary] if len(report.rows) > 1 else report.rows
    for row in rows:
        values = [getattr(row, name) for name in _SHOWN]
        cells = ["-" if value != value else f"{value:.4g}" for value in values]
        table.add_row(escape(valid_text(row.category)), *cells)
    return table


def type_tables(report: Report) -> list[Table]:
    """A table for every category with more than one type of defect, the worst type first."""
    from ensemblead.evaluation.by_type import missed, worst_first

    tables = []
    for row in report.rows:
        details = report.details.get(row.category)
        if details is None or len(details.types) < 2:
            continue
        head = f"{escape(valid_text(row.category))} by type of defect"
        table = Table(
            head, "images", *(name.replace("_", " ") for name in _BY_TYPE), "missed", box=None, pad_edge=False
        )
        for one in worst_first(details.types):
            values = [getattr(one, name) for name in _BY_TYPE]
            cells = ["-" if value != value else f"{value:.4g}" for value in values]
            number = missed(details, one.defect_type) or "-"
            table.add_row(escape(valid_text(one.defect_type)), str(one.num_images), *cells, number)
        tables.append(table)
    return tables
