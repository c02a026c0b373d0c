// The inner loops of untile and smooth_seams, compiled once per instruction set (cpu/instruction_set.hpp).
#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

// Loops over elements stored as T and computed in A (float, or double for double).
template <class T, class A>
struct TilingLoops {
  // out[x] = scale * (pairwise sum over s of sources[s][x]); 1 <= count < 2^33.
  void (*average)(const T* const* sources, std::int64_t count, A scale, std::int64_t length, T* out);
  // Whether `average` may have left NaN or infinity among these.
  bool (*any_not_finite)(const T* values, std::int64_t length);
  // Computes those elements of `out` anew that are not finite, in case only their sums were beyond the range.
  void (*average_large)(const T* const* sources, std::int64_t count, std::int64_t length, T* out);
  void (*widen)(const T* values, std::int64_t length, A* out);
  void (*narrow)(const A* values, std::int64_t length, T* out);
};

// Rows that are blurred at once: each row that is read serves all of them.
constexpr std::int64_t kBlurRows = 4;

// Symmetric filters of 2 * radius + 1 `weights`; `out` shares no memory with the rows.
template <class A>
struct BlurLoops {
  // out[x] = sum over t of weights[t] * rows[t][x]
  void (*across_rows)(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length,
                      A* out);
  // out[r * out_stride + x] = sum over t of weights[t] * rows[r + t][x] for r < kBlurRows
  void (*across_many)(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length,
                      A* out, std::int64_t out_stride);
  // out[x] = sum over t of weights[t] * row[x - radius + t]
  void (*along_row)(const A* row, const A* weights, std::int64_t radius, std::int64_t length, A* out);
};

struct TilingTable {
  TilingLoops<Float16, float> float16;
  TilingLoops<BFloat16, float> bfloat16;
  TilingLoops<float, float> float32;
  TilingLoops<double, double> float64;
  BlurLoops<float> blur32;
  BlurLoops<double> blur64;
};

ENSEMBLEAD_SIMD_TABLE(TilingTable, tiling_table)

}  // namespace ensemblead::cpu
