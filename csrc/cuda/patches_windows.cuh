// Pooling of one layer at its own resolution where windows are small and every output dimension takes few
// channels, as with the usual networks and dimensions. Faster than patches_pool.cuh, which takes any window.
//
// A lane has an output dimension of its own and walks along rows, so that results go to memory as they come,
// values serve all the windows that they lie in, and a dimension's weights are found once per block.
#pragma once

#include "cuda/patches_pool.cuh"

namespace ensemblead::cuda {

// Positions that a thread sums at once: so many neighbours in each of two rows.
constexpr int kRun = 8;
constexpr int kRunRows = 2;
// Channels of one output dimension at most; layers with more go through patches_pool.cuh.
constexpr int kMostSlots = 8;
// Floats of shared memory for weights and slab: the most that a kernel gets without asking.
constexpr int kWindowFloats = 11 * 1024 + 768;
// Blocks that a multiprocessor is to hold. With sm_120 its shared memory has room for two in the usual case,
// and for the registers of three the compiler would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define ENSEMBLEAD_WINDOW_BLOCKS 2
#else
#define ENSEMBLEAD_WINDOW_BLOCKS 3
#endif

// Slot s of an output dimension is the s-th channel that it takes.
struct WindowLayout : PoolLayout<FastDivide> {
  explicit WindowLayout(const PoolLayout<FastDivide>& layout) : PoolLayout<FastDivide>(layout) {}

  int slots = 1;     // at most, of any dimension
  int run_cols = 1;  // positions of a run, at most kRun
  int runs = 1;      // per two rows of a tile
  FastDivide by_runs;

