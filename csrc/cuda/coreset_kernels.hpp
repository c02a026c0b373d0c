// The steps of a selection, each one launch (or a few) on a stream; coreset.cu puts them in order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "coreset.hpp"
#include "cuda/coreset_state.hpp"

namespace ensemblead::cuda {

// Rows to select from, as the kernels see them.
struct CoresetRows {
  const float* data;  // [rows, dims]
  std::int64_t rows;
  std::int64_t dims;
  float scale;   // to multiply every value by, a power of two
  float slack;   // bound of the rounding errors of a product, relative to the sum of the squared norms
  bool filter;   // false: every distance is computed on its own
  bool vector;   // data starts at a multiple of 16 bytes, and so does every row
  int capacity;  // candidates in a round at most
  cudaStream_t stream;
};

// The origin of the values of a tile of anchors: a row of anchors is that of `source` times the scale.
struct AnchorSource {
  const float* source;       // [*, dims], original
  const std::int32_t* rows;  // which of them, by anchor
  bool vector;
};

// --- once (coreset_scan.cu) ---
// Looks at all values; `result` must hold {kNoneBad, 0}.
void scan_values(const float* values, std::int64_t count, ScanResult* result, cudaStream_t stream);
void find_centre(const CoresetRows& rows, const Workspace& work);
void find_norms(const CoresetRows& rows, const Workspace& work);
// Values: infinity.
void start_from_nowhere(const CoresetRows& rows, const Workspace& work);
// Values: the squared mean of the distances to the start rows (indices in host memory).
void start_from_mean(const CoresetRows& rows, const Workspace& work, const std::int64_t* starts,
                     std::int64_t count);

// --- candidates (coreset_candidates.cu) ---
// The first rows in the order of the picks, about `limit` of them.
void find_candidates(const CoresetRows& rows, const Workspace& work, std::int64_t limit);
// All rows of `bank` from `first` on, `count` of them, become the anchors of this round.
void take_anchors(const CoresetRows& rows, const Workspace& work, const float* bank, std::int64_t first,
                  int count);

// --- picks (coreset_pick.cu) ---
void find_distances(const CoresetRows& rows, const Workspace& work);
void pick(const CoresetRows& rows, const Workspace& work, std::int64_t* picks, std::int64_t size, int most,
          float radius);

// --- values (coreset_update.cu) ---
// Every value becomes the minimum of itself and the distances to the anchors that were picked in this round.
void update_values(const CoresetRows& rows, const Workspace& work, const AnchorSource& anchors);

// --- projection (coreset_project.cu) ---
void launch_project(const ProjectTask& task, cudaStream_t stream);

}  // namespace ensemblead::cuda
