// Kernels that show what the emulation does right and what it finds wrong; test_emulation.py calls them.
#include <cuda_pipeline.h>

#include <cstring>
#include <exception>
#include <string>

#include "core/fast_divide.hpp"
#include "cuda/launch.hpp"

namespace {

using ensemblead::cuda::dynamic_shared;
using ensemblead::cuda::launch;

constexpr unsigned kAll = 0xffffffffu;

// Sums by shuffles within warps, then through shared memory; several blocks add up atomically.
__global__ void sum_kernel(const float* values, int count, float* total) {
  __shared__ float of_warp[32];
  float sum = 0.0f;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<unsigned>(count);
       i += gridDim.x * blockDim.x)
    sum += values[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAll, sum, lanes);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0.0f;
  for (unsigned delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kAll, sum, delta);
  if (threadIdx.x == 0) atomicAdd(total, sum);
}

// What the warp functions give, one row of 32 each.
__global__ void warp_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool odd = lane % 2 == 1;
  out[lane] = __shfl_sync(kAll, lane, 5);
  out[32 + lane] = __shfl_up_sync(kAll, lane, 3, 8);
  out[64 + lane] = __shfl_down_sync(kAll, lane, 3);
  out[96 + lane] = __shfl_xor_sync(kAll, lane, 1);
  out[128 + lane] = static_cast<int>(__ballot_sync(kAll, odd));
  const unsigned mine = odd ? 0xaaaaaaaau : 0x55555555u;
  if (odd) {
    out[160 + lane] = __reduce_add_sync(mine, lane);
  } else {
    out[160 + lane] = __reduce_max_sync(mine, lane);
  }
  __syncwarp();
  out[192 + lane] = __any_sync(kAll, lane == 31) + 2 * __all_sync(kAll, lane == 31);
  out[224 + lane] = static_cast<int>(__match_any_sync(kAll, lane / 8));
}

__global__ void vote_kernel(int* out) {
  const bool low = threadIdx.x < 40;
  const int count = __syncthreads_count(low);
  const int all = __syncthreads_and(low);
  const int any = __syncthreads_or(low);
  out[threadIdx.x] = count * 4 + all * 2 + any;
}

// Reverses a block; without its barrier, right or wrong by the order of the threads.
__global__ void reverse_kernel(int* values, bool with_barrier) {
  int* const shared = dynamic_shared<int>();
  shared[threadIdx.x] = values[threadIdx.x];
  if (with_barrier) __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// Shows what shared memory holds at first.
template <int kSize>
__global__ void fresh_kernel(unsigned* out) {
  __shared__ unsigned cells[kSize];
  out[blockIdx.x * blockDim.x + threadIdx.x] = cells[threadIdx.x % kSize];
  cells[threadIdx.x % kSize] = 7;
}

__global__ void pipeline_kernel(const int* from, int* out, bool wait) {
  __shared__ __align__(16) int staged[64];
  __pipeline_memcpy_async(&staged[threadIdx.x], &from[threadIdx.x], 4);
  __pipeline_commit();
  if (wait) __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = staged[63 - threadIdx.x];
}

__global__ void ended_kernel() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void mixed_kernel() {
  if (threadIdx.x < 32) {
    __syncwarp();
  } else {
    __syncthreads();
    return;
  }
  if (threadIdx.x == 0) __syncwarp();
}
__global__ void absent_lane_kernel() {
  if (threadIdx.x != 9) (void)__ballot_sync(kAll, 1);
}
__global__ void short_warp_kernel() { __syncwarp(); }
__global__ void thrower_kernel() {
  if (threadIdx.x == 1) throw std::runtime_error("out of the kernel");
  __syncthreads();
}
__global__ void misaligned_kernel(const float* from, float* out) {
  out[0] = reinterpret_cast<const float4*>(from + 1)->x;
}

std::string error_text;

template <class F>
const char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    error_text = error.what();
    return error_text.c_str();
  }
}

ensemblead::cuda::LaunchShape shape(unsigned blocks, unsigned threads, std::size_t shared = 0) {
  return {dim3(blocks), dim3(threads), shared, nullptr};
}

}  // namespace

// Each gives null or what went wrong.
#define PROBE extern "C" __attribute__((visibility("default"))) const char*

PROBE probe_sum(const float* values, int count, float* total) {
  return guarded([&] { launch("sum_kernel", sum_kernel, shape(3, 128), values, count, total); });
}
PROBE probe_warp(int* out) {
  return guarded([&] { launch("warp_kernel", warp_kernel, shape(1, 32), out); });
}
PROBE probe_vote(int* out) {
  return guarded([&] { launch("vote_kernel", vote_kernel, shape(1, 96), out); });
}
PROBE probe_reverse(int* values, int threads, bool with_barrier, std::size_t shared) {
  return guarded([&] {
    launch("reverse_kernel", reverse_kernel, shape(1, static_cast<unsigned>(threads), shared), values,
           with_barrier);
  });
}
PROBE probe_fresh(unsigned* out) {
  return guarded([&] { launch("fresh_kernel", fresh_kernel<32>, shape(2, 32), out); });
}
PROBE probe_pipeline(const int* from, int* out, bool wait) {
  return guarded([&] { launch("pipeline_kernel", pipeline_kernel, shape(1, 64), from, out, wait); });
}
PROBE probe_misaligned(const float* from, float* out) {
  return guarded([&] { launch("misaligned_kernel", misaligned_kernel, shape(1, 1), from, out); });
}
PROBE probe_wrong(const char* which, unsigned blocks, unsigned threads) {
  return guarded([&] {
    const std::string name = which;
    const auto size = shape(blocks, threads);
    if (name == "ended") launch("ended_kernel", ended_kernel, size);
    if (name == "two_barriers") launch("two_barriers_kernel", two_barriers_kernel, size);
    if (name == "mixed") launch("mixed_kernel", mixed_kernel, size);
    if (name == "absent_lane") launch("absent_lane_kernel", absent_lane_kernel, size);
    if (name == "short_warp") launch("short_warp_kernel", short_warp_kernel, size);
    if (name == "thrower") launch("thrower_kernel", thrower_kernel, size);
  });
}
PROBE probe_device(int device) {
  return guarded([&] { const ensemblead::cuda::DeviceScope scope(device); });
}
PROBE probe_divide(const unsigned* dividends, int count, unsigned divisor, unsigned* quotients) {
  return guarded([&] {
    const ensemblead::FastDivide divide(divisor);
    for (int i = 0; i < count; ++i) quotients[i] = divide(dividends[i]);
  });
}
