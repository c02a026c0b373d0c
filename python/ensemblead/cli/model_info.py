"""What a saved model or an export says of itself. Of models nothing but JSON is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ensemblead.cli.models import RATE_IS
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text


def describe_folder(path: Path) -> dict[str, Any]:
    """A saved model, or an export, in JSON's types; what models of earlier versions do not say is None.

    Raises FileNotFoundError, DamagedModelError, NewerFormatError.
    """
    if (path / "export.json").is_file():
        return _describe_export(path)
    require("torch", "ensemblead info MODEL")
    from ensemblead.detectors.provenance import FIRST_ACTIONS, steps_of
    from ensemblead.store import read_folder

    reader = read_folder(path)
    if reader is None:
        raise FileNotFoundError(f"no saved model at {path}")
    with reader.as_damage():
        steps = steps_of(reader.state)
    state, summary = reader.state, reader.state.get("summary") or {}
    parents = [step.get("parent") for step in state.get("history", [])]
    learned = reader.tensors("images.safetensors") if reader.has("images.safetensors") else {}
    count = len(learned["fingerprints"]) if "fingerprints" in learned else None
    if steps and steps[0].action not in FIRST_ACTIONS:
        count = None  # of a model that did not keep its images: those here came later
    return {
        "model": str(path),
        "class": reader.class_name,
        "written_by": reader.written_by,
        "checksum": reader.checksum,
        "parent": next((one for one in reversed(parents) if one is not None), None),
        "parameters": state.get("parameters")
        or {name: state[name] for name in ("fusion", "weights", "members") if name in state},
        "settled": state.get("settled"),
        "network": (state.get("network") or {}).get("source"),
        "threshold": summary.get("threshold"),
        "threshold_origin": summary.get("threshold_origin"),
        "false_alarm_rate": summary.get("false_alarm_rate"),
        "rate_in_words": summary.get("rate_in_words"),
        "learned_images": count,
        "history": state.get("history"),
    }


def _describe_export(path: Path) -> dict[str, Any]:
    from ensemblead.deploy.contract import read_export

    contract, _ = read_export(path)
    return {
        "export": str(path),
        "format": contract.format,
        "precision": contract.precision,
        "input": contract.input,
        "size": list(contract.size),
        "threshold": contract.threshold,
        "false_alarm_rate": contract.false_alarm_rate,
        "false_alarm_rate_is_guaranteed": contract.is_guaranteed,
        "pixel_threshold": contract.pixel_threshold,
        "source": dict(contract.source),
        "versions": dict(contract.versions),
        "verification": dict(contract.verification),
    }


def _show_export(found: dict[str, Any]) -> list[str]:
    height, width = found["size"]
    proof, source = found["verification"], found["source"]
    how = "guaranteed" if found["false_alarm_rate_is_guaranteed"] else "estimated"
    return [
        f"export of {source['detector']}",
        f"graph         {found['format']}, {found['precision']}, input {found['input']} {height} x {width}",
        f"threshold     {found['threshold']:.6g}, false alarms {found['false_alarm_rate']:.2g} ({how})",
        f"made from     {source['checksum'] or 'no saved model'}",
        f"with          {' '.join(f'{name} {version}' for name, version in found['versions'].items())}",
        f"verified on   {proof['images']} images: scores move by up to {proof['largest_score_change']:.2g}, "
        f"maps by up to {proof['largest_map_change']:.2g}",
    ]


def show_folder(found: dict[str, Any]) -> None:
    """Print `describe_folder` for people."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if "export" in found:
        console.print(valid_text("\n".join(_show_export(found))))
        return

    def known(value: Any) -> str:
        return "unknown" if value is None else valid_text(str(value))

    lines = [
        f"{found['class']}, written by {found['written_by']}",
        f"checksum      {found['checksum']}",
        f"made from     {found['parent'] or ('no saved model' if found['history'] else 'unknown')}",
        f"learned       {known(found['learned_images'])} images",
        f"threshold     {_threshold(found)}",
    ]
    if found["rate_in_words"]:
        lines.append(f"{'':14}{found['rate_in_words']}")
    if found["network"] is not None:
        lines.append(
            f"network       {', '.join(f'{key} {value}' for key, value in found['network'].items())}"
        )
    values = (f"{name}={value}" for name, value in found["parameters"].items())
    lines.append(f"parameters    {', '.join(values) or 'none'}")
    if found["settled"]:
        settled = (f"{name}={value}" for name, value in found["settled"].items())
        lines.append(f"settled       {', '.join(settled)}")
    lines += _history(found)
    console.print(valid_text("\n".join(lines)))


def _history(found: dict[str, Any]) -> list[str]:
    """Lines, a step each; the first says where earlier ones are not known."""
    from ensemblead.detectors.provenance import FIRST_ACTIONS

    steps, lines, before = found["history"] or [], [], ""
    if not steps or steps[0]["action"] not in FIRST_ACTIONS:
        members = f"; of its members see info {found['model']}/member0 and so on"
        what = f"{'earlier steps ' if steps else ''}unknown"
        lines.append(f"{'history':14}{what}{members if 'members' in found['parameters'] else ''}")
    for step in steps:
        lines.append(f"{'' if lines else 'history':14}{_step(step)}")
        versions = " ".join(f"{name} {version}" for name, version in step["versions"].items())
        if versions != before:
            lines.append(f"{'':14}  with {versions}")
        before = versions
    return lines


def _threshold(found: dict[str, Any]) -> str:
    if found["threshold"] is None:
        return "unknown"
    how = RATE_IS.get(str(found["threshold_origin"]), "unknown")
    rate = found["false_alarm_rate"]
    return f"{found['threshold']:.6g}, false alarms {'unknown' if rate is None else f'{rate:.2g}'} ({how})"


def _step(step: dict[str, Any]) -> str:
    given = [f"{name} {value}" for name, value in step["arguments"].items()]
    images = [f"{step['images']} images ({step['images_sha256'][:12]})"] if step["images"] else []
    parent = [f"from {step['parent'][:12]}"] if step["parent"] else []
    return ", ".join([f"{step['date']} {step['action']}", *images, *given, *parent])
