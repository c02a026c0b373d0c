"""Errors of the library as a command line shows them."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")

from ensemblead.cli.console import BAD_INPUT, FAILED, INTERRUPTED, error_line, report_error
from ensemblead.common.errors import BackboneUnavailableError, WeightsUnavailableError


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("seed must be a\n  whole number\n", "seed must be a whole number"),
        (
            "pass ead.load('m', weights=...) with where they are now",
            "give --weights PATH with where they are now",
        ),
        (
            "pass weights=PATH or, for random ones, weights=None",
            "give --weights PATH or, for random ones, --weights none",
        ),
        (
            'masks are missing (missing_masks="exclude" leaves them out)',
            "masks are missing (--missing-masks exclude leaves them out)",
        ),
        ("use errors='skip'", "use --skip-unreadable"),
        ("", "ValueError"),
    ],
)
def test_arguments_become_options(message: str, line: str) -> None:
    assert error_line(ValueError(message)) == line


def test_weights_that_are_not_there_name_the_way_out() -> None:
    for kind in (WeightsUnavailableError, BackboneUnavailableError):
        assert "fit and fuse --include-backbone store" in error_line(kind("the weights are gone"))
    assert "--weights PATH" in error_line(WeightsUnavailableError("the weights are gone"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), BAD_INPUT),
        (FileNotFoundError("x"), BAD_INPUT),
        (OSError("x"), FAILED),
        (WeightsUnavailableError("x"), FAILED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(error) == code
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())
