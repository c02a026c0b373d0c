#include "cpu/nearest_places.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace ensemblead::cpu {
namespace {

// Queries are searched together in squares of so many places a side: what lies around a square is less than
// what lies around a line of as many.
constexpr std::uint64_t kSquare = 4;

// Cells of a grid for which a table is kept: so many, or so many times the rows.
constexpr std::int64_t kFewCells = std::int64_t{1} << 16;
constexpr std::int64_t kCellsOfRow = 8;

struct Place {
  std::int64_t y;
  std::int64_t x;
};

}  // namespace

NearPlaces::NearPlaces(const NearestTask& task) : task_(task) {
  if (!given()) return;
  const std::int64_t count = task.rows.num_rows;
  last_y_ = task.left_out.row_places[2 * (count - 1)];
  for (std::int64_t row = 0; row < count; ++row)
    last_x_ = std::max(last_x_, task.left_out.row_places[2 * row + 1]);
  const std::int64_t most = std::max(kFewCells, kCellsOfRow * count);
  if (last_y_ >= most / (last_x_ + 1)) return;
  std::vector<std::int64_t> starts(static_cast<std::size_t>((last_y_ + 1) * (last_x_ + 1) + 1), 0);
  for (std::int64_t row = 0; row < count; ++row)
    ++starts[task.left_out.row_places[2 * row] * (last_x_ + 1) + task.left_out.row_places[2 * row + 1] + 1];
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  starts_.swap(starts);
}

std::vector<std::int64_t> NearPlaces::order() const {
  std::vector<std::int64_t> order(static_cast<std::size_t>(task_.num_queries));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  if (!given()) return order;
  // A square's numbers, and those of the place inside: places are below 2^17.
  std::vector<std::uint64_t> keys(order.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto y = static_cast<std::uint64_t>(task_.left_out.query_places[2 * i]);
    const auto x = static_cast<std::uint64_t>(task_.left_out.query_places[2 * i + 1]);
    keys[i] = (y / kSquare) << 32 | (x / kSquare) << 8 | (y % kSquare) << 4 | x % kSquare;
  }
  std::sort(order.begin(), order.end(), [&keys](std::int64_t a, std::int64_t b) {
    return keys[a] != keys[b] ? keys[a] < keys[b] : a < b;
  });
  return order;
}

void NearPlaces::find_panels(const std::int64_t* queries, std::int64_t count, std::int64_t width,
                             std::vector<std::int64_t>& panels) const {
  constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();
  Place low{kFar, kFar};
  Place high{-1, -1};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t* place = task_.left_out.query_places + 2 * queries[i];
    const std::int64_t radius = task_.left_out.query_radii[queries[i]];
    low = {std::min(low.y, place[0] - radius), std::min(low.x, place[1] - radius)};
    high = {std::max(high.y, place[0] + radius), std::max(high.x, place[1] + radius)};
  }
  panels.clear();
  low = {std::max(low.y, std::int64_t{0}), std::max(low.x, std::int64_t{0})};
  std::int64_t row = first_at(low.y, low.x);
  while (row < task_.rows.num_rows && task_.left_out.row_places[2 * row] <= high.y) {
    const std::int64_t y = task_.left_out.row_places[2 * row];
    const std::int64_t end = first_at(y, high.x + 1);
    row = std::max(row, first_at(y, low.x));
    for (; row < end; row = (row / width + 1) * width)
      if (panels.empty() || panels.back() < row / width) panels.push_back(row / width);
    row = first_at(y + 1, low.x);
  }
}

std::int64_t NearPlaces::search(std::int64_t y, std::int64_t x) const {
  std::int64_t low = 0;
  std::int64_t high = task_.rows.num_rows;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    const std::int64_t* place = task_.left_out.row_places + 2 * middle;
    if (place[0] < y || (place[0] == y && place[1] < x)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace ensemblead::cpu
