// Pooling one layer at its own resolution: windows and channels to output dimensions, by the bins of
// core/patch_taps.hpp in closed form, so that no list of taps has to reach the device.
#pragma once

#include <cstdint>

#include "core/patch_taps.hpp"
#include "cuda/convert.cuh"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {

// A block pools kDims output dimensions for a rectangle of at most kPositions positions. Every warp has its
// own dimensions; its lanes share out the positions, so that taps are the same for all lanes.
constexpr int kPoolWarps = 8;
constexpr int kPoolThreads = 32 * kPoolWarps;
constexpr int kDims = 32;
constexpr int kPositions = 128;
constexpr int kPositionsPerLane = kPositions / 32;
constexpr int kOutPitch = kDims + 1;
constexpr int kMostStaged = kPoolThreads;

template <class Divide>
struct PoolLayout {
  using Index = typename Divide::Index;

  std::int64_t batch = 0;
  int channels = 0;
  int height = 0;
  int width = 0;
  int patch = 1;
  int radius = 0;
  int tile_rows = 1;  // of positions, one tile per block
  int tile_cols = 1;
  int tiles_across = 1;
  int slab = 1;   // channels that are in shared memory at a time
  int pitch = 0;  // of a row there
  int plane = 0;  // of a channel there; odd
  // The layer's bins, those of the concatenated layers, and where the layer begins among the latter's inputs.
  PoolingBins<Divide> bins;
  PoolingBins<Divide> target;
  Index offset = 0;
  Divide by_window;
  Divide by_patch;
  // The output dimensions that the layer has a part in; those before `shared_dims` were written by earlier
  // layers.
  int first_dim = 0;
  int end_dim = 0;
  int shared_dims = 0;
  int chunks = 1;
  // Dimension d of a position goes to out[position * out_stride + d - out_first].
  std::int64_t out_stride = 0;
  int out_first = 0;
};

// The rectangle of positions and the part of the output that a block has.
struct PoolBlock {
  int y0;
  int x0;
  int rows;
  int cols;
  int first_dim;
  int end_dim;
};

// The bins of the layer, among its own, that make output dimension d.
template <class Divide>
struct DimBins {
  using Index = typename Divide::Index;

  ENSEMBLEAD_HD DimBins(const PoolLayout<Divide>& layout, Index dim) {
    const Index all_begin = layout.target.begin(dim);
    const Index all_end = layout.target.end(dim);
    const Index layer_end = layout.offset + layout.bins.bins;
    begin = (all_begin > layout.offset ? all_begin : layout.offset) - layout.offset;
    end = (all_end < layer_end ? all_end : layer_end) - layout.offset;
    count = all_end - all_begin;
  }

  Index begin;
  Index end;
  Index count;  // over all layers
};

// The channels that output dimensions [first, end) read, as a range.
struct ChannelRange {
  int begin;
  int end;
};

template <class Divide>
ENSEMBLEAD_HD inline ChannelRange channels_of(const PoolLayout<Divide>& layout, int first, int end) {
  using Index = typename Divide::Index;
  const DimBins<Divide> low(layout, static_cast<Index>(first));
  const DimBins<Divide> high(layout, static_cast<Index>(end - 1));
  return {static_cast<int>(layout.by_window(layout.bins.begin(low.begin))),
          static_cast<int>(layout.by_window(layout.bins.end(high.end - 1) - 1)) + 1};
}

// --- reading the map ---

