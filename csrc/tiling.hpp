// Cutting images into overlapping tiles, putting tiles back together, and hiding the seams.
//
// Tile (i, j) starts at (i * stride.h, j * stride.w). Where the last row or column of tiles overhangs the
// image, TileEdge says whether the image is padded with zeros at the bottom and on the right, or those tiles
// are moved in until they lie flush with it. All arrays are contiguous and on one device; the bindings have
// checked dtypes and shapes against the grid. Outputs are allocated by the caller and share no memory with
// the inputs.
#pragma once

#include <cstddef>

#include "core/array.hpp"
#include "core/tile_geometry.hpp"
#include "core/work.hpp"

namespace ensemblead {

// images [B, C, H, W] -> tiles [rows, cols, B, C, h, w] of the same dtype (uint8 or any float).
struct TileTask {
  Array images;
  Array tiles;
  TileGrid grid;
};

// tiles [rows, cols, B, C, h, w] -> images [B, C, H, W] of the same float dtype: every pixel is the mean over
// the tiles that cover it, summed pairwise in float32 (float64 for float64), so that equal values in 2^k
// tiles come back exactly. NaN and inf propagate as in any sum.
struct UntileTask {
  Array tiles;
  Array images;
  TileGrid grid;
};

// maps [M, H, W] -> smoothed, same shape and float dtype: inside the seam bands (core/tile_geometry.hpp) the
// separable Gaussian blur of the map, computed in float32 (float64 for float64), elsewhere the map itself.
// NaN and inf spread as far as the blur reaches, inside the bands only.
struct SmoothTask {
  Array maps;
  Array smoothed;
  TileGrid grid;
  double sigma = 2.0;
  double width = 0.1;
};

// Results do not depend on the number of threads.
namespace cpu {
void tile(const TileTask& task, const Work& work);
void untile(const UntileTask& task, const Work& work);
void smooth_seams(const SmoothTask& task, const Work& work);
}  // namespace cpu

// The kernels do not wait for the stream. Heights and widths are below 2^29.
namespace cuda {
void tile(const TileTask& task, const Work& work);
void untile(const UntileTask& task, const Work& work);

// Bytes of scratch, for the shape and dtype of the maps; 0 for the usual sigmas.
std::size_t smooth_seams_scratch(const SmoothTask& task);
void smooth_seams(const SmoothTask& task, const Work& work);
}  // namespace cuda

}  // namespace ensemblead
