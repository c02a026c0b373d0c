// Bounds of distances from products of sketches, rounding included.
#pragma once

#include <cstdint>
#include <limits>

namespace ensemblead::cpu {

struct SketchNorms {
  float sketch;  // squared norm of the sketch
  float full;    // squared norm of the row it stands for; rounding errors are proportional to it
};

// Squared norms from which products might overflow.
constexpr float kTooLong = 1e36f;

// Bound on the relative error of sums of `dims` products and of sketches made of them, with room to spare.
inline float relative_slack(std::int64_t dims) {
  return 6.0f * static_cast<float>(dims + 32) * std::numeric_limits<float>::epsilon();
}

// The threshold of products for a row x whose value is v. With x and p sketched, |x - p|^2 < v exactly when
// x.p - |p|^2 / 2 > (|x|^2 - v) / 2. The threshold is the right-hand side, lowered by a bound of the rounding
// errors of x and v: a product at or below it proves a distance of v or more. It is lower even where every
// norm is 0.
inline float product_threshold(SketchNorms norms, float value, float slack) {
  if (value == std::numeric_limits<float>::infinity()) return -value;
  return 0.5f * (norms.sketch - value) - slack * (norms.full + value) - std::numeric_limits<float>::min();
}

// The start of a product x.p: minus |p|^2 / 2, raised by a bound of the rounding errors of p.
inline float product_start(SketchNorms norms, float slack) {
  return -0.5f * norms.sketch + slack * norms.full;
}

}  // namespace ensemblead::cpu
