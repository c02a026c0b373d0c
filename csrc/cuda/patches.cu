// aggregate_patches, layer by layer: a layer on the output's grid is pooled straight into its dimensions of
// the output; any other into scratch at its own resolution, which is then resized into them.
#include "patches.hpp"

#include <algorithm>
#include <vector>

#include "core/checks.hpp"
#include "core/fast_divide.hpp"
#include "cuda/patches_pool.cuh"
#include "cuda/patches_windows.cuh"
#include "cuda/tiling_limits.hpp"

namespace ensemblead::cuda {
namespace {

// Floats that a block stages; several blocks fit a multiprocessor.
constexpr int kSlabFloats = 7 * 1024;

// --- resizing ---

constexpr int kResizeThreads = 128;
constexpr int kResizeRun = 32;  // output columns that a thread makes, one after another

struct ResizeLayout {
  std::int64_t batch = 0;
  int in_height = 0;
  int in_width = 0;
  int height = 0;
  int width = 0;
  int dims = 0;         // of a pooled position
  int first_dim = 0;    // of them in the output
  int shared_dims = 0;  // output dimensions below were written by earlier layers
  std::int64_t out_dims = 0;
  int runs = 1;    // per output row
  int chunks = 1;  // of a position's dimensions, kResizeThreads packs each
};

// One output column as a run needs it: its two columns of the source, and their weights.
struct alignas(16) RunColumn {
  int low;
  int high;
  float low_weight;
  float high_weight;
};

// One output row's columns from `x0` on, kPack dimensions per thread. Walking along the row, the two source
// columns are kept, already interpolated between their rows.
template <int kPack>
__global__ void __launch_bounds__(kResizeThreads)
    resize_patches_kernel(const float* __restrict__ pooled, float* __restrict__ out,
                          const ResizeLayout layout) {
  using P = Pack<float, kPack>;
  __shared__ RunColumn columns[kResizeRun];
  __shared__ Interpolation rows;
  const int chunk = static_cast<int>(blockIdx.x) % layout.chunks;
  const int rest = static_cast<int>(blockIdx.x) / layout.chunks;
  const int x0 = rest % layout.runs * kResizeRun;
  const int y = rest / layout.runs;
  const int count = min(kResizeRun, layout.width - x0);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < count) {
    const Interpolation point = interpolation_point(x0 + thread, layout.in_width, layout.width);
    columns[thread] = {static_cast<int>(point.low), static_cast<int>(point.high), 1.0f - point.weight,
                       point.weight};
  } else if (thread == kResizeThreads - 1) {  // of a warp that has no columns
    rows = interpolation_point(y, layout.in_height, layout.height);
  }
  __syncthreads();
  const int dim = (chunk * kResizeThreads + thread) * kPack;
  if (dim >= layout.dims) return;  // no barrier follows
  const float high_weight = rows.weight;
  const float low_weight = 1.0f - high_weight;
  const bool shared = layout.first_dim + dim < layout.shared_dims;
  for (std::int64_t image = blockIdx.y; image < layout.batch; image += gridDim.y) {
    const float* const low =
        pooled + (image * layout.in_height + rows.low) * layout.in_width * layout.dims + dim;
    const float* const high =
        pooled + (image * layout.in_height + rows.high) * layout.in_width * layout.dims + dim;
    const auto column = [&](int x) {
      const std::int64_t at = static_cast<std::int64_t>(x) * layout.dims;
      P a = P::load(low + at);
      const P b = P::load(high + at);
#pragma unroll
      for (int v = 0; v < kPack; ++v) a.values[v] = low_weight * a.values[v] + high_weight * b.values[v];
      return a;
    };
    float* to =
        out + ((image * layout.height + y) * layout.width + x0) * layout.out_dims + layout.first_dim + dim;
    int at = columns[0].low;
    P left = column(at);
    P right = column(columns[0].high);
    for (int k = 0; k < count; ++k, to += layout.out_dims) {
      const RunColumn point = columns[k];
      if (point.low != at) {
        left = point.low == at + 1 ? right : column(point.low);
        right = column(point.high);
        at = point.low;
      }
      P value;
#pragma unroll
      for (int v = 0; v < kPack; ++v)
        value.values[v] = point.low_weight * left.values[v] + point.high_weight * right.values[v];
      if (shared) {
#pragma unroll
        for (int v = 0; v < kPack; ++v)
          if (layout.first_dim + dim + v < layout.shared_dims) value.values[v] += to[v];
      }
      value.store(to);
    }
  }
}

// --- host ---

// The bins of both modes: layer l is pooled to dims[l], and the concatenation to `target`. The average over
// windows (kConcat) is the one with as many bins as channels.
struct Bins {
  std::vector<std::int64_t> dims;
  std::int64_t total = 0;
  std::int64_t target = 0;
  std::int64_t patch = 1;
  std::int64_t window = 1;

