// The condition that rows lie near a query's place, and the panels of rows that it leaves.
#pragma once

#include <cstdint>
#include <vector>

#include "nearest.hpp"

namespace ensemblead::cpu {

class NearPlaces {
 public:
  explicit NearPlaces(const NearestTask& task);

  // Whether places matter.
  bool given() const { return task_.left_out.row_places != nullptr; }

  // All queries, those of neighbouring places one after the other; in their own order where places do not
  // matter.
  std::vector<std::int64_t> order() const;

  // How many rows lie near a query's place.
  std::int64_t count(std::int64_t query) const {
    std::int64_t total = 0;
    for_each_range(query, [&](std::int64_t first, std::int64_t end) { total += end - first; });
    return total;
  }

  // Calls visit(first, end) for every range of rows near a query's place, ascending; all rows where places do
  // not matter.
  template <typename Visit>
  void for_each_range(std::int64_t query, const Visit& visit) const {
    if (!given()) {
      visit(std::int64_t{0}, task_.rows.num_rows);
      return;
    }
    const std::int64_t* place = task_.left_out.query_places + 2 * query;
    const std::int64_t radius = task_.left_out.query_radii[query];
    const std::int64_t low = place[1] > radius ? place[1] - radius : 0;
    const std::int64_t top = place[0] + radius < last_y_ ? place[0] + radius : last_y_;
    for (std::int64_t y = place[0] > radius ? place[0] - radius : 0; y <= top; ++y) {
      const std::int64_t first = first_at(y, low);
      const std::int64_t end = first_at(y, place[1] + radius + 1);
      if (first < end) visit(first, end);
    }
  }

  // The panels of `width` rows that hold a row near one of these queries, ascending.
  void find_panels(const std::int64_t* queries, std::int64_t count, std::int64_t width,
                   std::vector<std::int64_t>& panels) const;

 private:
  // The first row at a place of (y, x) or behind, for x of 0 or more.
  std::int64_t first_at(std::int64_t y, std::int64_t x) const {
    if (starts_.empty()) return search(y, x);
    if (y > last_y_) return task_.rows.num_rows;
    return starts_[y * (last_x_ + 1) + (x <= last_x_ ? x : last_x_ + 1)];
  }

  std::int64_t search(std::int64_t y, std::int64_t x) const;

  const NearestTask& task_;
  std::int64_t last_y_ = -1;
  std::int64_t last_x_ = -1;
  // The first row of every cell up to these, row-major, and the end; empty for grids of far more cells than
  // rows.
  std::vector<std::int64_t> starts_;
};

}  // namespace ensemblead::cpu
