"""Image files for tests, some of which Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, size: tuple[int, int] = (8, 10)) -> Path:
    """An image file [H, W] whose pixels follow from its name, so that no two are equal by chance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(str(path).encode()))
    return save(path, generator.integers(0, 255, (*size, 3), np.uint8))


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def png(path: Path, rows: bytes, size: tuple[int, int], depth: int, colour: int, *late: bytes) -> Path:
    """A PNG of rows that begin with their filter, `size` (H, W), and of chunks behind the pixels."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), *late, chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_sixteen_bits(path: Path, values: np.ndarray) -> Path:
    """Colour `[H, W, 3]` or `[H, W, 4]` of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(path, rows, values.shape[:2], 16, 2 if values.shape[2] == 3 else 6)
