// project_rows: the tile of select_coreset as a plain matrix product.
#include <algorithm>
#include <limits>
#include <vector>

#include "coreset.hpp"
#include "cpu/coreset_simd.hpp"
#include "cpu/finite.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {

namespace {

// The projection's rows as panels of `width` columns, dimension by dimension; zeros fill the last one.
std::vector<float> pack_panels(const ProjectTask& task, std::int64_t width) {
  const std::int64_t num_panels = (task.out_dims + width - 1) / width;
  std::vector<float> panels(static_cast<std::size_t>(num_panels * task.dims * width), 0.0f);
  for (std::int64_t o = 0; o < task.out_dims; ++o)
    for (std::int64_t d = 0; d < task.dims; ++d)
      panels[o / width * task.dims * width + d * width + o % width] = task.projection[o * task.dims + d];
  return panels;
}

void multiply(const ProjectTask& task, int num_threads) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t dims = task.dims;
  const std::int64_t width = simd.panel_width;
  const std::int64_t tile = simd.tile_rows;
  const std::int64_t num_panels = (task.out_dims + width - 1) / width;
  const std::vector<float> panels = pack_panels(task, width);
  const std::vector<float> zeros(static_cast<std::size_t>(width), 0.0f);
  const std::vector<float> always(static_cast<std::size_t>(tile), -std::numeric_limits<float>::infinity());
  const std::int64_t num_tiles = (task.rows + tile - 1) / tile;
  const int threads = most_threads(num_threads);
  std::vector<float> buffers(static_cast<std::size_t>(threads * tile * (width + dims)));

  parallel_for(num_tiles, threads, Schedule::kStatic, [&](std::int64_t item, int thread) {
    float* products = buffers.data() + thread * tile * (width + dims);
    const std::int64_t first = item * tile;
    const std::int64_t count = std::min(tile, task.rows - first);
    const float* source = task.features + first * dims;
    if (count < tile) {  // the last rows, with something finite behind them
      float* padded = products + tile * width;
      std::fill(padded, padded + tile * dims, 0.0f);
      std::copy(source, source + count * dims, padded);
      source = padded;
    }
    for (std::int64_t panel = 0; panel < num_panels; ++panel) {
      // Sums that overflow to NaN are not above any threshold and stay NaN.
      std::fill_n(products, tile * width, std::numeric_limits<float>::quiet_NaN());
      simd.tile(source, dims, dims, panels.data() + panel * dims * width, zeros.data(), always.data(),
                products);
      const std::int64_t columns = std::min(width, task.out_dims - panel * width);
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(products + r * width, columns,
                    task.projected + (first + r) * task.out_dims + panel * width);
    }
  });
}

}  // namespace

void project_rows(const ProjectTask& task, const Work& work) {
  check_finite(task.features, task.rows, task.dims, task.argument, work.threads);
  check_finite(task.projection, task.out_dims, task.dims, "projection", work.threads);
  multiply(task, work.threads);
  check_finite(task.projected, task.rows, task.out_dims, "the projection of features", work.threads);
}

}  // namespace ensemblead::cpu
