// The tap lists of patch aggregation arranged for the CPU: windows taken apart into boxes, rows and single
// taps.
//
// An output dimension is, per layer, a weighted sum over channels and offsets (dy, dx). Three parts add up to
// it:
//   boxes    whole windows of one weight: the channels are summed first, then one separable box filter serves
//            them all;
//   rows     whole window rows of one weight: summed with their vertical offset, then they share the
//            horizontal pass;
//   singles  the remaining taps, one by one.
// A part is only split off where every tap under it has a weight, and the remainder is never negative: so an
// inf in the maps meets no weight that the definition does not give it, and no difference of infinities.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/patch_taps.hpp"

namespace ensemblead::cpu {

struct PatchTap {
  std::int32_t channel = 0;
  std::int32_t dy = 0;
  std::int32_t dx = 0;
  float weight = 0;
};

// Taps [begin, end) of a vector, in ascending channel order.
struct TapRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

struct DimProgram {
  TapRange boxes;
  TapRange rows;
  TapRange singles;
  std::int32_t first_channel = 0;
  std::int32_t last_channel = -1;  // before `first_channel`: the layer has no part in this dimension

  bool empty() const { return last_channel < first_channel; }
};

struct LayerProgram {
  std::int64_t radius_y = 0;  // of the window, cut to the extent of the grid
  std::int64_t radius_x = 0;
  std::int64_t max_channels = 0;  // the widest span of channels of one dimension
  std::vector<DimProgram> dims;
  std::vector<PatchTap> boxes;    // channel, weight
  std::vector<PatchTap> rows;     // channel, dy, weight
  std::vector<PatchTap> singles;  // channel, dy, dx, weight
};

// A range of output dimensions to which the same layers contribute.
struct DimBlock {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::vector<std::size_t> layers;
};

struct PatchProgram {
  std::int64_t dims = 0;
  std::vector<LayerProgram> layers;
  std::vector<DimBlock> blocks;
};

// A layer as the program sees it: its channels, and its grid as far as it cuts the window.
struct LayerGeometry {
  std::int64_t channels = 0;
  std::int64_t radius_y = 0;
  std::int64_t radius_x = 0;
};

// Blocks have at most this many dimensions, and start at multiples of kDimGroup within their run of equal
// layers.
constexpr std::int64_t kDimBlock = 64;
constexpr std::int64_t kDimGroup = 16;

// Built once per configuration; the most recent ones are kept. Safe from several threads at once.
std::shared_ptr<const PatchProgram> patch_program(const std::vector<LayerGeometry>& layers,
                                                  const PatchOptions& options);

}  // namespace ensemblead::cpu