  // Floats that a run may read behind the last plane: a row that the tile does not have, and columns.
  ENSEMBLEAD_HD int beyond() const { return pitch + kRun; }
};

// The weights of every tap of one dimension's channels: weights[(slot * window + tap) * kDims +
// lane]. In `partial`, zeros at first, the bits of slots with dimensions that do not take the whole window.
__device__ inline void find_weights(const WindowLayout& layout, int dim, const ChannelRange& channels,
                                    float* weights, unsigned* partial) {
  using Index = FastDivide::Index;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int window = layout.patch * layout.patch;
  const DimBins<FastDivide> own(layout, static_cast<Index>(dim));
  for (int slot = static_cast<int>(threadIdx.x) / 32; slot < layout.slots; slot += kPoolWarps) {
    const int channel = channels.begin + slot;
    float* const row = weights + slot * window * kDims + lane;
    for (int tap = 0; tap < window; ++tap) row[tap * kDims] = 0.0f;
    bool missing = false;
    if (channel < channels.end) {
      const Index first_tap = static_cast<Index>(channel * window);
      const Index first = layout.bins.first_from(first_tap);
      const Index end = layout.bins.end_before(first_tap + static_cast<Index>(window));
      for (Index i = max(own.begin, first); i < min(own.end, end); ++i) {
        const Index begin_tap = layout.bins.begin(i);
        const Index end_tap = layout.bins.end(i);
        const float weight = 1.0f / (static_cast<float>(own.count) * static_cast<float>(end_tap - begin_tap));
        const Index last = min(end_tap, first_tap + static_cast<Index>(window));
        for (Index tap = max(begin_tap, first_tap); tap < last; ++tap)
          row[static_cast<int>(tap - first_tap) * kDims] += weight;
      }
      for (int tap = 0; tap < window; ++tap) missing |= row[tap * kDims] == 0.0f;
    }
    if (missing) atomicOr(partial, 1u << slot);
  }
}

// A tap that a dimension does not take must not bring it a NaN or an infinity, so with kPartial no weight of
// 0 is multiplied by.
template <int kPatch, bool kPartial>
__device__ __forceinline__ void add_windows(const float* from, int pitch, const float* weights,
                                            float (&sums)[kRunRows][kRun]) {
#pragma unroll
  for (int line = 0; line < kRunRows + kPatch - 1; ++line) {
    float values[kRun + kPatch - 1];
#pragma unroll
    for (int k = 0; k < kRun + kPatch - 1; ++k) values[k] = from[line * pitch + k];
#pragma unroll
    for (int row = 0; row < kRunRows; ++row) {
      const int ky = line - row;
      if (ky < 0 || ky >= kPatch) continue;
#pragma unroll
      for (int kx = 0; kx < kPatch; ++kx) {
        const float weight = weights[(ky * kPatch + kx) * kDims];
        if (kPartial && weight == 0.0f) continue;
#pragma unroll
        for (int k = 0; k < kRun; ++k) sums[row][k] = __fmaf_rn(weight, values[k + kx], sums[row][k]);
      }
    }
  }
}

// Adds the share of the channels in the slab, [channel, channel + count), to this lane's dimension, whose
// channels are `own`. `to` is the place of that dimension at the block's first position. It may hold the
// share of an earlier slab or layer, which only this thread has written.
template <int kPatch>
__device__ __forceinline__ void sum_windows(const WindowLayout& layout, const PoolBlock& block,
                                            const ChannelRange& own, int channel, int count, bool shared,
                                            const float* staged, const float* weights, unsigned partial,
                                            float* to) {
  const int first = max(own.begin, channel);
  const int end = min(own.end, channel + count);
  const bool add = own.begin < channel || shared;
  const int stride = static_cast<int>(layout.out_stride);
  const int tasks = (block.rows + kRunRows - 1) / kRunRows * layout.runs;
  for (int task = static_cast<int>(threadIdx.x) / 32; task < tasks; task += kPoolWarps) {
    const int pair = static_cast<int>(layout.by_runs(static_cast<FastDivide::Index>(task)));
    const int y = pair * kRunRows;
    const int x = (task - pair * layout.runs) * layout.run_cols;
    // A lane without channels here goes through the motions, which keeps its warp together.
    const int cols = first < end ? min(layout.run_cols, block.cols - x) : 0;
    const int rows = block.rows - y;
    float* run = to + static_cast<std::int64_t>(y * layout.width + x) * stride;
    const std::int64_t down = static_cast<std::int64_t>(layout.width) * stride;
    float sums[kRunRows][kRun] = {};
    if (add) {
#pragma unroll
      for (int row = 0; row < kRunRows; ++row) {
        const float* before = run + row * down;
#pragma unroll
        for (int k = 0; k < kRun; ++k, before += stride)
          if (k < cols && row < rows) sums[row][k] = *before;
      }
    }
#pragma unroll 1
    for (int at = first; at < end; ++at) {
      const float* const from = staged + (at - channel) * layout.plane + y * layout.pitch + x;
      const int slot = at - own.begin;
      const float* const slot_weights = weights + slot * kPatch * kPatch * kDims + threadIdx.x % 32;
      if ((partial >> slot & 1u) != 0u) {
        add_windows<kPatch, true>(from, layout.pitch, slot_weights, sums);
      } else {
        add_windows<kPatch, false>(from, layout.pitch, slot_weights, sums);
      }
    }
#pragma unroll
    for (int row = 0; row < kRunRows; ++row) {
      float* target = run + row * down;
#pragma unroll
      for (int k = 0; k < kRun; ++k, target += stride)
        if (k < cols && row < rows) *target = sums[row][k];
    }
  }
}

template <class T, bool kChannelsLast, int kWide>
__global__ void __launch_bounds__(kPoolThreads, ENSEMBLEAD_WINDOW_BLOCKS)
    pool_windows_kernel(const T* __restrict__ map, float* __restrict__ out, const WindowLayout layout) {
  __shared__ unsigned partial_slots;
  float* const weights = dynamic_shared<float>();
  float* const staged = weights + layout.slots * layout.patch * layout.patch * kDims;
  const int thread = static_cast<int>(threadIdx.x);
  const PoolBlock block = pool_block(layout);
  const int dim = block.first_dim + thread % 32;
  ChannelRange own{0, 0};
  if (dim < block.end_dim) own = channels_of(layout, dim, dim + 1);
  if (thread == 0) partial_slots = 0;
  // Places outside the map are 0 for every image.
  for (int n = thread; n < layout.slab * layout.plane + layout.beyond(); n += kPoolThreads) staged[n] = 0.0f;
  __syncthreads();
  find_weights(layout, dim, own, weights, &partial_slots);
  __syncthreads();
  const unsigned partial = partial_slots;
  ChannelRange channels = channels_of(layout, block.first_dim, block.end_dim);
  if (kChannelsLast) {  // whole packs of channels
    channels.begin = channels.begin / kWide * kWide;
    channels.end = (channels.end + kWide - 1) / kWide * kWide;
  }
  for (std::int64_t image = blockIdx.y; image < layout.batch; image += gridDim.y) {
    const std::int64_t corner = (image * layout.height + block.y0) * layout.width + block.x0;
    float* const to = out + corner * layout.out_stride + dim - layout.out_first;
    for (int channel = channels.begin; channel < channels.end; channel += layout.slab) {
      const int count = min(layout.slab, channels.end - channel);
      stage<T, kChannelsLast, kWide>(map, layout, block, image, channel, count, staged);
      __syncthreads();
      const bool shared = dim < layout.shared_dims;
      if (layout.patch == 3) {
        sum_windows<3>(layout, block, own, channel, count, shared, staged, weights, partial, to);
      } else {
        sum_windows<1>(layout, block, own, channel, count, shared, staged, weights, partial, to);
      }
      __syncthreads();  // before the next slab
    }
  }
}

}  // namespace ensemblead::cuda
