// The state of a selection on the CPU, and how picks lower the values of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "coreset.hpp"
#include "cpu/coreset_simd.hpp"
#include "cpu/coreset_sketch.hpp"

namespace ensemblead::cpu {

// Sketches of anchors, packed for matrix products: panels of `panel_width` columns, dimension by
// dimension.
class PackedAnchors {
 public:
  PackedAnchors(const CoresetSimd& simd, std::int64_t dims) : dims_(dims), width_(simd.panel_width) {}

  void clear();
  // `start`: the start of products with this anchor (see product_start).
  void add(const float* sketch, float start, std::int32_t anchor);

  std::int64_t count() const { return static_cast<std::int64_t>(anchors_.size()); }
  std::int64_t width() const { return width_; }
  std::int64_t num_panels() const { return (count() + width_ - 1) / width_; }
  const float* panel(std::int64_t index) const { return panels_.data() + index * width_ * dims_; }
  // -inf in the lanes beyond `count`, which are therefore never hit.
  const float* initial(std::int64_t index) const { return initial_.data() + index * width_; }
  std::int32_t anchor(std::int64_t column) const { return anchors_[column]; }

 private:
  std::int64_t dims_;
  std::int64_t width_;
  std::vector<std::int32_t> anchors_;
  std::vector<float> panels_;
  std::vector<float> initial_;
};

// An anchor without its point.
struct SketchedAnchor {
  Sketch::Norms norms;
  float start;  // of products with it
  float rest;   // no less than the length outside the directions of the sketch
};

// Anchors are the bank rows and then the picks, in the order in which they came. A row's value is brought up
// to date only when it matters, so each row remembers how many anchors its value takes into account.
struct Selection {
  Selection(const CoresetSimd& loops, const CoresetTask& task, const Sketch& row_sketch, int threads);

  const CoresetSimd& simd;
  const float* features;
  std::int64_t rows;
  std::int64_t dims;
  int num_threads;
  const Sketch& sketch;

  std::vector<float> values;          // squared distance to the nearest anchor among the first `seen`
  std::vector<std::int32_t> nearest;  // which anchor that is; -1: none has lowered the value yet
  std::vector<std::int32_t> seen;
  std::vector<const float*> anchors;
  PackedAnchors packed;  // all of them
  std::vector<SketchedAnchor> sketched;
  std::vector<float> sketches;  // of the anchors, [anchors, sketch.dims()]
  // Every anchor belongs to one of the first kRoots, or to a later one that nothing lowered: its root, which
  // is near.
  static constexpr std::int32_t kRoots = 2048;
  std::vector<std::int32_t> roots;
  std::vector<float> root_distances;  // no less than the distance to it
  CoresetResult figures;

  std::int64_t num_anchors() const { return static_cast<std::int64_t>(anchors.size()); }
  const float* anchor_sketch(std::int64_t anchor) const { return sketches.data() + anchor * sketch.dims(); }
  // `near` is an earlier anchor that lies close by, or -1.
  void add_anchor(const float* point, std::int32_t near);
  void add_row_as_anchor(std::int32_t index);
  void add_sketched(const float* point, Sketch::Norms norms, std::int32_t near);
  const float* row(std::int64_t index) const { return features + index * dims; }
  // Points are visited in no order of memory: each is asked for some time before it is read.
  void prefetch(const float* point) const {
    for (std::int64_t d = 0; d < std::min<std::int64_t>(dims, 256); d += 16) __builtin_prefetch(point + d);
  }
  float squared_distance(std::int64_t index, std::int64_t anchor) const {
    return simd.squared_distance(row(index), anchors[anchor], dims);
  }
};

// One thread's buffers for lowering rows by packed anchors: products of sketches filter, distances decide.
class RowUpdate {
 public:
  explicit RowUpdate(Selection& selection);

  // Rows that are best done together: enough to use a panel again while it is in the first-level cache, few
  // enough to stay in the second-level cache themselves.
  std::int64_t capacity() const { return capacity_; }
  std::int64_t product_pairs() const { return product_pairs_; }
  std::int64_t direct_pairs() const { return direct_pairs_; }

  // Lowers values[row] and nearest[row] of the rows listed by the anchors from column `first` on.
  void run(const PackedAnchors& anchors, std::int64_t first, const std::int32_t* rows, std::int64_t count);

 private:
  struct Row {
    std::int32_t index;
    Sketch::Norms norms;
    float rest;
  };
  struct Hit {
    std::int32_t place;  // of the row in this chunk
    std::int32_t anchor;
    float product;
  };

  void gather(const std::int32_t* rows, std::int64_t count);
  void run_chunk(const PackedAnchors& anchors, std::int64_t first, std::int64_t count);
  void add_hits(const PackedAnchors& anchors, std::int64_t column, std::uint32_t lanes, std::int64_t place,
                const float* products);
  void raise_threshold(const Hit& hit);
  void resolve_hits();
  void lower(const Hit& hit);

  Selection& selection_;
  std::int64_t capacity_;
  float slack_;
  std::vector<float> sketches_;
  std::vector<Row> rows_;
  std::vector<float> thresholds_;
  std::vector<float> products_;
  std::vector<Hit> hits_;
  std::vector<std::int32_t> best_;   // per row of the chunk: its hit with the largest product
  std::vector<std::int32_t> order_;  // in which hits are resolved
  std::int64_t product_pairs_ = 0;
  std::int64_t direct_pairs_ = 0;
};

}  // namespace ensemblead::cpu
