#include "cpu/finite.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/coreset_rules.hpp"
#include "cpu/coreset_simd.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {

float check_finite(const float* values, std::int64_t rows, std::int64_t dims, const char* argument,
                   int num_threads) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t chunk = std::max<std::int64_t>(1, (std::int64_t{1} << 16) / dims);
  const int threads = team_size(num_threads, rows * dims, kValuesPerThread);
  // The findings of each thread.
  std::vector<std::int64_t> first_bad(static_cast<std::size_t>(threads), rows * dims);
  std::vector<float> largest(static_cast<std::size_t>(threads), 0.0f);
  parallel_for((rows + chunk - 1) / chunk, threads, Schedule::kStatic, [&](std::int64_t item, int thread) {
    const std::int64_t row = item * chunk;
    const std::int64_t bad =
        simd.scan(values + row * dims, std::min(chunk, rows - row) * dims, &largest[thread]);
    if (bad >= 0) first_bad[thread] = std::min(first_bad[thread], row * dims + bad);
  });
  const std::int64_t first = *std::min_element(first_bad.begin(), first_bad.end());
  if (first == rows * dims) return *std::max_element(largest.begin(), largest.end());
  refuse_not_finite(argument, first, dims, std::isnan(values[first]));
}

}  // namespace ensemblead::cpu
