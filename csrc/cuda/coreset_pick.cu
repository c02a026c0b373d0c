// The picks of a round: the greedy rule among the candidates, one block, without the host.
//
// All squared distances between candidates are there beforehand, so a pick costs one row of that matrix from
// the second-level cache and one maximum over the registers of a block: about 0.4 us, in one barrier.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_device.cuh"
#include "cuda/coreset_kernels.hpp"
#include "cuda/coreset_tile.cuh"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// --- distances between candidates ---

constexpr int kSide = 64;  // candidates along a tile
constexpr int kDeep = 16;  // dimensions at a time
constexpr int kEach = 4;   // by kEach pairs per thread

// Tiles on and above the diagonal; those above are written twice, for the distances are symmetric to the bit.
template <bool kVector>
__global__ void __launch_bounds__(kThreads) distances_kernel(CoresetRows rows, Workspace work) {
  __shared__ __align__(16) float left[kDeep][kSide + 4];
  __shared__ __align__(16) float right[kDeep][kSide + 4];
  const SelectionState& state = *work.state;
  const int found = state.found;
  const int first_left = static_cast<int>(blockIdx.y) * kSide;
  const int first_right = static_cast<int>(blockIdx.x) * kSide;
  if (state.finished != 0 || first_left > first_right || first_right >= found) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int bring = thread / 4;
  const int offset = thread % 4 * 4;
  const auto row_of = [&](int candidate) -> const float* {
    return candidate < found ? rows.data + std::int64_t{work.candidate_rows[candidate]} * rows.dims : nullptr;
  };
  const float* const left_row = row_of(first_left + bring);
  const float* const right_row = row_of(first_right + bring);
  const int x = thread % 16 * kEach;
  const int y = thread / 16 * kEach;
  float acc[kEach][kEach] = {};
  const int dims = static_cast<int>(rows.dims);
  for (int first = 0; first < dims; first += kDeep) {
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 b = a;
    if (left_row != nullptr) a = times(four_of_row<kVector>(left_row, first + offset, dims), rows.scale);
    if (right_row != nullptr) b = times(four_of_row<kVector>(right_row, first + offset, dims), rows.scale);
    __syncthreads();
    left[offset][bring] = a.x, left[offset + 1][bring] = a.y;
    left[offset + 2][bring] = a.z, left[offset + 3][bring] = a.w;
    right[offset][bring] = b.x, right[offset + 1][bring] = b.y;
    right[offset + 2][bring] = b.z, right[offset + 3][bring] = b.w;
    __syncthreads();
    ENSEMBLEAD_UNROLL
    for (int k = 0; k < kDeep; ++k) {
      const float4 p = *reinterpret_cast<const float4*>(&left[k][y]);
      const float4 q = *reinterpret_cast<const float4*>(&right[k][x]);
      const float ps[kEach] = {p.x, p.y, p.z, p.w};
      const float qs[kEach] = {q.x, q.y, q.z, q.w};
      ENSEMBLEAD_UNROLL
      for (int i = 0; i < kEach; ++i) {
        ENSEMBLEAD_UNROLL
        for (int j = 0; j < kEach; ++j) acc[i][j] = add_squared_difference(acc[i][j], ps[i], qs[j]);
      }
    }
  }
  const std::int64_t stride = rows.capacity;
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kEach; ++i) {
    *reinterpret_cast<float4*>(work.distances + (first_left + y + i) * stride + first_right + x) =
        make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    if (first_left == first_right) continue;
    *reinterpret_cast<float4*>(work.distances + (first_right + x + i) * stride + first_left + y) =
        make_float4(acc[0][i], acc[1][i], acc[2][i], acc[3][i]);
  }
}

// --- picks ---

struct PickTask {
  Workspace work;
  std::int64_t* picks;  // of the whole selection
  std::int64_t size;
  int most;      // in this round
  float radius;  // squared
};

// The state from which the next round starts.
__device__ void finish_round(const PickTask& task, SelectionState& state, std::int64_t made, int count,
                             bool complete) {
  state.made = made;
  state.round_picks = count;
  state.finished = complete || made >= task.size ? 1 : 0;
  state.found = 0;
  state.top = 0;
  state.search.done = 0;
  ++state.blocks;
}

// kHeld values from a multiple of kHeld floats on, in as few reads as possible, past the first-level cache:
// no row is read twice.
template <int kHeld>
__device__ __forceinline__ void load_bits(const float* from, std::uint32_t (&bits)[kHeld]) {
  if (kHeld == 1) {
    bits[0] = __float_as_uint(__ldcg(from));
  } else if (kHeld == 2) {
    const float2 two = __ldcg(reinterpret_cast<const float2*>(from));
    bits[0] = __float_as_uint(two.x), bits[kHeld - 1] = __float_as_uint(two.y);
  } else {
    ENSEMBLEAD_UNROLL
    for (int i = 0; i + 3 < kHeld; i += 4) {
      const float4 four = __ldcg(reinterpret_cast<const float4*>(from + i));
      bits[i] = __float_as_uint(four.x), bits[i + 1] = __float_as_uint(four.y);
      bits[i + 2] = __float_as_uint(four.z), bits[i + 3] = __float_as_uint(four.w);
    }
  }
}

