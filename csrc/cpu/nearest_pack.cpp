#include "cpu/nearest_pack.hpp"

#include <omp.h>

#include <algorithm>
#include <limits>

namespace ensemblead::cpu {

Sketcher::Sketcher(const CoresetSimd& simd, const SketchedRows& rows, const float* direction_panels)
    : simd_(simd),
      middle_(rows.middle),
      dims_(rows.dims),
      front_(rows.num_front),
      tail_(rows.num_directions - rows.num_front),
      direction_panels_(direction_panels),
      zeros_(static_cast<std::size_t>(simd.panel_width), 0.0f),
      always_(static_cast<std::size_t>(simd.tile_rows), -std::numeric_limits<float>::infinity()),
      products_(static_cast<std::size_t>(simd.tile_rows * simd.panel_width), 0.0f),
      sketch_(static_cast<std::size_t>(simd.tile_rows * rows.num_directions), 0.0f) {}

void Sketcher::run(const float* const* points, std::int64_t count, float* centred, float* fronts,
                   float* tails, SketchNorms* norms) {
  const std::int64_t width = simd_.panel_width;
  const std::int64_t directions = front_ + tail_;
  for (std::int64_t i = 0; i < count; ++i)
    norms[i].full = simd_.center(points[i], middle_, dims_, centred + i * dims_);
  for (std::int64_t v = 0; v < directions; v += width) {
    simd_.tile(centred, dims_, dims_, direction_panels_ + v * dims_, zeros_.data(), always_.data(),
               products_.data());
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(products_.data() + i * width, std::min(width, directions - v),
                  sketch_.data() + i * directions + v);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const float* sketch = sketch_.data() + i * directions;
    std::copy_n(sketch, front_, fronts + i * front_);
    std::copy_n(sketch + front_, tail_, tails + i * tail_);
    norms[i].sketch = simd_.squared_norm(sketch, front_);
  }
}

std::int64_t packed_size(std::int64_t num_rows, std::int64_t dims, std::int64_t num_directions,
                         std::int64_t num_front) {
  return PackedLayout(coreset_simd(), {nullptr, num_rows, dims, nullptr, num_directions, num_front, nullptr})
      .size;
}

void pack_rows(const SketchedRows& rows, const float* directions, int num_threads, float* packed) {
  const CoresetSimd& simd = coreset_simd();
  const PackedLayout layout(simd, rows);
  const float slack = sketch_slack(rows.dims, rows.num_directions);
  const int threads = num_threads > 0 ? num_threads : omp_get_max_threads();
  std::fill_n(packed, layout.starts_at, 0.0f);
  float* starts = packed + layout.starts_at;
  std::fill_n(starts, layout.row_panels * layout.width, -std::numeric_limits<float>::infinity());
  for (std::int64_t v = 0; v < rows.num_directions; ++v)
    for (std::int64_t d = 0; d < rows.dims; ++d)
      packed[(v / layout.width * rows.dims + d) * layout.width + v % layout.width] =
          directions[v * rows.dims + d];

  const std::int64_t tile = simd.tile_rows;
  std::vector<Sketcher> sketchers(static_cast<std::size_t>(threads), Sketcher(simd, rows, packed));
  std::vector<float> centred(static_cast<std::size_t>(threads * tile * rows.dims));
  std::vector<float> fronts(static_cast<std::size_t>(threads * tile * layout.front));
  std::vector<SketchNorms> norms(static_cast<std::size_t>(threads * tile));
  std::vector<const float*> points(static_cast<std::size_t>(threads * tile));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t first = 0; first < rows.num_rows; first += tile) {
    const int thread = omp_get_thread_num();
    const float** own_points = points.data() + thread * tile;
    float* own = fronts.data() + thread * tile * layout.front;
    SketchNorms* own_norms = norms.data() + thread * tile;
    const std::int64_t count = std::min(tile, rows.num_rows - first);
    for (std::int64_t i = 0; i < count; ++i) own_points[i] = rows.rows + (first + i) * rows.dims;
    sketchers[thread].run(own_points, count, centred.data() + thread * tile * rows.dims, own,
                          packed + layout.tails_at + first * layout.tail, own_norms);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = first + i;
      // A row that is too long for products starts at infinity: it is always looked at.
      const bool fits = own_norms[i].full < kTooLong;
      starts[row] = fits ? product_start(own_norms[i], slack) : std::numeric_limits<float>::infinity();
      if (!fits) std::fill_n(packed + layout.tails_at + row * layout.tail, layout.tail, 0.0f);
      float* to = packed + layout.fronts_at + row / layout.width * layout.front * layout.width;
      for (std::int64_t v = 0; v < layout.front; ++v)
        to[v * layout.width + row % layout.width] = fits ? own[i * layout.front + v] : 0.0f;
    }
  }
}

}  // namespace ensemblead::cpu
