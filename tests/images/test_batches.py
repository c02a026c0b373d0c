"""Batches of images: order, threads that end, memory, and what cannot be read."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from support.sources import Listed  # noqa: E402

from ensemblead.common.errors import UnreadableImageError  # noqa: E402
from ensemblead.images import (  # noqa: E402
    Geometry,
    ImageSource,
    iterate_batches,
    open_images,
)


def drawn(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ensemblead-decode")]


class Counted(ImageSource):
    """Images that tell how often each was read; `size(i)` may vary; reading `broken` fails."""

    def __init__(self, number, size=lambda i: (24, 32), broken=()):
        self.paths = [f"image_{i}.png" for i in range(number)]
        self.reads = []
        self.size, self.broken = size, broken

    def read(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise UnreadableImageError(f"cannot read image {self.paths[index]}: broken")
        return np.full((*self.size(index), 3), index, np.uint8)


def test_batches_hold_every_image_once_and_in_order():
    source = Counted(11, size=lambda i: (24, 32 + i))
    geometries = [Geometry(16, 12), Geometry((20, 20), None), Geometry(16, (12, 12))]
    batches = list(iterate_batches(source, geometries, 4, workers=3))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert [i for batch in batches for i in batch.indices] == list(range(11))
    assert [path for batch in batches for path in batch.paths] == source.paths
    assert [size for batch in batches for size in batch.sizes] == [(24, 32 + i) for i in range(11)]
    assert sorted(source.reads) == list(range(11))
    for batch in batches:
        assert set(batch.images) == set(geometries)
        assert len(batch.images) == 2
        for geometry, shape in zip(geometries, [(3, 12, 12), (3, 20, 20)], strict=False):
            images = batch.images[geometry]
            assert images.dtype == torch.uint8
            assert images.is_contiguous()
            assert images.shape == (len(batch), *shape)
            assert images[:, 0, 0, 0].tolist() == batch.indices


def test_batches_put_channels_first():
    rgb = drawn()
    (batch,) = iterate_batches(open_images(rgb[None]), [Geometry(None, None)], 1)
    np.testing.assert_array_equal(batch.images[Geometry(None, None)][0].numpy(), rgb.transpose(2, 0, 1))


def test_batches_raise_at_what_cannot_be_read():
    before = decoding_threads()
    source = Counted(9, broken=(5,))
    batches = iterate_batches(source, [Geometry(None, None)], 2)
    assert next(batches).indices == [0, 1]
    assert next(batches).indices == [2, 3]
    with pytest.raises(UnreadableImageError, match=r"image_5\.png"):
        next(batches)
    assert decoding_threads() == before


def test_batches_skip_and_count(tmp_path):
    source = Counted(9, broken=(0, 5, 8))
    with iterate_batches(source, [Geometry(None, None)], 2, errors="skip") as batches:
        assert [batch.indices for batch in batches] == [[1, 2], [3, 4], [6, 7]]
        assert [(image.index, image.path) for image in batches.skipped] == [
            (0, "image_0.png"),
            (5, "image_5.png"),
            (8, "image_8.png"),
        ]
        assert "broken" in batches.skipped[0].reason
    missing = open_images([tmp_path / "gone.png"])
    batches = iterate_batches(missing, [Geometry(None, None)], 2, errors="skip")
    assert list(batches) == []
    assert len(batches.skipped) == 1


def test_skipping_does_not_hide_other_errors():
    source = Counted(3)
    with pytest.raises(ValueError, match=r"image_0\.png: crop \(99, 99\) does not fit"):
        list(iterate_batches(source, [Geometry(None, 99)], 2, errors="skip"))


def test_batches_of_different_sizes_name_both_images():
    source = Counted(4, size=lambda i: (24, 40 if i == 2 else 32))
    with pytest.raises(
        ValueError, match=r"image_0\.png comes out as \(24, 32\) and image_2\.png as \(24, 40\)"
    ):
        list(iterate_batches(source, [Geometry(24, None)], 3))
    widths = [b.images[Geometry(24, None)].shape[3] for b in iterate_batches(source, [Geometry(24, None)], 1)]
    assert widths == [32, 32, 40, 32]


def test_reading_ahead_is_bounded_and_overlaps():
    source = Counted(100)
    batches = iterate_batches(source, [Geometry(None, None)], 2, workers=2, prefetch=3)
    assert source.reads == []
    next(batches)
    deadline = time.monotonic() + 10
    while len(source.reads) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    # Two of the first batch and three batches ahead: read though nobody has asked for them, and no more.
    time.sleep(0.05)
    assert len(source.reads) == 8
    batches.close()


@pytest.mark.parametrize("ending", ["close", "break", "with", "throw", "drop"])
def test_threads_end_with_the_iterator(ending):
    source = Counted(200)
    if ending == "close":
        batches = iterate_batches(source, [Geometry(None, None)], 2)
        next(batches)
        assert decoding_threads()
        batches.close()
        assert next(batches, None) is None
    elif ending == "break":
        for _ in iterate_batches(source, [Geometry(None, None)], 2):
            assert decoding_threads()
            break
    elif ending == "with":
        with iterate_batches(source, [Geometry(None, None)], 2) as batches:
            next(batches)
    elif ending == "throw":
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the interrupt falls inside the loop
            for _ in iterate_batches(source, [Geometry(None, None)], 2):
                raise KeyboardInterrupt
    else:
        gc.disable()
        try:
            batches = iterate_batches(source, [Geometry(None, None)], 2)
            next(batches)
            del batches  # no cycle collector needed
        finally:
            gc.enable()
    deadline = time.monotonic() + 10
    while decoding_threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not decoding_threads()
    assert len(source.reads) < 200


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_waits_where_the_collector_drops_a_generator(nested):
    """It may do so in the middle of the start of a thread, where joining another one never ends."""
    go_on = threading.Event()

    class Slow(Counted):
        def read(self, index):
            if index:
                go_on.wait()
            return super().read(index)

    def reading():
        with iterate_batches(Slow(9), [Geometry(None, None)], 1, workers=2) as batches:
            yield from batches

    batches = reading() if nested else iterate_batches(Slow(9), [Geometry(None, None)], 1, workers=2)
    next(batches)
    too_late = threading.Timer(5, go_on.set)
    too_late.start()
    del batches
    assert not go_on.is_set()
    too_late.cancel()
    go_on.set()


def test_a_dataset_is_read_by_one_thread():
    readers = set()

    class Watching(Listed):
        def __getitem__(self, index):
            readers.add(threading.get_ident())
            time.sleep(0.002)
            return super().__getitem__(index)

    list(iterate_batches(open_images(Watching([drawn()] * 12)), [Geometry(None, None)], 3, workers=4))
    assert len(readers) == 1
    assert threading.get_ident() not in readers


@pytest.mark.parametrize("kind", ["dataset", "pictures"])
def test_a_dataset_is_read_by_one_thread_also_after_an_iterator_that_was_left(kind):
    """The thread of that one may still be at an image."""
    readers, most = [], 0

    def note():
        nonlocal most
        readers.append(threading.get_ident())
        time.sleep(0.02)
        most = max(most, len(set(readers)))
        readers.remove(threading.get_ident())

    class Watching(Listed):
        def __getitem__(self, index):
            note()
            return super().__getitem__(index)

    class Picture(Image.Image):
        def load(self):
            note()
            return super().load()

    def picture():
        one = Picture()
        vars(one).update(vars(Image.fromarray(drawn())))
        return one

    images = Watching([drawn()] * 12) if kind == "dataset" else [picture() for _ in range(12)]
    for _ in range(3):
        batches = iterate_batches(open_images(images), [Geometry(None, None)], 1)
        next(batches)
        del batches
    list(iterate_batches(open_images(images), [Geometry(None, None)], 3))
    assert most == 1


FORKED = """
import os, signal, threading
import numpy as np
from ensemblead.images import Geometry, iterate_batches, open_images