// The sum over the block, for every thread; with the barriers that the caller needs anyway.
__device__ __forceinline__ int count_in_block(int mine) {
  __shared__ int of_warp[kWarps];
  mine = warp_sum(mine);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = mine;
  __syncthreads();
  int total = 0;
  for (int w = 0; w < kWarps; ++w) total += of_warp[w];
  return total;
}

// Thread t holds candidates t * kHeld on, in the order of their rows, so that the lowest place is the lowest
// row.
template <int kHeld>
__global__ void __launch_bounds__(kThreads) pick_kernel(PickTask task) {
  constexpr int kCapacity = kThreads * kHeld;
  __shared__ PickKey best_of_warp[2][kWarps];
  __shared__ std::int32_t rows[kCapacity];
  const Workspace& work = task.work;
  SelectionState& state = *work.state;
  if (state.finished != 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int found = state.found;
  const PickKey threshold = state.search.threshold;
  const std::int64_t made = state.made;
  const std::int64_t left = task.size - made;
  const int most = left < task.most ? static_cast<int>(left) : task.most;
  std::uint32_t values[kHeld];
  int below = 0;
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int place = thread * kHeld + i;
    // Those that are not there have value 0 and come last.
    values[i] = place < found ? work.candidate_bits[place] : 0u;
    rows[place] = place < found ? work.candidate_rows[place] : 0x7fffffff;
    if (place < found && ~static_cast<std::uint32_t>(rows[place]) >= static_cast<std::uint32_t>(threshold))
      ++below;
  }
  // The least key to go on with, of places instead of rows: one comparison stands between a pick and the next
  // read.
  below = count_in_block(below);
  const auto value_floor = static_cast<std::uint32_t>(threshold >> 32);
  const PickKey in_places = pick_key(value_floor, static_cast<std::uint32_t>(below)) + 1;
  const std::uint32_t within = task.radius < 0.0f ? 0u : __float_as_uint(task.radius);
  const PickKey beyond_radius = (PickKey{within} + 1) << 32;
  const PickKey least = in_places > beyond_radius ? in_places : beyond_radius;

  int count = 0;
  bool complete = false;
  bool zero = false;
  for (; count < most; ++count) {
    std::uint32_t value = values[0];
    std::uint32_t place = static_cast<std::uint32_t>(thread * kHeld);
    ENSEMBLEAD_UNROLL
    for (int i = 1; i < kHeld; ++i) {
      if (values[i] <= value) continue;
      value = values[i];
      place = static_cast<std::uint32_t>(thread * kHeld + i);
    }
    std::uint32_t largest = warp_max(value);
    std::uint32_t first = warp_min(value == largest ? place : ~0u);
    // Two sets of slots in turn: one is written while stragglers read the other, so one barrier is enough.
    if (lane == 0) best_of_warp[count % 2][thread / kWarp] = pick_key(largest, first);
    __syncthreads();
    const PickKey key = best_of_warp[count % 2][lane % kWarps];
    value = static_cast<std::uint32_t>(key >> 32);
    largest = warp_max(value);
    first = warp_min(value == largest ? ~static_cast<std::uint32_t>(key) : ~0u);

    const PickKey best = pick_key(largest, first);
    if (best < least) {
      // Below the threshold another row may come first, and the next round has the word.
      complete = best >= in_places && __uint_as_float(largest) <= task.radius;
      zero = best >= in_places && largest == 0u;
      break;
    }
    std::uint32_t distances[kHeld];
    load_bits<kHeld>(work.distances + first * kCapacity + thread * kHeld, distances);
    if (thread == 0) {
      task.picks[made + count] = rows[first];
      work.round_picks[count] = static_cast<std::int32_t>(first);
    }
    ENSEMBLEAD_UNROLL
    for (int i = 0; i < kHeld; ++i) values[i] = min(values[i], distances[i]);
  }

  std::int64_t total = made + count;
  if (zero && !complete) {  // nothing but duplicates is left, and the rule repeats row 0
    for (std::int64_t i = total + thread; i < task.size; i += kThreads) task.picks[i] = 0;
    total = task.size;
  }
  if (thread == 0) finish_round(task, state, total, count, complete);
}

template <int kHeld>
void launch_pick(const CoresetRows& rows, const PickTask& task) {
  launch("pick_kernel", pick_kernel<kHeld>, {dim3(1), dim3(kThreads), 0, rows.stream}, task);
}

}  // namespace

void find_distances(const CoresetRows& rows, const Workspace& work) {
  const auto tiles = static_cast<unsigned>(rows.capacity / kSide);
  const LaunchShape shape{dim3(tiles, tiles), dim3(kThreads), 0, rows.stream};
  launch("distances_kernel", rows.vector ? distances_kernel<true> : distances_kernel<false>, shape, rows,
         work);
}

void pick(const CoresetRows& rows, const Workspace& work, std::int64_t* picks, std::int64_t size, int most,
          float radius) {
  const PickTask task{work, picks, size, most, radius};
  switch (rows.capacity / kThreads) {
    case 1:
      return launch_pick<1>(rows, task);
    case 2:
      return launch_pick<2>(rows, task);
    case 4:
      return launch_pick<4>(rows, task);
    default:
      return launch_pick<8>(rows, task);
  }
}

}  // namespace ensemblead::cuda
