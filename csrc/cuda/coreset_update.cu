// The values of all rows after a round: products filter, distances decide.
//
// A squared distance as |x|^2 + |p|^2 - 2 x.p costs one fused multiply-add per dimension, and its rounding
// error is bounded by slack * (|x|^2 + |p|^2). So a tile of products tells which anchors can be nearest to a
// row and closer than its nearest so far: nearly always one or none. Their distances are then computed as
// sums of squared differences, and only those become values. The picks of the whole selection are therefore
// those of a loop that computes every distance, duplicates of a pick get exactly 0, and small integers are
// exact.
//
// At N rows and P anchors of 128 dimensions that is 2 * 128 * N * P operations: for N = 163,856 and P =
// 128 5.4 GFLOP, 0.15 ms at 35 TFLOP/s, against 84 MB to read, 0.02 ms at 4 TB/s. Few anchors take a narrower
// tile.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_kernels.hpp"
#include "cuda/coreset_tile.cuh"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

// Anchors per round at most: a bit for each of them and every row.
constexpr int kMostAnchors = 1024;
constexpr int kWords = kMostAnchors / 32;
// Room for (row, anchor) pairs in the memory of the tile.
constexpr int kListed = static_cast<int>(sizeof(TileMemory) / sizeof(std::uint32_t));

struct UpdateTask {
  CoresetRows rows;
  Workspace work;
  AnchorSource anchors;
  std::int64_t padded;
};

struct UpdateMemory {
  union {
    TileMemory tile;
    std::uint32_t listed[kListed];  // row << 16 | anchor
  };
  std::uint32_t possible[kTileRows][kWords + 1];  // anchors that may be nearest; a word more, for the banks
  std::uint32_t least[kTileRows];                 // bits of the row's value
  std::uint32_t bound[kTileRows];                 // bits of an upper bound of the new value
  float norm[kTileRows];                          // infinity where nothing can be nearer
  float anchor_low[kMostColumns];
  std::uint32_t num_listed;
};

__device__ __forceinline__ std::uint32_t* word_of(UpdateMemory& memory, int row, int anchor) {
  return &memory.possible[row][anchor / 32];
}

// Marks the anchors of a tile that may be nearest to a row: those whose distance may be computed to be at
// most the row's bound. The latter sinks to the most that the least distance can be. There the nearest
// anchor's norm is not at hand, but |p| <= |x| + d gives |p|^2 <= 1.25 |x|^2 + 5 d^2, and with it, from an
// error of 2 slack * (|x|^2 + |p|^2), the two factors (4.5 and 10, and a little for rounding).
template <int kWide>
__device__ __forceinline__ void mark_possible(const UpdateTask& task, UpdateMemory& memory,
                                              const TilePlace& place, int first, int count,
                                              float (&acc)[kRowsEach][kWide]) {
  const float slack = task.rows.slack;
  float least[kRowsEach];
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    least[i] = __uint_as_float(0x7f800000u);
    ENSEMBLEAD_UNROLL
    for (int j = 0; j < kWide; ++j) {
      acc[i][j] = __fmaf_rn(-2.0f, acc[i][j], memory.anchor_low[place.template column_of<kWide>(j)]);
      least[i] = fminf(least[i], acc[i][j]);
    }
  }
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    float low = least[i];
    for (int lanes = 4; lanes > 0; lanes /= 2) low = fminf(low, __shfl_xor_sync(kAllLanes, low, lanes));
    const int row = place.row_of(i);
    const float norm = memory.norm[row];
    const float high = (low + norm * (1.0f - slack) + 5.0f * slack * norm) * (1.0f + 16.0f * slack);
    if (place.column_lane == 0) atomicMin(&memory.bound[row], __float_as_uint(fmaxf(high, 0.0f)));
  }
  __syncthreads();
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    const int row = place.row_of(i);
    const float norm = memory.norm[row];
    const float limit = __uint_as_float(memory.bound[row]) * (1.0f + 2.0f * slack) - norm * (1.0f - slack);
    const bool all = !task.rows.filter && norm < __uint_as_float(0x7f800000u);
    if (!all && !(least[i] <= limit)) continue;
    ENSEMBLEAD_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const int anchor = first + place.template column_of<kWide>(j);
      if ((all || acc[i][j] <= limit) && anchor < count)
        atomicOr(word_of(memory, row, anchor), 1u << (anchor % 32));
    }
  }
}

// A row of the features, scaled and centred.
template <bool kVector>
struct CentredRow {
  const float* data;
  int dims;
  float scale;
  const float* centre;

  __device__ __forceinline__ float4 fetch(int k) const { return four_of_row<kVector>(data, k, dims); }
  __device__ __forceinline__ float4 finish(float4 values, int k) const {
    const float4 x = times(values, scale);
    const float4 c = *reinterpret_cast<const float4*>(centre + k);
    return make_float4(x.x - c.x, x.y - c.y, x.z - c.z, x.w - c.w);
  }
};

// An anchor is all of that already.
struct Anchor {
  const float* data;

  __device__ __forceinline__ float4 fetch(int k) const { return *reinterpret_cast<const float4*>(data + k); }
  __device__ __forceinline__ float4 finish(float4 values, int) const { return values; }
};

