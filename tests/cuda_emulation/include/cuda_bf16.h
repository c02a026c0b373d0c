// bfloat16, as far as the kernels convert it.
#pragma once

#include "core/half.hpp"
#include "emulation/vector_types.h"

struct __nv_bfloat16 {
  unsigned short bits;
};

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline float __bfloat162float(__nv_bfloat16 value) {
  return ensemblead::to_float(ensemblead::BFloat16{value.bits});
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  ensemblead::BFloat16 half;
  ensemblead::from_float(value, &half);
  return {half.bits};
}
