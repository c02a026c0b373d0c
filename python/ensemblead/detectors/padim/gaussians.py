"""One Gaussian per position: streaming moments, and Mahalanobis distances.

Symmetric and triangular matrices are kept as *block rows*: rows `s .. e` of a matrix are stored as far as
column `e`, so a triangle takes little more than half of the square, and every step is a batched matrix
product over positions, in place, without packing or unpacking.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ensemblead.common.errors import IllConditionedError
from ensemblead.common.precision import exact_products
from ensemblead.common.validation import whole_number

# Added to the diagonal of every covariance (the paper's).
REGULARIZATION = 0.01
# Rows are taken into the moments in groups of so many images, whatever batches they come in: a group reads
# and writes the whole scatter once, and equal groups give equal sums.
GROUP = 32
# Bytes of a temporary array; positions are worked on in chunks that keep to it: what a processor's cache
# holds, and on a GPU enough to fill it.
_CPU_CHUNK, _GPU_CHUNK = 6 << 20, 256 << 20
_MAX_BLOCKS = 8
_MIN_BLOCK = 24
# Up to so many images a batched product is quicker with the images as rows.
_FEW_IMAGES = 4

# Triangles of up to so many rows are inverted row by row.
_SMALL = 8

BlockRows = list[torch.Tensor]


def block_spans(dims: int) -> list[tuple[int, int]]:
    """First row and end of every block row: up to 8 of them, of about equal height."""
    count = max(1, min(_MAX_BLOCKS, dims // _MIN_BLOCK))
    edges = [dims * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


class Moments:
    """Count, mean and scatter (the sum of outer products of deviations) of rows at P positions, streamed.

    Groups of rows are centred on their own mean and merged by Chan, Golub and LeVeque (*Updating formulae and
    a pairwise algorithm for computing sample variances*, 1979), so a large common offset costs no accuracy.
    The mean is float64; the scatter float32, of which `P * D^2 * 0.56 to 0.63 * 4` bytes are held (see
    `block_spans`), and rows of at most `GROUP` images.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: torch.Tensor | None = None
        self._scatter: BlockRows = []
        self._waiting: list[torch.Tensor] = []
        self._num_waiting = 0

    @classmethod
    def of(cls, count: int, mean: torch.Tensor, scatter: BlockRows) -> Moments:
        """Moments known already; the arrays are taken over."""
        moments = cls()
        moments.count, moments._mean, moments._scatter = count, mean, scatter
        return moments

    def add(self, rows: torch.Tensor) -> None:
        """float32 `[n, P, D]`: n observations of every position."""
        while len(rows):
            part = rows[: GROUP - self._num_waiting]
            self._waiting.append(part)
            self._num_waiting += len(part)
            rows = rows[len(part) :]
            if self._num_waiting == GROUP:
                self._merge()

    @exact_products()
    def _merge(self) -> None:
        if not self._waiting:
            return
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting)
        self._waiting, self._num_waiting = [], 0
        number, positions, dims = rows.shape
        if self._mean is None:
            self._mean = torch.zeros(positions, dims, dtype=torch.float64, device=rows.device)
            self._scatter = empty_block_rows(positions, dims, rows.device, fill=0.0)
        weight = math.sqrt(self.count * number / (self.count + number))
        for where in chunks(positions, 4 * dims * (number + 1), rows.device):
            self._merge_positions(rows[:, where], where, weight)
        self.count += number

    def _merge_positions(self, rows: torch.Tensor, where: slice, weight: float) -> None:
        assert self._mean is not None
        number, mean = len(rows), self._mean[where]
        own = rows.mean(0, dtype=torch.float64)
        # Deviations of the group, and one more row for how far its mean lies from the one so far.
        deviations = rows.new_empty(rows.shape[1], number + 1, rows.shape[2])
        torch.sub(rows.transpose(0, 1), own.float()[:, None], out=deviations[:, :number])
        step = own - mean
        deviations[:, number] = step * weight
        for block, (start, end) in zip(self._scatter, block_spans(rows.shape[2]), strict=True):
            part = deviations[:, :, start:end].transpose(1, 2)
            block[where].baddbmm_(part, deviations[:, :, :end])
        mean += step * (number / (self.count + number))

    def finish(self) -> tuple[int, torch.Tensor, BlockRows]:
        """Number of rows, mean float64 `[P, D]`, scatter: as block rows, which are the caller's now."""
        self._merge()
        if self._mean is None:
            raise ValueError("no rows to take moments of")
        scatter, self._scatter = self._scatter, []
        return self.count, self._mean, scatter


