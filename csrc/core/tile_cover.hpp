// The geometry of core/tile_geometry.hpp in closed form, point by point, as the CUDA kernels ask for it: no
// list has to reach the device.
#pragma once

#include <cstdint>

#include "core/fast_divide.hpp"
#include "core/host_device.hpp"
#include "core/tile_geometry.hpp"

namespace ensemblead {

// Which tiles cover a position of an axis; tile and stride may be counted in vectors instead of pixels.
template <class Divide>
struct TileCover {
  using Index = typename Divide::Index;

  TileCover() = default;
  TileCover(const TileAxis& axis, std::int64_t pixels_per_unit)
      : tile(static_cast<Index>(axis.tile / pixels_per_unit)),
        // Where there is one tile, its stride need not be a whole number of units, and does not matter.
        stride(static_cast<Index>(axis.count > 1 ? axis.stride / pixels_per_unit : 1)),
        count(static_cast<Index>(axis.count)),
        by_stride(stride) {}

  ENSEMBLEAD_HD Index first(Index x) const { return first_covering(x, tile, by_stride); }
  ENSEMBLEAD_HD Index last(Index x) const { return last_covering(x, count, by_stride); }

  Index tile = 1;
  Index stride = 1;
  Index count = 1;
  Divide by_stride;
};

// The bands of `seam_bands`: whether a position lies in one.
struct SeamCover {
  SeamCover() = default;
  SeamCover(const TileAxis& axis, double width)
      : tile(static_cast<std::int32_t>(axis.tile)),
        stride(static_cast<std::int32_t>(axis.stride)),
        count(static_cast<std::int32_t>(axis.count)),
        reach(static_cast<std::int32_t>(seam_reach(axis, width))),
        by_stride(static_cast<std::uint32_t>(axis.stride)) {}

  // Whether a band lies within `distance` of x, which may be outside the axis. A tile's start or end at e,
  // inside the axis, makes a band [e - reach, e + reach); of either kind, only the last e up to x + reach +
  // distance can matter.
  ENSEMBLEAD_HD bool near(std::int32_t x, std::int32_t distance) const {
    const std::int32_t highest = x + reach + distance;
    const std::int32_t lowest = x - reach - distance;  // not itself
    if (reach == 0 || highest < 0) return false;
    std::int32_t i = static_cast<std::int32_t>(by_stride(static_cast<std::uint32_t>(highest)));
    if (i > count - 1) i = count - 1;
    if (i > 0 && i * stride > lowest) return true;
    if (highest < tile || count < 2) return false;
    i = static_cast<std::int32_t>(by_stride(static_cast<std::uint32_t>(highest - tile)));
    if (i > count - 2) i = count - 2;
    return i * stride + tile > lowest;
  }

  std::int32_t tile = 1;
  std::int32_t stride = 1;
  std::int32_t count = 1;
  std::int32_t reach = 0;
  FastDivide by_stride;
};

}  // namespace ensemblead
