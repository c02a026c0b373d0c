"""What the processor computes in, as Linux describes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemblead.common.processor import has_bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: bf16\n", False),
        ("processor : 0\n", None),
    ],
)
def test_bfloat16_of_a_processor(tmp_path: Path, text: str, expected: bool | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert has_bfloat16(tmp_path / "none") is None
