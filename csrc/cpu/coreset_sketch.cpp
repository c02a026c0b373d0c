#include "cpu/coreset_sketch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/huge_pages.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

// Fewer directions than this share of the dimensions, or none.
constexpr std::int64_t kLeastReduction = 3;
constexpr std::int64_t kDirections = 32;
// The share of the variance that the directions may leave out.
constexpr double kToleratedRest = 0.1;
// Pairs below which the search for directions costs more than it can save.
constexpr std::int64_t kWorthwhilePairs = 20'000'000;
constexpr std::int64_t kSampleRows = 512;
constexpr int kIterations = 3;

double dot(const double* a, const double* b, std::int64_t size) {
  double total[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= size; i += 4)
    for (int lane = 0; lane < 4; ++lane) total[lane] += a[i + lane] * b[i + lane];
  for (; i < size; ++i) total[0] += a[i] * b[i];
  return (total[0] + total[1]) + (total[2] + total[3]);
}

void add_scaled(double* to, double scale, const double* from, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) to[i] += scale * from[i];
}

// Gram-Schmidt, twice, so that the result is orthonormal to working precision. Vectors that vanish become 0.
void orthonormalize(std::vector<double>& vectors, std::int64_t count, std::int64_t size) {
  for (std::int64_t v = 0; v < count; ++v) {
    double* vector = vectors.data() + v * size;
    const double before = dot(vector, vector, size);
    for (int pass = 0; pass < 2; ++pass)
      for (std::int64_t u = 0; u < v; ++u)
        add_scaled(vector, -dot(vector, vectors.data() + u * size, size), vectors.data() + u * size, size);
    const double norm = dot(vector, vector, size);
    const double scale = norm > 1e-20 * before && norm > 0.0 ? 1.0 / std::sqrt(norm) : 0.0;
    for (std::int64_t i = 0; i < size; ++i) vector[i] *= scale;
  }
}

}  // namespace

Sketch::Sketch(const CoresetSimd& simd, const float* features, std::int64_t rows, std::int64_t dims,
               std::int64_t work, int num_threads)
    : simd_(simd),
      features_(features),
      rows_(rows),
      full_dims_(dims),
      sketch_dims_(dims),
      middle_(static_cast<std::size_t>(dims)) {
  // The mean of some rows spread over all of them.
  std::vector<double> sums(static_cast<std::size_t>(dims), 0.0);
  const std::int64_t step = std::max<std::int64_t>(1, rows / kSampleRows);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < rows; row += step, ++count)
    for (std::int64_t d = 0; d < dims; ++d) sums[d] += static_cast<double>(features[row * dims + d]);
  for (std::int64_t d = 0; d < dims; ++d)
    middle_[d] = static_cast<float>(sums[d] / static_cast<double>(count));

  if (work < kWorthwhilePairs || dims < kLeastReduction * kDirections || rows < kSampleRows) return;
  find_directions(kToleratedRest);
  if (!directions_.empty()) sketch_rows(num_threads);
}

// Principal directions of a sample by subspace iteration. Any orthonormal directions are valid; good ones
// filter well.
void Sketch::find_directions(double tolerated_rest) {
  const std::int64_t step = rows_ / kSampleRows;
  std::vector<double> sample(static_cast<std::size_t>(kSampleRows * full_dims_));
  for (std::int64_t s = 0; s < kSampleRows; ++s)
    for (std::int64_t d = 0; d < full_dims_; ++d)
      sample[s * full_dims_ + d] =
          static_cast<double>(features_[s * step * full_dims_ + d]) - static_cast<double>(middle_[d]);
  const double energy = dot(sample.data(), sample.data(), kSampleRows * full_dims_);
  if (energy == 0.0) return;

  // Differences of sample rows are a start that needs no random numbers.
  std::vector<double> vectors(static_cast<std::size_t>(kDirections * full_dims_), 0.0);
  for (std::int64_t v = 0; v < kDirections; ++v)
    for (std::int64_t s = v; s < kSampleRows; s += kDirections)
      add_scaled(vectors.data() + v * full_dims_, (s / kDirections) % 2 == 0 ? 1.0 : -1.0,
                 sample.data() + s * full_dims_, full_dims_);
  double kept = 0.0;
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    orthonormalize(vectors, kDirections, full_dims_);
    std::vector<double> next(vectors.size(), 0.0);
    kept = 0.0;
    for (std::int64_t s = 0; s < kSampleRows; ++s) {
      const double* row = sample.data() + s * full_dims_;
      for (std::int64_t v = 0; v < kDirections; ++v) {
        const double component = dot(row, vectors.data() + v * full_dims_, full_dims_);
        kept += component * component;
        add_scaled(next.data() + v * full_dims_, component, row, full_dims_);
      }
    }
    if (iteration + 1 < kIterations) vectors.swap(next);
  }
  if (kept < (1.0 - tolerated_rest) * energy) return;
  directions_.assign(vectors.begin(), vectors.end());
  sketch_dims_ = kDirections;
}