  Bins(const std::vector<FeatureMap>& maps, const PatchOptions& options)
      : patch(options.patch_size), window(patch * patch) {
    const bool concat = options.mode == PatchMode::kConcat;
    for (std::size_t l = 0; l < maps.size(); ++l)
      dims.push_back(concat ? maps[l].channels : options.pretrain_dims[l]);
    for (const std::int64_t count : dims) total += count;
    target = concat ? total : options.target_dim;
  }
};

// One layer's place among the inputs of the last pooling, and the output dimensions it has a part in.
struct Part {
  std::int64_t offset = 0;
  std::int64_t first_dim = 0;
  std::int64_t end_dim = 0;
  std::int64_t shared_dims = 0;  // dimensions below were reached by earlier layers
};

std::vector<Part> parts_of(const Bins& bins) {
  const PoolingBins<PlainDivide> target(static_cast<std::uint64_t>(bins.total),
                                        static_cast<std::uint64_t>(bins.target));
  std::vector<Part> parts;
  std::int64_t offset = 0;
  std::int64_t reached = 0;
  for (const std::int64_t count : bins.dims) {
    Part part{offset, 0, 0, reached};
    part.first_dim = static_cast<std::int64_t>(target.first_from(static_cast<std::uint64_t>(offset)));
    part.end_dim = static_cast<std::int64_t>(target.end_before(static_cast<std::uint64_t>(offset + count)));
    reached = std::max(reached, part.end_dim);
    offset += count;
    parts.push_back(part);
  }
  return parts;
}

bool same_grid(const FeatureMap& map, const FeatureMap& first) {
  return map.height == first.height && map.width == first.width;
}

// The place that a layer is pooled to.
struct Target {
  float* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t first = 0;
  std::int64_t shared_dims = 0;
};

struct Job {
  const FeatureMap& map;
  std::int64_t batch;
  const Bins& bins;
  std::int64_t layer_bins;
  const Part& part;
  Target target;
  cudaStream_t stream;
};

int ceil_div(std::int64_t a, std::int64_t b) { return static_cast<int>((a + b - 1) / b); }

template <class Divide>
PoolLayout<Divide> layout_of(const Job& job) {
  using Index = typename Divide::Index;
  const FeatureMap& map = job.map;
  PoolLayout<Divide> layout;
  layout.batch = job.batch;
  layout.channels = static_cast<int>(map.channels);
  layout.height = static_cast<int>(map.height);
  layout.width = static_cast<int>(map.width);
  layout.patch = static_cast<int>(job.bins.patch);
  layout.radius = (layout.patch - 1) / 2;
  // Tiles of nearly equal size that fit a block: whole rows where they are short.
  layout.tiles_across = ceil_div(map.width, 32);
  layout.tile_cols = ceil_div(map.width, layout.tiles_across);
  const int most_rows = kPositions / layout.tile_cols;
  layout.tile_rows = ceil_div(map.height, ceil_div(map.height, most_rows));
  layout.pitch = layout.tile_cols + 2 * layout.radius;
  layout.bins = PoolingBins<Divide>(static_cast<Index>(map.channels * job.bins.window),
                                    static_cast<Index>(job.layer_bins));
  layout.target =
      PoolingBins<Divide>(static_cast<Index>(job.bins.total), static_cast<Index>(job.bins.target));
  layout.offset = static_cast<Index>(job.part.offset);
  layout.by_window = Divide(static_cast<Index>(job.bins.window));
  layout.by_patch = Divide(static_cast<Index>(layout.patch));
  layout.first_dim = static_cast<int>(job.part.first_dim);
  layout.end_dim = static_cast<int>(job.part.end_dim);
  layout.chunks = ceil_div(layout.end_dim - layout.first_dim, kDims);
  layout.shared_dims = static_cast<int>(job.target.shared_dims);
  layout.out_stride = job.target.stride;
  layout.out_first = static_cast<int>(job.target.first);
  return layout;
}

template <class Divide>
dim3 pool_grid(const PoolLayout<Divide>& layout) {
  const std::int64_t tiles = std::int64_t{layout.tiles_across} * ceil_div(layout.height, layout.tile_rows);
  const std::int64_t blocks = tiles * layout.chunks;
  if (blocks > kMaxGridX)
    throw ValueError("feature_maps are too large for a CUDA device, got a layer of " +
                     std::to_string(layout.height) + " x " + std::to_string(layout.width) + " positions");
  return {grid_size(blocks, 1), grid_size(layout.batch, 1, kMaxGridYZ)};
}

template <class T, bool kChannelsLast, bool kStaged, class Divide>
void launch_pool(const Job& job, const PoolLayout<Divide>& layout) {
  const int floats =
      layout.tile_rows * layout.tile_cols * kOutPitch + (kStaged ? layout.slab * layout.plane : 0);
  launch("pool_patches_kernel", pool_patches_kernel<T, kChannelsLast, kStaged, Divide>,
         {pool_grid(layout), kPoolThreads, static_cast<std::size_t>(floats) * sizeof(float), job.stream},
         static_cast<const T*>(job.map.data), job.target.data, layout);
}

// The most channels that any block reads, in whole packs.
int widest_span(const PoolLayout<FastDivide>& layout, int pack) {
  int widest = 1;
  for (int dim = layout.first_dim; dim < layout.end_dim; dim += kDims) {
    const ChannelRange range = channels_of(layout, dim, std::min(dim + kDims, layout.end_dim));
    widest = std::max(widest, ceil_div(range.end, pack) * pack - range.begin / pack * pack);
  }
  return widest;
}

// The most channels that an output dimension takes, by the number of taps that its bins make together.
std::int64_t most_slots(const Job& job) {
  const Bins& bins = job.bins;
  const std::int64_t inputs = job.map.channels * bins.window;
  const std::int64_t together = bins.total / bins.target + (bins.total % bins.target == 0 ? 0 : 2);
  const bool whole = inputs % job.layer_bins == 0 && inputs / job.layer_bins % bins.window == 0;
  if (whole) return std::min(together * inputs / job.layer_bins / bins.window, job.map.channels);
  const std::int64_t taps = together * inputs / job.layer_bins + 2;
  return std::min((taps + bins.window - 2) / bins.window + 1, job.map.channels);
}

// Tiles of as many rows as leave room for all channels that a block reads, if that is a few at least.
template <class T, bool kChannelsLast, int kWide>
void pool_windows(const Job& job, const PoolLayout<FastDivide>& common) {
  constexpr int kPack = kChannelsLast ? kWide : 1;
  constexpr int kFewestRows = 4;
  constexpr int kMostRows = 16;
  WindowLayout layout(common);
  layout.slots = static_cast<int>(most_slots(job));
  const int weights = layout.slots * layout.patch * layout.patch * kDims;
  const int room = kWindowFloats - weights - layout.beyond();
  const int span = widest_span(layout, kPack);
  const int fitting = std::clamp(room / span / layout.pitch - 2 * layout.radius, kFewestRows, kMostRows);
  layout.tile_rows = ceil_div(layout.height, ceil_div(layout.height, fitting));
  // Threads take pairs of rows.
  if (layout.tile_rows % kRunRows != 0 && layout.tile_rows < fitting) ++layout.tile_rows;
  layout.plane = ((layout.tile_rows + 2 * layout.radius) * layout.pitch) | 1;
  layout.slab = std::min({room / layout.plane / kPack * kPack, span, kMostStaged});
  layout.runs = ceil_div(layout.tile_cols, kRun);
  layout.run_cols = ceil_div(layout.tile_cols, layout.runs);
  layout.by_runs = FastDivide(static_cast<FastDivide::Index>(layout.runs));
  const int floats = weights + layout.slab * layout.plane + layout.beyond();
  launch("pool_windows_kernel", pool_windows_kernel<T, kChannelsLast, kWide>,
         {pool_grid(layout), kPoolThreads, static_cast<std::size_t>(floats) * sizeof(float), job.stream},
         static_cast<const T*>(job.map.data), job.target.data, layout);
}

template <class T, bool kChannelsLast>
void pool_as(const Job& job) {
  const FeatureMap& map = job.map;
  const std::int64_t limit = std::int64_t{1} << 31;
  const std::int64_t inputs = map.channels * job.bins.window;
  const bool fast = (job.layer_bins + 1) * inputs + job.layer_bins < limit &&
                    (inputs + 1) * job.layer_bins + inputs < limit &&
                    (job.bins.target + 1) * job.bins.total + job.bins.target < limit;
  if (!fast) return launch_pool<T, kChannelsLast, false>(job, layout_of<PlainDivide>(job));
  PoolLayout<FastDivide> layout = layout_of<FastDivide>(job);
  if ((layout.patch == 1 || layout.patch == 3) && most_slots(job) <= kMostSlots) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    const std::int64_t line = kChannelsLast ? map.channels : map.width;
    const int bytes = common_alignment(
        {reinterpret_cast<std::uintptr_t>(map.data), static_cast<std::uintptr_t>(line) * sizeof(T)});
    if constexpr (kChannelsLast) {
      if (bytes == 16) return pool_windows<T, true, kWide>(job, layout);
    } else {
      if (bytes >= 4 * static_cast<int>(sizeof(T))) return pool_windows<T, false, 4>(job, layout);
      if (bytes >= 2 * static_cast<int>(sizeof(T))) return pool_windows<T, false, 2>(job, layout);
    }
    return pool_windows<T, kChannelsLast, 1>(job, layout);
  }
  const std::int64_t plane = ((layout.tile_rows + 2 * std::int64_t{layout.radius}) * layout.pitch) | 1;
  if (plane > kSlabFloats)  // not even one channel fits
    return launch_pool<T, kChannelsLast, false>(job, layout);
  layout.plane = static_cast<int>(plane);
  layout.slab = std::min({kSlabFloats / layout.plane, widest_span(layout, 1), kMostStaged});
  launch_pool<T, kChannelsLast, true>(job, layout);
}

