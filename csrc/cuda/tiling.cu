// tile copies words as wide as the layout allows, whatever they hold. untile gathers: each thread reads the
// few words that cover its own, whose number is known in closed form, so that nothing is counted and nothing
// added in memory.
#include "tiling.hpp"

#include <algorithm>
#include <cfloat>

#include "core/fast_divide.hpp"
#include "core/tile_cover.hpp"
#include "cuda/convert.cuh"
#include "cuda/launch.hpp"
#include "cuda/tiling_limits.hpp"

namespace ensemblead::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWordsPerThread = 4;
constexpr int kWordsPerBlock = kThreads * kWordsPerThread;

// --- tile ---

// Widths and columns are counted in words.
template <class Divide>
struct TileLayout {
  using Index = typename Divide::Index;

  Index tile_words = 0;  // all channels of all images of one tile: contiguous
  Index image_height = 0;
  Index image_width = 0;
  Index tile_height = 0;
  Index tile_width = 0;
  Index stride_height = 0;
  Index stride_width = 0;
  Index last_top = 0;  // starts of the last row and column of tiles
  Index last_left = 0;
  Index tile_count = 0;
  Index cols = 0;
  Divide by_cols;
  Divide by_tile_height;
  Divide by_tile_width;
};

template <class Word, class Divide>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const Word* __restrict__ images, Word* __restrict__ tiles, const TileLayout<Divide> layout) {
  using Index = typename Divide::Index;
  const Index first = static_cast<Index>(blockIdx.x) * kWordsPerBlock + threadIdx.x;
  for (Index tile = blockIdx.y; tile < layout.tile_count; tile += gridDim.y) {
    const Index tile_row = layout.by_cols(tile);
    const auto start = [](Index regular, Index last) { return regular < last ? regular : last; };
    const Index top = start(tile_row * layout.stride_height, layout.last_top);
    const Index left = start((tile - tile_row * layout.cols) * layout.stride_width, layout.last_left);
    Word* const out = tiles + static_cast<std::uint64_t>(tile) * layout.tile_words;
    Word words[kWordsPerThread];  // all loads before the first store
#pragma unroll
    for (int k = 0; k < kWordsPerThread; ++k) {
      const Index n = first + static_cast<Index>(k * kThreads);
      words[k] = Word{};
      if (n >= layout.tile_words) continue;
      const Index row = layout.by_tile_width(n);
      const Index plane = layout.by_tile_height(row);
      const Index x = left + n - row * layout.tile_width;
      const Index y = top + row - plane * layout.tile_height;
      if (y >= layout.image_height || x >= layout.image_width) continue;
      words[k] = __ldg(
          images + (static_cast<std::uint64_t>(plane) * layout.image_height + y) * layout.image_width + x);
    }
#pragma unroll
    for (int k = 0; k < kWordsPerThread; ++k) {
      const Index n = first + static_cast<Index>(k * kThreads);
      if (n < layout.tile_words) out[n] = words[k];
    }
  }
}

template <class Word, class Divide>
void tile_words(const TileTask& task, const Work& work) {
  using Index = typename Divide::Index;
  const TileAxis& rows = task.grid.rows;
  const TileAxis& cols = task.grid.cols;
  const auto item = static_cast<std::int64_t>(item_size(task.images.dtype));
  const auto words = [item](std::int64_t items) {
    return static_cast<Index>(items * item / static_cast<std::int64_t>(sizeof(Word)));
  };
  TileLayout<Divide> layout;
  layout.tile_words = words(task.images.shape[0] * task.images.shape[1] * rows.tile * cols.tile);
  layout.image_height = static_cast<Index>(rows.size);
  layout.image_width = words(cols.size);
  layout.tile_height = static_cast<Index>(rows.tile);
  layout.tile_width = words(cols.tile);
  layout.stride_height = static_cast<Index>(rows.stride);
  layout.stride_width = words(cols.stride);
  layout.last_top = static_cast<Index>(rows.last_start);
  layout.last_left = words(cols.last_start);
  layout.tile_count = static_cast<Index>(rows.count * cols.count);
  layout.cols = static_cast<Index>(cols.count);
  layout.by_cols = Divide(layout.cols);
  layout.by_tile_height = Divide(layout.tile_height);
  layout.by_tile_width = Divide(layout.tile_width);
  const dim3 grid(grid_size(static_cast<std::int64_t>(layout.tile_words), kWordsPerBlock),
                  grid_size(rows.count * cols.count, 1, kMaxGridYZ));
  launch("tile_kernel", tile_kernel<Word, Divide>, {grid, kThreads, 0, to_stream(work)},
         task.images.as<const Word>(), task.tiles.as<Word>(), layout);
}