@dataclass(frozen=True)
class Gaussians:
    """Fitted: a mean and a regularised covariance at each of P positions, of `count` rows; 0: of how many is
    not known.

    Kept are `mean` float64 `[P, D]` and `whitening`, the inverse of the covariance's Cholesky factor, as
    float32 block rows: a squared Mahalanobis distance is `|whitening @ (x - mean)|^2`, one batched product.
    Covariances come back from them (`moments`), so that nothing else has to be stored to learn on.
    """

    count: int
    mean: torch.Tensor
    whitening: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        whole_number("count", self.count, 0)
        if self.mean.ndim != 2:
            raise ValueError(f"mean must be [P, D], got shape {tuple(self.mean.shape)}")
        _require("mean", self.mean, self.mean.shape, torch.float64)
        spans = block_spans(self.num_dimensions)
        if len(self.whitening) != len(spans):
            raise ValueError(f"whitening must have {len(spans)} blocks, got {len(self.whitening)}")
        for i, (block, (start, end)) in enumerate(zip(self.whitening, spans, strict=True)):
            _require(f"whitening {i}", block, (self.num_positions, end - start, end), torch.float32)

    @cached_property
    def _center(self) -> torch.Tensor:
        return self.mean.float()

    @property
    def num_positions(self) -> int:
        return len(self.mean)

    @property
    def num_dimensions(self) -> int:
        return self.mean.shape[1]

    @classmethod
    def from_moments(
        cls,
        count: int,
        mean: torch.Tensor,
        scatter: BlockRows,
        visit: Callable[[slice, torch.Tensor, torch.Tensor], None] | None = None,
        columns: int = 0,
    ) -> Gaussians:
        """Covariances `scatter / (count - 1) + 0.01 I` (without the scatter for a single row), factored.

        The scatter's memory is taken over. `visit` is given, chunk of positions by chunk, their slice, mean
        and scatter float64 `[c, D, D]` before that; it will hold `columns` values per dimension of them.
        """
        dims = mean.shape[1]
        for where in chunks(len(mean), 8 * dims * max(dims, columns), mean.device):
            square = to_square(scatter, where)
            if visit is not None:
                visit(where, mean[where], square)
            factor = factor_covariance(square, count - 1)
            into_block_rows(invert_triangles(factor), scatter, where)
        return cls(count, mean, tuple(scatter))

    @classmethod
    def from_precision(cls, mean: torch.Tensor, precision: torch.Tensor) -> Gaussians:
        """Gaussians of means float `[P, D]` and inverse covariances float `[P, D, D]`, of an unknown count.

        Raises ValueError for shapes that differ, and where an inverse is not positive definite.
        """
        positions, dims = mean.shape
        if precision.shape != (positions, dims, dims):
            raise ValueError(
                f"precision must be {(positions, dims, dims)} as the mean, got {tuple(precision.shape)}"
            )
        whitening = empty_block_rows(positions, dims, mean.device, fill=0.0)
        for where in chunks(positions, 8 * dims * dims, mean.device):
            square = precision[where].double()
            # P = W^T W with W lower triangular: of the reversed matrix that is a Cholesky factor.
            factor, failed = torch.linalg.cholesky_ex(((square + square.mT) / 2).flip(1, 2))
            if bool(failed.any()) or not bool(torch.isfinite(factor).all()):
                at = where.start + int(failed.argmax())
                raise ValueError(f"precision must be positive definite, but is not at position {at}")
            into_block_rows(factor.flip(1, 2).mT, whitening, where)
        return cls(0, mean.double(), tuple(whitening))

    def moments(self) -> Moments:
        """The moments that these came from, up to the rounding of `whitening`."""
        dims = self.num_dimensions
        scatter = [torch.empty_like(block) for block in self.whitening]
        eye = torch.eye(dims, dtype=torch.float64, device=self.mean.device)
        for where in chunks(self.num_positions, 8 * dims * dims, self.mean.device):
            factor = invert_triangles(to_square(self.whitening, where))
            covariance = factor @ factor.mT - REGULARIZATION * eye
            into_block_rows(covariance * max(0, self.count - 1), scatter, where)
        return Moments.of(self.count, self.mean.clone(), scatter)

    @exact_products()
    def squared_distances(self, rows: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distances float32 `[n, P]` of float32 rows `[n, P, D]`."""
        number, positions, dims = rows.shape
        out = rows.new_zeros(positions, number)
        for where in chunks(positions, 4 * dims * number, rows.device):
            deviations = (rows[:, where] - self._center[where]).transpose(0, 1).contiguous()
            if number > _FEW_IMAGES:
                deviations = deviations.transpose(1, 2).contiguous()
            total = out[where]
            for block, (_, end) in zip(self.whitening, block_spans(dims), strict=True):
                if number > _FEW_IMAGES:
                    total += torch.bmm(block[where], deviations[:, :end]).square_().sum(1)
                else:
                    total += torch.bmm(deviations[:, :, :end], block[where].mT).square_().sum(2)
        return out.T.contiguous()


class LeftOut:
    """How images score against the Gaussians of all images but them: handed to `Gaussians.from_moments`, it
    looks at the scatter chunk of positions by chunk, so that no second fit is needed.

    Args:
        rows: number of an image and one observation `[P, D]` of it; those of one number (tiles of one image)
            are left out together.
        counts: how many observations there are of each number in all: images that equal one another have one
            number, and those that are not among `rows` are left out with the others.
        count: how many observations there are in all.
        positions: P.
        progress: called with "calibrate", positions done and positions.
    """

    def __init__(
        self,
        rows: Sequence[tuple[int, torch.Tensor]],
        counts: Mapping[int, int],
        count: int,
        positions: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        places: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(rows):
            places.setdefault(number, []).append(place)
        # Images of equally many rows, and of as many copies, go together: mostly that is all of them.
        self._groups: dict[tuple[int, int], list[int]] = {}
        for number, own in places.items():
            copies = max(1, counts[number] // len(own))
            self._groups.setdefault((len(own), copies), []).extend(own)
        self.fair = all(k * copies < count for k, copies in self._groups)
        self._rows = [observation for _, observation in rows]
        self._count, self._progress = count, progress
        device = self._rows[0].device if rows else None
        self.squared = torch.zeros(len(rows), positions, device=device)

    def __call__(self, where: slice, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        """Fills `squared`, float32 `[rows, P]`, for some positions."""
        for (k, copies), places in self._groups.items():
            deviations = torch.stack([self._rows[place][where] for place in places], 2).double()
            deviations -= mean[:, :, None]
            grouped = deviations.reshape(*deviations.shape[:2], -1, k)
            if copies > 1:
                grouped = grouped.repeat(1, 1, 1, copies)
            distances = leave_out(self._count, scatter, grouped)[:, :, :k]
            self.squared[places, where] = distances.flatten(1).T.float()
        self._progress("calibrate", where.stop, self.squared.shape[1])


def leave_out(count: int, scatter: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Squared Mahalanobis distances of rows to the Gaussian of all rows but them, in closed form.

    Of `count` rows with the scatter `S` float64 `[c, D, D]`, the k rows of an image are left out: with their
    deviations from the common mean `d_r` and `s = sum d_r`, the others have the mean `m - s / (count - k)`
    and the scatter `S - sum d_r d_r^T - s s^T / (count - k)`, so their regularised covariance is `M - U U^T`
    with `M = S / (count - k - 1) + 0.01 I` and U of k columns: `U = d R / sqrt(count - k - 1)` with
    `R = I + g 1 1^T`, `R^2 = I + 1 1^T / (count - k)`. By Woodbury's identity all that is needed is the Gram
    matrix of the `d_r` under `M^-1`.

    Args:
        deviations: float64 `[c, D, G, k]`, of k rows each of G images.

    Returns:
        float64 `[c, G, k]`.
    """
    chunk, dims, images, k = deviations.shape
    others = count - k
    flat = deviations.reshape(chunk, dims, images * k)
    if others > 1:
        flat = invert_triangles(factor_covariance(scatter, others - 1)) @ flat
    else:
        flat = flat / math.sqrt(REGULARIZATION)  # one row is left, whose covariance is 0
    if k == 1:
        gram = flat.square().sum(1)[..., None, None]
    else:
        whitened = flat.reshape(chunk, dims, images, k).permute(0, 2, 3, 1)
        gram = whitened @ whitened.mT  # [c, G, k, k]
    eye = torch.eye(k, dtype=gram.dtype, device=gram.device)
    shift = eye + 1.0 / others  # x_r less the others' mean, as a combination of the deviations
    moved = gram @ shift
    distances: torch.Tensor = (shift.mT @ moved).diagonal(dim1=-2, dim2=-1).clone()
    if others == 1:
        return distances
    mixing = (eye + (math.sqrt(count / others) - 1.0) / k) / math.sqrt(others - 1.0)
    inner = eye - mixing @ gram @ mixing
    cross = mixing @ moved
    if k == 1:
        distances += (cross.square() / inner)[..., 0]
    else:
        distances += (cross * torch.linalg.solve(inner, cross)).sum(-2)
    return distances


def factor_covariance(scatter: torch.Tensor, divisor: int) -> torch.Tensor:
    """Cholesky factor of `scatter / divisor + 0.01 I`, `[c, D, D]`; of `0.01 I` if the divisor is 0.

    Raises IllConditionedError where rounding has made a covariance indefinite.
    """
    covariance = scatter / divisor if divisor > 0 else torch.zeros_like(scatter)
    covariance.diagonal(dim1=-2, dim2=-1).add_(REGULARIZATION)
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        largest = float(covariance.diagonal(dim1=-2, dim2=-1).max())
        raise IllConditionedError(
            "the features' covariances are not positive definite in float32: variances go up to "
            f"{largest:.3g}, and {REGULARIZATION:g} on the diagonal is lost beside them; "
            "scale the network's features down"
        )
    return factor


def invert_triangles(factors: torch.Tensor) -> torch.Tensor:
    """Inverses of lower triangles `[c, D, D]`."""
    # By halves, so that all matrices go through each product together. Solvers take them singly, and where
    # each of these calls waits for all threads, a busy machine makes them fifty times slower.
    inverses = torch.zeros_like(factors)
    _invert_into(factors, inverses)
    return inverses


def _invert_into(factors: torch.Tensor, out: torch.Tensor) -> None:
    dims = factors.shape[1]
    if dims <= _SMALL:
        for row in range(dims):
            scale = factors[:, row, row].reciprocal()
            out[:, row, row] = scale
            if row:
                known = torch.bmm(factors[:, row : row + 1, :row], out[:, :row, :row])[:, 0]
                out[:, row, :row] = known.neg_().mul_(scale[:, None])
        return
    half = dims // 2
    _invert_into(factors[:, :half, :half], out[:, :half, :half])
    _invert_into(factors[:, half:, half:], out[:, half:, half:])
    below = torch.bmm(factors[:, half:, :half], out[:, :half, :half])
    out[:, half:, :half] = torch.bmm(out[:, half:, half:], below).neg_()


def chunks(positions: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """All positions in slices whose temporary arrays stay small."""
    size = max(1, (_CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK) // bytes_each)
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


def empty_block_rows(positions: int, dims: int, device: torch.device, fill: float) -> BlockRows:
    return [
        torch.full((positions, end - start, end), fill, dtype=torch.float32, device=device)
        for start, end in block_spans(dims)
    ]


def to_square(blocks: Sequence[torch.Tensor], where: slice) -> torch.Tensor:
    """Lower triangles of some positions as float64 `[c, D, D]`; above the diagonal blocks it is 0."""
    dims = blocks[-1].shape[2]
    square = torch.zeros(where.stop - where.start, dims, dims, dtype=torch.float64, device=blocks[0].device)
    for block, (start, end) in zip(blocks, block_spans(dims), strict=True):
        square[:, start:end, :end] = block[where]
    return square


def into_block_rows(square: torch.Tensor, blocks: Sequence[torch.Tensor], where: slice) -> None:
    """The reverse of `to_square`, rounded to float32."""
    for block, (start, end) in zip(blocks, block_spans(square.shape[1]), strict=True):
        block[where] = square[:, start:end, :end].to(block.dtype)


def _require(name: str, array: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} of the Gaussians must be {dtype} of shape {shape}, got {array.dtype} of shape "
            f"{tuple(array.shape)}"
        )
