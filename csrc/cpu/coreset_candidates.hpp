// Exact greedy selection of a block of picks while looking at a few rows only.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/coreset_update.hpp"

namespace ensemblead::cpu {

// Values only ever decrease, so a value that is out of date is an upper bound. Let the first K rows in the
// order of (value descending, index ascending) be candidates and (tau, t) the next: once the candidates'
// values are up to date, the best of them is the best of all rows as long as it comes before (tau, t). So
// picks are made among the candidates until that fails. Then the values of new candidates are brought up to
// date, and no others.
class Candidates {
 public:
  enum class Stop {
    kThreshold,  // the next pick may lie outside the candidates
    kLimit,      // `limit` picks were made
    kRadius,     // no value exceeds the radius: the selection is complete
    kZero,       // every value is 0
  };

  // Makes the first rows the candidates, about `num_candidates` of them.
  void find(const Selection& selection, std::int64_t num_candidates);
  const std::vector<std::int32_t>& rows() const { return rows_; }

  // Appends picks to `picks` and to the anchors of `selection`. The candidates' values must be up to date.
  Stop pick(Selection& selection, std::int64_t limit, double radius, std::vector<std::int64_t>& picks);

 private:
  struct Candidate {
    float value;
    std::int32_t row;
  };

  // The order of the heap, whose "largest" is the row that the greedy rule takes first.
  static bool comes_later(const Candidate& a, const Candidate& b) {
    return a.value < b.value || (a.value == b.value && a.row > b.row);
  }

  void count_all(const Selection& selection, std::int32_t& top);
  void count_collected(const Selection& selection, std::int32_t& top);
  float floor_of_first(std::int32_t top, std::int64_t num_candidates) const;
  void collect(const Selection& selection, float floor);
  float collect_first(const Selection& selection, std::int64_t num_candidates);
  bool within_threshold(const Candidate& candidate) const {
    return !has_threshold_ || !comes_later(candidate, threshold_);
  }
  void refresh_top(Selection& selection);

  std::vector<std::int32_t> rows_;
  std::vector<float> own_;  // the sketch of the row being looked at
  std::vector<Candidate> heap_;
  Candidate threshold_{};
  bool has_threshold_ = false;
  float last_floor_ = std::numeric_limits<float>::infinity();
  float fall_ = 1.0f;                                 // of the floor, from one round to the next
  std::vector<std::vector<std::int32_t>> collected_;  // per thread
  std::vector<std::vector<std::int64_t>> counts_;     // per thread
};

}  // namespace ensemblead::cpu