template <class Word>
void tile_with(const TileTask& task, const Work& work) {
  const std::int64_t words = task.images.shape[0] * task.images.shape[1] * task.grid.rows.tile *
                             task.grid.cols.tile * static_cast<std::int64_t>(item_size(task.images.dtype)) /
                             static_cast<std::int64_t>(sizeof(Word));
  const bool fast = words < kFastLimit && task.grid.rows.count * task.grid.cols.count < kFastLimit;
  fast ? tile_words<Word, FastDivide>(task, work) : tile_words<Word, PlainDivide>(task, work);
}

// The widest word that rows, tiles and starts of tiles are whole multiples of.
int word_bytes(const Array& images, const Array& tiles, const TileGrid& grid) {
  const std::size_t item = item_size(images.dtype);
  const auto bytes = [item](std::int64_t items) { return static_cast<std::uintptr_t>(items) * item; };
  return common_alignment({reinterpret_cast<std::uintptr_t>(images.data),
                           reinterpret_cast<std::uintptr_t>(tiles.data), bytes(grid.cols.size),
                           bytes(grid.cols.tile), bytes(grid.cols.count > 1 ? grid.cols.stride : 0)});
}

// --- untile ---

template <class Divide>
struct UntileLayout {
  using Index = typename Divide::Index;

  Index packs = 0;  // of all images
  Index image_height = 0;
  Index image_width = 0;  // in packs, as all widths and columns
  TileCover<Divide> rows;
  TileCover<Divide> cols;
  Index row_shift = 0;  // TileCover::last_shift of both
  Index col_shift = 0;
  std::int64_t planes = 0;
  Divide by_image_height;
  Divide by_image_width;
};

// Sums with the error of each addition kept aside: for fewer than 2^20 equal float32 values the result is
// their exact sum rounded once, without the memory that pairwise summation needs.
template <class A>
struct ExactSum {
  A sum = 0;
  A error = 0;

  __device__ __forceinline__ void add(A value) {
    const A total = sum + value;
    const A shown = total - sum;
    error += (sum - (total - shown)) + (value - shown);
    sum = total;
  }
  // The error of an infinite sum is no number.
  __device__ __forceinline__ A total() const { return sum - sum == A(0) ? sum + error : sum; }
};

template <class T, int kPack>
using Sums = typename Accumulator<T>::Type[kPack];

// The step from a pixel in one tile to the same pixel in the next of a row or column of tiles. The step to
// the last of those that cover the pixel is another one where the last tile of the axis is moved in.
struct Step {
  std::int64_t usual;
  std::int64_t last;

  // The step behind tile `i` of the `count` that cover the pixel.
  template <class Index>
  __device__ __forceinline__ std::int64_t behind(Index i, Index count) const {
    return i + 2 == count ? last : usual;
  }
};

// Sums up to two by two packs, by pairs.
template <class T, int kPack>
__device__ __forceinline__ void sum_few(const T* tiles, std::int64_t down, std::int64_t right, bool two_rows,
                                        bool two_cols, Sums<T, kPack>& sums) {
  using P = Pack<T, kPack>;
  const P a = P::load(tiles);
  const P b = two_cols ? P::load(tiles + right) : P{};
  const P c = two_rows ? P::load(tiles + down) : P{};
  const P d = two_rows && two_cols ? P::load(tiles + down + right) : P{};
#pragma unroll
  for (int v = 0; v < kPack; ++v) {
    sums[v] = widen(a.values[v]);
    if (two_cols) sums[v] += widen(b.values[v]);
    if (two_rows) sums[v] += two_cols ? widen(c.values[v]) + widen(d.values[v]) : widen(c.values[v]);
  }
}

