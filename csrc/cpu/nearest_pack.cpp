#include "cpu/nearest_pack.hpp"

#include <algorithm>
#include <limits>

#include "cpu/parallel.hpp"

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

std::int64_t packed_size(const SketchedRows& rows) { return PackedLayout(coreset_simd(), rows).size; }

namespace {

// One thread's means to pack the rows of one tile at a time.
class RowPacker {
 public:
  RowPacker(const CoresetSimd& simd, const PackTask& task, const PackedLayout& layout)
      : rows_(task.rows),
        packed_(task.packed),
        layout_(layout),
        slack_(sketch_slack(rows_.dims, rows_.num_directions)),
        sketcher_(simd, rows_, task.packed),
        centred_(static_cast<std::size_t>(simd.tile_rows * rows_.dims)),
        fronts_(static_cast<std::size_t>(simd.tile_rows * layout.front)),
        norms_(static_cast<std::size_t>(simd.tile_rows)),
        points_(static_cast<std::size_t>(simd.tile_rows)),
        widened_(static_cast<std::size_t>(rows_.rows == nullptr ? simd.tile_rows * rows_.dims : 0)),
        simd_(simd) {}

  // Rows `first` to `first + count`, at most simd.tile_rows of them.
  void run(std::int64_t first, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
      points_[i] = row_of(simd_, rows_, first + i, widened_.data() + i * rows_.dims);
    sketcher_.run(points_.data(), count, centred_.data(), fronts_.data(),
                  packed_ + layout_.tails_at + first * layout_.tail, norms_.data());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = first + i;
      // A row that is too long for products starts at infinity: it is always compared.
      const bool fits = norms_[i].full < kTooLong;
      packed_[layout_.starts_at + row] =
          fits ? product_start(norms_[i], slack_) : std::numeric_limits<float>::infinity();
      if (!fits) std::fill_n(packed_ + layout_.tails_at + row * layout_.tail, layout_.tail, 0.0f);
      float* to = packed_ + layout_.fronts_at + row / layout_.width * layout_.front * layout_.width;
      for (std::int64_t v = 0; v < layout_.front; ++v)
        to[v * layout_.width + row % layout_.width] = fits ? fronts_[i * layout_.front + v] : 0.0f;
    }
  }

 private:
  const SketchedRows& rows_;
  float* packed_;
  const PackedLayout& layout_;
  float slack_;
  Sketcher sketcher_;
  std::vector<float> centred_;
  std::vector<float> fronts_;
  std::vector<SketchNorms> norms_;
  std::vector<const float*> points_;
  std::vector<float> widened_;
  const CoresetSimd& simd_;
};

}  // namespace

void pack_rows(const PackTask& task, const Work& work) {
  const CoresetSimd& simd = coreset_simd();
  const SketchedRows& rows = task.rows;
  const PackedLayout layout(simd, rows);
  std::fill_n(task.packed, layout.starts_at, 0.0f);
  std::fill_n(task.packed + layout.starts_at, layout.row_panels * layout.width,
              -std::numeric_limits<float>::infinity());
  for (std::int64_t v = 0; v < rows.num_directions; ++v)
    for (std::int64_t d = 0; d < rows.dims; ++d)
      task.packed[(v / layout.width * rows.dims + d) * layout.width + v % layout.width] =
          task.directions[v * rows.dims + d];

  const std::int64_t tile = simd.tile_rows;
  const int threads = most_threads(work.threads);
  std::vector<RowPacker> packers;
  packers.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) packers.emplace_back(simd, task, layout);
  parallel_for((rows.num_rows + tile - 1) / tile, threads, Schedule::kStatic,
               [&](std::int64_t item, int thread) {
                 packers[thread].run(item * tile, std::min(tile, rows.num_rows - item * tile));
               });
}

}  // namespace ensemblead::cpu
