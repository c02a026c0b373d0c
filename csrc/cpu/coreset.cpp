#include "coreset.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/coreset_rules.hpp"
#include "cpu/coreset_candidates.hpp"
#include "cpu/coreset_refresh.hpp"
#include "cpu/coreset_update.hpp"
#include "cpu/finite.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Picks between two calls of the progress callback, and bank rows per pass.
constexpr std::int64_t kBlock = 2048;
// Many candidates mean few rounds, few mean little work on rows that matter only later.
constexpr std::int64_t kLeastCandidates = 4096;
constexpr std::int64_t kCandidateShare = 20;

std::vector<float> scaled(const float* values, std::int64_t size, float scale) {
  std::vector<float> result(values, values + size);
  for (float& value : result) value *= scale;
  return result;
}

void start_from_mean(Selection& selection, const CoresetTask& task) {
  parallel_for(selection.rows, selection.num_threads, Schedule::kStatic, [&](std::int64_t row, int) {
    double total = 0.0;
    for (std::int64_t s = 0; s < task.num_start_rows; ++s) {
      const float* start = selection.row(task.start_rows[s]);
      total += std::sqrt(
          static_cast<double>(selection.simd.squared_distance(selection.row(row), start, selection.dims)));
    }
    const double mean = total / static_cast<double>(task.num_start_rows);
    selection.values[row] = static_cast<float>(mean * mean);
  });
}

std::vector<std::int32_t> all_rows(const Selection& selection) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(selection.rows));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

void start(Selection& selection, const CoresetTask& task, Refresh& refresh,
           std::vector<std::int64_t>& picks) {
  if (task.start == CoresetStart::kMean) return start_from_mean(selection, task);
  std::fill(selection.values.begin(), selection.values.end(), kInfinity);
  std::vector<std::int32_t> rows = all_rows(selection);
  if (task.start == CoresetStart::kRow) {
    picks.push_back(task.start_rows[0]);
    selection.add_row_as_anchor(static_cast<std::int32_t>(task.start_rows[0]));
    return refresh.run(rows);
  }
  for (std::int64_t i = 0; i < task.bank_rows; ++i) {
    selection.add_anchor(task.bank + i * selection.dims, -1);
    if (i + 1 < task.bank_rows && (i + 1) % kBlock != 0) continue;
    refresh.run(rows);
    if (task.progress) task.progress(0, task.size);
  }
}

std::vector<std::int64_t> run(Selection& selection, const CoresetTask& task) {
  std::vector<std::int64_t> picks;
  Refresh refresh(selection, task.plain);
  start(selection, task, refresh, picks);
  const std::int64_t usual = std::max(kLeastCandidates, selection.rows / kCandidateShare);
  const std::int64_t num_candidates =
      task.plain ? 1 : (task.num_candidates > 0 ? task.num_candidates : usual);
  Candidates candidates;
  for (;;) {
    const auto made = static_cast<std::int64_t>(picks.size());
    if (task.progress) task.progress(made, task.size);
    if (made >= task.size) return picks;
    candidates.find(selection, num_candidates);
    refresh.run(candidates.rows());
    const std::int64_t limit = task.plain ? 1 : std::min(kBlock, task.size - made);
    const auto stop = candidates.pick(selection, limit, task.radius, picks);
    ++selection.figures.blocks;
    if (stop == Candidates::Stop::kRadius) return picks;
    if (stop == Candidates::Stop::kZero) picks.resize(static_cast<std::size_t>(task.size), 0);
  }
}

}  // namespace

CoresetResult select_coreset(const CoresetTask& task, const Work& work) {
  check_coreset_extents(task.rows, task.bank_rows, task.size);
  const int threads = team_size(work.threads, task.rows * task.dims, kValuesPerThread);
  float largest = check_finite(task.features, task.rows, task.dims, "features", threads);
  if (task.bank != nullptr)
    largest = std::max(largest, check_finite(task.bank, task.bank_rows, task.dims, "bank", threads));

  CoresetTask adjusted = task;
  std::vector<float> scaled_features;
  std::vector<float> scaled_bank;
  const float scale = coreset_scale(largest);
  if (scale != 1.0f) {
    scaled_features = scaled(task.features, task.rows * task.dims, scale);
    adjusted.features = scaled_features.data();
    if (task.bank != nullptr) {
      scaled_bank = scaled(task.bank, task.bank_rows * task.dims, scale);
      adjusted.bank = scaled_bank.data();
    }
    adjusted.radius *= static_cast<double>(scale);
  }
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t pairs = task.plain ? 0 : task.rows * (task.size + task.bank_rows);
  const Sketch sketch(simd, adjusted.features, task.rows, task.dims, pairs, threads);
  Selection selection(simd, adjusted, sketch, threads);
  const std::vector<std::int64_t> picked = run(selection, adjusted);
  std::copy(picked.begin(), picked.end(), task.picks);
  CoresetResult result = selection.figures;
  result.count = static_cast<std::int64_t>(picked.size());
  return result;
}

}  // namespace ensemblead::cpu
