// core/half.hpp as a C library, for test_half.py: whole arrays converted by the loops that kernels use.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "core/half.hpp"

namespace {

template <class Half>
void widen(const std::uint16_t* bits, float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = ensemblead::to_float(Half{bits[i]});
}

template <class Half>
void narrow(const float* values, std::uint16_t* bits, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    Half half{};
    ensemblead::from_float(values[i], &half);
    bits[i] = half.bits;
  }
}

}  // namespace

extern "C" {

void widen_float16(const std::uint16_t* bits, float* values, std::size_t count) {
  widen<ensemblead::Float16>(bits, values, count);
}
void widen_bfloat16(const std::uint16_t* bits, float* values, std::size_t count) {
  widen<ensemblead::BFloat16>(bits, values, count);
}
void narrow_float16(const float* values, std::uint16_t* bits, std::size_t count) {
  narrow<ensemblead::Float16>(values, bits, count);
}
void narrow_bfloat16(const float* values, std::uint16_t* bits, std::size_t count) {
  narrow<ensemblead::BFloat16>(values, bits, count);
}

// The same on a thread that treats subnormal float32 as zero; false where that cannot be asked for.
bool widen_float16_flushing(const std::uint16_t* bits, float* values, std::size_t count) {
#if defined(__x86_64__)
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040u);
  widen_float16(bits, values, count);
  _mm_setcsr(saved);
  return true;
#else
  (void)bits, (void)values, (void)count;
  return false;
#endif
}
}
