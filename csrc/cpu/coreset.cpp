#include "coreset.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/coreset_rules.hpp"
#include "cpu/coreset_candidates.hpp"
#include "cpu/coreset_refresh.hpp"
#include "cpu/coreset_update.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Picks between two looks at the progress callback, and bank rows per pass.
constexpr std::int64_t kBlock = 2048;
// Many candidates mean few rounds, few mean little work on rows that matter only later.
constexpr std::int64_t kLeastCandidates = 4096;
constexpr std::int64_t kCandidateShare = 20;

// No more threads than there is work for: a round over few values is shorter than waking a thread.
int team_size(int num_threads, std::int64_t values) {
  constexpr std::int64_t kValuesPerThread = std::int64_t{1} << 17;
  const int most = num_threads > 0 ? num_threads : omp_get_max_threads();
  return static_cast<int>(std::clamp<std::int64_t>(values / kValuesPerThread, 1, most));
}

std::vector<float> scaled(const float* values, std::int64_t size, float scale) {
  std::vector<float> result(values, values + size);
  for (float& value : result) value *= scale;
  return result;
}

void start_from_mean(Selection& selection, const CoresetOptions& options) {
#pragma omp parallel for num_threads(selection.num_threads)
  for (std::int64_t row = 0; row < selection.rows; ++row) {
    double total = 0.0;
    for (std::int64_t s = 0; s < options.num_start_rows; ++s) {
      const float* start = selection.row(options.start_rows[s]);
      total += std::sqrt(
          static_cast<double>(selection.simd.squared_distance(selection.row(row), start, selection.dims)));
    }
    const double mean = total / static_cast<double>(options.num_start_rows);
    selection.values[row] = static_cast<float>(mean * mean);
  }
}

std::vector<std::int32_t> all_rows(const Selection& selection) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(selection.rows));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

void start(Selection& selection, const CoresetOptions& options, Refresh& refresh,
           std::vector<std::int64_t>& picks) {
  if (options.start == CoresetStart::kMean) return start_from_mean(selection, options);
  std::fill(selection.values.begin(), selection.values.end(), kInfinity);
  std::vector<std::int32_t> rows = all_rows(selection);
  if (options.start == CoresetStart::kRow) {
    picks.push_back(options.start_rows[0]);
    selection.add_row_as_anchor(static_cast<std::int32_t>(options.start_rows[0]));
    return refresh.run(rows);
  }
  for (std::int64_t i = 0; i < options.bank_rows; ++i) {
    selection.add_anchor(options.bank + i * selection.dims, -1);
    if (i + 1 < options.bank_rows && (i + 1) % kBlock != 0) continue;
    refresh.run(rows);
    if (options.progress) options.progress(0, options.size);
  }
}

std::vector<std::int64_t> run(Selection& selection, const CoresetOptions& options) {
  std::vector<std::int64_t> picks;
  Refresh refresh(selection, options.plain);
  start(selection, options, refresh, picks);
  const std::int64_t usual = std::max(kLeastCandidates, selection.rows / kCandidateShare);
  const std::int64_t num_candidates =
      options.plain ? 1 : (options.num_candidates > 0 ? options.num_candidates : usual);
  Candidates candidates;
  for (;;) {
    const auto made = static_cast<std::int64_t>(picks.size());
    if (options.progress) options.progress(made, options.size);
    if (made >= options.size) return picks;
    candidates.find(selection, num_candidates);
    refresh.run(candidates.rows());
    const std::int64_t limit = options.plain ? 1 : std::min(kBlock, options.size - made);
    const auto stop = candidates.pick(selection, limit, options.radius, picks);
    ++selection.statistics.blocks;
    if (stop == Candidates::Stop::kRadius) return picks;
    if (stop == Candidates::Stop::kZero) picks.resize(static_cast<std::size_t>(options.size), 0);
  }
}

}  // namespace

float check_finite(const float* values, std::int64_t rows, std::int64_t dims, const char* argument,
                   int num_threads) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t chunk = std::max<std::int64_t>(1, (std::int64_t{1} << 16) / dims);
  std::int64_t first_bad = rows * dims;
  float largest = 0.0f;
#pragma omp parallel for num_threads(team_size(num_threads, rows* dims)) reduction(min : first_bad) \
    reduction(max : largest)
  for (std::int64_t row = 0; row < rows; row += chunk) {
    const std::int64_t bad = simd.scan(values + row * dims, std::min(chunk, rows - row) * dims, &largest);
    if (bad >= 0) first_bad = std::min(first_bad, row * dims + bad);
  }
  if (first_bad == rows * dims) return largest;
  refuse_not_finite(argument, first_bad, dims, std::isnan(values[first_bad]));
}

std::int64_t select_coreset(const float* features, std::int64_t rows, std::int64_t dims,
                            const CoresetOptions& options, std::int64_t* picks,
                            CoresetStatistics* statistics) {
  check_coreset_extents(rows, options.bank_rows, options.size);
  const int threads = team_size(options.num_threads, rows * dims);
  float largest = check_finite(features, rows, dims, "features", threads);
  if (options.bank != nullptr)
    largest = std::max(largest, check_finite(options.bank, options.bank_rows, dims, "bank", threads));

  CoresetOptions adjusted = options;
  std::vector<float> scaled_features;
  std::vector<float> scaled_bank;
  const float scale = coreset_scale(largest);
  if (scale != 1.0f) {
    scaled_features = scaled(features, rows * dims, scale);
    features = scaled_features.data();
    if (options.bank != nullptr) {
      scaled_bank = scaled(options.bank, options.bank_rows * dims, scale);
      adjusted.bank = scaled_bank.data();
    }
    adjusted.radius *= static_cast<double>(scale);
  }
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t work = options.plain ? 0 : rows * (options.size + options.bank_rows);
  const Sketch sketch(simd, features, rows, dims, work, threads);
  Selection selection{
      simd, features, rows, dims, threads, sketch, {}, {}, {}, {}, PackedAnchors(simd, sketch.dims()),
      {},   {},       {},   {},   {}};
  selection.values.resize(static_cast<std::size_t>(rows));
  selection.nearest.assign(static_cast<std::size_t>(rows), -1);
  selection.seen.assign(static_cast<std::size_t>(rows), 0);
  const std::vector<std::int64_t> picked = run(selection, adjusted);
  std::copy(picked.begin(), picked.end(), picks);
  if (statistics != nullptr) *statistics = selection.statistics;
  return static_cast<std::int64_t>(picked.size());
}

}  // namespace ensemblead::cpu