// A tile that reaches beyond the rows or the anchors repeats the last row or the first anchor, whose
// norm or least distance of infinity keeps them out.
template <int kWide, bool kVector>
__device__ __forceinline__ void filter_tile(const UpdateTask& task, UpdateMemory& memory,
                                            const TilePlace& place, std::int64_t first_row, int first,
                                            int count) {
  const int line = Brought().line;
  const std::int64_t last = task.rows.rows - 1;
  const std::int64_t row = first_row + line < last ? first_row + line : last;
  const int anchor = first + line;
  const bool has_anchor = line < 16 * kWide && anchor < count;
  const int candidate = has_anchor ? task.work.round_picks[anchor] : task.work.round_picks[0];
  if (threadIdx.x % 2 == 0 && line < 16 * kWide)
    memory.anchor_low[line] = has_anchor ? task.work.anchor_lows[candidate] : __uint_as_float(0x7f800000u);
  const CentredRow<kVector> rows{task.rows.data + row * task.rows.dims, static_cast<int>(task.rows.dims),
                                 task.rows.scale, task.work.centre};
  const Anchor columns{task.work.anchors + candidate * task.padded};
  float acc[kRowsEach][kWide];
  multiply_tile<kWide>(memory.tile, place, static_cast<int>(task.padded), rows, columns, acc);
  mark_possible<kWide>(task, memory, place, first, count, acc);
}

// Computes the distances of all pairs that were marked, spread evenly over the threads. The memory of the
// tile is free by now. Returns how many there were.
template <bool kVector>
__device__ unsigned settle(const UpdateTask& task, UpdateMemory& memory, std::int64_t first_row) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread % kTileRows;
  const int first_word = thread / kTileRows * (kWords / 2);
  unsigned settled = 0;
  for (bool more = true; more;) {
    if (thread == 0) memory.num_listed = 0;
    __syncthreads();
    bool room = true;
    for (int w = first_word; w < first_word + kWords / 2 && room; ++w) {
      std::uint32_t bits = memory.possible[row][w];
      while (bits != 0) {
        const std::uint32_t slot = atomicAdd(&memory.num_listed, 1u);
        if (slot >= static_cast<std::uint32_t>(kListed)) {
          room = false;
          break;
        }
        memory.listed[slot] = static_cast<std::uint32_t>(row) << 16 |
                              static_cast<std::uint32_t>(w * 32 + __ffs(static_cast<int>(bits)) - 1);
        bits &= bits - 1;
      }
      memory.possible[row][w] = bits;
    }
    __syncthreads();
    const std::uint32_t wanted = memory.num_listed;
    more = wanted > static_cast<std::uint32_t>(kListed);
    const std::uint32_t listed = more ? kListed : wanted;
    for (std::uint32_t slot = threadIdx.x; slot < listed; slot += kTileThreads) {
      const std::uint32_t pair = memory.listed[slot];
      const std::uint32_t near = pair >> 16;
      const std::int32_t candidate = task.work.round_picks[pair & 0xffffu];
      const float* const x = task.rows.data + (first_row + near) * task.rows.dims;
      const float* const p =
          task.anchors.source + std::int64_t{task.anchors.rows[candidate]} * task.rows.dims;
      const float distance =
          squared_distance<kVector>(x, p, static_cast<int>(task.rows.dims), task.rows.scale);
      atomicMin(&memory.least[near], __float_as_uint(distance));
    }
    settled += listed;
    __syncthreads();
  }
  return settled;
}

template <bool kVector>
__global__ void __launch_bounds__(kTileThreads, 2) update_kernel(UpdateTask task) {
  __shared__ __align__(16) UpdateMemory memory;
  SelectionState& state = *task.work.state;
  const int count = state.round_picks;
  if (state.finished != 0 || count == 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kTileRows;
  const std::int64_t own = first_row + thread;
  const bool owner = thread < kTileRows && own < task.rows.rows;
  std::uint32_t before = 0;
  if (thread < kTileRows) {
    before = owner ? __float_as_uint(task.work.values[own]) : 0u;
    memory.least[thread] = before;
    memory.bound[thread] = before;
    // Nothing is nearer than 0.
    memory.norm[thread] = before != 0u ? task.work.norms[own] : __uint_as_float(0x7f800000u);
  }
  for (int i = thread; i < kTileRows * (kWords + 1); i += kTileThreads) (&memory.possible[0][0])[i] = 0u;

  const TilePlace place;
  for (int first = 0; first < count;) {
    const int left = count - first;
    if (left > 64) {
      filter_tile<8, kVector>(task, memory, place, first_row, first, count);
      first += 128;
    } else if (left > 32) {
      filter_tile<4, kVector>(task, memory, place, first_row, first, count);
      first += 64;
    } else {
      filter_tile<2, kVector>(task, memory, place, first_row, first, count);
      first += 32;
    }
  }
  __syncthreads();
  const unsigned settled = settle<kVector>(task, memory, first_row);

  const std::uint32_t after = thread < kTileRows ? memory.least[thread] : 0u;
  if (owner && after != before) task.work.values[own] = __uint_as_float(after);
  const std::uint32_t top = warp_max(after);
  if (thread % kWarp == 0 && top != 0u) atomicMax(&state.top, top);
  if (thread == 0) {
    atomicAdd(&state.direct_pairs, static_cast<unsigned long long>(settled));
    if (blockIdx.x == 0)
      atomicAdd(&state.product_pairs,
                static_cast<unsigned long long>(task.rows.rows) * static_cast<unsigned long long>(count));
  }
}

}  // namespace

void update_values(const CoresetRows& rows, const Workspace& work, const AnchorSource& anchors) {
  const UpdateTask task{rows, work, anchors, padded_dims(rows.dims)};
  const auto kernel = rows.vector && anchors.vector ? update_kernel<true> : update_kernel<false>;
  const LaunchShape shape{dim3(grid_size(rows.rows, kTileRows)), dim3(kTileThreads), 0, rows.stream};
  launch("update_kernel", kernel, shape, task);
}

}  // namespace ensemblead::cuda
