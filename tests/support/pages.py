"""Blocks of code on pages in Markdown: what they are, commands that are parsed, and pages that are run.

A comment before a block says how it is run, where that is not as it stands:

    <!-- file: NAME -->                      the block is written to that file
    <!-- runs with NEW for OLD -->           smaller, and otherwise the same
    <!-- parsed only: REASON -->             commands, whose options are checked
    <!-- not run here: REASON -->
    <!-- test command -->                   which continuous integration runs
    <!-- given: model -->                    of a page: it begins with a fitted model in the folder `model`

A page is run in a folder of small drawn images, and its Python in one namespace.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import CONFIG, call
from support.registry import separate_registry
from support.textures import normal_images, with_defects

ROOT = Path(__file__).resolve().parents[2]
# The pages for users; essays in docs/design and the pages of benchmarks have no code to follow.
PAGES = sorted(
    [ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "design" not in p.parts)],
    key=lambda path: path.as_posix(),
)
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^( *)```([\w{}-]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_CLAIM = re.compile(r"(\w+) = .*#\s*\[([\d, ]+)\]")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, the line it begins at, and the comment before it."""

    language: str
    text: str
    line: int
    mark: str

    @property
    def is_run(self) -> bool:
        return not self.mark.startswith(("parsed only: ", "not run here: ", "test command"))

    @property
    def smaller(self) -> str:
        """The text with what is replaced for a test."""
        text = self.text
        if self.mark.startswith("runs with "):
            for part in self.mark.removeprefix("runs with ").split("; "):
                new, old = part.split(" for ")
                assert old in text, f"line {self.line}: {old!r} is not in the block"
                text = text.replace(old, new)
        return text


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page, in their order."""
    text = path.read_text()
    return [
        Block(found[3], found[4], text[: found.start(4)].count("\n") + 1, found[1] or "")
        for found in _BLOCK.finditer(text)
    ]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a block of shell, as lists of words; comments are left out."""
    commands: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&;")
        words.whitespace_split, words.commenters = True, "#"
        commands.append([])
        for word in words:
            if set(word) <= {"&", ";"}:
                commands.append([])
            else:
                commands[-1].append(word)
    return [command for command in commands if command]


@cache
def application() -> Any:
    """All commands, as they parse."""
    import typer

    from ensemblead.cli.app import app

    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    """That a line `ensemblead ...` names a command that is there, with options and values that it takes."""
    command, rest = application(), list(words)
    while hasattr(command, "commands"):
        while rest[0].startswith("--"):  # those of the application, which have a value
            assert rest[0] in {name for one in command.params for name in one.opts}, rest[0]
            rest = rest[2:]
        assert rest[0] in command.commands, f"there is no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context("ensemblead", rest)


def make_folder(folder: Path) -> None:
    """The images and files that pages name."""
    good = normal_images(70)
    bad, masks = with_defects(normal_images(16, seed=1))
    _write(folder / "bottle/train/good", good[:12])
    _write(folder / "bottle/fresh_good", good[12:52])
    _write(folder / "bottle/more_good", good[52:62])
    _write(folder / "bottle/new_good", good[62:66])
    _write(folder / "bottle/test/good", good[66:])
    _write(folder / "bottle/test/broken", bad[:4])
    _write(folder / "bottle/ground_truth/broken", masks[:4].astype(np.uint8) * 255, "_mask")
    _write(folder / "parts/known_defects", bad[4:8])
    _write(folder / "parts/today", np.concatenate([normal_images(6, seed=2), bad[8:10]]))
    _write(folder / "parts/mixed", np.concatenate([normal_images(8, seed=3), bad[10:14]]))
    _write(folder / "photos/good", normal_images(8, seed=4))
    _write(folder / "photos/blot", with_defects(normal_images(8, seed=5))[0])
    _write(folder / "queries", bad[14:])
    Image.fromarray(bad[14]).save(folder / "part.png")
    mask = np.zeros(good.shape[1:3], np.uint8)
    mask[:, :48] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    marks = [("bottle/test/good/001.png", "false alarm"), ("bottle/test/broken/002.png", "missed defect")]
    marked = {
        "version": 1,
        "marks": [{"path": str(folder / path), "mark": mark} for path, mark in marks],
    }
    (folder / "marked.json").write_text(json.dumps(marked))
    suite = {
        "bootstrap": 10,
        "detectors": [{"name": "one", "type": "PatchCore", **CONFIG}],
        "datasets": [{"type": "MVTecAD", "root": "bottle"}],
    }
    (folder / "suite.yaml").write_text(json.dumps(suite))  # JSON is YAML
    shutil.copy(ROOT / "examples/mean_colour.py", folder)


