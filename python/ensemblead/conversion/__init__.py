"""Detectors that other tools have fitted: their files in, our detectors out, verified by definition."""

from ensemblead.conversion.converting import TOOLS, Conversion, convert

__all__ = ["TOOLS", "Conversion", "convert"]
