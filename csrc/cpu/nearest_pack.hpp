// The layout of packed rows in memory, and how points are sketched and coded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/coreset_simd.hpp"
#include "cpu/sketch_bounds.hpp"
#include "nearest.hpp"

namespace ensemblead::cpu {

// So many directions are kept in float32, in front of the codes: what varies most, whole clusters of rows
// included, would leave the others coarse steps.
constexpr std::int64_t kMostLead = 8;

// How a point is coded: a front of `front` values in float32, which are its coordinates along the leading
// directions and two that bound the errors of codes, then codes of other values, four to a word.
struct CodedForm {
  CodedForm(std::int64_t leading, std::int64_t coded)
      : lead(leading), front(leading + 2), values(coded), groups((coded + 3) / 4), words(front + groups) {}

  std::int64_t lead;
  std::int64_t front;
  std::int64_t values;
  std::int64_t groups;
  std::int64_t words;
};

// The parts of packed rows: panels of the directions, [panel][dims][width]; the leading directions once more,
// [lead][dims]; panels of the rows' sketches, along the directions; panels of the rows themselves, without
// what the leading directions carry of them. See coreset_simd.hpp for how rows lie in a panel. Lanes beyond
// the last row start from minus infinity: they never hit.
struct PackedLayout {
  PackedLayout(const CoresetSimd& simd, const SketchedRows& rows)
      : width(simd.panel_width),
        lead(std::min(rows.num_directions, kMostLead)),
        sketch(lead, rows.num_directions - lead),
        whole(lead, rows.dims),
        direction_panels((rows.num_directions + width - 1) / width),
        row_panels((rows.num_rows + width - 1) / width),
        sketch_size(rows.num_directions <= kMostLead ? 0 : (kFrontWord + sketch.words) * width),
        whole_size((kFrontWord + whole.words) * width),
        leads_at(direction_panels * rows.dims * width),
        sketches_at(leads_at + lead * rows.dims),
        wholes_at(sketches_at + row_panels * sketch_size),
        size(wholes_at + row_panels * whole_size) {}

  std::int64_t width;
  std::int64_t lead;
  CodedForm sketch;
  CodedForm whole;
  std::int64_t direction_panels;
  std::int64_t row_panels;
  std::int64_t sketch_size;  // of a panel
  std::int64_t whole_size;
  std::int64_t leads_at;
  std::int64_t sketches_at;
  std::int64_t wholes_at;
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

// What belongs to the words of a coded point.
struct CodedPoint {
  float scale = 0.0f;
  std::int32_t sum = 0;
};

enum class Side { kQuery, kRow };

// One thread's means to code points.
class Coder {
 public:
  // Of `packed`, all before the rows is read.
  Coder(const CoresetSimd& simd, const SketchedRows& rows, const float* packed, Side side);

  // Sketches at most simd.tile_rows points of `dims` values each: the points relative to the middle
  // [tile_rows, dims], and the words of their sketches [count, words]. norms[i].sketch is the squared norm
  // along all directions. The words of a point that is too long for products, or not finite, are zeros.
  void sketch(const float* const* points, std::int64_t count, float* centred, float* words, CodedPoint* coded,
              SketchNorms* norms);

  // The words of a whole point that is not too long. What the leading directions carry, which the words of
  // its sketch begin with, is taken off `centred`.
  CodedPoint whole(const float* sketch, float* centred, float* words) const;

 private:
  CodedPoint code(const CodedForm& form, const float* lead, const float* values, float* words) const;

  const CoresetSimd& simd_;
  PackedLayout layout_;
  Side side_;
  const float* middle_;
  std::int64_t dims_;
  std::int64_t directions_;
  const float* direction_panels_;
  const float* leads_;
  std::vector<float> zeros_;
  std::vector<float> always_;
  std::vector<float> products_;
  std::vector<float> coordinates_;
};

}  // namespace ensemblead::cpu