// Channels [channel, channel + count) of the block's rectangle and its margin into shared memory. Places
// outside the map were set to 0 before and are not touched. kWide values are read at once, along x or along
// the channels; of the latter there are at most kMostStaged.
template <class T, bool kChannelsLast, int kWide, class Divide>
__device__ __forceinline__ void stage(const T* __restrict__ map, const PoolLayout<Divide>& layout,
                                      const PoolBlock& block, std::int64_t image, int channel, int count,
                                      float* slab) {
  const int top = block.y0 - layout.radius;
  const int left = block.x0 - layout.radius;
  const int y_begin = max(top, 0);
  const int rows = min(block.y0 + block.rows + layout.radius, layout.height) - y_begin;
  const int x_end = min(block.x0 + block.cols + layout.radius, layout.width);
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kChannelsLast) {
    const int x_begin = max(left, 0);
    const int cols = x_end - x_begin;
    const int packs = count / kWide;
    // Threads side by side read packs side by side, a power of two of them.
    const int shift = 32 - __clz(packs - 1);
    const int step = kPoolThreads >> shift;
    const int own = thread & ((1 << shift) - 1);
    if (own >= packs) return;
    int row = (thread >> shift) / cols;
    int col = (thread >> shift) - row * cols;
    const int row_step = step / cols;
    const int col_step = step - row_step * cols;
    const T* const from = map +
                          ((image * layout.height + y_begin) * layout.width + x_begin) * layout.channels +
                          channel + own * kWide;
    float* const to = slab + own * kWide * layout.plane + (y_begin - top) * layout.pitch + x_begin - left;
    constexpr int kAtOnce = 4;  // all loads before the first store
    const int positions = cols * rows;
    for (int position = thread >> shift; position < positions; position += kAtOnce * step) {
      Pack<T, kWide> loaded[kAtOnce];
      int targets[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (position + n * step < positions)
          loaded[n] = Pack<T, kWide>::load(from + (static_cast<std::int64_t>(row) * layout.width + col) *
                                                      layout.channels);
        targets[n] = row * layout.pitch + col;
        row += row_step;
        col += col_step;
        if (col >= cols) col -= cols, ++row;
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (position + n * step >= positions) continue;
#pragma unroll
        for (int v = 0; v < kWide; ++v) to[targets[n] + v * layout.plane] = widen(loaded[n].values[v]);
      }
    }
  } else {
    // A warp to a channel: where its lanes read and write is the same in all of them.
    const int x_begin = max(left, 0) / kWide * kWide;
    const int packs = (x_end - x_begin + kWide - 1) / kWide;
    const std::int64_t plane = static_cast<std::int64_t>(layout.height) * layout.width;
    for (int n = thread % 32; n < packs * rows; n += 32) {
      const int row = n / packs;
      const int x = x_begin + (n - row * packs) * kWide;
      const T* from = map + (image * layout.channels + channel + thread / 32) * plane +
                      static_cast<std::int64_t>(y_begin + row) * layout.width + x;
      float* to = slab + thread / 32 * layout.plane + (y_begin + row - top) * layout.pitch + x - left;
#pragma unroll 4
      for (int c = thread / 32; c < count; c += kPoolWarps) {
        const auto pack = Pack<T, kWide>::load(from);
#pragma unroll
        for (int v = 0; v < kWide; ++v)
          if (x + v >= left && x + v < x_end) to[v] = widen(pack.values[v]);
        from += kPoolWarps * plane;
        to += kPoolWarps * layout.plane;
      }
    }
  }
}

// A tap of the block's positions: from shared memory, or from the map where a window is too large for that.
template <class T, bool kChannelsLast, bool kStaged, class Divide>
class Taps {
 public:
  __device__ Taps(const T* map, const PoolLayout<Divide>& layout, const PoolBlock& block, std::int64_t image,
                  const float* slab)
      : map_(map), layout_(layout), block_(block), image_(image), slab_(slab) {}

  // `channel` counts from the slab's first where the slab is staged.
  __device__ __forceinline__ float at(int channel, int ky, int kx, int y, int x) const {
    if constexpr (kStaged) {
      return slab_[channel * layout_.plane + (y + ky) * layout_.pitch + x + kx];
    } else {
      const int row = block_.y0 + y + ky - layout_.radius;
      const int col = block_.x0 + x + kx - layout_.radius;
      if (row < 0 || row >= layout_.height || col < 0 || col >= layout_.width) return 0.0f;
      const std::int64_t at =
          kChannelsLast
              ? ((image_ * layout_.height + row) * layout_.width + col) * layout_.channels + channel
              : ((image_ * layout_.channels + channel) * layout_.height + row) * layout_.width + col;
      return widen(Pack<T, 1>::load(map_ + at).values[0]);
    }
  }

 private:
  const T* map_;
  const PoolLayout<Divide>& layout_;
  const PoolBlock& block_;
  std::int64_t image_;
  const float* slab_;
};

// Puts the share of channels [channel, channel + count) in one output dimension into `sums`.
template <class TapsType, class Divide>
__device__ __forceinline__ void sum_taps(const TapsType& taps, const PoolLayout<Divide>& layout, int dim,
                                         int channel, int count, int first_tap_channel,
                                         const int (&y)[kPositionsPerLane], const int (&x)[kPositionsPerLane],
                                         float (&sums)[kPositionsPerLane]) {
  using Index = typename Divide::Index;
  const Index window = static_cast<Index>(layout.patch) * static_cast<Index>(layout.patch);
  const Index from = static_cast<Index>(channel) * window;
  const Index to = static_cast<Index>(channel + count) * window;
  const DimBins<Divide> own(layout, static_cast<Index>(dim));
  const Index first = layout.bins.first_from(from);
  const Index end = layout.bins.end_before(to);
#pragma unroll
  for (int q = 0; q < kPositionsPerLane; ++q) sums[q] = 0.0f;
#pragma unroll 1
  for (Index i = own.begin > first ? own.begin : first; i < own.end && i < end; ++i) {
    Index tap = layout.bins.begin(i);
    Index last = layout.bins.end(i);
    const float weight = 1.0f / (static_cast<float>(own.count) * static_cast<float>(last - tap));
    tap = tap > from ? tap : from;
    last = last < to ? last : to;
    Index at = layout.by_window(tap);
    const Index rest = tap - at * window;
    int ky = static_cast<int>(layout.by_patch(rest));
    int kx = static_cast<int>(rest) - ky * layout.patch;
    int tap_channel = static_cast<int>(at) - first_tap_channel;
    // Row by row of the window, so that the error of a long bin's sum stays small.
    while (tap < last) {
      const Index row_end = tap + static_cast<Index>(layout.patch - kx);
      const Index stop = row_end < last ? row_end : last;
      float part[kPositionsPerLane] = {};
#pragma unroll 1
      for (; tap < stop; ++tap, ++kx) {
#pragma unroll
        for (int q = 0; q < kPositionsPerLane; ++q) part[q] += taps.at(tap_channel, ky, kx, y[q], x[q]);
      }
#pragma unroll
      for (int q = 0; q < kPositionsPerLane; ++q) sums[q] += weight * part[q];
      kx = 0;
      if (++ky < layout.patch) continue;
      ky = 0;
      ++tap_channel;
    }
  }
}

