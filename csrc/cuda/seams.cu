// smooth_seams: blocks that no band meets are copied; the others stage their pixels with a margin in shared
// memory and blur along rows, then along columns, only the pixels that the bands need. A Gaussian too wide
// for shared memory goes through scratch in two plain passes.
#include <algorithm>

#include "core/tile_cover.hpp"
#include "cuda/convert.cuh"
#include "cuda/launch.hpp"
#include "cuda/tiling_limits.hpp"
#include "tiling.hpp"

namespace ensemblead::cuda {
namespace {

// A block makes kRows x Columns<A>::kCount pixels of a map; each of its threads kRun of them in a column.
constexpr int kRows = 32;
constexpr int kRun = 8;
constexpr int kLargestRadius = 16;  // beyond, a block's margins no longer fit its shared memory
constexpr int kUsualRadius = 8;     // of sigma = 2, the default: its loops are unrolled

template <class A>
struct Columns {
  static constexpr int kCount = 64;
};
template <>
struct Columns<double> {
  static constexpr int kCount = 32;
};
template <class A>
constexpr int kBlockThreads = kRows / kRun * Columns<A>::kCount;

template <class A>
struct SeamLayout {
  std::int32_t height = 0;
  std::int32_t width = 0;
  std::int64_t maps = 0;
  SeamCover rows;
  SeamCover cols;
  std::int32_t blocks_across = 0;
  std::int32_t radius = 0;
  bool whole_words = false;  // rows are whole multiples of 16 bytes
  A weights[kLargestRadius + 1] = {};
};

template <class T>
__device__ __forceinline__ auto load(const T* from) {
  return widen(Pack<T, 1>::load(from).values[0]);
}

// Pixels [x0, x0 + columns) of [y0, y0 + kRows) as they are, as far as they are in the map.
template <class T, int kColumns>
__device__ void copy_block(const T* map, T* out, std::int32_t y0, std::int32_t x0, std::int32_t height,
                           std::int32_t width, bool whole_words) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  const int columns = min(kColumns, width - x0);
  const int rows = min(kRows, height - y0);
  const std::int64_t corner = static_cast<std::int64_t>(y0) * width + x0;
  if (whole_words) {
    constexpr int kAcross = kColumns / kWide;
    const auto* const words = reinterpret_cast<const uint4*>(map);
    auto* const to_words = reinterpret_cast<uint4*>(out);
    for (int n = static_cast<int>(threadIdx.x); n < rows * kAcross; n += static_cast<int>(blockDim.x)) {
      const int x = n % kAcross * kWide;
      const std::int64_t at = corner + static_cast<std::int64_t>(n / kAcross) * width + x;
      // Pointers to whole words: nvcc stores in four pieces through a pointer that it must cast.
      if (x < columns) to_words[at / kWide] = __ldg(words + at / kWide);
    }
  } else {
    for (int n = static_cast<int>(threadIdx.x); n < rows * kColumns; n += static_cast<int>(blockDim.x)) {
      const int x = n % kColumns;
      const std::int64_t at = corner + static_cast<std::int64_t>(n / kColumns) * width + x;
      if (x < columns) Pack<T, 1>::load(map + at).store(out + at);
    }
  }
}

// kRun neighbouring sums of a line in shared memory, each over 2 * radius + 1 values: sums[n] from line[n *
// step] on. No weight of 0 stands in for values out of reach: it would turn an inf into a NaN.
template <int kRadius, class A>
__device__ __forceinline__ void blur_run(const A* line, int step, const SeamLayout<A>& layout,
                                         A (&sums)[kRun]) {
#pragma unroll
  for (int n = 0; n < kRun; ++n) sums[n] = A(0);
  if constexpr (kRadius > 0) {
#pragma unroll
    for (int t = 0; t < kRun + 2 * kRadius; ++t) {
      const A value = line[t * step];
#pragma unroll
      for (int n = 0; n < kRun; ++n) {
        const int k = t - n - kRadius;
        if (k >= -kRadius && k <= kRadius) sums[n] += layout.weights[k < 0 ? -k : k] * value;
      }
    }
  } else {
    for (int t = 0; t < kRun + 2 * layout.radius; ++t) {
      const A value = line[t * step];
#pragma unroll
      for (int n = 0; n < kRun; ++n) {
        const int k = t - n - layout.radius;
        if (k >= -layout.radius && k <= layout.radius) sums[n] += layout.weights[k < 0 ? -k : k] * value;
      }
    }
  }
}

// The bands as a block sees them: whether each of its rows and columns is in one (a byte each, eight to a
// word); whether each row and column, its margin included, is within the Gaussian's reach of one; and the row
// of the map that each staged row holds.
template <class A>
struct BandFlags {
  std::uint64_t row[kRows / kRun];
  std::uint64_t col[Columns<A>::kCount / kRun];
  std::int64_t from_row[kRows + 2 * kLargestRadius];  // its first pixel
  bool near_row[kRows + 2 * kLargestRadius];
  bool near_col[Columns<A>::kCount + 2 * kLargestRadius];
};
static_assert(kRun == sizeof(std::uint64_t), "a run's flags are a word");

__device__ __forceinline__ bool flag_of(std::uint64_t flags, int n) { return (flags >> 8 * n & 0xff) != 0; }

template <class A>
__device__ bool flag_bands(BandFlags<A>& flags, const SeamLayout<A>& layout, int radius, std::int32_t y0,
                           std::int32_t x0) {
  bool any = false;
  const int step = static_cast<int>(blockDim.x);
  for (int n = static_cast<int>(threadIdx.x); n < kRows + 2 * radius; n += step) {
    flags.near_row[n] = layout.rows.near(y0 + n - radius, radius);
    flags.from_row[n] = static_cast<std::int64_t>(reflected(y0 + n - radius, layout.height)) * layout.width;
    if (n >= kRows) continue;
    const bool in_band = layout.rows.near(y0 + n, 0);
    reinterpret_cast<unsigned char*>(flags.row)[n] = in_band;
    any |= in_band && y0 + n < layout.height;
  }
  for (int n = static_cast<int>(threadIdx.x); n < Columns<A>::kCount + 2 * radius; n += step) {
    flags.near_col[n] = layout.cols.near(x0 + n - radius, radius);
    if (n >= Columns<A>::kCount) continue;
    const bool in_band = layout.cols.near(x0 + n, 0);
    reinterpret_cast<unsigned char*>(flags.col)[n] = in_band;
    any |= in_band && x0 + n < layout.width;
  }
  return __syncthreads_or(any) != 0;
}

// The kernel for all Gaussians that fit shared memory. Everything that the blur of a pixel in a band reads
// lies within reach of that band, so it is staged and blurred. Values that no such pixel needs are undefined
// and are not used. The block's own pixels are staged in any case: those outside the bands are written as
// they are.
template <class T, class A, int kRadius>
__global__ void __launch_bounds__(kBlockThreads<A>, 3)
    smooth_seams_kernel(const T* __restrict__ maps, T* __restrict__ smoothed, const SeamLayout<A> layout) {
  constexpr int kColumns = Columns<A>::kCount;
  const int radius = kRadius > 0 ? kRadius : layout.radius;
  const int staged_rows = kRows + 2 * radius;
  const int staged_cols = kColumns + 2 * radius;
  const int pitch = staged_cols | 1;  // threads side by side read different rows of a column
  constexpr int kAcrossPitch = kColumns + 1;
  __shared__ BandFlags<A> flags;
  A* const staged = dynamic_shared<A>();
  A* const across = staged + staged_rows * pitch;

  const int thread = static_cast<int>(threadIdx.x);
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t y0 = block / layout.blocks_across * kRows;
  const std::int32_t x0 = block % layout.blocks_across * kColumns;
  const bool any = flag_bands(flags, layout, radius, y0, x0);

  // The columns that a thread stages are the same in every row.
  constexpr int kPasses = (kColumns + 2 * (kRadius > 0 ? kRadius : kLargestRadius) + 31) / 32;
  std::int32_t col_of_map[kPasses];
  // Bit p: whether the column of pass p is staged in rows near a band, in the block's other rows, and else.
  unsigned in_near_rows = 0;
  unsigned in_own_rows = 0;
  unsigned in_other_rows = 0;
#pragma unroll
  for (int p = 0; p < kPasses; ++p) {
    const int col = thread % 32 + 32 * p;
    col_of_map[p] = 0;
    if (col >= staged_cols) continue;
    col_of_map[p] = reflected(x0 + col - radius, layout.width);
    const bool own = col >= radius && col < radius + kColumns;
    in_near_rows |= 1u << p;
    in_own_rows |= own || flags.near_col[col] ? 1u << p : 0u;
    in_other_rows |= flags.near_col[col] ? 1u << p : 0u;
  }

  for (std::int64_t number = blockIdx.y; number < layout.maps; number += gridDim.y) {
    const T* const map = maps + number * layout.height * layout.width;
    T* const out = smoothed + number * layout.height * layout.width;
    const T* from_col[kPasses];
#pragma unroll
    for (int p = 0; p < kPasses; ++p) from_col[p] = map + col_of_map[p];
    if (!any) {
      copy_block<T, kColumns>(map, out, y0, x0, layout.height, layout.width, layout.whole_words);
      continue;
    }
    constexpr int kRowsAtOnce = 2;  // all loads before the first store
    constexpr int kWarps = kBlockThreads<A> / 32;
    for (int first = thread / 32; first < staged_rows; first += kRowsAtOnce * kWarps) {
      A values[kRowsAtOnce][kPasses];
#pragma unroll
      for (int n = 0; n < kRowsAtOnce; ++n) {
        const int row = min(first + n * kWarps, staged_rows - 1);
        const std::int64_t from = flags.from_row[row];
        const bool own_row = row >= radius && row < radius + kRows;
        const unsigned wanted = flags.near_row[row] ? in_near_rows : own_row ? in_own_rows : in_other_rows;
#pragma unroll
        for (int p = 0; p < kPasses; ++p)
          values[n][p] = (wanted >> p & 1u) != 0u ? load(from_col[p] + from) : A(0);
      }
#pragma unroll
      for (int n = 0; n < kRowsAtOnce; ++n) {
        const int row = first + n * kWarps;
        if (row >= staged_rows) continue;
#pragma unroll
        for (int p = 0; p < kPasses; ++p)
          if ((in_near_rows >> p & 1u) != 0u) staged[row * pitch + thread % 32 + 32 * p] = values[n][p];
      }
    }
    __syncthreads();

    for (int n = thread; n < staged_rows * (kColumns / kRun); n += kBlockThreads<A>) {
      const int row = n % staged_rows;
      const int run = n / staged_rows;
      if (!flags.near_row[row] && flags.col[run] == 0) continue;
      A sums[kRun];
      blur_run<kRadius>(staged + row * pitch + run * kRun, 1, layout, sums);
#pragma unroll
      for (int k = 0; k < kRun; ++k) across[row * kAcrossPitch + run * kRun + k] = sums[k];
    }
    __syncthreads();

    const int col = thread % kColumns;
    const int row = thread / kColumns * kRun;
    const std::uint64_t rows_in_bands = flags.row[row / kRun];
    const bool col_in_band = flag_of(flags.col[col / kRun], col % kRun);
    A sums[kRun] = {};
    if (col_in_band || rows_in_bands != 0)
      blur_run<kRadius>(across + row * kAcrossPitch + col, kAcrossPitch, layout, sums);
    T* to = out + static_cast<std::int64_t>(y0 + row) * layout.width + x0 + col;
    const int inside = x0 + col < layout.width ? min(kRun, layout.height - y0 - row) : 0;
#pragma unroll
    for (int k = 0; k < kRun; ++k, to += layout.width) {
      if (k >= inside) continue;
      const bool in_band = col_in_band || flag_of(rows_in_bands, k);
      Pack<T, 1> pixel;
      narrow(in_band ? sums[k] : staged[(row + k + radius) * pitch + col + radius], &pixel.values[0]);
      pixel.store(to);
    }
    __syncthreads();  // before the next map is staged
  }
}

// --- a wide Gaussian: two passes through scratch ---

constexpr int kThreads = 256;

// weights[0 .. radius], as gaussian_weights has them; the sum is taken in a fixed order.
template <class A>
__global__ void __launch_bounds__(kThreads) gaussian_weights_kernel(A* weights, int radius, double sigma) {
  __shared__ double totals[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  double total = 0.0;
  for (int k = thread; k <= radius; k += kThreads) total += (k == 0 ? 1.0 : 2.0) * gaussian(k, sigma);
  totals[thread] = total;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) totals[thread] += totals[thread + half];
    __syncthreads();
  }
  for (int k = thread; k <= radius; k += kThreads)
    weights[k] = static_cast<A>(gaussian(k, sigma) / totals[0]);
}

