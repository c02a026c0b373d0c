#include "core/coreset_rules.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/checks.hpp"

namespace ensemblead {

void check_coreset_extents(std::int64_t rows, std::int64_t bank_rows, std::int64_t size) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (rows < kMost && bank_rows + size < kMost) return;
  throw ValueError("features must have fewer than " + std::to_string(kMost) +
                   " rows, and so must the bank with the picks; got " + std::to_string(rows) + " and " +
                   std::to_string(bank_rows + size));
}

void refuse_not_finite(const char* argument, std::int64_t index, std::int64_t dims, bool is_nan) {
  throw ValueError(std::string(argument) + " contains " + (is_nan ? "NaN" : "an infinite value") + " at [" +
                   std::to_string(index / dims) + ", " + std::to_string(index % dims) +
                   "]; every value must be finite");
}

float coreset_scale(float largest) {
  if (largest == 0.0f || (largest > 0x1p-30f && largest < 0x1p50f)) return 1.0f;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, std::clamp(-exponent, -126, 126));
}

float squared_radius(double radius) {
  if (radius < 0.0) return -1.0f;
  constexpr float kMost = std::numeric_limits<float>::max();
  const auto within = [radius](float squared) { return std::sqrt(static_cast<double>(squared)) <= radius; };
  float squared = static_cast<float>(std::min(radius * radius, static_cast<double>(kMost)));
  while (squared > 0.0f && !within(squared)) squared = std::nextafter(squared, 0.0f);
  while (squared < kMost && within(std::nextafter(squared, kMost))) squared = std::nextafter(squared, kMost);
  return squared;
}

}  // namespace ensemblead
