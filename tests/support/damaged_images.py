"""Damaged images through everything that reads files, in a process of little memory; prints counts as JSON.

    python damaged_images.py FOLDER COUNT SEED

A process of its own, because memory is limited in it, and because a decoder may crash.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401 - loaded before memory is limited
from PIL import Image, features

from ensemblead.common.errors import UnreadableImageError
from ensemblead.images import Geometry, iterate_batches, open_images, read_image, read_mask, upright_size

MEMORY = 1 << 30  # bytes of address space beyond those in use
GEOMETRY = Geometry(64, 48)
KINDS = ("flips", "flips in the header", "cut", "hostile header", "block of noise")


def whole_files(folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Suffixes and contents of small files of every format and of many modes."""
    pixels = rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)
    pixels[10:40, 10:40] //= 8
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
    others = [rgb.quantize(9), rgb.convert("RGBA"), grey.convert("1"), grey.convert("LA")]
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [(".png", one, {"exif": turned}) for one in others]
    for suffix in (".png", ".bmp", ".jpg", ".tga", ".ppm", ".tif"):
        made += [(suffix, rgb, {}), (suffix, grey, {})]
    made += [(".png", deep, {}), (".tif", deep, {}), (".tif", rgb.convert("CMYK"), {})]
    made += [(".jpg", rgb, {"exif": turned}), (".jpg", rgb, {"progressive": True}), (".gif", others[0], {})]
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg"):
        made.append((".tif", rgb, {"compression": compression, "exif": turned}))
    made += [(".webp", rgb, {})] if features.check("webp") else []
    made += [(".jp2", rgb, {})] if features.check("jpg_2000") else []
    for suffix, image, options in made:
        path = folder / f"whole{suffix}"
        image.save(path, **options)
        read_image(path, bits=16)  # loads all that decoding needs
        yield suffix, path.read_bytes()
        path.unlink()


def damaged(data: bytes, suffix: str, kind: str, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    if kind == "cut":
        return data[: int(rng.integers(0, len(data)))]
    if kind == "hostile header":
        return hostile(changed, suffix, rng)
    if kind == "block of noise":
        start = int(rng.integers(0, len(data)))
        size = len(changed[start : start + 64])
        changed[start : start + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        return bytes(changed)
    end = len(data) if kind == "flips" else min(len(data), 200)
    for place in rng.integers(0, end, int(rng.integers(1, 12))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def hostile(data: bytearray, suffix: str, rng: np.random.Generator) -> bytes:
    """A header that promises far more, or less, than there is."""
    side = int(rng.choice([0, 1, 13_000, 60_000, 2**31 - 1]))
    if suffix == ".png":
        data[16:20] = struct.pack(">I", side)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif suffix == ".jpg":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (place := data.find(marker)) >= 0:
                data[place + 5 : place + 9] = struct.pack(">HH", side % 65536, 13_000)
    elif suffix == ".bmp":
        data[18:22] = struct.pack("<I", side)
    else:
        place = int(rng.integers(0, max(1, len(data) - 4)))
        data[place : place + 4] = struct.pack("<I", side)
    return bytes(data)


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def read_all(files: list[tuple[Path, str]]) -> dict[str, Any]:
    """What came of every file in every function; errors that name no file, and those that none should be."""
    counts: Counter[str] = Counter()
    unnamed, unexpected = [], []
    for path, kind in files:
        for read in (read_image, read_mask, upright_size):
            try:
                read(path)
                outcome = "read"
            except (UnreadableImageError, MemoryError) as error:
                outcome = type(error).__name__
                unnamed += [] if str(path) in str(error) else [str(error)]
            except Exception as error:
                outcome = "unexpected"
                unexpected.append(f"{read.__name__} {path.name}: {type(error).__name__}: {error}")
            counts[f"{read.__name__}, {kind}: {outcome}"] += 1
    return {"counts": counts, "unnamed": unnamed, "unexpected": unexpected}


def in_batches(folder: Path) -> dict[str, int]:
    source = open_images(folder)
    with iterate_batches(source, [GEOMETRY], 8, errors="skip") as batches:
        seen = sum(len(batch) for batch in batches)
    raised = 0
    for path in source.paths:
        try:
            list(iterate_batches(open_images([path]), [GEOMETRY], 1, workers=1))
        except (UnreadableImageError, MemoryError):
            raised += 1
    return {"seen": seen, "skipped": len(batches.skipped), "raised": raised}


def main(folder: Path, count: int, seed: int) -> None:
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(seed)
    originals = list(whole_files(folder, rng))
    files = []
    for number in range(count):
        suffix, data = originals[number % len(originals)]
        kind = str(rng.choice(KINDS))
        path = folder / f"{number:04d}{suffix}"
        path.write_bytes(damaged(data, suffix, kind, rng))
        files.append((path, kind))
    limit_memory()
    print(json.dumps({**read_all(files), **in_batches(folder)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
