// Storage types for float16 and bfloat16. Arithmetic is done in float32; these only convert, rounding to
// nearest even. `static`, because the files that are compiled once per instruction set include this header:
// each keeps its own copy.
#pragma once

#include <cstdint>
#include <cstring>

namespace ensemblead {

struct Float16 {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

namespace detail {
static inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
static inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace detail

static inline float to_float(float value) { return value; }

static inline float to_float(BFloat16 value) {
  return detail::float_of(static_cast<std::uint32_t>(value.bits) << 16);
}

static inline float to_float(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  std::uint32_t bits = magnitude + 0x38000000u;  // normal: the exponent's bias goes from 15 to 127
  if (magnitude >= 0x0f800000u) {
    bits = magnitude | 0x7f800000u;  // inf and NaN keep their exponent of ones
  } else if (magnitude < 0x00800000u) {
    // Zero and subnormal: 2^-14 (1 + mantissa) - 2^-14 normalises without touching a subnormal float32, which
    // a thread may be told to flush to zero.
    const float offset = detail::float_of(0x38800000u);
    bits = detail::bits_of(detail::float_of(0x38800000u + magnitude) - offset);
  }
  return detail::float_of(bits | sign);
}

static inline void from_float(float value, float* result) { *result = value; }

static inline void from_float(float value, BFloat16* result) {
  const std::uint32_t bits = detail::bits_of(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  result->bits = static_cast<std::uint16_t>(rounded >> 16);
}

static inline void from_float(float value, Float16* result) {
  const std::uint32_t bits = detail::bits_of(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the float16 mantissa into the low bits, rounded by the addition itself.
    half = detail::bits_of(detail::float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  result->bits = static_cast<std::uint16_t>(half | sign);
}

}  // namespace ensemblead
