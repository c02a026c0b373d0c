// Between storage types and the types that kernels compute in, and accesses as wide as the addresses allow.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "core/half.hpp"

namespace ensemblead::cuda {

__device__ __forceinline__ float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ __forceinline__ float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }

__device__ __forceinline__ void narrow(float value, Float16* result) {
  result->bits = __half_as_ushort(__float2half_rn(value));
}
__device__ __forceinline__ void narrow(float value, BFloat16* result) {
  result->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void narrow(float value, float* result) { *result = value; }
__device__ __forceinline__ void narrow(double value, double* result) { *result = value; }

// The type that sums of T are made in.
template <class T>
struct Accumulator {
  using Type = float;
};
template <>
struct Accumulator<double> {
  using Type = double;
};

// A word of that many bytes, moved by one instruction.
template <int bytes>
struct Word;
template <>
struct Word<1> {
  using Type = unsigned char;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// kCount values that are loaded and stored at once, from an address that is a multiple of their size.
template <class T, int kCount>
struct Pack {
  using WordType = typename Word<static_cast<int>(sizeof(T)) * kCount>::Type;

  static __device__ __forceinline__ Pack load(const T* from) {
    const WordType word = __ldg(reinterpret_cast<const WordType*>(from));
    Pack pack;
    memcpy(pack.values, &word, sizeof word);
    return pack;
  }
  __device__ __forceinline__ void store(T* to) const {
    WordType word;
    memcpy(&word, values, sizeof word);
    *reinterpret_cast<WordType*>(to) = word;
  }

  T values[kCount];
};

// The widest access, in bytes, that all of these addresses and distances (in bytes) are multiples of; at
// most 16.
inline int common_alignment(std::initializer_list<std::uintptr_t> addresses_and_distances) {
  std::uintptr_t all = 16;
  for (const std::uintptr_t value : addresses_and_distances) all |= value;
  return static_cast<int>(all & (~all + 1));
}

}  // namespace ensemblead::cuda
