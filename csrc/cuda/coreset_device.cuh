// Pieces of device code that several kernels of the coreset use.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDACC__)
#define ENSEMBLEAD_UNROLL _Pragma("unroll")
#define ENSEMBLEAD_UNROLL_8 _Pragma("unroll 8")
#else
#define ENSEMBLEAD_UNROLL
#define ENSEMBLEAD_UNROLL_8
#endif

namespace ensemblead::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ std::uint32_t warp_max(std::uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    value = max(value, __shfl_xor_sync(kAllLanes, value, lanes));
  return value;
#else
  return __reduce_max_sync(kAllLanes, value);
#endif
}

__device__ __forceinline__ std::uint32_t warp_min(std::uint32_t value) { return ~warp_max(~value); }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// Four values of a row from column `k` (a multiple of 4) on, zeros beyond its end. kVector: the row starts at
// a multiple of 16 bytes and has a multiple of 4 columns.
template <bool kVector>
__device__ __forceinline__ float4 four_of_row(const float* row, int k, int dims) {
  float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (kVector) {
    if (k < dims) four = *reinterpret_cast<const float4*>(row + k);
    return four;
  }
  if (k < dims) four.x = row[k];
  if (k + 1 < dims) four.y = row[k + 1];
  if (k + 2 < dims) four.z = row[k + 2];
  if (k + 3 < dims) four.w = row[k + 3];
  return four;
}

__device__ __forceinline__ float4 times(float4 a, float scale) {
  return make_float4(__fmul_rn(a.x, scale), __fmul_rn(a.y, scale), __fmul_rn(a.z, scale),
                     __fmul_rn(a.w, scale));
}

// The distance that decides. Every squared distance between rows is this chain of operations, whichever
// kernel computes it, so that the picks do not depend on how they are come by. It is the same for (a, b) and
// (b, a), and zeros behind the ends change no bit.
__device__ __forceinline__ float add_squared_difference(float total, float a, float b) {
  const float difference = __fsub_rn(a, b);
  return __fmaf_rn(difference, difference, total);
}

template <bool kVector>
__device__ __forceinline__ float squared_distance(const float* a, const float* b, int dims, float scale) {
  float total = 0.0f;
  // The sum is a chain; the reads need not be.
  ENSEMBLEAD_UNROLL_8
  for (int k = 0; k < dims; k += 4) {
    const float4 x = times(four_of_row<kVector>(a, k, dims), scale);
    const float4 y = times(four_of_row<kVector>(b, k, dims), scale);
    total = add_squared_difference(total, x.x, y.x);
    total = add_squared_difference(total, x.y, y.y);
    total = add_squared_difference(total, x.z, y.z);
    total = add_squared_difference(total, x.w, y.w);
  }
  return total;
}

}  // namespace ensemblead::cuda
