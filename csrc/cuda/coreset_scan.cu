// The steps done once per selection: the scan of the values, the middle of the rows, norms, start values.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_device.cuh"
#include "cuda/coreset_kernels.hpp"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

// --- finite? ---

struct Seen {
  std::uint32_t largest = 0;
  unsigned long long first_bad = kNoneBad;

  __device__ void look(float value, std::int64_t index) {
    const std::uint32_t magnitude = __float_as_uint(value) & 0x7fffffffu;
    if (magnitude < kInfinityBits) {
      largest = max(largest, magnitude);
    } else {
      first_bad = min(first_bad, static_cast<unsigned long long>(index));
    }
  }
};

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    scan_kernel(const float* values, std::int64_t count, ScanResult* result) {
  Seen seen;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t fours = kVector ? count / 4 : 0;
  for (std::int64_t i = thread; i < fours; i += threads) {
    const float4 four = reinterpret_cast<const float4*>(values)[i];
    seen.look(four.x, 4 * i);
    seen.look(four.y, 4 * i + 1);
    seen.look(four.z, 4 * i + 2);
    seen.look(four.w, 4 * i + 3);
  }
  for (std::int64_t i = 4 * fours + thread; i < count; i += threads) seen.look(values[i], i);
  const std::uint32_t largest = warp_max(seen.largest);
  if (threadIdx.x % kWarp == 0) atomicMax(&result->largest, largest);
  if (seen.first_bad != kNoneBad) atomicMin(&result->first_bad, seen.first_bad);
}

// --- the middle, norms ---

constexpr int kColumns = 32;  // of a block
constexpr int kGroups = kThreads / kColumns;
constexpr std::int64_t kSample = 128;  // rows

// The mean of some rows spread over all of them. It need not be exact: the nearer the middle, the smaller the
// errors of the products.
__global__ void __launch_bounds__(kThreads)
    centre_kernel(CoresetRows rows, Workspace work, std::int64_t padded) {
  __shared__ float sums[kGroups][kColumns];
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int group = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t k = std::int64_t{blockIdx.x} * kColumns + column;
  const std::int64_t count = rows.rows < kSample ? rows.rows : kSample;
  const std::int64_t step = rows.rows / count;
  float sum = 0.0f;
  if (k < rows.dims)
    for (std::int64_t i = group; i < count; i += kGroups)
      sum += __fmul_rn(rows.data[i * step * rows.dims + k], rows.scale);
  sums[group][column] = sum;
  __syncthreads();
  if (group != 0 || k >= padded) return;
  float total = 0.0f;
  for (int g = 0; g < kGroups; ++g) total += sums[g][column];
  work.centre[k] = total / static_cast<float>(count);
}

// A warp per row.
__global__ void __launch_bounds__(kThreads) norms_kernel(CoresetRows rows, Workspace work) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= rows.rows) return;
  const float* const data = rows.data + row * rows.dims;
  float norm = 0.0f;
  for (std::int64_t k = threadIdx.x % kWarp; k < rows.dims; k += kWarp) {
    const float value = __fmul_rn(data[k], rows.scale) - work.centre[k];
    norm = __fmaf_rn(value, value, norm);
  }
  norm = warp_sum(norm);
  if (threadIdx.x % kWarp == 0) work.norms[row] = norm;
}

// --- start values ---

__global__ void __launch_bounds__(kThreads) fill_kernel(float* values, std::int64_t count, float value) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads)
    values[i] = value;
}

struct StartRows {
  std::int32_t rows[64];  // by value, which spares a copy
  int count;
  bool first;  // of the groups of start rows; the sums so far are kept in `values`
  bool last;
  std::int64_t total;
};

// A warp per row: the mean of the distances to the start rows, squared.
__global__ void __launch_bounds__(kThreads) mean_kernel(CoresetRows rows, Workspace work, StartRows starts) {
  __shared__ std::uint32_t largest;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  if (row < rows.rows) {
    const float* const data = rows.data + row * rows.dims;
    double sum = starts.first ? 0.0 : static_cast<double>(work.values[row]);
    for (int s = 0; s < starts.count; ++s) {
      const float* const start = rows.data + starts.rows[s] * rows.dims;
      float distance = 0.0f;
      for (std::int64_t k = lane; k < rows.dims; k += kWarp)
        distance =
            add_squared_difference(distance, __fmul_rn(data[k], rows.scale), __fmul_rn(start[k], rows.scale));
      sum += sqrt(static_cast<double>(warp_sum(distance)));
    }
    const double mean = sum / static_cast<double>(starts.total);
    const float value = static_cast<float>(starts.last ? mean * mean : sum);
    __syncwarp();
    if (lane == 0) {
      work.values[row] = value;
      atomicMax(&largest, __float_as_uint(value));
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && starts.last) atomicMax(&work.state->top, largest);
}

LaunchShape warp_per_row(const CoresetRows& rows) {
  return {dim3(grid_size(rows.rows, kWarps)), dim3(kThreads), 0, rows.stream};
}

}  // namespace

void scan_values(const float* values, std::int64_t count, ScanResult* result, cudaStream_t stream) {
  const LaunchShape shape{dim3(grid_size(count, 4 * kThreads, 8 * multiprocessors())), dim3(kThreads), 0,
                          stream};
  const bool vector = reinterpret_cast<std::uintptr_t>(values) % sizeof(float4) == 0;
  launch("scan_kernel", vector ? scan_kernel<true> : scan_kernel<false>, shape, values, count, result);
}

void find_centre(const CoresetRows& rows, const Workspace& work) {
  const std::int64_t padded = padded_dims(rows.dims);
  const LaunchShape shape{dim3(grid_size(padded, kColumns)), dim3(kThreads), 0, rows.stream};
  launch("centre_kernel", centre_kernel, shape, rows, work, padded);
}

void find_norms(const CoresetRows& rows, const Workspace& work) {
  launch("norms_kernel", norms_kernel, warp_per_row(rows), rows, work);
}

void start_from_nowhere(const CoresetRows& rows, const Workspace& work) {
  const LaunchShape shape{dim3(grid_size(rows.rows, 4 * kThreads, 8 * multiprocessors())), dim3(kThreads), 0,
                          rows.stream};
  launch("fill_kernel", fill_kernel, shape, work.values, rows.rows, __builtin_huge_valf());
}

void start_from_mean(const CoresetRows& rows, const Workspace& work, const std::int64_t* starts,
                     std::int64_t count) {
  constexpr std::int64_t kGroup = sizeof(StartRows::rows) / sizeof(std::int32_t);
  for (std::int64_t first = 0; first < count; first += kGroup) {
    StartRows group{};
    group.count = static_cast<int>(count - first < kGroup ? count - first : kGroup);
    for (int i = 0; i < group.count; ++i) group.rows[i] = static_cast<std::int32_t>(starts[first + i]);
    group.first = first == 0;
    group.last = first + kGroup >= count;
    group.total = count;
    launch("mean_kernel", mean_kernel, warp_per_row(rows), rows, work, group);
  }
}

}  // namespace ensemblead::cuda
