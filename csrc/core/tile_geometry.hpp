// Where tiles lie, which of them cover a pixel, and what seam smoothing touches. Rows and columns are
// separable, so everything here speaks of one axis; the CPU and the CUDA kernels share it.
#pragma once

#include <cstdint>
#include <vector>

namespace ensemblead {

// Tiles along one axis: tile i covers [i * stride, i * stride + tile), the last one may reach past `size`.
struct TileAxis {
  std::int64_t size = 0;
  std::int64_t tile = 0;
  std::int64_t stride = 0;
  std::int64_t count = 0;  // ceil((size - tile) / stride) + 1

  // The tiles that cover pixel x are first(x) ... last(x). 1 <= stride <= tile: there is at least one.
  std::int64_t first(std::int64_t x) const { return x < tile ? 0 : (x - tile) / stride + 1; }
  std::int64_t last(std::int64_t x) const { return x / stride < count ? x / stride : count - 1; }
};

struct TileGrid {
  TileAxis rows;
  TileAxis cols;
};

struct Size2 {
  std::int64_t h = 0;
  std::int64_t w = 0;
};

// Throws ValueError naming tile_size or stride unless 1 <= stride <= tile <= image on both axes.
TileGrid make_tile_grid(Size2 image_size, Size2 tile_size, Size2 stride);

// A half-open range of pixels.
struct Interval {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The pixels of `axis` in [edge - r, edge + r), r = int(width * tile), for every start and end of a tile that
// lies inside (0, size): ascending, disjoint and not touching, clipped to the axis. Empty when r is 0.
std::vector<Interval> seam_bands(const TileAxis& axis, double width);

// The pixels of `axis` cut where the set of covering tiles changes: ascending and without gaps.
std::vector<Interval> covering_runs(const TileAxis& axis);

// Throws ValueError unless 0 < sigma <= 1000 and 0 <= width <= 0.5. The limit of sigma keeps the filter's
// length sane.
void check_seam_parameters(double sigma, double width);

// Sampled Gaussian weights w[0] ... w[radius] of distances 0 ... radius = int(4 * sigma + 0.5), scaled so
// that the symmetric filter w[radius] ... w[0] ... w[radius] sums to 1: scipy.ndimage.gaussian_filter with
// truncate=4.
std::vector<double> gaussian_weights(double sigma);

// The index that position i, possibly outside [0, size), has after reflection with the border pixel repeated
// (d c b a | a b c d | d c b a).
inline std::int64_t reflected(std::int64_t i, std::int64_t size) {
  if (i >= 0 && i < size) return i;
  i %= 2 * size;
  if (i < 0) i += 2 * size;
  return i < size ? i : 2 * size - 1 - i;
}

}  // namespace ensemblead