// The blur of the pixel at distance 0 of `at`. Two pixels together may be beyond the range of their type
// where their mean is not; then they are weighted one by one.
template <class A, class At>
__device__ __forceinline__ A blur_at(const A* weights, std::int32_t radius, const At& at) {
  A sum = weights[0] * at(0);
  for (std::int32_t k = 1; k <= radius; ++k) sum += weights[k] * (at(-k) + at(k));
  if (sum - sum == A(0)) return sum;
  sum = weights[0] * at(0);
  for (std::int32_t k = 1; k <= radius; ++k) sum += weights[k] * at(-k) + weights[k] * at(k);
  return sum;
}

// The blur along rows, of every pixel that a column of a band may read.
template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    blur_rows_kernel(const T* __restrict__ maps, const A* __restrict__ weights, A* __restrict__ across,
                     const SeamLayout<A> layout) {
  const std::int64_t pixels = layout.maps * layout.height * layout.width;
  for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < pixels;
       n += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const std::int64_t line = n / layout.width;
    const auto x = static_cast<std::int32_t>(n % layout.width);
    const auto y = static_cast<std::int32_t>(line % layout.height);
    if (!layout.rows.near(y, layout.radius) && !layout.cols.near(x, 0)) continue;
    const T* const row = maps + line * layout.width;
    across[n] = blur_at(weights, layout.radius,
                        [&](std::int32_t k) { return load(row + reflected(x + k, layout.width)); });
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads)
    blur_columns_kernel(const T* __restrict__ maps, const A* __restrict__ weights,
                        const A* __restrict__ across, T* __restrict__ smoothed, const SeamLayout<A> layout) {
  const std::int64_t pixels = layout.maps * layout.height * layout.width;
  for (std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < pixels;
       n += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const std::int64_t line = n / layout.width;
    const auto x = static_cast<std::int32_t>(n % layout.width);
    const auto y = static_cast<std::int32_t>(line % layout.height);
    Pack<T, 1> pixel = Pack<T, 1>::load(maps + n);
    if (layout.rows.near(y, 0) || layout.cols.near(x, 0)) {
      const A* const map = across + (line - y) * layout.width + x;
      const auto at = [&](std::int32_t k) {
        return map[static_cast<std::int64_t>(reflected(y + k, layout.height)) * layout.width];
      };
      narrow(blur_at(weights, layout.radius, at), &pixel.values[0]);
    }
    pixel.store(smoothed + n);
  }
}

