"""The compiled core. Only `ensemblead.kernels` uses it."""

from collections.abc import Callable, Sequence
from typing import Any

# The build.
__version__: str
cuda_decision: str
compiler: str
threading: str

def cuda_available() -> bool: ...
def instruction_set() -> str: ...
def default_threads() -> int: ...

# Every operation ends with `num_threads` (0: those of `default_threads`), `stream` (a cudaStream_t) and
# `scratch`: uint8 memory on the device of the arrays, as much as `..._scratch` of the operation asks for, or
# None.

def convolution(
    images: Any,
    taps: Any,
    bias: Any,
    out: Any,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def convolution_gradient(
    images: Any,
    gradients: Any,
    taps: Any,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def resize(
    image: Any,
    height: int,
    width: int,
    top: int,
    left: int,
    out: Any,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def select_coreset(
    features: Any,
    picks: Any,
    *,
    start: str,
    start_rows: Any,
    bank: Any,
    radius: float,
    plain: bool,
    progress: Callable[[int, int], object] | None,
    num_candidates: int = 0,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> tuple[int, dict[str, int]]: ...
def select_coreset_scratch(rows: int, dims: int, num_candidates: int = 0) -> int: ...
def project_rows(
    features: Any,
    projection: Any,
    projected: Any,
    *,
    argument: str = "features",
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def project_rows_scratch() -> int: ...
def patch_dim(
    channels: Sequence[int], patch_size: int, pretrain_dims: Sequence[int], target_dim: int, mode: str
) -> int: ...
def aggregate_patches(
    feature_maps: Sequence[Any],
    output: Any,
    patch_size: int,
    pretrain_dims: Sequence[int],
    target_dim: int,
    mode: str,
    *,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def aggregate_patches_scratch(
    shapes: Sequence[Sequence[int]],
    patch_size: int,
    pretrain_dims: Sequence[int],
    target_dim: int,
    mode: str,
) -> int: ...
def tile_grid(
    image_size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]: ...
def tile(
    images: Any,
    tiles: Any,
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    *,
    edge: str = "pad",
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def untile(
    tiles: Any,
    images: Any,
    stride: tuple[int, int],
    *,
    edge: str = "pad",
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def smooth_seams(
    maps: Any,
    smoothed: Any,
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    sigma: float,
    width: float,
    *,
    edge: str = "pad",
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def smooth_seams_scratch(shape: Sequence[int], dtype: str, sigma: float) -> int: ...
def packed_size(num_rows: int, dims: int, num_directions: int) -> int: ...
def pack_rows(
    rows: Any,
    middle: Any,
    directions: Any,
    packed: Any,
    *,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def nearest_rows(
    queries: Any,
    rows: Any,
    middle: Any,
    packed: Any,
    num_directions: int,
    *,
    distances: Any,
    indices: Any,
    row_images: Any,
    query_images: Any,
    row_places: Any,
    query_places: Any,
    query_radii: Any,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> int: ...
def nearest_by_products(
    queries: Any,
    rows: Any,
    middle: Any,
    squares: Any,
    *,
    values: Any,
    indices: Any,
    row_images: Any,
    query_images: Any,
    row_places: Any,
    query_places: Any,
    query_radii: Any,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def weighted_top_k(
    blocks: Sequence[Any],
    weights: Any,
    values: Any,
    indices: Any,
    *,
    scales: Any = None,
    left_out_column: Any = None,
    left_out: Any = None,
    num_threads: int = 0,
    stream: int = 0,
    scratch: Any = None,
) -> None: ...
def weighted_top_k_scratch(num_combinations: int, num_queries: int, k: int) -> int: ...
