// Functions that kernels call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/scheduler.h"
#include "emulation/vector_types.h"

#define ENSEMBLEAD_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define ENSEMBLEAD_HERE(what) \
  ::cuda_emulation::Place { what, file, line }

// --- barriers, warps ---

inline void __syncthreads(ENSEMBLEAD_PLACE) {
  cuda_emulation::wait_for_block(ENSEMBLEAD_HERE("__syncthreads"), cuda_emulation::Combine::kNothing, 0);
}
inline int __syncthreads_count(int predicate, ENSEMBLEAD_PLACE) {
  return cuda_emulation::wait_for_block(ENSEMBLEAD_HERE("__syncthreads_count"),
                                        cuda_emulation::Combine::kCount, predicate);
}
inline int __syncthreads_and(int predicate, ENSEMBLEAD_PLACE) {
  return cuda_emulation::wait_for_block(ENSEMBLEAD_HERE("__syncthreads_and"), cuda_emulation::Combine::kAnd,
                                        predicate);
}
inline int __syncthreads_or(int predicate, ENSEMBLEAD_PLACE) {
  return cuda_emulation::wait_for_block(ENSEMBLEAD_HERE("__syncthreads_or"), cuda_emulation::Combine::kOr,
                                        predicate);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, ENSEMBLEAD_PLACE) {
  cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__syncwarp"), mask, 0);
}

namespace cuda_emulation {

template <class T>
std::uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T unpack(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The value of lane `source`; a lane outside the mask is undefined on a device, rubbish here.
template <class T>
T from_lane(const Exchange& all, std::uint32_t mask, unsigned source) {
  if (((mask >> source) & 1u) == 0) return unpack<T>(0xfefefefefefefefeull);
  return unpack<T>(all.values[source]);
}

}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ENSEMBLEAD_PLACE) {
  const auto all =
      cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__shfl_sync"), mask, cuda_emulation::pack(value));
  const auto size = static_cast<unsigned>(width);
  const unsigned segment = all.lane / size * size;
  return cuda_emulation::from_lane<T>(all, mask, segment + static_cast<unsigned>(source) % size);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ENSEMBLEAD_PLACE) {
  const auto all =
      cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__shfl_up_sync"), mask, cuda_emulation::pack(value));
  if (all.lane % static_cast<unsigned>(width) < delta) return value;
  return cuda_emulation::from_lane<T>(all, mask, all.lane - delta);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ENSEMBLEAD_PLACE) {
  const auto all =
      cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__shfl_down_sync"), mask, cuda_emulation::pack(value));
  const auto size = static_cast<unsigned>(width);
  if (all.lane % size + delta >= size) return value;
  return cuda_emulation::from_lane<T>(all, mask, all.lane + delta);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, ENSEMBLEAD_PLACE) {
  const auto all =
      cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__shfl_xor_sync"), mask, cuda_emulation::pack(value));
  const auto size = static_cast<unsigned>(width);
  const unsigned source = all.lane ^ static_cast<unsigned>(lanes);
  if (source / size > all.lane / size) return value;
  return cuda_emulation::from_lane<T>(all, mask, source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ENSEMBLEAD_PLACE) {
  const auto all = cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__ballot_sync"), mask, predicate != 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (((mask >> lane) & 1u) != 0 && all.values[lane] != 0) ballot |= 1u << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, ENSEMBLEAD_PLACE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ENSEMBLEAD_PLACE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, ENSEMBLEAD_PLACE) {
  const auto all =
      cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE("__match_any_sync"), mask, cuda_emulation::pack(value));
  unsigned equal = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (((mask >> lane) & 1u) != 0 && all.values[lane] == all.values[all.lane]) equal |= 1u << lane;
  return equal;
}

