// The geometry of core/tile_geometry.hpp in closed form, point by point, as the CUDA kernels ask for it: no
// list has to reach the device.
#pragma once

#include <cstdint>

#include "core/fast_divide.hpp"
#include "core/host_device.hpp"
#include "core/tile_geometry.hpp"

namespace ensemblead {

// The tiles that cover a position of an axis. Tile and stride may be counted in vectors instead of pixels.
template <class Divide>
struct TileCover {
  using Index = typename Divide::Index;

  TileCover() = default;
  TileCover(const TileAxis& axis, std::int64_t pixels_per_unit)
      : tile(static_cast<Index>(axis.tile / pixels_per_unit)),
        // Where there is one tile, its stride need not be a whole number of units, and does not matter.
        stride(static_cast<Index>(axis.count > 1 ? axis.stride / pixels_per_unit : 1)),
        count(static_cast<Index>(axis.count)),
        last_start(static_cast<Index>(axis.last_start / pixels_per_unit)),
        by_stride(stride) {}

  ENSEMBLEAD_HD Index start(Index i) const { return i < count - 1 ? i * stride : last_start; }
  ENSEMBLEAD_HD Index first(Index x) const { return first_covering(x, tile, by_stride); }
  ENSEMBLEAD_HD Index last(Index x) const { return last_covering(x, count, last_start, by_stride); }
  // The distance by which the last tile lies nearer to the one before it than `stride`.
  Index last_shift() const { return (count - 1) * stride - last_start; }

  Index tile = 1;
  Index stride = 1;
  Index count = 1;
  Index last_start = 0;
  Divide by_stride;
};

// The bands of `seam_bands`: whether a position lies in one.
struct SeamCover {
  SeamCover() = default;
  SeamCover(const TileAxis& axis, double width)
      : tile(static_cast<std::int32_t>(axis.tile)),
        stride(static_cast<std::int32_t>(axis.stride)),
        count(static_cast<std::int32_t>(axis.count)),
        last_start(static_cast<std::int32_t>(axis.last_start)),
        reach(static_cast<std::int32_t>(seam_reach(axis, width))),
        by_stride(static_cast<std::uint32_t>(axis.stride)) {}

  // Whether a band lies within `distance` of x, which may be outside the axis. A tile's start or end at e,
  // inside the axis, makes a band [e - reach, e + reach); of either kind, only the last e up to x + reach +
  // distance can matter.
  ENSEMBLEAD_HD bool near(std::int32_t x, std::int32_t distance) const {
    const std::int32_t highest = x + reach + distance;
    const std::int32_t lowest = x - reach - distance;  // not itself
    if (reach == 0 || highest < 0) return false;
    const std::int32_t start = highest >= last_start ? last_start : last_multiple(highest, count - 1);
    if (start > 0 && start > lowest) return true;
    if (highest < tile || count < 2) return false;
    return last_multiple(highest - tile, count - 2) + tile > lowest;
  }

 private:
  // The last multiple of the stride up to x, and up to `most` times the stride.
  ENSEMBLEAD_HD std::int32_t last_multiple(std::int32_t x, std::int32_t most) const {
    const std::int32_t i = static_cast<std::int32_t>(by_stride(static_cast<std::uint32_t>(x)));
    return (i > most ? most : i) * stride;
  }

  std::int32_t tile = 1;
  std::int32_t stride = 1;
  std::int32_t count = 1;
  std::int32_t last_start = 0;
  std::int32_t reach = 0;
  FastDivide by_stride;
};

}  // namespace ensemblead
