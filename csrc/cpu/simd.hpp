// Generic vectors at the width of the instruction set that a *_simd.cpp file is being compiled for.
//
// Everything is in an unnamed namespace: each build of each file keeps its own code, and none compiled for a
// newer processor can be taken by the linker for an older one. Use no inline function of the standard library
// there.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef ENSEMBLEAD_INSTRUCTION_SET
#error "only files listed as simd_sources in CMakeLists.txt include this header"
#endif

namespace ensemblead::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef Vec UnalignedVec __attribute__((aligned(4)));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

inline Vec broadcast(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX__)
  return _mm256_set1_ps(value);
#else
  return Vec{value, value, value, value};
#endif
}

typedef float Quad __attribute__((vector_size(16)));
#if defined(__AVX__)
typedef float Octet __attribute__((vector_size(32)));
#endif

// One lane out of all, halves onto each other: always in the same order. (Not the intrinsics: GCC 12 warns of
// their insides.)
inline float sum(Quad value) { return (value[0] + value[2]) + (value[1] + value[3]); }
inline float largest(Quad value) {
  const float even = value[0] > value[2] ? value[0] : value[2];
  const float odd = value[1] > value[3] ? value[1] : value[3];
  return even > odd ? even : odd;
}
#if defined(__AVX__)
inline float sum(Octet value) {
  return sum(__builtin_shufflevector(value, value, 0, 1, 2, 3) +
             __builtin_shufflevector(value, value, 4, 5, 6, 7));
}
inline float largest(Octet value) {
  const Quad low = __builtin_shufflevector(value, value, 0, 1, 2, 3);
  const Quad high = __builtin_shufflevector(value, value, 4, 5, 6, 7);
  return largest(low > high ? low : high);
}
#endif
#if defined(__AVX512F__)
inline float sum(Vec value) {
  return sum(__builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline float largest(Vec value) {
  const Octet low = __builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7);
  const Octet high = __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
  return largest(low > high ? low : high);
}
#endif

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// A bit for every lane in which a > b.
inline unsigned greater_lanes(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#else
  const IntVec mask = a > b;
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
#endif
}

inline bool any_greater(Vec a, Vec b) { return greater_lanes(a, b) != 0; }

}  // namespace
}  // namespace ensemblead::cpu
