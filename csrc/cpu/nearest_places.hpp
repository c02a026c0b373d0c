// The condition that rows lie near a query's place, and the panels of rows that it leaves.
#pragma once

#include <cstdint>
#include <vector>

#include "nearest.hpp"

namespace ensemblead::cpu {

class NearPlaces {
 public:
  explicit NearPlaces(const NearestTask& task) : task_(task) {}

  // Whether places matter.
  bool given() const { return task_.row_places != nullptr; }

  // Whether a row is too far from a query's place.
  bool apart(std::int64_t query, std::int64_t row) const {
    const std::int64_t* a = task_.query_places + 2 * query;
    const std::int64_t* b = task_.row_places + 2 * row;
    const std::int64_t radius = task_.query_radii[query];
    return b[0] - a[0] > radius || a[0] - b[0] > radius || b[1] - a[1] > radius || a[1] - b[1] > radius;
  }

  // All queries, those of neighbouring places one after the other; in their own order where places do not
  // matter.
  std::vector<std::int64_t> order() const;

  // The panels of `width` rows that hold a row near one of these queries, ascending.
  void find_panels(const std::int64_t* queries, std::int64_t count, std::int64_t width,
                   std::vector<std::int64_t>& panels) const;

 private:
  // The first row at a place of (y, x) or behind.
  std::int64_t first_at(std::int64_t y, std::int64_t x) const;

  const NearestTask& task_;
};

}  // namespace ensemblead::cpu
