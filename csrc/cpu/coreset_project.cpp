// project_rows: the tile of the selection, used as a plain matrix product.
#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "coreset.hpp"
#include "cpu/coreset_simd.hpp"
#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

namespace baseline {
extern const CoresetSimd coreset_simd;
}
#if defined(__x86_64__)
namespace v3 {
extern const CoresetSimd coreset_simd;
}
namespace v4 {
extern const CoresetSimd coreset_simd;
}
#endif

const CoresetSimd& coreset_simd() {
#if defined(__x86_64__)
  return for_this_cpu(baseline::coreset_simd, v3::coreset_simd, v4::coreset_simd);
#else
  return baseline::coreset_simd;
#endif
}

void project_rows(const float* features, std::int64_t rows, std::int64_t dims, const float* projection,
                  std::int64_t out_dims, int num_threads, float* projected) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t width = simd.panel_width;
  const std::int64_t tile = simd.tile_rows;
  const std::int64_t num_panels = (out_dims + width - 1) / width;
  std::vector<float> panels(static_cast<std::size_t>(num_panels * dims * width), 0.0f);
  for (std::int64_t o = 0; o < out_dims; ++o)
    for (std::int64_t d = 0; d < dims; ++d)
      panels[o / width * dims * width + d * width + o % width] = projection[o * dims + d];
  const std::vector<float> zeros(static_cast<std::size_t>(width), 0.0f);
  const std::vector<float> always(static_cast<std::size_t>(tile), -std::numeric_limits<float>::infinity());
  const std::int64_t num_tiles = (rows + tile - 1) / tile;
  const int threads = num_threads > 0 ? num_threads : omp_get_max_threads();
  // Sums that overflow to NaN are not above any threshold and stay NaN.
  std::vector<float> scratch(static_cast<std::size_t>(threads * tile * (width + dims)));

#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t t = 0; t < num_tiles; ++t) {
    float* products = scratch.data() + omp_get_thread_num() * tile * (width + dims);
    const std::int64_t first = t * tile;
    const std::int64_t count = std::min(tile, rows - first);
    const float* source = features + first * dims;
    if (count < tile) {  // the last rows, with something finite behind them
      float* padded = products + tile * width;
      std::fill(padded, padded + tile * dims, 0.0f);
      std::copy(source, source + count * dims, padded);
      source = padded;
    }
    for (std::int64_t panel = 0; panel < num_panels; ++panel) {
      std::fill_n(products, tile * width, std::numeric_limits<float>::quiet_NaN());
      simd.tile(source, dims, dims, panels.data() + panel * dims * width, zeros.data(), always.data(),
                products);
      const std::int64_t columns = std::min(width, out_dims - panel * width);
      for (std::int64_t r = 0; r < count; ++r)
        std::copy_n(products + r * width, columns, projected + (first + r) * out_dims + panel * width);
    }
  }
}

}  // namespace ensemblead::cpu