template <class T>
void pool(const Job& job) {
  job.map.channels_last ? pool_as<T, true>(job) : pool_as<T, false>(job);
}

void pool_any(const Job& job) {
  switch (job.map.dtype) {
    case DType::kFloat16:
      return pool<Float16>(job);
    case DType::kBFloat16:
      return pool<BFloat16>(job);
    default:
      return pool<float>(job);
  }
}

template <int kPack>
void resize(const float* pooled, const FeatureMap& map, const FeatureMap& first, std::int64_t batch,
            const Part& part, std::int64_t out_dims, float* output, cudaStream_t stream) {
  ResizeLayout layout;
  layout.batch = batch;
  layout.in_height = static_cast<int>(map.height);
  layout.in_width = static_cast<int>(map.width);
  layout.height = static_cast<int>(first.height);
  layout.width = static_cast<int>(first.width);
  layout.dims = static_cast<int>(part.end_dim - part.first_dim);
  layout.first_dim = static_cast<int>(part.first_dim);
  layout.shared_dims = static_cast<int>(part.shared_dims);
  layout.out_dims = out_dims;
  layout.runs = ceil_div(layout.width, kResizeRun);
  layout.chunks = ceil_div(layout.dims, kResizeThreads * kPack);
  const std::int64_t blocks = std::int64_t{layout.chunks} * layout.runs * layout.height;
  if (blocks > kMaxGridX)
    throw ValueError("feature_maps are too large for a CUDA device, got a first layer of " +
                     std::to_string(layout.height) + " x " + std::to_string(layout.width) + " positions");
  const dim3 grid(grid_size(blocks, 1), grid_size(batch, 1, kMaxGridYZ));
  launch("resize_patches_kernel", resize_patches_kernel<kPack>, {grid, kResizeThreads, 0, stream}, pooled,
         output, layout);
}

