// The inner loops of untile and smooth_seams, compiled once per instruction set (cpu/instruction_set.hpp).
#pragma once

#include <cstdint>

#include "core/half.hpp"

namespace ensemblead::cpu {

// Loops over elements stored as T and computed in A (float, or double for double).
template <class T, class A>
struct TilingLoops {
  // out[x] = scale * (pairwise sum over s of sources[s][x]); 1 <= count < 2^33.
  void (*average)(const T* const* sources, std::int64_t count, A scale, std::int64_t length, T* out);
  void (*widen)(const T* values, std::int64_t length, A* out);
  void (*narrow)(const A* values, std::int64_t length, T* out);
};

// Symmetric filters; `out` shares no memory with the rows.
template <class A>
struct BlurLoops {
  // out[x] = weights[0] * rows[radius][x] + sum over k of weights[k] * (rows[radius - k][x] + rows[radius + k][x])
  void (*across_rows)(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length, A* out);
  // out[x] = weights[0] * row[x] + sum over k of weights[k] * (row[x - k] + row[x + k])
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

namespace baseline {
extern const TilingTable tiling_table;
}
#if defined(__x86_64__)
namespace v3 {
extern const TilingTable tiling_table;
}
namespace v4 {
extern const TilingTable tiling_table;
}
#endif

}  // namespace ensemblead::cpu