template <class T, int kPack, class Index>
__device__ __forceinline__ void sum_many(const T* tiles, const Step& down, const Step& right, Index num_rows,
                                         Index num_cols, Sums<T, kPack>& sums) {
  ExactSum<typename Accumulator<T>::Type> exact[kPack];
  for (Index i = 0; i < num_rows; tiles += down.behind(i++, num_rows)) {
    const T* at = tiles;
    for (Index j = 0; j < num_cols; at += right.behind(j++, num_cols)) {
      const auto pack = Pack<T, kPack>::load(at);
#pragma unroll
      for (int v = 0; v < kPack; ++v) exact[v].add(widen(pack.values[v]));
    }
  }
#pragma unroll
  for (int v = 0; v < kPack; ++v) sums[v] = exact[v].total();
}

// The mean of one pixel where the sum of its values is beyond their range: in float64, or of float64 values
// divided by a power of two.
template <class T, class Index>
__device__ double mean_of_large(const T* tiles, const Step& down, const Step& right, Index num_rows,
                                Index num_cols) {
  double shrink = 1.0;
  if (sizeof(T) == sizeof(double))
    for (Index n = 1; n < num_rows * num_cols; n *= 2) shrink *= 0.5;
  double sum = 0.0;
  for (Index i = 0; i < num_rows; tiles += down.behind(i++, num_rows)) {
    const T* at = tiles;
    for (Index j = 0; j < num_cols; at += right.behind(j++, num_cols))
      sum += static_cast<double>(widen(*at)) * shrink;
  }
  const double mean = sum / (static_cast<double>(num_rows * num_cols) * shrink);
  // Rounding may lift the mean of the largest float64 values beyond them.
  return sum - sum == 0.0 ? fmin(fmax(mean, -DBL_MAX), DBL_MAX) : mean;
}

// The tiles that cover the pack of a thread.
template <class T, int kPack, class Divide>
struct CoveringTiles {
  using Index = typename Divide::Index;

  __device__ __forceinline__ CoveringTiles(const T* tiles, const UntileLayout<Divide>& layout, Index n) {
    const std::int64_t tile_row = static_cast<std::int64_t>(layout.cols.tile) * kPack;
    const std::int64_t plane_size = static_cast<std::int64_t>(layout.rows.tile) * tile_row;
    const std::int64_t tile_size = layout.planes * plane_size;
    const Index row = layout.by_image_width(n);
    const Index plane = layout.by_image_height(row);
    const Index x = n - row * layout.image_width;
    const Index y = row - plane * layout.image_height;
    const Index top = layout.rows.first(y);
    const Index left = layout.cols.first(x);
    const Index bottom = layout.rows.last(y);
    const Index right_most = layout.cols.last(x);
    num_rows = bottom - top + 1;
    num_cols = right_most - left + 1;
    down.usual = static_cast<std::int64_t>(layout.cols.count) * tile_size -
                 static_cast<std::int64_t>(layout.rows.stride) * tile_row;
    right.usual = tile_size - static_cast<std::int64_t>(layout.cols.stride) * kPack;
    const bool to_last_row = bottom == layout.rows.count - 1;
    const bool to_last_col = right_most == layout.cols.count - 1;
    down.last = down.usual + (to_last_row ? static_cast<std::int64_t>(layout.row_shift) * tile_row : 0);
    right.last = right.usual + (to_last_col ? static_cast<std::int64_t>(layout.col_shift) * kPack : 0);
    from = tiles + static_cast<std::int64_t>(top) * layout.cols.count * tile_size +
           static_cast<std::int64_t>(left) * tile_size + static_cast<std::int64_t>(plane) * plane_size +
           static_cast<std::int64_t>(y - layout.rows.start(top)) * tile_row +
           static_cast<std::int64_t>(x - layout.cols.start(left)) * kPack;
  }

  const T* from;  // in the first of them
  Index num_rows;
  Index num_cols;
  Step down;
  Step right;
};

