"""The command line in the test's own process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from ensemblead.cli.app import app

# The smallest detector, as options and as a configuration.
GABOR = ["-b", "gabor", "--resize", "none", "--image-size", "none", "-p", "0.1", "--device", "cpu"]
CONFIG = {"backbone": "gabor", "resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}


def call(*arguments: Any) -> Result:
    """A command's outcome: exit code, stdout, stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_json(*arguments: Any) -> dict[str, Any]:
    """The JSON document of a command that must succeed."""
    outcome = call(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document