void check_extents(const std::vector<FeatureMap>& maps, const Bins& bins) {
  constexpr std::int64_t kMostDims = std::int64_t{1} << 30;
  if (bins.target >= kMostDims)
    throw ValueError("the result on a CUDA device must have below " + std::to_string(kMostDims) +
                     " dimensions, got " + std::to_string(bins.target));
  constexpr std::int64_t kLimit = std::int64_t{1} << 24;  // window and margins are added to this in 32 bits
  for (std::size_t l = 0; l < maps.size(); ++l) {
    if (maps[l].height < kLimit && maps[l].width < kLimit) continue;
    throw ValueError("feature_maps[" + std::to_string(l) + "] on a CUDA device must be below " +
                     std::to_string(kLimit) + " positions high and wide, got " +
                     std::to_string(maps[l].height) + " x " + std::to_string(maps[l].width));
  }
}

}  // namespace

std::size_t aggregate_patches_scratch(const PatchTask& task) {
  const std::vector<FeatureMap>& maps = task.maps;
  const std::vector<Part> parts = parts_of(Bins(maps, task.options));
  std::int64_t floats = 0;  // layers follow each other on one stream, so they share it
  for (std::size_t l = 0; l < maps.size(); ++l) {
    if (same_grid(maps[l], maps.front())) continue;
    const std::int64_t dims = parts[l].end_dim - parts[l].first_dim;
    floats = std::max(floats, task.batch * maps[l].height * maps[l].width * dims);
  }
  return static_cast<std::size_t>(floats) * sizeof(float);
}