template <class T, int kPack, class Divide>
__global__ void __launch_bounds__(kThreads, 4)
    untile_kernel(const T* __restrict__ tiles, T* __restrict__ images, const UntileLayout<Divide> layout) {
  using A = typename Accumulator<T>::Type;
  using Index = typename Divide::Index;
  const Index first = static_cast<Index>(blockIdx.x) * kWordsPerBlock + threadIdx.x;
#pragma unroll 1
  for (int k = 0; k < kWordsPerThread; ++k) {
    const Index n = first + static_cast<Index>(k * kThreads);
    if (n >= layout.packs) return;
    const CoveringTiles<T, kPack, Divide> covering(tiles, layout, n);
    const Index num_rows = covering.num_rows;
    const Index num_cols = covering.num_cols;
    T* const to = images + static_cast<std::int64_t>(n) * kPack;
    if (num_rows == 1 && num_cols == 1) {
      Pack<T, kPack>::load(covering.from).store(to);
      continue;
    }
    Sums<T, kPack> sums;
    if (num_rows <= 2 && num_cols <= 2) {
      sum_few<T, kPack>(covering.from, covering.down.last, covering.right.last, num_rows == 2, num_cols == 2,
                        sums);
    } else {
      sum_many<T, kPack>(covering.from, covering.down, covering.right, num_rows, num_cols, sums);
    }
    const A scale = A(1) / static_cast<A>(num_rows * num_cols);
    Pack<T, kPack> mean;
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      if (sums[v] - sums[v] != A(0))  // NaN or infinite, or beyond the range
        sums[v] = static_cast<A>(
            mean_of_large(covering.from + v, covering.down, covering.right, num_rows, num_cols));
      else
        sums[v] *= scale;
      narrow(sums[v], &mean.values[v]);
    }
    mean.store(to);
  }
}

template <class T, int kPack, class Divide>
void untile_packs(const UntileTask& task, const Work& work) {
  using Index = typename Divide::Index;
  UntileLayout<Divide> layout;
  layout.packs = static_cast<Index>(task.images.size() / kPack);
  layout.image_height = static_cast<Index>(task.grid.rows.size);
  layout.image_width = static_cast<Index>(task.grid.cols.size / kPack);
  layout.rows = TileCover<Divide>(task.grid.rows, 1);
  layout.cols = TileCover<Divide>(task.grid.cols, kPack);
  layout.row_shift = layout.rows.last_shift();
  layout.col_shift = layout.cols.last_shift();
  layout.planes = task.images.shape[0] * task.images.shape[1];
  layout.by_image_height = Divide(layout.image_height);
  layout.by_image_width = Divide(layout.image_width);
  launch("untile_kernel", untile_kernel<T, kPack, Divide>,
         {grid_size(task.images.size() / kPack, kWordsPerBlock), kThreads, 0, to_stream(work)},
         task.tiles.as<const T>(), task.images.as<T>(), layout);
}

template <class T, int kPack>
void untile_with(const UntileTask& task, const Work& work) {
  task.images.size() / kPack < kFastLimit ? untile_packs<T, kPack, FastDivide>(task, work)
                                          : untile_packs<T, kPack, PlainDivide>(task, work);
}

// Packs as wide as the layout allows.
template <class T>
void untile_as(const UntileTask& task, const Work& work) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  const int bytes = word_bytes(task.images, task.tiles, task.grid);
  if (bytes == 16) return untile_with<T, kWide>(task, work);
  if constexpr (kWide >= 4) {
    if (bytes == 8) return untile_with<T, kWide / 2>(task, work);
  }
  if constexpr (kWide >= 8) {
    if (bytes == 4) return untile_with<T, kWide / 4>(task, work);
  }
  untile_with<T, 1>(task, work);
}

}  // namespace

void tile(const TileTask& task, const Work& work) {
  check_extents(task.grid, "images");
  const DeviceScope scope(work.device.index);
  switch (word_bytes(task.images, task.tiles, task.grid)) {
    case 16:
      return tile_with<uint4>(task, work);
    case 8:
      return tile_with<uint2>(task, work);
    case 4:
      return tile_with<unsigned>(task, work);
    case 2:
      return tile_with<unsigned short>(task, work);
    default:
      return tile_with<unsigned char>(task, work);
  }
}

void untile(const UntileTask& task, const Work& work) {
  check_extents(task.grid, "images");
  const DeviceScope scope(work.device.index);
  switch (task.tiles.dtype) {
    case DType::kFloat16:
      return untile_as<Float16>(task, work);
    case DType::kBFloat16:
      return untile_as<BFloat16>(task, work);
    case DType::kFloat64:
      return untile_as<double>(task, work);
    default:
      return untile_as<float>(task, work);
  }
}

}  // namespace ensemblead::cuda
