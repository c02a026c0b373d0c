"""The border: arrays that come in through DLPack, in good order and in bad.

`_core.tile` stands for all operations here; what it computes is the business of test_tiling.py. With tiles as
large as the image it copies, which shows what was read.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from support.dlpack_by_hand import CPU, CUDA, ByHand, Producer

from ensemblead import _core
from ensemblead.kernels.arrays import framework_of

KINDS = pytest.mark.parametrize("versioned", [True, False], ids=["versioned", "plain"])
SIZE = (4, 5)


def image(offset: float = 0.0) -> np.ndarray[Any, Any]:
    return np.arange(40, dtype=np.float32).reshape(1, 2, *SIZE) + np.float32(offset)


def empty_tiles(dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.zeros((1, 1, 1, 2, *SIZE), dtype)


def tile(images: Any, tiles: Any, tile_size: tuple[int, int] = SIZE) -> None:
    _core.tile(images, tiles, tile_size, tile_size, num_threads=1)


# --- what is taken --------------------------------------------------------------------------------


@KINDS
def test_both_capsule_kinds_are_read_and_deleted_once(versioned: bool) -> None:
    producer = ByHand(image(), versioned=versioned, poison=True)
    tiles = empty_tiles()
    tile(producer, tiles)
    assert producer.deleted == 1
    np.testing.assert_array_equal(tiles[0, 0], image())  # read before the deleter took the memory back


@KINDS
def test_both_capsule_kinds_are_written(versioned: bool) -> None:
    producer = ByHand(empty_tiles(), versioned=versioned)
    tile(image(), producer)
    assert producer.deleted == 1
    np.testing.assert_array_equal(producer.array[0, 0], image())


@KINDS
def test_a_bare_capsule_is_taken_once(versioned: bool) -> None:
    producer = ByHand(image(), versioned=versioned)
    capsule, tiles = producer.capsule(), empty_tiles()
    tile(capsule, tiles)
    np.testing.assert_array_equal(tiles[0, 0], image())
    with pytest.raises(TypeError, match=r"images gave a capsule named 'used_dltensor.*unused DLPack capsule"):
        tile(capsule, tiles)
    del capsule
    gc.collect()
    assert producer.deleted == 1


@KINDS
def test_a_missing_deleter_is_allowed(versioned: bool) -> None:
    tiles = empty_tiles()
    tile(ByHand(image(), versioned=versioned, null_deleter=True), tiles)
    np.testing.assert_array_equal(tiles[0, 0], image())


@KINDS
def test_null_strides_mean_row_major(versioned: bool) -> None:
    tiles = empty_tiles()
    tile(ByHand(image(), versioned=versioned, null_strides=True), tiles)
    np.testing.assert_array_equal(tiles[0, 0], image())


def test_strides_of_axes_of_extent_one_mean_nothing() -> None:
    tiles = empty_tiles()
    tile(ByHand(image(), strides=(-7, 20, 5, 1)), tiles)
    np.testing.assert_array_equal(tiles[0, 0], image())
    column = np.arange(8, dtype=np.float32).reshape(1, 2, 4, 1)
    narrow = np.zeros((1, 1, 1, 2, 4, 1), np.float32)
    tile(ByHand(column, strides=(0, 4, 1, 12345)), narrow, (4, 1))
    np.testing.assert_array_equal(narrow[0, 0], column)


def test_the_byte_offset_counts() -> None:
    memory = np.arange(64, dtype=np.float32)
    tiles = empty_tiles()
    tile(ByHand(memory, shape=(1, 2, *SIZE), strides=(40, 20, 5, 1), byte_offset=12), tiles)
    np.testing.assert_array_equal(tiles.ravel(), np.arange(3, 43))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_no_alignment_is_assumed_beyond_one_element(dtype: str) -> None:
    memory = np.zeros(64, dtype)
    for start in range(1, 18):
        values = memory[start : start + 40].reshape(1, 2, *SIZE)
        values[...] = image()
        target = np.zeros(64, dtype)[start : start + 40].reshape(1, 1, 1, 2, *SIZE)
        tile(values, target)
        np.testing.assert_array_equal(target[0, 0], image())


def test_a_read_only_input_is_taken() -> None:
    frozen, tiles = image(), empty_tiles()
    frozen.flags.writeable = False
    tile(frozen, tiles)
    np.testing.assert_array_equal(tiles[0, 0], image())


def test_a_producer_from_before_versions_is_asked_again() -> None:
    held = ByHand(image(), versioned=False)
    seen: list[dict[str, Any]] = []

    def export(**options: Any) -> Any:
        seen.append(options)
        if "max_version" in options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        return held.capsule()

    tiles = empty_tiles()
    tile(Producer(export), tiles)
    assert seen == [{"max_version": (1, 0)}, {}]
    np.testing.assert_array_equal(tiles[0, 0], image())


def test_only_cuda_producers_are_asked_for_a_stream() -> None:
    producer = ByHand(image())
    tile(producer, empty_tiles())
    assert producer.requests == [{"max_version": (1, 0)}]
    elsewhere = ByHand(image(), device=CUDA)
    with pytest.raises(ValueError, match="tiles is on cpu but images is on cuda:0"):
        tile(elsewhere, empty_tiles())
    assert elsewhere.requests == [{"max_version": (1, 0), "stream": -1}]  # ours is the producer's own stream


# --- what is refused ------------------------------------------------------------------------------

# Seen on the capsule: it is never taken, so its own destructor calls the deleter.
REFUSED_BEFORE = {
    "complex": ({"dtype": (5, 64, 1)}, TypeError, "images has dtype complex64"),
    "bool": ({"dtype": (6, 8, 1)}, TypeError, "images has dtype bool8"),
    "float8": ({"dtype": (7, 8, 1)}, TypeError, "images has dtype"),
    "lanes": ({"dtype": (2, 32, 4)}, TypeError, "images has dtype float32"),
    "device": ({"device": (10, 0)}, TypeError, "images is on a device of DLPack type 10"),
    "misaligned": ({"byte_offset": 2}, ValueError, r"images starts at an address .* pass an aligned array"),
    "no memory": ({"null_data": True}, ValueError, "images of shape .* has no memory"),
}
# Seen on the array: it has been taken, so the deleter is ours to call while the exception is on its way.
REFUSED_AFTER = {
    "rank": ({"shape": (2, 4, 5), "strides": (20, 5, 1)}, ValueError, r"images must be 4-D .* \(2, 4, 5\)"),
    "dtype": ({"dtype": (0, 32, 1)}, TypeError, "images must be uint8, .* got int32"),
    "empty": ({"shape": (0, 2, 4, 5)}, ValueError, r"images is empty, got shape \(0, 2, 4, 5\)"),
    "transposed": (
        {"strides": (40, 20, 1, 4)},
        ValueError,
        "images is not contiguous.*pass a contiguous array",
    ),
    "broadcast": ({"strides": (40, 0, 5, 1)}, ValueError, "images is not contiguous"),
    "reversed": ({"strides": (40, 20, -5, 1)}, ValueError, "images is not contiguous"),
    "small": ({"shape": (1, 2, 2, 5), "strides": (20, 10, 5, 1)}, ValueError, "tile_size|tile"),
}


@KINDS
@pytest.mark.parametrize("case", [*REFUSED_BEFORE, *REFUSED_AFTER])
def test_a_refused_input_is_deleted_once(case: str, versioned: bool) -> None:
    lie, error, message = {**REFUSED_BEFORE, **REFUSED_AFTER}[case]
    producer, target = ByHand(image(), versioned=versioned, **lie), ByHand(empty_tiles(), versioned=versioned)
    with pytest.raises(error, match=message):
        tile(producer, target)
    gc.collect()
    assert producer.deleted == 1
    assert target.deleted == len(target.requests)  # handed out or not, depending on what was looked at first


@KINDS
@pytest.mark.parametrize(
    ("lie", "error", "message"),
    [
        ({"shape": (1, 1, 1, 2, 5, 4)}, ValueError, r"tiles must have shape \(1, 1, 1, 2, 4, 5\)"),
        ({"dtype": (0, 32, 1)}, TypeError, "tiles must be float32, got int32"),
        ({"strides": (40, 40, 40, 20, 1, 4)}, ValueError, "tiles is not contiguous"),
        ({"byte_offset": 1}, ValueError, "tiles starts at an address"),
    ],
)
def test_a_refused_output_leaves_nothing_behind(
    lie: dict[str, Any], error: type[Exception], message: str, versioned: bool
) -> None:
    producer = ByHand(image(), versioned=versioned)
    target = ByHand(empty_tiles(), versioned=versioned, **lie)
    with pytest.raises(error, match=message):
        tile(producer, target)
    gc.collect()
    assert (producer.deleted, target.deleted) == (1, 1)
    assert not target.array.any()


def test_a_read_only_output_is_refused() -> None:
    flagged = ByHand(empty_tiles(), read_only=True)
    with pytest.raises(ValueError, match="tiles is read-only"):
        tile(image(), flagged)
    assert flagged.deleted == 1
    frozen = empty_tiles()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="tiles is read-only"):
        tile(image(), frozen)
    assert not frozen.any()


def test_a_newer_dlpack_is_refused() -> None:
    producer = ByHand(image(), version=(2, 0))
    with pytest.raises(TypeError, match=r"images speaks DLPack 2\.x"):
        tile(producer, empty_tiles())
    gc.collect()
    assert producer.deleted == 1
    later = ByHand(image(), version=(1, 9))  # minor versions only add
    tile(later, empty_tiles())
    assert later.deleted == 1


def test_a_strange_capsule_is_left_alone() -> None:
    producer = ByHand(image(), name=b"arrow_array")
    with pytest.raises(TypeError, match="images gave a capsule named 'arrow_array'"):
        tile(producer, empty_tiles())
    gc.collect()
    assert producer.deleted == 0  # whose it is, we do not know
    with pytest.raises(TypeError, match="images gave no capsule"):
        tile(Producer(lambda **_: "capsule"), empty_tiles())


@pytest.mark.parametrize("kind", [BufferError, RuntimeError, NotImplementedError])
def test_what_a_producer_refuses_is_a_value_error(kind: type[Exception]) -> None:
    def export(**options: Any) -> Any:
        raise kind("the array is lazy")

    with pytest.raises(ValueError, match="images cannot be read: the array is lazy") as caught:
        tile(Producer(export), empty_tiles())
    assert isinstance(caught.value.__cause__, kind)
    read = ByHand(image())
    with pytest.raises(ValueError, match="tiles cannot be read: the array is lazy"):
        tile(read, Producer(export))
    assert read.deleted == 1


def test_other_errors_of_a_producer_keep_their_kind() -> None:
    def wrong_kind(**options: Any) -> Any:
        raise TypeError("no such thing")

    def interrupted(**options: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(TypeError, match="images cannot be read: no such thing"):
        tile(Producer(wrong_kind), empty_tiles())
    with pytest.raises(KeyboardInterrupt):
        tile(Producer(interrupted), empty_tiles())


def test_objects_that_are_no_arrays() -> None:
    class HalfProducer:
        def __dlpack__(self, **options: Any) -> Any:
            raise AssertionError("not asked without a device")

    for thing in ([1.0, 2.0], "text", None, HalfProducer()):
        with pytest.raises(TypeError, match=f"images must be an array.*got {type(thing).__name__}"):
            tile(thing, empty_tiles())
    for device in (None, (1,), "cpu"):
        with pytest.raises(TypeError, match="images has a __dlpack_device__ that gave"):
            tile(Producer(lambda **_: None, device), empty_tiles())


@KINDS
def test_cuda_arrays_need_a_build_with_cuda(versioned: bool) -> None:
    if _core.cuda_decision.startswith("on"):
        pytest.skip("this build has CUDA: it would believe the pretended device pointers")
    images = ByHand(image(), versioned=versioned, device=CUDA)
    tiles = ByHand(empty_tiles(), versioned=versioned, device=CUDA)
    with pytest.raises(ValueError, match=r"CUDA"):
        tile(images, tiles)
    assert (images.deleted, tiles.deleted) == (1, 1)


@pytest.mark.parametrize("pair", [(CPU, CUDA), (CUDA, CPU)])
def test_devices_do_not_mix(pair: tuple[tuple[int, int], tuple[int, int]]) -> None:
    images, tiles = ByHand(image(), device=pair[0]), ByHand(empty_tiles(), device=pair[1])
    with pytest.raises(ValueError, match="tiles is on .* but images is on .*; put both on one device"):
        tile(images, tiles)
    assert (images.deleted, tiles.deleted) == (1, 1)


# --- real producers -------------------------------------------------------------------------------


def test_numpy_arrays_that_dlpack_cannot_carry() -> None:
    swapped = image().astype(">f4")
    with pytest.raises(ValueError, match="images cannot be read: .*byte order"):
        tile(swapped, empty_tiles())
    packed = np.zeros((1, 2, *SIZE), [("flag", "u1"), ("value", "f4")])["value"]
    with pytest.raises(ValueError, match="images cannot be read: .*itemsize"):
        tile(packed, empty_tiles())
    odd = np.zeros(161, np.uint8)[1:].view(np.float32).reshape(1, 2, *SIZE)
    with pytest.raises(ValueError, match="images starts at an address"):
        tile(odd, empty_tiles())


def test_torch_tensors_that_do_not_hold_their_values() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="images cannot be read: .*require.* grad"):
        tile(torch.from_numpy(image()).requires_grad_(), empty_tiles())
    with pytest.raises(ValueError, match="images cannot be read: .*meta"):
        tile(torch.empty(1, 2, *SIZE, device="meta"), empty_tiles())
    with pytest.raises(ValueError, match=r"images of shape .* has no memory"):
        tile(torch._efficientzerotensor((1, 2, *SIZE)), empty_tiles())
    with pytest.raises(ValueError, match=r"images is a lazily negated view; pass images\.resolve_neg\(\)"):
        framework_of(torch._neg_view(torch.ones(3)), "images")


def test_frameworks_are_told_apart() -> None:
    assert framework_of(image(), "images").name == "numpy"
    with pytest.raises(TypeError, match="images must be a NumPy, CuPy or torch array, got list"):
        framework_of([1.0], "images")
    with pytest.raises(TypeError, match="images is a masked array"):
        framework_of(np.ma.masked_array([1.0, 2.0], mask=[True, False]), "images")


# --- lifetime and threads -------------------------------------------------------------------------


@KINDS
def test_memory_is_given_back_after_the_last_read(versioned: bool) -> None:
    """Large enough that several threads read for a while; poisoned memory would show in the result."""
    values = np.random.default_rng(0).standard_normal((2, 3, 200, 300), dtype=np.float32)
    expected = values[None, None].copy()
    for _ in range(20):
        producer = ByHand(values.copy(), versioned=versioned, poison=True)
        tiles = np.empty((1, 1, 2, 3, 200, 300), np.float32)
        _core.tile(producer, tiles, (200, 300), (200, 300), num_threads=2)
        assert producer.deleted == 1
        np.testing.assert_array_equal(tiles, expected)


def test_the_last_reference_may_go_during_the_call() -> None:
    """The caller's only reference is dropped by the producer while it exports."""
    holder = [np.full((1, 2, *SIZE), 7, np.float32)]

    def export(**options: Any) -> Any:
        capsule = holder.pop().__dlpack__(**options)
        gc.collect()
        return capsule

    tiles = empty_tiles()
    tile(Producer(export), tiles)
    assert (tiles == 7).all()


def test_several_threads_at_once() -> None:
    """Each thread borrows one shared input and one of its own, refusals in between."""
    shared, failures = image(), []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            start.wait()
            for turn in range(100):
                own, tiles = ByHand(image(number + turn), poison=True), empty_tiles()
                tile(own, tiles)
                np.testing.assert_array_equal(tiles[0, 0], image(number + turn))
                assert own.deleted == 1
                tile(shared, tiles)
                np.testing.assert_array_equal(tiles[0, 0], image())
                refused = ByHand(image(), strides=(40, 20, 1, 4))
                with pytest.raises(ValueError, match="images is not contiguous"):
                    tile(refused, tiles)
                assert refused.deleted == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
