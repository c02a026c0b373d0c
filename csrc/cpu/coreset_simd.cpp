#include "cpu/coreset_simd.hpp"

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

// Two vectors wide and as tall as the registers allow: 14 x 2 accumulators of 32 registers, 6 x 2 of 16.
constexpr int kTileRows = kLanes == 16 ? 14 : 6;
constexpr int kPanelWidth = 2 * kLanes;
static_assert(kTileRows <= kMostTileRows && kPanelWidth <= kMostPanelWidth);

// Adds the products of a tile and a panel to what `left` and `right` hold, dimension by dimension.
inline __attribute__((always_inline)) void multiply(const float* rows, std::int64_t row_stride,
                                                    std::int64_t dims, const float* panel,
                                                    Vec (&left)[kTileRows], Vec (&right)[kTileRows]) {
  for (std::int64_t d = 0; d < dims; ++d) {
    const Vec panel_left = load(panel + d * kPanelWidth);
    const Vec panel_right = load(panel + d * kPanelWidth + kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < kTileRows; ++r) {
      const Vec value = broadcast(rows[r * row_stride + d]);
      left[r] += value * panel_left;
      right[r] += value * panel_right;
    }
  }
}

std::uint32_t tile(const float* rows, std::int64_t row_stride, std::int64_t dims, const float* panel,
                   const float* initial, const float* thresholds, float* products) {
  Vec left[kTileRows];
  Vec right[kTileRows];
#pragma GCC unroll 14
  for (int r = 0; r < kTileRows; ++r) {
    left[r] = load(initial);
    right[r] = load(initial + kLanes);
  }
  multiply(rows, row_stride, dims, panel, left, right);
  std::uint32_t hits = 0;
#pragma GCC unroll 14
  for (int r = 0; r < kTileRows; ++r) {
    if (!any_greater(larger(left[r], right[r]), broadcast(thresholds[r]))) continue;
    store(products + r * kPanelWidth, left[r]);
    store(products + r * kPanelWidth + kLanes, right[r]);
    hits |= 1u << r;
  }
  return hits;
}

std::uint32_t tile_by_columns(const float* rows, std::int64_t row_stride, std::int64_t dims,
                              const float* panel, const float* thresholds, float* products) {
  Vec left[kTileRows] = {};
  Vec right[kTileRows] = {};
  multiply(rows, row_stride, dims, panel, left, right);
  const Vec bound_left = load(thresholds);
  const Vec bound_right = load(thresholds + kLanes);
  std::uint32_t hits = 0;
#pragma GCC unroll 14
  for (int r = 0; r < kTileRows; ++r) {
    if (!any_greater(left[r], bound_left) && !any_greater(right[r], bound_right)) continue;
    store(products + r * kPanelWidth, left[r]);
    store(products + r * kPanelWidth + kLanes, right[r]);
    hits |= 1u << r;
  }
  return hits;
}

std::uint32_t lanes_above(const float* products, float threshold) {
  const Vec bound = broadcast(threshold);
  return greater_lanes(load(products), bound) | greater_lanes(load(products + kLanes), bound) << kLanes;
}

std::uint32_t row_by_panel(const float* row, std::int64_t dims, const float* panel, const float* initial,
                           float threshold, float* products) {
  // Two sums of each half, so that an addition need not wait for the one before it.
  Vec left[2] = {load(initial), Vec{}};
  Vec right[2] = {load(initial + kLanes), Vec{}};
  std::int64_t d = 0;
  for (; d + 2 <= dims; d += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vec value = broadcast(row[d + i]);
      left[i] += value * load(panel + (d + i) * kPanelWidth);
      right[i] += value * load(panel + (d + i) * kPanelWidth + kLanes);
    }
  }
  if (d < dims) {
    left[0] += broadcast(row[d]) * load(panel + d * kPanelWidth);
    right[0] += broadcast(row[d]) * load(panel + d * kPanelWidth + kLanes);
  }
  store(products, left[0] + left[1]);
  store(products + kLanes, right[0] + right[1]);
  return lanes_above(products, threshold);
}

float squared_distance(const float* a, const float* b, std::int64_t dims) {
  Vec even{};
  Vec odd{};
  std::int64_t d = 0;
  for (; d + 2 * kLanes <= dims; d += 2 * kLanes) {
    const Vec first = load(a + d) - load(b + d);
    const Vec second = load(a + d + kLanes) - load(b + d + kLanes);
    even += first * first;
    odd += second * second;
  }
  float rest = 0.0f;
  for (; d < dims; ++d) {
    const float difference = a[d] - b[d];
    rest += difference * difference;
  }
  return sum(even + odd) + rest;
}

float center(const float* row, const float* reference, std::int64_t dims, float* centred) {
  Vec norm{};
  std::int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) {
    const Vec difference = load(row + d) - load(reference + d);
    store(centred + d, difference);
    norm += difference * difference;
  }
  float rest = 0.0f;
  for (; d < dims; ++d) {
    centred[d] = row[d] - reference[d];
    rest += centred[d] * centred[d];
  }
  return sum(norm) + rest;
}

void widen(const Float16* values, std::int64_t size, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, load_converted(values + i));
  if (i < size) store_some(out + i, load_some(values + i, size - i), size - i);
}

float squared_norm(const float* values, std::int64_t dims) {
  Vec norm{};
  std::int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) norm += load(values + d) * load(values + d);
  float rest = 0.0f;
  for (; d < dims; ++d) rest += values[d] * values[d];
  return sum(norm) + rest;
}

float maximum(const float* values, std::int64_t size) {
  Vec lanes = broadcast(values[0]);
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) lanes = larger(lanes, load(values + i));
  float best = largest(lanes);
  for (; i < size; ++i) best = values[i] > best ? values[i] : best;
  return best;
}

std::int64_t scan(const float* values, std::int64_t size, float* max_abs) {
  constexpr std::int64_t kChunk = 64 * kLanes;
  Vec most{};
  std::int64_t i = 0;
  for (; i + kChunk <= size; i += kChunk) {
    // x - x is 0 for finite x and NaN otherwise, and NaN stays in the sum.
    Vec total{};
    for (std::int64_t j = 0; j < kChunk; j += kLanes) {
      const Vec value = load(values + i + j);
      total += value - value;
      most = larger(most, larger(value, -value));
    }
    if (!(sum(total) == 0.0f)) break;
  }
  float best = largest(most);
  for (; i < size; ++i) {
    if (!(values[i] - values[i] == 0.0f)) return i;
    const float magnitude = values[i] < 0.0f ? -values[i] : values[i];
    best = magnitude > best ? magnitude : best;
  }
  *max_abs = best > *max_abs ? best : *max_abs;
  return -1;
}

std::int64_t collect(const float* values, std::int64_t size, float floor, std::int32_t base,
                     std::int32_t* indices) {
  std::int64_t count = 0;
  std::int64_t i = 0;
  const Vec bound = broadcast(floor);
  for (; i + kLanes <= size; i += kLanes) {
    for (unsigned lanes = greater_lanes(load(values + i), bound); lanes != 0; lanes &= lanes - 1)
      indices[count++] = base + static_cast<std::int32_t>(i) + __builtin_ctz(lanes);
  }
  for (; i < size; ++i)
    if (values[i] > floor) indices[count++] = base + static_cast<std::int32_t>(i);
  return count;
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const CoresetSimd coreset_simd = {kTileRows,   kPanelWidth,      tile,   tile_by_columns, row_by_panel,
                                  lanes_above, squared_distance, center, squared_norm,    widen,
                                  scan,        maximum,          collect};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
