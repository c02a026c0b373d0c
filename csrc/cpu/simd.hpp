// Generic vectors at the width of the instruction set that a *_simd.cpp file is being compiled for: the one
// header of vectors for all of these files.
//
// Everything is in an unnamed namespace: each build of each file keeps its own code, and none compiled for a
// newer processor can be taken by the linker for an older one. Inline functions of the standard library would
// be shared and must not be used there.
#pragma once

#include <cstdint>

#include "core/half.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef ENSEMBLEAD_INSTRUCTION_SET
#error "only files listed as simd_sources in CMakeLists.txt include this header"
#endif

namespace ensemblead::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

typedef std::int32_t UnalignedIntVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::int32_t UnalignedInt __attribute__((aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

inline Vec broadcast(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return Vec{value, value, value, value};
#endif
}

typedef float Quad __attribute__((vector_size(16)));
#if defined(__AVX2__)
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
#if defined(__AVX2__)
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
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#else
  const IntVec mask = a > b;
  return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
#endif
}

inline bool any_greater(Vec a, Vec b) { return greater_lanes(a, b) != 0; }

// --- conversions: a vector of values of any type in float32 ---

// The first `count` < kLanes values, zeros behind them.
template <class T>
inline Vec load_some(const T* from, std::int64_t count) {
  Vec values = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(from[i]);
  return values;
}

inline Vec load_converted(const float* from) { return load(from); }
inline void store_converted(float* to, Vec value) { store(to, value); }

#if defined(__AVX512F__)
inline __mmask16 first_lanes(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
// The masked forms, because GCC 12 warns of an undefined operand in the others.
inline Vec widen(BFloat16, __m256i bits) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(first_lanes(16), bits);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(first_lanes(16), wide, 16));
}
inline Vec widen(Float16, __m256i bits) { return _mm512_maskz_cvtph_ps(first_lanes(16), bits); }
template <class Half>
inline Vec load_converted(const Half* from) {
  return widen(Half{}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec load_some(const float* from, std::int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), from);
}
inline Vec load_some(const BFloat16* from, std::int64_t count) {
  return widen(BFloat16{}, _mm256_maskz_loadu_epi16(first_lanes(count), from));
}
inline Vec load_some(const Float16* from, std::int64_t count) {
  return widen(Float16{}, _mm256_maskz_loadu_epi16(first_lanes(count), from));
}
inline void store_some(float* to, Vec value, std::int64_t count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), value);
}
inline void store_converted(Float16* to, Vec value) {
  const __m256i bits = _mm512_maskz_cvtps_ph(first_lanes(16), value, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
#else
inline void store_some(float* to, Vec value, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = value[i];
}
#if defined(__AVX2__)
inline Vec widen(BFloat16, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec widen(Float16, __m128i bits) { return _mm256_cvtph_ps(bits); }
template <class Half>
inline Vec load_converted(const Half* from) {
  return widen(Half{}, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store_converted(Float16* to, Vec value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
#else
template <class Half>
inline Vec load_converted(const Half* from) {
  return load_some(from, kLanes);
}
inline void store_converted(Float16* to, Vec value) {
  for (int i = 0; i < kLanes; ++i) from_float(value[i], to + i);
}
#endif
#endif

// --- wide vectors: 64 bytes of float or double, which the compiler cuts to the width of its registers ---

template <class A>
struct WideVector {
  typedef A Type __attribute__((vector_size(64)));
  typedef A Unaligned __attribute__((vector_size(64), aligned(alignof(A)), may_alias));
  static constexpr int kLanes = 64 / sizeof(A);

  static inline Type load(const A* from) { return *reinterpret_cast<const Unaligned*>(from); }
  static inline void store(A* to, const Type& value) { *reinterpret_cast<Unaligned*>(to) = value; }
};

}  // namespace
}  // namespace ensemblead::cpu
