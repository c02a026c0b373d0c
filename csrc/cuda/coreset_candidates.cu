// The first rows in the order of the picks, and the anchors made of them.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_device.cuh"
#include "cuda/coreset_kernels.hpp"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBuckets = CandidateSearch::kBuckets;
constexpr int kBucketsEach = kBuckets / kThreads;
constexpr std::int64_t kRowsPerBlock = 2048;

// The last block of a histogram looks for the bucket at which the limit is crossed, and clears the counters.
__device__ void find_crossing(SelectionState& state, std::uint32_t* histogram) {
  __shared__ std::uint32_t of_warp[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  std::uint32_t counts[kBucketsEach];
  std::uint32_t sum = 0;
  for (int i = 0; i < kBucketsEach; ++i) {
    // Past the first-level cache, which knows nothing of other blocks' additions.
    counts[i] = __ldcg(&histogram[thread * kBucketsEach + i]);
    histogram[thread * kBucketsEach + i] = 0;
    sum += counts[i];
  }
  std::uint32_t up_to = sum;
  for (unsigned lanes = 1; lanes < kWarp; lanes *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, up_to, lanes);
    if (lane >= static_cast<int>(lanes)) up_to += other;
  }
  if (lane == kWarp - 1) of_warp[thread / kWarp] = up_to;
  __syncthreads();
  std::uint32_t before = up_to - sum;
  for (int w = 0; w < thread / kWarp; ++w) before += of_warp[w];

  CandidateSearch& search = state.search;
  const std::int64_t room = search.limit - search.taken;
  // Read by all before the one thread that finds the crossing writes.
  __syncthreads();
  if (thread == 0) state.tickets = 0;
  for (int i = 0; i < kBucketsEach; ++i) {
    const std::uint32_t next = before + counts[i];
    if (std::int64_t{before} <= room && std::int64_t{next} > room)
      return search.finish_level(thread * kBucketsEach + i, before);
    before = next;
  }
  if (thread == kThreads - 1 && std::int64_t{before} <= room) search.finish_level(kBuckets, before);
}

__global__ void __launch_bounds__(kThreads)
    histogram_kernel(Workspace work, std::int64_t rows, std::int64_t limit, int level) {
  __shared__ std::uint32_t counts[kBuckets];
  __shared__ bool last;
  SelectionState& state = *work.state;
  if (state.finished != 0 || (level > 0 && state.search.done != 0)) return;
  CandidateSearch search = state.search;
  if (level == 0) {
    search.limit = limit;
    search.rows = rows;
    search.begin(state.top);
  }
  for (int i = static_cast<int>(threadIdx.x); i < kBuckets; i += kThreads) counts[i] = 0;
  __syncthreads();
  for (std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; row < rows;
       row += std::int64_t{gridDim.x} * kThreads) {
    const int bucket = search.bucket(__float_as_uint(work.values[row]), static_cast<std::uint32_t>(row));
    if (bucket != CandidateSearch::kNone) atomicAdd(&counts[bucket], 1u);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kBuckets; i += kThreads)
    if (counts[i] != 0) atomicAdd(&work.histogram[i], counts[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&state.tickets, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  // Every other block has read the state by now.
  if (level == 0 && threadIdx.x == 0) state.search = search;
  __syncthreads();
  find_crossing(state, work.histogram);
}

__global__ void __launch_bounds__(kThreads) collect_kernel(Workspace work, std::int64_t rows) {
  SelectionState& state = *work.state;
  if (state.finished != 0) return;
  const PickKey threshold = state.search.threshold;
  for (std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; row < rows;
       row += std::int64_t{gridDim.x} * kThreads) {
    if (pick_key(__float_as_uint(work.values[row]), static_cast<std::uint32_t>(row)) < threshold) continue;
    work.found_rows[atomicAdd(&state.found, 1)] = static_cast<std::int32_t>(row);
  }
}

// One warp writes one anchor: the row, centred, and its norm less a margin for rounding.
__device__ void write_anchor(const CoresetRows& rows, const Workspace& work, std::int64_t padded,
                             const float* row, int anchor) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float norm = 0.0f;
  for (std::int64_t k = lane; k < padded; k += kWarp) {
    const float value = k < rows.dims ? __fmul_rn(row[k], rows.scale) - work.centre[k] : 0.0f;
    work.anchors[anchor * padded + k] = value;
    norm = __fmaf_rn(value, value, norm);
  }
  norm = warp_sum(norm);
  if (lane == 0) work.anchor_lows[anchor] = norm * (1.0f - rows.slack);
}

// The candidates were found in no particular order; each finds its place among them by counting.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(CoresetRows rows, Workspace work, std::int64_t padded) {
  const SelectionState& state = *work.state;
  const int found = state.found;
  const int own = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (state.finished != 0 || own >= found) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int32_t row = work.found_rows[own];
  int place = 0;
  for (int i = lane; i < found; i += kWarp) place += work.found_rows[i] < row ? 1 : 0;
  place = warp_sum(place);
  if (lane == 0) {
    work.candidate_rows[place] = row;
    work.candidate_bits[place] = __float_as_uint(work.values[row]);
  }
  write_anchor(rows, work, padded, rows.data + row * rows.dims, place);
}

__global__ void __launch_bounds__(kThreads)
    anchors_kernel(CoresetRows rows, Workspace work, std::int64_t padded, const float* bank,
                   std::int64_t first, int count) {
  const int anchor = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    work.state->round_picks = count;
    work.state->top = 0;
  }
  if (anchor >= count) return;
  if (threadIdx.x % kWarp == 0) {
    work.candidate_rows[anchor] = static_cast<std::int32_t>(first + anchor);
    work.round_picks[anchor] = anchor;
  }
  write_anchor(rows, work, padded, bank + (first + anchor) * rows.dims, anchor);
}

}  // namespace

void find_candidates(const CoresetRows& rows, const Workspace& work, std::int64_t limit) {
  const LaunchShape shape{dim3(grid_size(rows.rows, kRowsPerBlock, 4 * multiprocessors())), dim3(kThreads), 0,
                          rows.stream};
  const int levels = CandidateSearch::levels(rows.rows, limit);
  for (int level = 0; level < levels; ++level)
    launch("histogram_kernel", histogram_kernel, shape, work, rows.rows, limit, level);
  launch("collect_kernel", collect_kernel, shape, work, rows.rows);
  const LaunchShape warps{dim3(grid_size(limit, kWarps)), dim3(kThreads), 0, rows.stream};
  launch("gather_kernel", gather_kernel, warps, rows, work, padded_dims(rows.dims));
}

void take_anchors(const CoresetRows& rows, const Workspace& work, const float* bank, std::int64_t first,
                  int count) {
  const LaunchShape shape{dim3(grid_size(count, kWarps)), dim3(kThreads), 0, rows.stream};
  launch("anchors_kernel", anchors_kernel, shape, rows, work, padded_dims(rows.dims), bank, first, count);
}

}  // namespace ensemblead::cuda
