"""float16 and bfloat16 conversions of the core: every value in, every rounding case out.

The header is compiled here by itself, without and with the instructions of this processor, since the kernels
compile it several times over.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.compiler import compiler_or_skip

HERE = Path(__file__).resolve().parent.parent / "support"
ALL_BITS = np.arange(65536, dtype=np.uint16)

Bits = np.ndarray[Any, np.dtype[np.uint16]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class Probe:
    """The functions of half_probe.cpp, on NumPy arrays."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.widen_float16_flushing.restype = ctypes.c_bool

    def _call(self, function: str, source: np.ndarray[Any, Any], result: np.ndarray[Any, Any]) -> Any:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (source, result)]
        return getattr(self._library, function)(*pointers, ctypes.c_size_t(source.size))

    def widen(self, kind: str, bits: Bits) -> Floats:
        result = np.empty(bits.shape, np.float32)
        self._call(f"widen_{kind}", bits, result)
        return result

    def widen_flushing(self, bits: Bits) -> Floats | None:
        result = np.empty(bits.shape, np.float32)
        return result if self._call("widen_float16_flushing", bits, result) else None

    def narrow(self, kind: str, values: Floats) -> Bits:
        result = np.empty(values.shape, np.uint16)
        self._call(f"narrow_{kind}", values, result)
        return result


@pytest.fixture(scope="module", params=["-O0", "-O3 -march=native"])
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    compiler = compiler_or_skip("half_probe.cpp")
    library = tmp_path_factory.mktemp("half") / "half_probe.so"
    command = f"{compiler} -std=c++17 -Wall -Wextra -Werror -shared -fPIC -fno-trapping-math {request.param}"
    sources = [f"-I{HERE.parents[1] / 'csrc'}", str(HERE / "half_probe.cpp"), "-o", str(library)]
    subprocess.run([*command.split(), *sources], check=True)
    return Probe(library)


def widened(kind: str, bits: Bits) -> Floats:
    """Reference: NumPy for float16; a bfloat16 is the upper half of a float32."""
    if kind == "float16":
        with np.errstate(invalid="ignore"):  # a signalling NaN, which Arm reports
            return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(kind: str, values: Floats) -> Floats:
    """Reference, widened again: NumPy for float16, float64 arithmetic on multiples of an ulp for bfloat16."""
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "float16":
            return values.astype(np.float16).astype(np.float32)
        exact = values.astype(np.float64)
        _, exponent = np.frexp(exact)
        ulp = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 7)
        rounded = np.where(np.isfinite(exact), np.rint(exact / ulp) * ulp, exact)
        return np.where(np.abs(rounded) >= 2.0**128, np.copysign(np.inf, exact), rounded).astype(np.float32)


def assert_same(seen: Floats, expected: Floats) -> None:
    """Equal bit for bit, the sign of zero included; of a NaN only that it is one."""
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(expected))
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(seen[number].view(np.uint32), expected[number].view(np.uint32))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_value_widens_exactly(probe: Probe, kind: str) -> None:
    assert_same(probe.widen(kind, ALL_BITS), widened(kind, ALL_BITS))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_value_survives_the_round_trip(probe: Probe, kind: str) -> None:
    back = probe.narrow(kind, probe.widen(kind, ALL_BITS))
    number = ~np.isnan(widened(kind, ALL_BITS))
    np.testing.assert_array_equal(back[number], ALL_BITS[number])
    assert np.isnan(widened(kind, back[~number])).all()


def rounding_cases(kind: str) -> Floats:
    """Every value, every midpoint between neighbours, and the floats right beside both; then random bits."""
    values = np.unique(widened(kind, ALL_BITS)[np.isfinite(widened(kind, ALL_BITS))].astype(np.float64))
    middles = (values[1:] + values[:-1]) / 2
    step = values[-1] - values[-2]
    beyond = np.array([values[-1] + step / 2, values[-1] + step, 3e38, 1e-45, 1e-40, 2.0**-25, 2.0**-134])
    with np.errstate(over="ignore"):
        exact = np.concatenate([values, middles, beyond, -beyond]).astype(np.float32)
        beside = [np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
    random = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([exact, *beside, random, special])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_rounding_is_to_nearest_even(probe: Probe, kind: str) -> None:
    cases = rounding_cases(kind)
    assert_same(widened(kind, probe.narrow(kind, cases)), narrowed(kind, cases))


def test_the_bfloat16_reference_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    cases = rounding_cases("bfloat16")
    assert_same(narrowed("bfloat16", cases), torch.from_numpy(cases).to(torch.bfloat16).float().numpy())


def test_subnormals_survive_a_flushing_thread(probe: Probe) -> None:
    seen = probe.widen_flushing(ALL_BITS)
    if seen is None:
        pytest.skip("this processor has no such mode that the probe knows")
    assert_same(seen, widened("float16", ALL_BITS))