// --- host ---

template <class A>
SeamLayout<A> layout_of(const SmoothTask& task) {
  SeamLayout<A> layout;
  layout.height = static_cast<std::int32_t>(task.grid.rows.size);
  layout.width = static_cast<std::int32_t>(task.grid.cols.size);
  layout.maps = task.maps.size() / (task.grid.rows.size * task.grid.cols.size);
  layout.rows = SeamCover(task.grid.rows, task.width);
  layout.cols = SeamCover(task.grid.cols, task.width);
  layout.blocks_across = (layout.width + Columns<A>::kCount - 1) / Columns<A>::kCount;
  layout.radius = static_cast<std::int32_t>(gaussian_radius(task.sigma));
  layout.whole_words =
      common_alignment({reinterpret_cast<std::uintptr_t>(task.maps.data),
                        reinterpret_cast<std::uintptr_t>(task.smoothed.data),
                        static_cast<std::uintptr_t>(task.grid.cols.size) * item_size(task.maps.dtype)}) == 16;
  if (layout.radius <= kLargestRadius) {
    const std::vector<double> weights = gaussian_weights(task.sigma);
    for (std::size_t k = 0; k < weights.size(); ++k) layout.weights[k] = static_cast<A>(weights[k]);
  }
  return layout;
}

template <class T, class A>
void smooth_in_blocks(const SmoothTask& task, const SeamLayout<A>& layout, cudaStream_t stream) {
  constexpr int kColumns = Columns<A>::kCount;
  const int staged_rows = kRows + 2 * layout.radius;
  const int cells = staged_rows * ((kColumns + 2 * layout.radius) | 1) + staged_rows * (kColumns + 1);
  const std::int64_t blocks = std::int64_t{layout.blocks_across} * ((layout.height + kRows - 1) / kRows);
  // A block smooths several maps, and computes once for all whatever depends on its place, as long as there
  // are enough blocks.
  const std::int64_t enough = std::int64_t{24} * multiprocessors();
  const std::int64_t maps_each = std::max<std::int64_t>(1, blocks * layout.maps / enough);
  const dim3 grid(grid_size(blocks, 1), grid_size(layout.maps, maps_each, kMaxGridYZ));
  const LaunchShape shape{grid, kBlockThreads<A>, static_cast<std::size_t>(cells) * sizeof(A), stream};
  const auto kernel =
      layout.radius == kUsualRadius ? smooth_seams_kernel<T, A, kUsualRadius> : smooth_seams_kernel<T, A, 0>;
  launch("smooth_seams_kernel", kernel, shape, task.maps.as<const T>(), task.smoothed.as<T>(), layout);
}

