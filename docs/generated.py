"""What pages of the site do not say by hand: a Sphinx extension that puts it in the place of comments.

    <!-- site: names anomalib -->                           names of another tool, and what they are here
    <!-- site: commands -->                                 the command line, command by command
    <!-- site: readme Install -->                           a section of README.md
    <!-- site: file CHANGELOG.md -->                        a file of the repository's root
    <!-- site: source FILE.py from TEXT to TEXT -->         lines of a program

On the pages of the repository's host such a comment is not seen. Links to files that are no pages lead there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemblead.common import other_names

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HOST = "https://github.com/ensemblead/ensemblead"
_MARK = re.compile(r"^<!-- site: (\w+) ?(.*?) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
# Files beside the pages that are pages, too.
_PAGES = {ROOT / "CHANGELOG.md": "changelog.md", ROOT / "CONTRIBUTING.md": "contributing.md"}


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _keep_first_line, priority=900)  # behind napoleon's
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Any, name: str, source: list[str]) -> None:
    source[0] = page(source[0], DOCS / f"{name}.md")


def _keep_first_line(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes the "WORDS" of "WORDS: more", at the beginning of a property, for its type: put back."""
    for i, line in enumerate(lines):
        if kind in ("property", "attribute") and line.startswith(":type: "):
            lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"
            del lines[i]
            return


def page(text: str, path: Path) -> str:
    """The Markdown of a page as the site has it; `path` is that of its file."""
    text = _MARK.sub(lambda mark: _GENERATORS[mark[1]](mark[2], path), text)
    return with_links(text, path.parent, path.parent)


def with_links(text: str, base: Path, to: Path) -> str:
    """Text whose links, relative to the folder `base`, hold on a page in the folder `to`."""

    def link(found: re.Match[str]) -> str:
        target = (base / found[2]).resolve()
        if not target.exists():
            return found[0]  # the builder names it as missing
        if target in _PAGES:
            target = DOCS / _PAGES[target]
        if target.is_relative_to(DOCS) and target.is_file():
            return f"{found[1]}{os.path.relpath(target, to)}{found[3]}"
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}{HOST}/{kind}/main/{target.relative_to(ROOT).as_posix()}{found[3]}"

    return _LINK.sub(link, text)


def names(tool: str, path: Path) -> str:
    """Tables of a tool's names."""
    parameters = {name: f"`{here}`" for name, here in other_names.PARAMETERS_OF[tool].items()}
    tables = [
        ("name", {name: _as_code(here) for name, here in other_names.NAMES_OF[tool].items()}),
        ("parameter or option", parameters | other_names.ADVICE_OF[tool]),
        ("command", {name: f"`{here}`" for name, here in other_names.COMMANDS_OF[tool].items()}),
    ]
    text = "\n".join(
        f"| {head} | here |\n| --- | --- |\n"
        + "".join(f"| `{name}` | {_escaped(here)} |\n" for name, here in table.items())
        for head, table in tables
    )
    if tool == "anomalib":
        missing = ", ".join(f"`{name}`" for name in other_names.MISSING)
        text += f"\nMethods of anomalib that are not here: {missing}.\n"
    return text


def _as_code(here: str) -> str:
    """What to write here, marked as code as far as it is."""
    return re.sub(r"[\w.]+\([^)]*\)+(\.\w+\(\w+\))?|\bead\.\w+", lambda found: f"`{found[0]}`", here)


def commands(_: str, path: Path) -> str:
    """The reference of the command line, from the commands themselves."""
    import typer

    from ensemblead.cli.app import app

    group = typer.main.get_command(app)
    return "\n".join([*_options(group), "", *_section(group, "ensemblead", 2)])


def _section(group: Any, prefix: str, level: int) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        yield f"{'#' * level} {name}\n\n{_prose(command.help)}\n"
        if hasattr(command, "commands"):
            yield from _section(command, f"{prefix} {name}", level + 1)
        else:
            pieces = command.collect_usage_pieces(_context(command))
            usage = re.sub(r"\{(\w+)(\.\.\.)?\}(?:\.\.\.)?", r"\1\2", " ".join([prefix, name, *pieces]))
            yield f"```text\n{usage}\n```\n"
            yield from _options(command)


def _context(command: Any) -> Any:
    return command.make_context(command.name, [], resilient_parsing=True)


def _options(command: Any) -> Iterator[str]:
    """A definition list of arguments and options, as the command's help has them."""
    context = _context(command)
    for one in command.params:
        if (record := one.get_help_record(context)) is not None:
            yield f"`{record[0]}`\n: {_prose(record[1])}\n"


def _prose(text: str | None) -> str:
    """Help text as Markdown: brackets, stars and angles are themselves."""
    paragraphs = [" ".join(part.split()) for part in (text or "").split("\n\n")]
    return _escaped("\n\n".join(paragraphs))


def _escaped(text: str) -> str:
    """Outside of backticks, signs of Markdown with a backslash."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if i % 2 else re.sub(r"([*<>\[\]|_$])", r"\\\1", part) for i, part in enumerate(parts)
    )


def readme(section: str, path: Path) -> str:
    """The text of a section of README.md, without its heading."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{path}: README.md has no section {section!r}")
    return with_links(found[1].strip(), ROOT, path.parent)


def file(name: str, path: Path) -> str:
    """A whole file of the repository's root."""
    return with_links((ROOT / name).read_text(), ROOT, path.parent)


def source(what: str, path: Path) -> str:
    """A part of a program: from the line that begins with one text to that before another."""
    found = re.fullmatch(r"(\S+) from (.+) to (.+)", what)
    if found is None:
        raise ValueError(f"{path}: source must be FILE from TEXT to TEXT, got {what!r}")
    lines = (ROOT / found[1]).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(found[2]))
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith(found[3]))
    return "```python\n" + "\n".join(lines[start:end]).strip() + "\n```"


_GENERATORS = {
    "names": names,
    "commands": commands,
    "readme": readme,
    "file": file,
    "source": source,
}
