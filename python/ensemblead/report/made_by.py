"""What made the results, for the page: detectors, weights, histories, versions and machines."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ensemblead.evaluation.results import Results

_SHORT = 12  # characters of a checksum


def made_by(report: Results) -> str:
    """A list for the reader, once for all categories that one detector measured in one run; "" where nothing
    is known.
    """
    groups: list[tuple[list[str], list[tuple[str, str]]]] = []
    for row in report.rows:
        found = report.details_of(row).made_by
        if not found:
            continue
        terms = list(_terms(found).items())
        if groups and groups[-1][1] == terms:
            groups[-1][0].append(row.category)
        else:
            groups.append(([row.category], terms))
    if not groups:
        return ""
    lists = []
    for categories, terms in groups:
        head = f"<h4>{escape(', '.join(categories))}</h4>" if len(groups) > 1 else ""
        lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in terms)
        lists.append(f"{head}<dl>{lines}</dl>")
    return f'<details class="notes"><summary>What made these results</summary>{"".join(lists)}</details>'


def _terms(found: Mapping[str, Any]) -> dict[str, str]:
    machine = found["machine"]
    count = found["learned_images"]
    lines = {
        "Detector": found["detector"],
        "Learned": "unknown" if count is None else f"{count:,} different images",
        "Weights": "; ".join(f"{one['network']}, SHA-256 {one['sha256']}" for one in found["weights"]),
        "Saved model": found["model"] or "",
        "History": "; ".join(map(_step, found["history"])),
        # The day: categories of one run are one list.
        "Measured": f"{found['date'][:10]} UTC, {_versions(found['versions'])}",
        "Machine": ", ".join(
            [machine["processor"], f"{machine['cores']} cores", machine["system"], *machine["gpus"]]
        ),
    }
    return {name: text for name, text in lines.items() if text}


def _step(step: Mapping[str, Any]) -> str:
    images = f" {step['images']:,} images ({step['images_sha256'][:_SHORT]})" if step["images"] else ""
    return f"{step['date']} {step['action']}{images}, {_versions(step['versions'])}"


def _versions(versions: Mapping[str, str]) -> str:
    return " ".join(f"{name} {version}" for name, version in versions.items())
