// Limits of the kernels of tiling.cu and seams.cu, which count in 32 bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "core/checks.hpp"
#include "core/tile_geometry.hpp"

namespace ensemblead::cuda {

// Below this many words FastDivide does; the last block's indices stay below 2^32.
constexpr std::int64_t kFastLimit = (std::int64_t{1} << 31) - 1;

// Heights and widths are added to each other and doubled in 32 bits.
inline void check_extents(const TileGrid& grid, const char* argument) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 29;
  if (grid.rows.size < kLimit && grid.cols.size < kLimit) return;
  throw ValueError(std::string(argument) + " on a CUDA device must be below " + std::to_string(kLimit) +
                   " pixels high and wide, got " + std::to_string(grid.rows.size) + " x " +
                   std::to_string(grid.cols.size));
}

}  // namespace ensemblead::cuda
