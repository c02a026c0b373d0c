// Approximate greedy coreset: k-center greedy (farthest-point) selection of rows, and the linear map that
// usually precedes it.
//
// Gonzalez (1985), "Clustering to minimize the maximum intercluster distance"; Roth et al. (2022), PatchCore.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/progress.hpp"

namespace ensemblead {

// What a row's value is before the first pick.
enum class CoresetStart {
  kMean,  // the mean Euclidean distance to the start rows, which are not themselves picked
  kRow,   // infinity; the one start row is picked first
  kBank,  // the Euclidean distance to the nearest bank row
};

struct CoresetOptions {
  std::int64_t size = 0;  // at most this many picks
  // Stop as soon as no row's value (a Euclidean distance) exceeds this; negative: never.
  double radius = -1.0;
  CoresetStart start = CoresetStart::kMean;
  const std::int64_t* start_rows = nullptr;
  std::int64_t num_start_rows = 0;
  const float* bank = nullptr;  // [bank_rows, dims]
  std::int64_t bank_rows = 0;
  int num_threads = 0;  // 0: OpenMP's default
  // For tests: pick by pick, without blocks or pruning. The picks are the same.
  bool plain = false;
  // For tests: how many candidates a block has at most; 0: what suits the rows. The picks are the same.
  std::int64_t num_candidates = 0;
  Progress progress;  // may be empty
};

// How the work was done; figures for tests and benchmarks, never needed for the result.
struct CoresetStatistics {
  std::int64_t blocks = 0;
  std::int64_t product_pairs = 0;  // (row, pick) pairs that went through the matrix product
  std::int64_t direct_pairs = 0;   // pairs whose distance was computed on its own
};

namespace cpu {

// Picks rows of `features` [rows, dims] into `picks`; returns how many (fewer than `size` only when
// `radius` ended it). Repeatedly the row with the largest value is taken, ties to the lowest index, and every
// value becomes the minimum of itself and the Euclidean distance to the new pick. When all values are 0 row 0
// repeats. Distances are float32 sums of squared differences; the same picks for any number of threads.
std::int64_t select_coreset(const float* features, std::int64_t rows, std::int64_t dims,
                            const CoresetOptions& options, std::int64_t* picks,
                            CoresetStatistics* statistics);

// projected [rows, out_dims] = features [rows, dims] * projection [out_dims, dims]^T. Each row's result
// depends on that row alone: neither the number of rows in a call nor that of threads changes a bit of it.
void project_rows(const float* features, std::int64_t rows, std::int64_t dims, const float* projection,
                  std::int64_t out_dims, int num_threads, float* projected);

// Throws a ValueError that names the place of the first NaN or infinity; returns the largest magnitude.
float check_finite(const float* values, std::int64_t rows, std::int64_t dims, const char* argument,
                   int num_threads);

}  // namespace cpu

namespace cuda {

// Where to work, and with what memory: the caller's device, stream and allocation.
struct CudaWork {
  int device = 0;
  std::intptr_t stream = 0;
  void* scratch = nullptr;  // on the device, aligned to 16 bytes; rubbish afterwards
  std::size_t scratch_bytes = 0;
};

// At most a tenth of the features, or 8 MiB where that is more; but always 8 bytes for every row, which is
// more than a tenth of rows of fewer than 20 values.
std::size_t coreset_scratch(std::int64_t rows, std::int64_t dims, std::int64_t num_candidates);

// As above, with features, bank and picks on the device and the start rows in host memory. Waits for the
// device between rounds of picks.
std::int64_t select_coreset(const float* features, std::int64_t rows, std::int64_t dims,
                            const CoresetOptions& options, const CudaWork& work, std::int64_t* picks,
                            CoresetStatistics* statistics);

std::size_t project_scratch();

// As above. Refuses what is not finite, in the features (called `argument`), the projection or the result;
// waits for the device to know.
void project_rows(const float* features, std::int64_t rows, std::int64_t dims, const float* projection,
                  std::int64_t out_dims, const char* argument, const CudaWork& work, float* projected);

}  // namespace cuda
}  // namespace ensemblead
