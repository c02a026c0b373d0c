// The inner loops of select_coreset, project_rows and the searches of nearest.hpp, one build per instruction
// set (see instruction_set.hpp).
#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

// No build has taller tiles or wider panels.
constexpr int kMostTileRows = 16;
constexpr int kMostPanelWidth = 32;

// Whole numbers in place of values, of seven bits and a sign: value = scale * number + error. Squares are
// those of values / scale. All but the scale is 0 where no value is beyond 1e-30: products of those are less
// than what sketch_bounds.hpp leaves room for.
struct Codes {
  float scale;
  std::int32_t sum;  // of the numbers
  float coded;       // sum of squared numbers
  float error;       // of squared errors
  float whole;       // of squared values
};

// The numbers of queries are at most kMostQueryCode, and raised by it so that they have no sign; those of
// rows at most kMostRowCode. Two products of them fit into sixteen bits.
constexpr int kMostQueryCode = 63;
constexpr int kMostRowCode = 127;

// How a panel of coded rows lies in memory, in words of four bytes, each for all columns: where a row's
// products start, its scale, -kMostQueryCode times the sum of its numbers, then values of its front, then its
// numbers by four.
constexpr std::int64_t kStartWord = 0;
constexpr std::int64_t kScaleWord = 1;
constexpr std::int64_t kSumWord = 2;
constexpr std::int64_t kFrontWord = 3;

struct CoresetSimd {
  // `tile` multiplies `tile_rows` rows by one panel of `panel_width` columns.
  int tile_rows;
  int panel_width;

  // products[r][c] = initial[c] + sum_d rows[r * row_stride + d] * panel[d * panel_width + c], written for
  // the rows that have a product above thresholds[r] only; returns a bit for each of those.
  std::uint32_t (*tile)(const float* rows, std::int64_t row_stride, std::int64_t dims, const float* panel,
                        const float* initial, const float* thresholds, float* products);

  // The same from 0, and with a threshold for every column: products[r] is written for the rows that have a
  // product above thresholds[c] of its column c.
  std::uint32_t (*tile_by_columns)(const float* rows, std::int64_t row_stride, std::int64_t dims,
                                   const float* panel, const float* thresholds, float* products);

  // The same as `tile` for queries and rows that are coded: products[r][c] = start[c] + sum_v front[r][v]
  // front[c][v] + scales[r] scale[c] sum_n code[r][n] code[c][n]. A query r is at rows + r * row_stride: its
  // front, then its codes, each in words of four bytes, so many of both.
  std::uint32_t (*coded_tile)(const float* rows, std::int64_t row_stride, std::int64_t front,
                              std::int64_t groups, const float* scales, const float* panel,
                              const float* thresholds, float* products);

  // The same by an instruction for dot products; null where the build has none. See has_dot_products().
  std::uint32_t (*coded_tile_by_dots)(const float* rows, std::int64_t row_stride, std::int64_t front,
                                      std::int64_t groups, const float* scales, const float* panel,
                                      const float* thresholds, float* products);

  // Codes of `count` values, from -most to most, with `raise` added to each as it is written. Values must be
  // finite.
  Codes (*encode)(const float* values, std::int64_t count, int most, int raise, unsigned char* codes);

  // The products of one row; returns a bit for each of products[0..panel_width) above the threshold, and
  // writes them in any case.
  std::uint32_t (*row_by_panel)(const float* row, std::int64_t dims, const float* panel, const float* initial,
                                float threshold, float* products);

  // A bit for each of products[0..panel_width) above the threshold.
  std::uint32_t (*lanes_above)(const float* products, float threshold);

  // Sum of squared differences. Every distance that decides anything comes from here, so that a pair has one
  // value whichever way it is reached.
  float (*squared_distance)(const float* a, const float* b, std::int64_t dims);

  // centred = row - reference; returns its squared norm.
  float (*center)(const float* row, const float* reference, std::int64_t dims, float* centred);

  float (*squared_norm)(const float* values, std::int64_t dims);

  // out[i] = values[i], exactly.
  void (*widen)(const Float16* values, std::int64_t size, float* out);

  // The first non-finite element, or -1; then *max_abs is raised to the largest magnitude.
  std::int64_t (*scan)(const float* values, std::int64_t size, float* max_abs);

  float (*maximum)(const float* values, std::int64_t size);

  // base + i for every values[i] > floor, in order; returns how many were written.
  std::int64_t (*collect)(const float* values, std::int64_t size, float floor, std::int32_t base,
                          std::int32_t* indices);
};

ENSEMBLEAD_SIMD_TABLE(CoresetSimd, coreset_simd)

}  // namespace ensemblead::cpu
