// float16, as far as the kernels convert it.
#pragma once

#include "core/half.hpp"
#include "emulation/vector_types.h"

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) { return ensemblead::to_float(ensemblead::Float16{value.bits}); }
inline __half __float2half_rn(float value) {
  ensemblead::Float16 half;
  ensemblead::from_float(value, &half);
  return {half.bits};
}
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
