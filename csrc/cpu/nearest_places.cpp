#include "cpu/nearest_places.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace ensemblead::cpu {
namespace {

// Queries are searched together in squares of so many places a side: what lies around a square is less than
// what lies around a line of as many.
constexpr std::int64_t kSquare = 4;

struct Place {
  std::int64_t y;
  std::int64_t x;
};

}  // namespace

std::vector<std::int64_t> NearPlaces::order() const {
  std::vector<std::int64_t> order(static_cast<std::size_t>(task_.num_queries));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (!given()) return order;
  const auto place = [this](std::int64_t query) {
    return Place{task_.query_places[2 * query], task_.query_places[2 * query + 1]};
  };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const Place one = place(a);
    const Place other = place(b);
    if (one.y / kSquare != other.y / kSquare) return one.y / kSquare < other.y / kSquare;
    if (one.x / kSquare != other.x / kSquare) return one.x / kSquare < other.x / kSquare;
    return one.y != other.y ? one.y < other.y : one.x < other.x;
  });
  return order;
}

void NearPlaces::find_panels(const std::int64_t* queries, std::int64_t count, std::int64_t width,
                             std::vector<std::int64_t>& panels) const {
  constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();
  Place low{kFar, kFar};
  Place high{-1, -1};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t* place = task_.query_places + 2 * queries[i];
    const std::int64_t radius = task_.query_radii[queries[i]];
    low = {std::min(low.y, place[0] - radius), std::min(low.x, place[1] - radius)};
    high = {std::max(high.y, place[0] + radius), std::max(high.x, place[1] + radius)};
  }
  panels.clear();
  std::int64_t row = first_at(low.y, low.x);
  while (row < task_.rows.num_rows && task_.row_places[2 * row] <= high.y) {
    const std::int64_t y = task_.row_places[2 * row];
    const std::int64_t end = first_at(y, high.x + 1);
    row = std::max(row, first_at(y, low.x));
    for (; row < end; row = (row / width + 1) * width)
      if (panels.empty() || panels.back() < row / width) panels.push_back(row / width);
    row = first_at(y + 1, low.x);
  }
}

std::int64_t NearPlaces::first_at(std::int64_t y, std::int64_t x) const {
  std::int64_t low = 0;
  std::int64_t high = task_.rows.num_rows;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    const std::int64_t* place = task_.row_places + 2 * middle;
    if (place[0] < y || (place[0] == y && place[1] < x)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace ensemblead::cpu