void aggregate_patches(const PatchTask& task, const Work& work) {
  const std::vector<FeatureMap>& maps = task.maps;
  float* const output = task.output;
  const Bins bins(maps, task.options);
  check_extents(maps, bins);
  const DeviceScope scope(work.device.index);
  const std::vector<Part> parts = parts_of(bins);
  const cudaStream_t on = to_stream(work);
  for (std::size_t l = 0; l < maps.size(); ++l) {
    const Part& part = parts[l];
    if (same_grid(maps[l], maps.front())) {
      pool_any(
          {maps[l], task.batch, bins, bins.dims[l], part, {output, bins.target, 0, part.shared_dims}, on});
      continue;
    }
    float* const pooled = static_cast<float*>(work.scratch.data);
    const std::int64_t dims = part.end_dim - part.first_dim;
    pool_any({maps[l], task.batch, bins, bins.dims[l], part, {pooled, dims, part.first_dim, 0}, on});
    const bool packs = common_alignment({reinterpret_cast<std::uintptr_t>(output),
                                         static_cast<std::uintptr_t>(dims) * sizeof(float),
                                         static_cast<std::uintptr_t>(part.first_dim) * sizeof(float),
                                         static_cast<std::uintptr_t>(bins.target) * sizeof(float)}) == 16;
    const auto resize_packs = packs ? resize<4> : resize<1>;
    resize_packs(pooled, maps[l], maps.front(), task.batch, part, bins.target, output, on);
  }
}

}  // namespace ensemblead::cuda
