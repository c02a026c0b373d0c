// A value and its column as one number: ascending keys are descending values, and ascending columns among
// equal values. 0 and -0 have one key. Both twins order results by it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.hpp"

namespace ensemblead {

using RankKey = std::uint64_t;

// Behind the key of every value but NaN.
constexpr RankKey kLastKey = ~RankKey{0};

ENSEMBLEAD_HD inline RankKey rank_key(float value, std::uint32_t column) {
  const float unsigned_zero = value + 0.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &unsigned_zero, sizeof bits);
  const std::uint32_t descending = (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
  return static_cast<RankKey>(descending) << 32 | column;
}

ENSEMBLEAD_HD inline float key_value(RankKey key) {
  const auto descending = static_cast<std::uint32_t>(key >> 32);
  const std::uint32_t bits = (descending & 0x80000000u) != 0 ? descending : ~descending & 0x7fffffffu;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ENSEMBLEAD_HD inline std::int64_t key_column(RankKey key) {
  return static_cast<std::int64_t>(key & 0xffffffffu);
}

}  // namespace ensemblead
