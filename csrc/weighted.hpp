// The k largest weighted sums of blocks of similarities, for many combinations of weights in one pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/work.hpp"

namespace ensemblead {

// No call has more blocks: a CUDA kernel gets their addresses among its parameters.
constexpr std::int64_t kMostBlocks = 64;

// For combination w, query q and column n the similarity is
//   scales[w][n] * sum_b weights[w][b] * blocks[b][q][n],
// in float32, summed in the order of the blocks, each product fused with its sum where the processor can.
// Of every query's columns the k with the largest similarities are written, the largest first, the lower
// column first among equals (-0 equals 0, and is written as 0). Columns whose similarity is NaN or minus
// infinity, and columns that are left out, are not retrieved. Where fewer than k are left, minus infinity and
// -1 follow.
struct WeightedTask {
  std::vector<const float*> blocks;  // each [num_queries, num_columns]
  const float* weights = nullptr;    // [num_combinations, number of blocks]
  const float* scales = nullptr;     // [num_combinations, num_columns]; null: ones
  std::int64_t num_combinations = 0;
  std::int64_t num_queries = 0;
  std::int64_t num_columns = 0;  // below 2^31
  std::int64_t k = 0;            // 1 to num_columns
  // A column that is left out of each query's results [num_queries]; below 0 for none. Null: none is.
  const std::int64_t* left_out_column = nullptr;
  // Not 0 for the columns that are left out [num_queries, num_columns]. Null: none is.
  const std::uint8_t* left_out = nullptr;
  float* values = nullptr;          // [num_combinations, num_queries, k], written
  std::int64_t* indices = nullptr;  // [num_combinations, num_queries, k], written
};

// The result does not depend on the number of threads.
namespace cpu {
void weighted_top_k(const WeightedTask& task, const Work& work);
}  // namespace cpu

// The kernel does not wait for the stream.
namespace cuda {

// Bytes of scratch, for num_combinations, num_queries and k; 0 for a k up to 3840.
std::size_t weighted_top_k_scratch(const WeightedTask& task);
void weighted_top_k(const WeightedTask& task, const Work& work);

}  // namespace cuda
}  // namespace ensemblead
