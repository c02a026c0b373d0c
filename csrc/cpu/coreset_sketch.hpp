// The coordinates in which matrix products filter (row, pick) pairs before any distance is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/coreset_simd.hpp"
#include "cpu/sketch_bounds.hpp"

namespace ensemblead::cpu {

// Distances in an orthogonal projection are never longer than the distances themselves. Where a few principal
// directions carry nearly all of the variance, as they do in the features of a trained network, a product
// over those few dimensions rules out nearly every pair at a fraction of the work. Where they do not, the
// sketch of a row is the row itself, relative to a point in the middle of all rows, so that less is lost to
// cancellation. A sketch rules pairs out; it never becomes a value.
class Sketch {
 public:
  // `work` is the number of (row, pick) pairs ahead; where it is small the rows themselves do.
  Sketch(const CoresetSimd& simd, const float* features, std::int64_t rows, std::int64_t dims,
         std::int64_t work, int num_threads);

  std::int64_t dims() const { return sketch_dims_; }

  using Norms = SketchNorms;

  // The sketch of row `index` of the features goes to `out` [dims()].
  Norms row(std::int64_t index, float* out) const;
  void prefetch(std::int64_t index) const {
    const float* next =
        directions_.empty() ? features_ + index * full_dims_ : sketches_.get() + index * sketch_dims_;
    for (std::int64_t d = 0; d < std::min<std::int64_t>(sketch_dims_, 256); d += 16)
      __builtin_prefetch(next + d);
    if (!norms_.empty()) __builtin_prefetch(norms_.data() + index);
  }
  // The sketch of any other point.
  Norms point(const float* values, float* out) const;

 private:
  static constexpr std::align_val_t kCacheLine{64};
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, kCacheLine); }
  };

  void find_directions(double tolerated_rest);
  void sketch_rows(int num_threads);

  const CoresetSimd& simd_;
  const float* features_;
  std::int64_t rows_;
  std::int64_t full_dims_;
  std::int64_t sketch_dims_;
  std::vector<float> middle_;
  std::vector<float> directions_;  // [sketch_dims_, full_dims_], orthonormal; empty: sketches are the rows
  std::unique_ptr<float[], Free> sketches_;  // [rows_, sketch_dims_]
  std::vector<Norms> norms_;
};

}  // namespace ensemblead::cpu
