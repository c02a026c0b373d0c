#include "cpu/coreset_refresh.hpp"

#include <algorithm>

#include "cpu/parallel.hpp"

namespace ensemblead::cpu {

Refresh::Refresh(Selection& selection, bool plain)
    : selection_(selection), plain_(plain), clusters_(selection) {
  updates_.reserve(static_cast<std::size_t>(selection.num_threads));
  for (int thread = 0; thread < selection.num_threads; ++thread) updates_.emplace_back(selection);
}

void Refresh::run(const std::vector<std::int32_t>& rows) {
  if (plain_) {
    run_plainly(rows);
  } else {
    sort_by_seen(rows);
    if (clusters_.worthwhile(sorted_)) {
      clusters_.run(sorted_);
    } else {
      run_by_products(sorted_);
    }
    count_work();
  }
  const auto num_anchors = static_cast<std::int32_t>(selection_.num_anchors());
  for (const std::int32_t row : rows) selection_.seen[row] = num_anchors;
}

void Refresh::run_plainly(const std::vector<std::int32_t>& rows) {
  const auto count = static_cast<std::int64_t>(rows.size());
  parallel_for(count, selection_.num_threads, Schedule::kStatic, [&](std::int64_t i, int) {
    float& value = selection_.values[rows[i]];
    for (std::int64_t anchor = selection_.seen[rows[i]]; anchor < selection_.num_anchors(); ++anchor)
      value = std::min(value, selection_.squared_distance(rows[i], anchor));
  });
}

// The rows that are out of date: those that have as much to catch up with together, and within that in order
// of memory.
void Refresh::sort_by_seen(const std::vector<std::int32_t>& rows) {
  const std::int64_t num_anchors = selection_.num_anchors();
  places_.assign(static_cast<std::size_t>(num_anchors + 2), 0);
  for (const std::int32_t row : rows) ++places_[selection_.seen[row] + 1];
  for (std::int64_t i = 0; i <= num_anchors; ++i) places_[i + 1] += places_[i];
  const std::int64_t out_of_date = places_[num_anchors];
  sorted_.resize(rows.size());
  for (const std::int32_t row : rows) sorted_[places_[selection_.seen[row]]++] = row;
  sorted_.resize(static_cast<std::size_t>(out_of_date));
}

void Refresh::run_by_products(const std::vector<std::int32_t>& rows) {
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t step = updates_.front().capacity();
  parallel_for((count + step - 1) / step, selection_.num_threads, Schedule::kDynamic,
               [&](std::int64_t item, int thread) {
                 const std::int64_t begin = item * step;
                 updates_[thread].run(selection_.packed, selection_.seen[rows[begin]], rows.data() + begin,
                                      std::min(step, count - begin));
               });
}

void Refresh::count_work() {
  CoresetResult& figures = selection_.figures;
  figures.product_pairs = clusters_.product_pairs();
  figures.direct_pairs = clusters_.direct_pairs();
  for (const RowUpdate& update : updates_) {
    figures.product_pairs += update.product_pairs();
    figures.direct_pairs += update.direct_pairs();
  }
}

}  // namespace ensemblead::cpu