void Sketch::sketch_rows(int num_threads) {
  // Rows are visited in no order of memory: whole cache lines, and large pages where there are any.
  const std::int64_t bytes = rows_ * sketch_dims_ * std::int64_t{sizeof(float)};
  sketches_.reset(static_cast<float*>(::operator new(static_cast<std::size_t>(bytes), kCacheLine)));
  prefer_huge_pages(sketches_.get(), bytes);
  norms_.resize(static_cast<std::size_t>(rows_));
  const std::int64_t tile = simd_.tile_rows;
  const std::int64_t width = simd_.panel_width;
  std::vector<float> panels(directions_.size());
  for (std::int64_t v = 0; v < sketch_dims_; ++v)
    for (std::int64_t d = 0; d < full_dims_; ++d)
      panels[v / width * full_dims_ * width + d * width + v % width] = directions_[v * full_dims_ + d];
  const std::vector<float> initial(static_cast<std::size_t>(width), 0.0f);
  const std::vector<float> always(static_cast<std::size_t>(tile), -std::numeric_limits<float>::infinity());
  std::vector<float> scratch(static_cast<std::size_t>(num_threads * tile * (full_dims_ + width)), 0.0f);
  parallel_for((rows_ + tile - 1) / tile, num_threads, Schedule::kStatic, [&](std::int64_t item, int thread) {
    const std::int64_t first = item * tile;
    float* centred = scratch.data() + thread * tile * (full_dims_ + width);
    float* products = centred + tile * full_dims_;
    const std::int64_t count = std::min(tile, rows_ - first);
    for (std::int64_t r = 0; r < count; ++r)
      norms_[first + r].full = simd_.center(features_ + (first + r) * full_dims_, middle_.data(), full_dims_,
                                            centred + r * full_dims_);
    for (std::int64_t v = 0; v < sketch_dims_; v += width) {
      simd_.tile(centred, full_dims_, full_dims_, panels.data() + v * full_dims_, initial.data(),
                 always.data(), products);
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(products + r * width, width, sketches_.get() + (first + r) * sketch_dims_ + v);
    }
    for (std::int64_t r = 0; r < count; ++r)
      norms_[first + r].sketch =
          simd_.squared_norm(sketches_.get() + (first + r) * sketch_dims_, sketch_dims_);
  });
}

Sketch::Norms Sketch::row(std::int64_t index, float* out) const {
  if (directions_.empty()) return point(features_ + index * full_dims_, out);
  std::copy_n(sketches_.get() + index * sketch_dims_, sketch_dims_, out);
  return norms_[index];
}

Sketch::Norms Sketch::point(const float* values, float* out) const {
  if (directions_.empty()) {
    const float norm = simd_.center(values, middle_.data(), full_dims_, out);
    return {norm, norm};
  }
  std::vector<float> centred(static_cast<std::size_t>(full_dims_));
  const float full = simd_.center(values, middle_.data(), full_dims_, centred.data());
  for (std::int64_t v = 0; v < sketch_dims_; ++v) {
    double total = 0.0;
    for (std::int64_t d = 0; d < full_dims_; ++d)
      total += static_cast<double>(centred[d]) * static_cast<double>(directions_[v * full_dims_ + d]);
    out[v] = static_cast<float>(total);
  }
  return {simd_.squared_norm(out, sketch_dims_), full};
}

}  // namespace ensemblead::cpu
