#include "core/tile_geometry.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

#include "core/checks.hpp"

namespace ensemblead {
namespace {

std::string text(Size2 size) { return "(" + std::to_string(size.h) + ", " + std::to_string(size.w) + ")"; }

std::string text(double value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

TileAxis make_axis(std::int64_t size, std::int64_t tile, std::int64_t stride, TileEdge edge) {
  TileAxis axis;
  axis.size = size;
  axis.tile = tile;
  axis.stride = stride;
  const std::int64_t beyond_first = size - tile;
  axis.count = beyond_first / stride + (beyond_first % stride != 0) + 1;
  axis.last_start = edge == TileEdge::kFlush ? beyond_first : (axis.count - 1) * stride;
  return axis;
}

}  // namespace

TileGrid make_tile_grid(Size2 image_size, Size2 tile_size, Size2 stride, TileEdge edge) {
  if (tile_size.h < 1 || tile_size.w < 1)
    throw ValueError("tile_size must be at least 1, got " + text(tile_size));
  if (stride.h < 1 || stride.w < 1) throw ValueError("stride must be at least 1, got " + text(stride));
  if (stride.h > tile_size.h || stride.w > tile_size.w)
    throw ValueError("stride must not exceed tile_size (pixels between tiles would be lost), got stride " +
                     text(stride) + " and tile_size " + text(tile_size));
  if (tile_size.h > image_size.h || tile_size.w > image_size.w)
    throw ValueError("tile_size must not exceed the image, got tile_size " + text(tile_size) +
                     " and image size " + text(image_size));
  return {make_axis(image_size.h, tile_size.h, stride.h, edge),
          make_axis(image_size.w, tile_size.w, stride.w, edge)};
}

std::int64_t seam_reach(const TileAxis& axis, double width) {
  return static_cast<std::int64_t>(width * static_cast<double>(axis.tile));
}

std::vector<Interval> seam_bands(const TileAxis& axis, double width) {
  const std::int64_t reach = seam_reach(axis, width);
  std::vector<Interval> bands;
  if (reach < 1) return bands;
  std::vector<std::int64_t> edges;
  for (std::int64_t i = 0; i < axis.count; ++i) {
    edges.push_back(axis.start(i));
    edges.push_back(axis.start(i) + axis.tile);
  }
  std::sort(edges.begin(), edges.end());
  for (const std::int64_t edge : edges) {
    if (edge <= 0 || edge >= axis.size) continue;
    const Interval band{std::max<std::int64_t>(edge - reach, 0), std::min(edge + reach, axis.size)};
    if (!bands.empty() && band.begin <= bands.back().end) {
      bands.back().end = std::max(bands.back().end, band.end);
    } else {
      bands.push_back(band);
    }
  }
  return bands;
}

std::vector<Interval> covering_runs(const TileAxis& axis) {
  std::vector<Interval> runs;
  for (std::int64_t x = 0; x < axis.size;) {
    std::int64_t end = axis.start(axis.first(x)) + axis.tile;  // the first covering tile ends
    const std::int64_t next = axis.last(x) + 1;                // the next one starts
    if (next < axis.count) end = std::min(end, axis.start(next));
    end = std::min(end, axis.size);
    runs.push_back({x, end});
    x = end;
  }
  return runs;
}

void check_seam_parameters(double sigma, double width) {
  // Written so that NaN fails.
  if (!(sigma > 0.0 && sigma <= 1000.0)) throw ValueError("sigma must be in (0, 1000], got " + text(sigma));
  if (!(width >= 0.0 && width <= 0.5)) throw ValueError("width must be in [0, 0.5], got " + text(width));
}

std::int64_t gaussian_radius(double sigma) { return static_cast<std::int64_t>(4.0 * sigma + 0.5); }

std::vector<double> gaussian_weights(double sigma) {
  const auto radius = static_cast<std::size_t>(gaussian_radius(sigma));
  std::vector<double> weights(radius + 1);
  double total = 0.0;
  for (std::size_t k = 0; k <= radius; ++k) {
    weights[k] = gaussian(static_cast<std::int64_t>(k), sigma);
    total += k == 0 ? weights[k] : 2.0 * weights[k];
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

}  // namespace ensemblead
