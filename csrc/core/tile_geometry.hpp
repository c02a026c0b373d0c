// The geometry of tiles: their starts, the tiles that cover a pixel, and the bands of seam smoothing. Rows
// and columns are separable, so everything here is about one axis. The CPU and the CUDA kernels share it.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/host_device.hpp"

namespace ensemblead {

// The place of the last row and column of tiles, where they would overhang the image.
enum class TileEdge {
  kPad,    // where their number says; the image is padded with zeros at the bottom and on the right
  kFlush,  // moved in until they lie flush with the image
};

// The tiles that cover position x of an axis are first ... last of these. 1 <= stride <= tile: there is at
// least one.
template <class Index, class Divide>
ENSEMBLEAD_HD inline Index first_covering(Index x, Index tile, const Divide& by_stride) {
  return x < tile ? 0 : by_stride(x - tile) + 1;
}
template <class Index, class Divide>
ENSEMBLEAD_HD inline Index last_covering(Index x, Index count, Index last_start, const Divide& by_stride) {
  return x >= last_start ? count - 1 : by_stride(x);
}

// Tiles along one axis: tile i covers [start(i), start(i) + tile). The last one may reach past `size`.
struct TileAxis {
  std::int64_t size = 0;
  std::int64_t tile = 0;
  std::int64_t stride = 0;
  std::int64_t count = 0;       // ceil((size - tile) / stride) + 1
  std::int64_t last_start = 0;  // of the last tile: (count - 1) * stride, or size - tile where it lies flush

  std::int64_t start(std::int64_t i) const { return i < count - 1 ? i * stride : last_start; }
  std::int64_t first(std::int64_t x) const { return first_covering(x, tile, by_stride()); }
  std::int64_t last(std::int64_t x) const { return last_covering(x, count, last_start, by_stride()); }

 private:
  struct Divide {
    std::int64_t divisor;
    ENSEMBLEAD_HD std::int64_t operator()(std::int64_t dividend) const { return dividend / divisor; }
  };
  Divide by_stride() const { return {stride}; }
};

struct TileGrid {
  TileAxis rows;
  TileAxis cols;
};

struct Size2 {
  std::int64_t h = 0;
  std::int64_t w = 0;
};

// Throws ValueError naming tile_size or stride unless 1 <= stride <= tile <= image on both axes. The number
// of tiles is the same for every edge.
TileGrid make_tile_grid(Size2 image_size, Size2 tile_size, Size2 stride, TileEdge edge = TileEdge::kPad);

// A half-open range of pixels.
struct Interval {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The reach of a seam's band to either side of it: int(width * tile) pixels.
std::int64_t seam_reach(const TileAxis& axis, double width);

// The pixels of `axis` in [edge - r, edge + r), r = seam_reach, for every start and end of a tile that
// lies inside (0, size): ascending, disjoint and not touching, clipped to the axis. Empty when r is 0.
std::vector<Interval> seam_bands(const TileAxis& axis, double width);

// The pixels of `axis` cut where the set of covering tiles changes: ascending and without gaps.
std::vector<Interval> covering_runs(const TileAxis& axis);

// Throws ValueError unless 0 < sigma <= 1000 and 0 <= width <= 0.5. The limit of sigma keeps the filter's
// length sane.
void check_seam_parameters(double sigma, double width);

// The reach of a Gaussian filter: int(4 * sigma + 0.5).
std::int64_t gaussian_radius(double sigma);

// The Gaussian at an integer distance, 1 at 0.
ENSEMBLEAD_HD inline double gaussian(std::int64_t distance, double sigma) {
  const double ratio = static_cast<double>(distance) / sigma;
  return std::exp(-0.5 * ratio * ratio);
}

// Sampled Gaussian weights w[0] ... w[radius] of distances 0 ... radius = gaussian_radius, scaled so that the
// symmetric filter w[radius] ... w[0] ... w[radius] sums to 1: scipy.ndimage.gaussian_filter with truncate=4.
std::vector<double> gaussian_weights(double sigma);

// The index that position i, possibly outside [0, size), has after reflection with the border pixel repeated
// (d c b a | a b c d | d c b a).
template <class Index>
ENSEMBLEAD_HD inline Index reflected(Index i, Index size) {
  if (i >= 0 && i < size) return i;
  i %= 2 * size;
  if (i < 0) i += 2 * size;
  return i < size ? i : 2 * size - 1 - i;
}

}  // namespace ensemblead