class Slow:
    reached, go_on = threading.Event(), threading.Event()
    def __len__(self):
        return 9
    def __getitem__(self, index):
        if index and not self.go_on.is_set():
            self.reached.set()
            self.go_on.wait()
        return np.zeros((8, 8, 3), np.uint8)

images = Slow()
source = open_images(images)
batches = iterate_batches(source, [Geometry(None, None)], 1)
next(batches)
images.reached.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    images.go_on = threading.Event()
    images.go_on.set()
    open_images(images).read(1)
    source.read(1)  # that of the parent's thread, which holds its lock there
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
images.go_on.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_dataset_is_read_in_a_process_that_was_forked_while_it_was_read():
    found = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout.split()) == (0, ["0"])


def test_a_dataset_that_is_opened_can_be_pickled_and_copied():
    source = open_images([Image.fromarray(drawn())] * 2)
    for again in (pickle.loads(pickle.dumps(source)), copy.deepcopy(source), copy.copy(source)):
        np.testing.assert_array_equal(again.read(1), drawn())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"errors": "ignore"}, "errors must be"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"prefetch": -1}, "prefetch must not be negative"),
        ({"geometries": []}, "geometries must not be empty"),
    ],
)
def test_batches_refuse_wrong_arguments(arguments, message):
    arguments = {"geometries": [Geometry(None, None)], "batch_size": 1} | arguments
    with pytest.raises(ValueError, match=message):
        iterate_batches(Counted(1), **arguments)
    with pytest.raises(TypeError, match="source must come from open_images"):
        iterate_batches([drawn()], [Geometry(None, None)], 1)


@pytest.mark.parametrize("batch_size", [2.5, 2.0, True, "2"])
def test_batches_have_whole_sizes(batch_size):
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        iterate_batches(Counted(1), [Geometry(None, None)], batch_size)


@pytest.mark.parametrize(("resize", "crop"), [(32, 64), (32, (33, 40)), ((32, 80), 64)])
def test_a_crop_that_never_fits_is_refused_at_once(resize, crop):
    with pytest.raises(ValueError, match=r"crop \(\d+, \d+\) does not fit into"):
        Geometry(resize, crop)
    # The longer side of some images is long enough.
    assert Geometry(32, (32, 64)).output_size(10, 40) == (32, 64)
