// Combination after combination, while the rows of a query lie in the cache: a pass sums them and keeps what
// lies above a bound, which rises to the k-th largest sum so far. The columns that the combination before
// retrieved give the first bound, since neighbouring combinations retrieve nearly the same.
#include "weighted.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/rank_key.hpp"
#include "cpu/parallel.hpp"
#include "cpu/weighted_simd.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr std::int64_t kBatch = 2 * kMostCollected;  // columns that are collected under one bound

// The search of one thread, query after query.
class RowSearch {
 public:
  RowSearch(const WeightedSimd& simd, const WeightedTask& task);

  void run(std::int64_t query);

 private:
  float first_bound(const WeightedRows& rows);
  void add_collected(const Collected& found);
  float keep_best();
  void write(std::int64_t combination);
  bool left_out(std::int64_t column) const {
    if (task_.left_out_column != nullptr && task_.left_out_column[query_] == column) return true;
    return task_.left_out != nullptr && task_.left_out[query_ * task_.num_columns + column] != 0;
  }

  const WeightedSimd& simd_;
  const WeightedTask& task_;
  std::int64_t query_ = 0;
  std::vector<const float*> rows_;
  std::vector<RankKey> keys_;
  std::vector<float> values_;
  std::vector<std::int32_t> columns_;
  // The columns of the combination before, if it retrieved k, and their values in every row.
  std::vector<std::int64_t> before_;
  std::vector<float> gathered_;
  std::vector<const float*> gathered_rows_;
  std::vector<float> gathered_scales_;
  std::vector<float> sums_;
};

RowSearch::RowSearch(const WeightedSimd& simd, const WeightedTask& task) : simd_(simd), task_(task) {
  const std::size_t count = task.blocks.size();
  const auto k = static_cast<std::size_t>(task.k);
  rows_.resize(count);
  keys_.reserve(3 * k + 2 * kBatch);
  values_.resize(kBatch);
  columns_.resize(kBatch);
  before_.reserve(k);
  gathered_.resize(count * k);
  for (std::size_t b = 0; b < count; ++b) gathered_rows_.push_back(gathered_.data() + b * k);
  gathered_scales_.resize(k);
  sums_.resize(k);
}

void RowSearch::run(std::int64_t query) {
  query_ = query;
  before_.clear();
  const auto count = static_cast<std::int64_t>(rows_.size());
  for (std::int64_t b = 0; b < count; ++b) rows_[b] = task_.blocks[b] + query * task_.num_columns;
  const std::size_t enough = static_cast<std::size_t>(std::max(2 * task_.k, task_.k + kBatch));
  for (std::int64_t w = 0; w < task_.num_combinations; ++w) {
    const float* scales = task_.scales == nullptr ? nullptr : task_.scales + w * task_.num_columns;
    const WeightedRows rows{rows_.data(), task_.weights + w * count, count, scales};
    float bound = first_bound(rows);
    keys_.clear();
    for (std::int64_t column = 0; column < task_.num_columns;) {
      Collected found{values_.data(), columns_.data(), kBatch, 0};
      column = simd_.collect(rows, column, task_.num_columns, bound, &found);
      add_collected(found);
      if (keys_.size() >= enough) bound = keep_best();
    }
    write(w);
  }
}

// Any k columns have a smallest sum, and the k-th largest of all columns is no smaller. Columns with just
// that sum are not to be missed, so the bound lies below it by the least step, and is no subnormal number:
// threads that flush those to zero (torch.set_flush_denormal) would compare with 0.
float RowSearch::first_bound(const WeightedRows& rows) {
  if (before_.empty()) return -kInfinity;
  for (std::int64_t b = 0; b < rows.count; ++b)
    for (std::int64_t i = 0; i < task_.k; ++i) gathered_[b * task_.k + i] = rows.rows[b][before_[i]];
  if (rows.scales != nullptr)
    for (std::int64_t i = 0; i < task_.k; ++i) gathered_scales_[i] = rows.scales[before_[i]];
  const float* scales = rows.scales == nullptr ? nullptr : gathered_scales_.data();
  simd_.combine({gathered_rows_.data(), rows.weights, rows.count, scales}, task_.k, sums_.data());
  float least = kInfinity;
  for (const float sum : sums_) {
    if (!(sum > -kInfinity)) return -kInfinity;  // NaN too
    least = std::min(least, sum);
  }
  const float below = std::nextafter(least, -kInfinity);
  return std::fpclassify(below) == FP_NORMAL ? below : std::min(below, -kSmallestNormal);
}

void RowSearch::add_collected(const Collected& found) {
  const bool any_left_out = task_.left_out_column != nullptr || task_.left_out != nullptr;
  for (std::int64_t i = 0; i < found.count; ++i)
    if (!any_left_out || !left_out(found.columns[i]))
      keys_.push_back(rank_key(found.values[i], static_cast<std::uint32_t>(found.columns[i])));
}

// Leaves the k best. All that follow are of higher columns, so those that equal the k-th are worse.
float RowSearch::keep_best() {
  std::nth_element(keys_.begin(), keys_.begin() + (task_.k - 1), keys_.end());
  keys_.resize(static_cast<std::size_t>(task_.k));
  return key_value(keys_.back());
}

void RowSearch::write(std::int64_t combination) {
  const auto k = static_cast<std::size_t>(task_.k);
  if (keys_.size() > k) keep_best();
  std::sort(keys_.begin(), keys_.end());
  float* values = task_.values + (combination * task_.num_queries + query_) * task_.k;
  std::int64_t* indices = task_.indices + (combination * task_.num_queries + query_) * task_.k;
  before_.clear();
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    values[i] = key_value(keys_[i]);
    indices[i] = key_column(keys_[i]);
  }
  std::fill(values + keys_.size(), values + k, -kInfinity);
  std::fill(indices + keys_.size(), indices + k, std::int64_t{-1});
  if (keys_.size() == k) before_.assign(indices, indices + k);
}

}  // namespace

void weighted_top_k(const WeightedTask& task, const Work& work) {
  const WeightedSimd& simd = weighted_simd();
  const std::int64_t values = task.num_combinations * task.num_queries * task.num_columns;
  const int threads = static_cast<int>(
      std::min<std::int64_t>(team_size(work.threads, values, kValuesPerThread), task.num_queries));
  std::vector<RowSearch> searches;
  searches.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) searches.emplace_back(simd, task);
  parallel_for(task.num_queries, threads, Schedule::kDynamic,
               [&](std::int64_t query, int thread) { searches[thread].run(query); });
}

}  // namespace ensemblead::cpu
