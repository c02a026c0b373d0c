// The layout of packed rows in memory, and sketches of points.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/coreset_simd.hpp"
#include "cpu/sketch_bounds.hpp"
#include "nearest.hpp"

namespace ensemblead::cpu {

// The parts of packed rows: panels of the directions, [panel][dims][width]; panels of the rows' fronts,
// [panel][front][width]; the start of every row's products; the tails of the sketches, [rows][tail]. Lanes
// beyond the last row start from minus infinity: they never hit.
struct PackedLayout {
  PackedLayout(const CoresetSimd& simd, const SketchedRows& rows)
      : width(simd.panel_width),
        front(rows.num_front),
        tail(rows.num_directions - rows.num_front),
        direction_panels((rows.num_directions + width - 1) / width),
        row_panels((rows.num_rows + width - 1) / width),
        fronts_at(direction_panels * rows.dims * width),
        starts_at(fronts_at + row_panels * front * width),
        tails_at(starts_at + row_panels * width),
        size(tails_at + rows.num_rows * tail) {}

  std::int64_t width;
  std::int64_t front;
  std::int64_t tail;
  std::int64_t direction_panels;
  std::int64_t row_panels;
  std::int64_t fronts_at;
  std::int64_t starts_at;
  std::int64_t tails_at;
  std::int64_t size;
};

// A row in float32: where it is, or widened into `buffer` [dims].
inline const float* row_of(const CoresetSimd& simd, const SketchedRows& rows, std::int64_t index,
                           float* buffer) {
  if (rows.rows != nullptr) return rows.rows + index * rows.dims;
  simd.widen(rows.halves + index * rows.dims, rows.dims, buffer);
  return buffer;
}

// The errors of a sketch grow with the number of its directions; relative_slack does for 32.
inline float sketch_slack(std::int64_t dims, std::int64_t directions) {
  const float more = std::sqrt(static_cast<float>(directions) / 32.0f);
  return relative_slack(dims) * (more > 1.0f ? more : 1.0f);
}

// One thread's means to sketch a few points at a time.
class Sketcher {
 public:
  Sketcher(const CoresetSimd& simd, const SketchedRows& rows, const float* direction_panels);

  // Sketches at most simd.tile_rows points of `dims` values each. Writes the points relative to the middle
  // [tile_rows, dims], and the fronts [count, front] and tails [count, tail] of their sketches.
  // norms[i].sketch is that of the front. The sketch of a point that is not finite is undefined; its full
  // norm is not finite.
  void run(const float* const* points, std::int64_t count, float* centred, float* fronts, float* tails,
           SketchNorms* norms);

 private:
  const CoresetSimd& simd_;
  const float* middle_;
  std::int64_t dims_;
  std::int64_t front_;
  std::int64_t tail_;
  const float* direction_panels_;
  std::vector<float> zeros_;
  std::vector<float> always_;
  std::vector<float> products_;
  std::vector<float> sketch_;
};

}  // namespace ensemblead::cpu
