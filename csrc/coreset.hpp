// Approximate greedy coreset: k-center greedy (farthest-point) selection of rows, and the linear map that
// usually precedes it.
//
// Gonzalez (1985), "Clustering to minimize the maximum intercluster distance"; Roth et al. (2022), PatchCore.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/progress.hpp"
#include "core/work.hpp"

namespace ensemblead {

// The value of a row before the first pick.
enum class CoresetStart {
  kMean,  // the mean Euclidean distance to the start rows, which are not themselves picked
  kRow,   // infinity; the one start row is picked first
  kBank,  // the Euclidean distance to the nearest bank row
};

// Repeatedly the row of `features` with the largest value is picked, ties to the lowest index, and every
// value becomes the minimum of itself and the Euclidean distance to the new pick. When all values are 0 row 0
// repeats. Distances are float32 sums of squared differences.
struct CoresetTask {
  const float* features = nullptr;  // [rows, dims]
  std::int64_t rows = 0;
  std::int64_t dims = 0;
  std::int64_t size = 0;  // of the coreset: at most this many picks
  // The selection stops as soon as no row's value (a Euclidean distance) exceeds this; negative: never.
  double radius = -1.0;
  CoresetStart start = CoresetStart::kMean;
  const std::int64_t* start_rows = nullptr;  // [num_start_rows], in host memory on every device
  std::int64_t num_start_rows = 0;
  const float* bank = nullptr;  // [bank_rows, dims]
  std::int64_t bank_rows = 0;
  // For tests: pick by pick, without blocks or pruning. The picks are the same.
  bool plain = false;
  // For tests: the largest number of candidates in a block; 0: chosen by the number of rows. The picks are
  // the same.
  std::int64_t num_candidates = 0;
  Progress progress;              // may be empty
  std::int64_t* picks = nullptr;  // [size], written
};

// The number of picks, and figures of how they were found. The figures are for tests and benchmarks.
struct CoresetResult {
  std::int64_t count = 0;  // fewer than the task's `size` only where `radius` ended the selection
  std::int64_t blocks = 0;
  std::int64_t product_pairs = 0;  // (row, pick) pairs that went through the matrix product
  std::int64_t direct_pairs = 0;   // pairs whose distance was computed on its own
};

// projected [rows, out_dims] = features [rows, dims] * projection [out_dims, dims]^T. Each row's result
// depends on that row alone: neither the number of rows in a call nor that of threads changes a bit of it.
// Values that are not finite are refused, in the features, in the projection and in the result.
struct ProjectTask {
  const float* features = nullptr;
  std::int64_t rows = 0;
  std::int64_t dims = 0;
  const float* projection = nullptr;
  std::int64_t out_dims = 0;
  float* projected = nullptr;
  const char* argument = "features";  // the name of `features` in errors
};

namespace cpu {
// The picks are the same for any number of threads.
CoresetResult select_coreset(const CoresetTask& task, const Work& work);
void project_rows(const ProjectTask& task, const Work& work);
}  // namespace cpu

namespace cuda {
// Bytes of scratch: at most a tenth of the features, or 8 MiB where that is more; but always 8 bytes for
// every row, which is more than a tenth of rows of fewer than 20 values.
std::size_t select_coreset_scratch(const CoresetTask& task);
// Waits for the device between rounds of picks.
CoresetResult select_coreset(const CoresetTask& task, const Work& work);

std::size_t project_rows_scratch(const ProjectTask& task);
// Waits for the device to know whether all values are finite.
void project_rows(const ProjectTask& task, const Work& work);
}  // namespace cuda

}  // namespace ensemblead
