// The inner loops of weighted_top_k, one build per instruction set (see instruction_set.hpp).
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

// `collect` needs so many free places to begin.
constexpr std::int64_t kMostCollected = 64;

// sum(i) = scales[i] * (weights[0] * rows[0][i] + weights[1] * rows[1][i] + ...); scales may be null.
struct WeightedRows {
  const float* const* rows;
  const float* weights;
  std::int64_t count;
  const float* scales;
};

// Columns and sums that were found above a bound, in ascending order of the columns.
struct Collected {
  float* values;
  std::int32_t* columns;
  std::int64_t capacity;
  std::int64_t count;
};

struct WeightedSimd {
  // The sums of `size` columns. The same bits as `collect` finds.
  void (*combine)(const WeightedRows& rows, std::int64_t size, float* sums);

  // Appends the columns of [begin, size) with a sum above `bound`, until fewer than kMostCollected places are
  // free. Returns the first column that was not looked at.
  std::int64_t (*collect)(const WeightedRows& rows, std::int64_t begin, std::int64_t size, float bound,
                          Collected* found);
};

ENSEMBLEAD_SIMD_TABLE(WeightedSimd, weighted_simd)

}  // namespace ensemblead::cpu