template <class T, class A>
void smooth_through_scratch(const SmoothTask& task, const SeamLayout<A>& layout, const Work& work) {
  const cudaStream_t stream = to_stream(work);
  A* const across = static_cast<A*>(work.scratch.data);
  A* const weights = across + task.maps.size();
  const LaunchShape all{grid_size(task.maps.size(), kThreads), kThreads, 0, stream};
  launch("gaussian_weights_kernel", gaussian_weights_kernel<A>, {1, kThreads, 0, stream}, weights,
         layout.radius, task.sigma);
  launch("blur_rows_kernel", blur_rows_kernel<T, A>, all, task.maps.as<const T>(), weights, across, layout);
  launch("blur_columns_kernel", blur_columns_kernel<T, A>, all, task.maps.as<const T>(), weights, across,
         task.smoothed.as<T>(), layout);
}

template <class T>
void smooth_as(const SmoothTask& task, const Work& work) {
  using A = typename Accumulator<T>::Type;
  const SeamLayout<A> layout = layout_of<A>(task);
  if (layout.radius <= kLargestRadius) {
    smooth_in_blocks<T, A>(task, layout, to_stream(work));
  } else {
    smooth_through_scratch<T, A>(task, layout, work);
  }
}

}  // namespace

std::size_t smooth_seams_scratch(const SmoothTask& task) {
  const std::int64_t radius = gaussian_radius(task.sigma);
  if (radius <= kLargestRadius) return 0;
  const std::size_t item = task.maps.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  return static_cast<std::size_t>(task.maps.size() + radius + 1) * item;
}

void smooth_seams(const SmoothTask& task, const Work& work) {
  check_extents(task.grid, "maps");
  const DeviceScope scope(work.device.index);
  switch (task.maps.dtype) {
    case DType::kFloat16:
      return smooth_as<Float16>(task, work);
    case DType::kBFloat16:
      return smooth_as<BFloat16>(task, work);
    case DType::kFloat64:
      return smooth_as<double>(task, work);
    default:
      return smooth_as<float>(task, work);
  }
}

}  // namespace ensemblead::cuda