// On devices from compute capability 8.0 on.
#define ENSEMBLEAD_REDUCE(name, T, expression)                                                    \
  inline T name(unsigned mask, T value, ENSEMBLEAD_PLACE) {                                       \
    const auto all =                                                                              \
        cuda_emulation::wait_for_warp(ENSEMBLEAD_HERE(#name), mask, cuda_emulation::pack(value)); \
    bool first = true;                                                                            \
    T a{};                                                                                        \
    for (unsigned lane = 0; lane < 32; ++lane) {                                                  \
      if (((mask >> lane) & 1u) == 0) continue;                                                   \
      const T b = cuda_emulation::unpack<T>(all.values[lane]);                                    \
      a = first ? b : static_cast<T>(expression);                                                 \
      first = false;                                                                              \
    }                                                                                             \
    return a;                                                                                     \
  }
ENSEMBLEAD_REDUCE(__reduce_add_sync, unsigned, a + b)
ENSEMBLEAD_REDUCE(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
ENSEMBLEAD_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
ENSEMBLEAD_REDUCE(__reduce_min_sync, int, std::min(a, b))
ENSEMBLEAD_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
ENSEMBLEAD_REDUCE(__reduce_max_sync, int, std::max(a, b))
ENSEMBLEAD_REDUCE(__reduce_and_sync, unsigned, a& b)
ENSEMBLEAD_REDUCE(__reduce_or_sync, unsigned, a | b)
ENSEMBLEAD_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef ENSEMBLEAD_REDUCE
#undef ENSEMBLEAD_HERE
#undef ENSEMBLEAD_PLACE

// --- atomics: threads switch at barriers only, so that plain ones are atomic ---

#define ENSEMBLEAD_ATOMIC(name, allowed, expression)              \
  template <class T>                                              \
  T name(T* address, std::common_type_t<T> value) {               \
    static_assert(allowed, "there is no " #name " of this type"); \
    const T old = *address;                                       \
    *address = static_cast<T>(expression);                        \
    return old;                                                   \
  }                                                               \
  template <class T>                                              \
  T name##_block(T* address, std::common_type_t<T> value) {       \
    return name(address, value);                                  \
  }
ENSEMBLEAD_ATOMIC(atomicAdd, sizeof(T) >= 4, old + value)
ENSEMBLEAD_ATOMIC(atomicSub, std::is_integral<T>::value && sizeof(T) == 4, old - value)
ENSEMBLEAD_ATOMIC(atomicMin, std::is_integral<T>::value && sizeof(T) >= 4, std::min(old, value))
ENSEMBLEAD_ATOMIC(atomicMax, std::is_integral<T>::value && sizeof(T) >= 4, std::max(old, value))
ENSEMBLEAD_ATOMIC(atomicAnd, std::is_integral<T>::value && sizeof(T) >= 4, old& value)
ENSEMBLEAD_ATOMIC(atomicOr, std::is_integral<T>::value && sizeof(T) >= 4, old | value)
ENSEMBLEAD_ATOMIC(atomicXor, std::is_integral<T>::value && sizeof(T) >= 4, old ^ value)
ENSEMBLEAD_ATOMIC(atomicExch, sizeof(T) >= 4, value)
ENSEMBLEAD_ATOMIC(atomicInc, (std::is_same<T, unsigned>::value), old >= value ? 0u : old + 1u)
#undef ENSEMBLEAD_ATOMIC

template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

// --- memory with cache hints ---

#define ENSEMBLEAD_LOAD(name) \
  template <class T>          \
  T name(const T* address) {  \
    return *address;          \
  }
ENSEMBLEAD_LOAD(__ldg)
ENSEMBLEAD_LOAD(__ldca)
ENSEMBLEAD_LOAD(__ldcg)
ENSEMBLEAD_LOAD(__ldcs)
ENSEMBLEAD_LOAD(__ldlu)
ENSEMBLEAD_LOAD(__ldcv)
#undef ENSEMBLEAD_LOAD
#define ENSEMBLEAD_STORE(name)                         \
  template <class T>                                   \
  void name(T* address, std::common_type_t<T> value) { \
    *address = value;                                  \
  }
ENSEMBLEAD_STORE(__stwb)
ENSEMBLEAD_STORE(__stcg)
ENSEMBLEAD_STORE(__stcs)
ENSEMBLEAD_STORE(__stwt)
#undef ENSEMBLEAD_STORE

// --- numbers ---

inline unsigned __float_as_uint(float x) { return cuda_emulation::unpack<unsigned>(cuda_emulation::pack(x)); }
inline int __float_as_int(float x) { return cuda_emulation::unpack<int>(cuda_emulation::pack(x)); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::unpack<float>(x); }
inline float __int_as_float(int x) { return cuda_emulation::unpack<float>(cuda_emulation::pack(x)); }
inline long long __double_as_longlong(double x) {
  return cuda_emulation::unpack<long long>(cuda_emulation::pack(x));
}
inline double __longlong_as_double(long long x) {
  return cuda_emulation::unpack<double>(cuda_emulation::pack(x));
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }

// Of two floats, the one that is a number.
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return std::min(static_cast<T>(a), static_cast<T>(b));
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return std::max(static_cast<T>(a), static_cast<T>(b));
}