def _write(folder: Path, images: np.ndarray, suffix: str = "") -> None:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:03d}{suffix}.png")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a page short: small random networks in place of published ones, small images, few
    replicates, empty figures. The device is the CPU, and the registry the test's own.
    """
    import timm

    from ensemblead.common.files import write_atomically
    from ensemblead.config.presets import PRESETS
    from ensemblead.evaluation.measure import Options
    from ensemblead.images import geometry
    from ensemblead.networks import network, zoo
    from ensemblead.report import figures
    from ensemblead.retrieval import learning

    def small(found: Any) -> Any:
        if found.name.startswith("densenet"):
            return timm.create_model("densenet121", growth_rate=8, block_config=(1, 2, 2, 1))
        return timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(16, 24, 32, 48))

    monkeypatch.setattr(geometry, "_SIDE", 64)
    resolve = network.resolve_device
    monkeypatch.setattr(zoo, "_build_pretrained", small)
    # Both have the function by name: what `learning` has depends on the test in which it was imported first.
    for module in (network, learning):
        monkeypatch.setattr(module, "resolve_device", lambda name: resolve("cpu" if name == "auto" else name))
    monkeypatch.setattr(Options, "__post_init__", lambda self: object.__setattr__(self, "bootstrap", 2))
    monkeypatch.setattr(
        figures, "_save", lambda _, path: write_atomically(path, lambda file: file.write(b""))
    )
    for member in PRESETS["patchcore-large"]["members"]:
        monkeypatch.setitem(member, "resize", 73)
        monkeypatch.setitem(member, "image_size", 64)
    separate_registry(monkeypatch)


class PageRun:
    """Runs the blocks of a page, in their order; `folder` is the working directory.

    Attributes:
        names: The namespace of its Python.
        claims: How many arrays had the shape that a comment states.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        import ensemblead as ead

        self.path, self.folder = path, folder
        self.names: dict[str, Any] = {"__name__": "page", "ead": ead, "np": np}
        self.claims = 0

    def run(self) -> None:
        """All blocks. What the library warns of, with so few images, is not heard."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if "<!-- given: model -->" in self.path.read_text():
                detector = self.names["ead"].PatchCore("resnet18").fit("bottle/train/good")
                detector.save("model")
                self.names["detector"] = detector
            for block in blocks_of(self.path):
                if block.is_run:
                    self._run(block)

    def _run(self, block: Block) -> None:
        if block.mark.startswith("file: "):
            (self.folder / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.language == "python":
            self._python(block)
        elif block.language == "bash":
            for words in commands_of(block.smaller):
                self._command(words, block)

    def _python(self, block: Block) -> None:
        text = "\n" * (block.line - 1) + block.smaller
        exec(compile(text, str(self.path), "exec"), self.names)
        for claim in _CLAIM.finditer(block.text):
            stated = tuple(map(int, claim[2].split(",")))
            assert tuple(self.names[claim[1]].shape) == stated, f"{self.path}: {claim[0]}"
            self.claims += 1

    def _command(self, words: list[str], block: Block) -> None:
        where = f"{self.path.name}:{block.line}: {' '.join(words)}"
        if words[0] == "ensemblead":
            outcome = call(*words[1:])
            alarm = 3 if any(word.startswith("--fail-on") for word in words) else 0
            assert outcome.exit_code in (0, alarm), (
                f"{where}\n{outcome.stdout}{outcome.stderr}{outcome.exception!r}"
            )
        elif words[0] == "ln":
            subprocess.run(words, check=True)
        else:
            assert words[0] == "wait" or words[:2] == ["pip", "install"], f"{where}: nothing runs it"