// --- the kernel ---

template <class Divide>
__device__ PoolBlock pool_block(const PoolLayout<Divide>& layout) {
  const int chunk = static_cast<int>(blockIdx.x) % layout.chunks;
  const int tile = static_cast<int>(blockIdx.x) / layout.chunks;
  PoolBlock block;
  block.y0 = tile / layout.tiles_across * layout.tile_rows;
  block.x0 = tile % layout.tiles_across * layout.tile_cols;
  block.rows = min(layout.tile_rows, layout.height - block.y0);
  block.cols = min(layout.tile_cols, layout.width - block.x0);
  block.first_dim = layout.first_dim + chunk * kDims;
  block.end_dim = min(block.first_dim + kDims, layout.end_dim);
  return block;
}

// Copies `tile` ([positions][kOutPitch]) to the output: neighbouring lanes have neighbouring dimensions.
template <class Divide>
__device__ void write_out(const float* tile, const PoolLayout<Divide>& layout, const PoolBlock& block,
                          std::int64_t image, float* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int dim = block.first_dim + lane;
  if (dim >= block.end_dim) return;
  for (int n = static_cast<int>(threadIdx.x) / 32; n < block.rows * block.cols; n += kPoolWarps) {
    const int row = n / block.cols;
    const std::int64_t position =
        (image * layout.height + block.y0 + row) * layout.width + block.x0 + n - row * block.cols;
    float* const to = out + position * layout.out_stride + dim - layout.out_first;
    const float value = tile[n * kOutPitch + lane];
    *to = dim < layout.shared_dims ? *to + value : value;
  }
}

template <class T, bool kChannelsLast, bool kStaged, class Divide>
__global__ void __launch_bounds__(kPoolThreads, 3)
    pool_patches_kernel(const T* __restrict__ map, float* __restrict__ out, const PoolLayout<Divide> layout) {
  // The results, [positions][kOutPitch], and then the slab.
  float* const results = dynamic_shared<float>();
  float* const staged = results + layout.tile_rows * layout.tile_cols * kOutPitch;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const PoolBlock block = pool_block(layout);
  const int positions = block.rows * block.cols;
  int y[kPositionsPerLane];
  int x[kPositionsPerLane];
#pragma unroll
  for (int q = 0; q < kPositionsPerLane; ++q) {
    const int n = min(lane + 32 * q, positions - 1);  // lanes without a position repeat the last one
    y[q] = n / block.cols;
    x[q] = n - y[q] * block.cols;
  }
  const ChannelRange channels = channels_of(layout, block.first_dim, block.end_dim);
  const int slab = kStaged ? layout.slab : channels.end - channels.begin;

  for (std::int64_t image = blockIdx.y; image < layout.batch; image += gridDim.y) {
    if constexpr (kStaged) {
      for (int n = thread; n < layout.slab * layout.plane; n += kPoolThreads) staged[n] = 0.0f;
    }
    for (int channel = channels.begin; channel < channels.end; channel += slab) {
      const int count = min(slab, channels.end - channel);
      if constexpr (kStaged) {
        __syncthreads();
        stage<T, kChannelsLast, 1>(map, layout, block, image, channel, count, staged);
        __syncthreads();
      }
      const Taps<T, kChannelsLast, kStaged, Divide> taps(map, layout, block, image, staged);
#pragma unroll 1
      for (int own = warp; block.first_dim + own < block.end_dim && own < kDims; own += kPoolWarps) {
        float sums[kPositionsPerLane];
        sum_taps(taps, layout, block.first_dim + own, channel, count, kStaged ? channel : 0, y, x, sums);
#pragma unroll
        for (int q = 0; q < kPositionsPerLane; ++q) {
          if (lane + 32 * q >= positions) continue;
          float* const result = results + (lane + 32 * q) * kOutPitch + own;  // this thread's alone
          *result = channel == channels.begin ? sums[q] : *result + sums[q];
        }
      }
    }
    __syncthreads();
    write_out(results, layout, block, image, out);
    __syncthreads();  // before the next image's results
  }
}

}  // namespace ensemblead::cuda
