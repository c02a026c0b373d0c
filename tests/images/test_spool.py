"""Images and tiles that are read again: always the pixels of a direct decode, wherever they are kept."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image
from support.sources import Counted, Listed
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import UnreadableImageError
from ensemblead.images import AS_IS, Geometry, Images, Tiles, Window, open_images
from ensemblead.images.spool import Planes

COUNT = 7
IMAGES = normal_images(COUNT, side=40)
WHOLE, SMALL, CUT = Geometry(None, None), Geometry((20, 24), None), Geometry(36, (30, 28))
ONE = 3 * 40 * 40  # bytes of an image as it is
BUDGETS = [0, ONE, 3 * ONE + 1, 1 << 30]


def planes_of(geometry: Geometry, image: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(geometry.apply(image).transpose(2, 0, 1)))


def check(images: Images, geometry: Geometry, batch_size: int, read: list[int] | None = None) -> None:
    """All images of a pass, in order, and any of them in any order; `read`: their places in `IMAGES`."""
    read = list(range(COUNT)) if read is None else read
    batches = list(images.batches([geometry], batch_size))
    assert [index for batch in batches for index in batch.indices] == read
    assert max(map(len, batches)) <= batch_size
    expected = torch.stack([planes_of(geometry, IMAGES[index]) for index in read])
    assert torch.equal(torch.cat([batch.images[geometry] for batch in batches]), expected)
    assert len({batch.fingerprints[0] for batch in batches}) == len(batches)
    assert [size for batch in batches for size in batch.sizes] == [(40, 40)] * len(read)
    items = np.random.default_rng(0).permutation(len(read)).tolist()
    pixels, positions = images.read(geometry, [*items, items[0]])
    assert positions == [read[item] for item in [*items, items[0]]]
    assert torch.equal(pixels, expected[[*items, items[0]]])


@pytest.fixture(params=["file", "off"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "off":
        monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    return str(request.param)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kept", [[WHOLE], [SMALL, CUT], [WHOLE, SMALL, CUT, WHOLE]])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_pass_gives_the_pixels_of_a_decode(
    budget: int, kept: list[Geometry], batch_size: int, disk: str
) -> None:
    with Images(open_images(IMAGES), kept, memory_bytes=budget) as images:
        for _ in range(2):
            for geometry in (WHOLE, SMALL, CUT):  # those that are not kept are decoded again
                check(images, geometry, batch_size)
        both = next(images.batches([SMALL, WHOLE], COUNT))
        assert {geometry: tuple(pixels.shape) for geometry, pixels in both.images.items()} == {
            SMALL: (COUNT, 3, 20, 24),
            WHOLE: (COUNT, 3, 40, 40),
        }
        assert images.size(CUT, 0) == (30, 28)


@pytest.mark.parametrize(
    ("budget", "passes_decoded"), [(0, COUNT), (ONE, COUNT - 1), (3 * ONE + 1, COUNT - 3), (1 << 30, 0)]
)
def test_how_often_images_are_decoded(budget: int, passes_decoded: int, disk: str) -> None:
    source = Counted(IMAGES)
    with Images(open_images(source), [WHOLE], memory_bytes=budget) as images:
        for number in range(3):
            list(images.batches([WHOLE], 2))
            again = passes_decoded if disk == "off" else 0
            assert source.reads == COUNT + number * again


def test_a_single_pass_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with Images(open_images(IMAGES), memory_bytes=0) as images:
        check_first = list(images.batches([SMALL], 3))
    assert sum(map(len, check_first)) == COUNT


def test_random_access_makes_the_first_pass() -> None:
    source = Counted(IMAGES)
    with Images(open_images(source), [SMALL]) as images:
        assert len(images) == COUNT
        pixels, _ = images.read(SMALL, [4])
        assert torch.equal(pixels[0], planes_of(SMALL, IMAGES[4]))
        assert source.reads == COUNT
        assert images.positions() == list(range(COUNT))
        assert len({fingerprint for _, _, fingerprint in images.identities()}) == COUNT


@pytest.mark.parametrize("budget", BUDGETS)
def test_skipped_images_are_left_out_of_every_pass(tmp_path: Path, budget: int, disk: str) -> None:
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    with Images(open_images(tmp_path), [WHOLE]) as strict, pytest.raises(UnreadableImageError):
        strict.positions()
    with Images(open_images(tmp_path), [WHOLE], errors="skip", memory_bytes=budget) as images:
        for _ in range(2):
            check(images, WHOLE, 3, [0, 1, 3, 4, 5, 6])
        assert len(images) == COUNT - 1
        assert [skipped.index for skipped in images.skipped] == [2]
        (tmp_path / "6.png").unlink()
        if disk == "off" and budget < 6 * ONE:
            with pytest.raises(FileNotFoundError, match=r"6\.png \(an earlier pass of this fit has read it"):
                list(images.batches([WHOLE], 3))
        else:  # what was kept needs no file
            check(images, WHOLE, 3, [0, 1, 3, 4, 5, 6])


def test_images_of_several_sizes_lie_in_one_file() -> None:
    sizes = [(9, 30), (40, 8), (17, 17)]
    mixed = [np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8) for i, size in enumerate(sizes)]
    with Images(open_images(Listed(mixed)), [WHOLE], memory_bytes=0) as images:
        for _ in range(2):
            for image, batch in zip(mixed, images.batches([WHOLE], 1), strict=True):
                assert torch.equal(batch.images[WHOLE][0], planes_of(WHOLE, image))
        assert [images.size(WHOLE, item) for item in range(3)] == sizes
        found = images.window(WHOLE, 1, slice(5, 30), slice(2, 7))
        np.testing.assert_array_equal(found, mixed[1].transpose(2, 0, 1)[:, 5:30, 2:7])
        assert found.flags.c_contiguous


# Tiles


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("tile", "stride"), [((16, 12), (8, 12)), ((40, 40), (40, 40)), ((24, 24), (20, 20))]
)
def test_tiles_are_cut_from_the_images(
    budget: int, tile: tuple[int, int], stride: tuple[int, int], disk: str
) -> None:
    expected = ead.tile(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)), tile, stride)
    rows, columns = expected.shape[:2]
    by_image = torch.from_numpy(expected).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)
    windows = [Window(y * stride[0], x * stride[1], *tile) for y in range(rows) for x in range(columns)]
    with Images(open_images(IMAGES), [WHOLE], memory_bytes=budget) as images:
        view = Tiles(images, [(WHOLE, window) for window in windows])
        assert len(view) == COUNT * rows * columns
        assert view.frame(SMALL) == AS_IS
        for _ in range(2):
            batches = list(view.batches([SMALL], 5))
            assert torch.equal(torch.cat([batch.images[AS_IS] for batch in batches]), by_image)
            owners = [index for batch in batches for index in batch.indices]
            assert owners == view.positions() == [i for i in range(COUNT) for _ in windows]
        items = np.random.default_rng(0).permutation(len(view)).tolist()
        pixels, positions = view.read(AS_IS, items)
        assert torch.equal(pixels, by_image[items])
        assert positions == [item // len(windows) for item in items]
        fingerprints = [fingerprint for _, _, fingerprint in view.identities()]
        assert fingerprints == [images.fingerprints[i] for i in range(COUNT) for _ in windows]


# Where nothing can be written


def _full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_full(written: list[int]) -> Any:
    """Room for two images and a half, and every write may take in a part only."""
    pwrite = os.pwrite

    def write(descriptor: int, data: Any, offset: int) -> int:
        room = 5 * ONE // 2 - sum(written)
        if room <= 0:
            _full()
        written.append(pwrite(descriptor, data[: min(room, 1000)], offset))
        return written[-1]

    return write


def tiled() -> ead.TiledEnsemble:
    member = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.1, device="cpu")
    return ead.TiledEnsemble(member, 20, 20, image_size=40, memory_budget=1)


@pytest.mark.parametrize("trouble", ["full", "half full", "no folder"])
@pytest.mark.parametrize("action", ["fit", "extend"])
def test_a_temporary_folder_without_room_is_a_clear_error(
    trouble: str, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = tiled().fit(IMAGES)
    before, members = detector.predict(IMAGES), detector.members_
    place = tmp_path / "temporary"
    if trouble == "no folder":
        place.write_bytes(b"a file, as good as a folder that is read-only")
    else:
        place.mkdir()
        monkeypatch.setattr(os, "pwrite", _full if trouble == "full" else _half_full([]))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    expected = f"temporary folder {place}: .*set TMPDIR to a folder with room, or ENSEMBLEAD_SPOOL=off"
    for one in (detector, tiled()):
        if action == "extend" and not one.is_fitted:
            continue
        with pytest.raises(OSError, match=expected) as caught:
            getattr(one, action)(normal_images(5, seed=3, side=40))
        assert caught.value.errno == (errno.ENOTDIR if trouble == "no folder" else errno.ENOSPC)
    assert place.is_file() or not list(place.iterdir())
    np.testing.assert_array_equal(detector.predict(IMAGES).anomaly_map, before.anomaly_map)
    assert detector.members_ == members
    monkeypatch.setenv("ENSEMBLEAD_SPOOL", "off")
    getattr(detector, action)(normal_images(5, seed=3, side=40))


def test_writes_in_parts_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:777], offset))
    monkeypatch.setattr(os, "preadv", lambda file, parts, offset: preadv(file, [parts[0][:555]], offset))
    with Images(open_images(IMAGES), [WHOLE], memory_bytes=0) as images:
        for _ in range(2):
            check(images, WHOLE, 3)


def test_a_file_that_was_cut_short_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with Images(open_images(IMAGES), [WHOLE], memory_bytes=0) as images:
        images.positions()
        monkeypatch.setattr(os, "preadv", lambda file, parts, offset: 0)
        with pytest.raises(OSError, match="the temporary file of images in .* was cut short"):
            images.read(WHOLE, [3])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None

    def stop(stage: str, done: int, total: int) -> None:
        assert not list(tmp_path.iterdir())  # the file has no name
        if stage == "join":
            raise failure

    with pytest.raises(failure):
        tiled().fit(IMAGES, progress=stop)
    tiled().fit(IMAGES)
    assert not list(tmp_path.iterdir())
    if descriptors is not None:
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_planes_are_bytes() -> None:
    with Images(open_images(IMAGES), [WHOLE], memory_bytes=ONE) as images:
        images.positions()
        for item in (0, 5):  # in memory, and in the file
            planes: Planes = images.planes(WHOLE, item)
            assert (planes.dtype, planes.shape) == (np.uint8, (3, 40, 40))


def test_a_pass_left_before_its_end_counts_for_nothing() -> None:
    with Images(open_images(IMAGES), [WHOLE, SMALL]) as images:
        next(images.batches([WHOLE], 2))
        for geometry in (WHOLE, SMALL):
            check(images, geometry, 3)
        assert len(images.positions()) == len(images.sizes) == len(images.fingerprints) == COUNT
