#include "cpu/nearest_chunk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Costs of a pair that the fronts leave, in multiplications of a matrix product: of its tail, and of every
// dimension of a distance, whose row comes from anywhere in memory. Roughly measured.
constexpr double kTailCost = 900.0;
constexpr double kDistanceCost = 10.0;
// The cost of packing all dimensions of a panel, in products of a tile with it.
constexpr double kPackCost = 2.5;
constexpr double kRemembered = 10'000.0;  // pairs
// Pairs that are resolved together.
constexpr std::size_t kManyPairs = 4096;
constexpr std::int64_t kChunkBytes = std::int64_t{64} << 10;
constexpr std::int64_t kMaxTiles = 36;
constexpr std::int32_t kMostMisses = 6;
constexpr std::size_t kAhead = 4;  // pairs between asking for a row and reading it
// A query with at most one row near its place for so many directions is compared with all of those: to sketch
// it would take longer.
constexpr std::int64_t kDirectionsOfRow = 4;
// One query in this many leads: it is searched before those around it.
constexpr std::int64_t kLeadStep = 4;

template <class T>
void prefetch(const T* values, std::int64_t size) {
  const auto* bytes = reinterpret_cast<const char*>(values);
  const auto total = size * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t line = 0; line < std::min<std::int64_t>(total, 4096); line += 64)
    __builtin_prefetch(bytes + line);
}

}  // namespace

ChunkSearch::ChunkSearch(const CoresetSimd& simd, const NearestTask& task, const NearPlaces& places)
    : simd_(simd),
      task_(task),
      rows_(task.rows),
      places_(places),
      layout_(simd, rows_),
      slack_(sketch_slack(rows_.dims, rows_.num_directions)),
      sketcher_(simd, rows_, rows_.packed) {
  const std::int64_t tile = simd.tile_rows;
  capacity_ = std::clamp(kChunkBytes / (layout_.front * 4 * tile), std::int64_t{1}, kMaxTiles) * tile;
  const auto size = static_cast<std::size_t>(capacity_);
  members_.reserve(size);
  widened_.resize(static_cast<std::size_t>(rows_.rows == nullptr ? rows_.dims : 0));
  leads_.reserve(size);
  queries_.reserve(size);
  points_.resize(size);
  centred_.resize(size * static_cast<std::size_t>(rows_.dims));
  panel_.resize(static_cast<std::size_t>(rows_.dims * layout_.width));
  panel_starts_.resize(static_cast<std::size_t>(layout_.width));
  panel_rows_.resize(static_cast<std::size_t>(rows_.dims * layout_.width));
  fronts_.resize(size * static_cast<std::size_t>(layout_.front));
  tails_.resize(size * static_cast<std::size_t>(layout_.tail));
  norms_.resize(size);
  thresholds_.resize(size);
  found_.resize(size);
  best_pair_.resize(size);
  misses_.resize(size / static_cast<std::size_t>(tile));
  skips_.resize(misses_.size());
  products_.resize(static_cast<std::size_t>(tile * layout_.width));
  lanes_.resize(static_cast<std::size_t>(layout_.width));
  pairs_.reserve(kManyPairs + static_cast<std::size_t>(tile * layout_.width));
  update_most_left();
}

void ChunkSearch::run(const std::int64_t* queries, std::int64_t count) {
  queries_.clear();
  for (std::int64_t i = 0; i < count; ++i) {
    if (places_.given() && places_.count(queries[i]) * kDirectionsOfRow <= rows_.num_directions) {
      members_.assign(1, queries[i]);
      norms_[0].full = kInfinity;  // there is no sketch
      compare_all(0);
    } else {
      queries_.push_back(queries[i]);
    }
  }
  if (!queries_.empty()) search_queries();
}

// Where products over all dimensions are the rule, a panel is packed for all queries at once, and none leads.

void ChunkSearch::search_queries() {
  compared_ = compared_fully_ = 0;
  members_.clear();
  leads_.clear();
  const std::size_t count = queries_.size();
  if (mostly_fully_) {
    members_ = queries_;
    begin();
    search();
    mostly_fully_ = 2 * compared_fully_ > compared_;
    return;
  }
  for (std::size_t i = 0; i < count; i += kLeadStep) members_.push_back(queries_[i]);
  begin();
  search();
  members_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    if (i % kLeadStep == 0) continue;
    members_.push_back(queries_[i]);
    leads_.push_back(queries_[i - i % kLeadStep]);
  }
  begin();
  start_from_leads();
  search();
  mostly_fully_ = 2 * compared_fully_ > compared_;
}

void ChunkSearch::begin() {
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t i = 0; i < count; ++i) points_[i] = point(members_[i]);
  for (std::int64_t i = 0; i < count; i += simd_.tile_rows)
    sketcher_.run(points_.data() + i, std::min<std::int64_t>(simd_.tile_rows, count - i),
                  centred_.data() + i * rows_.dims, fronts_.data() + i * layout_.front,
                  tails_.data() + i * layout_.tail, norms_.data() + i);
  // Queries without a sketch, and places of the last tile without a query, hit nothing.
  std::fill(thresholds_.begin(), thresholds_.end(), kInfinity);
  for (std::int64_t i = 0; i < count; ++i)
    if (norms_[i].full < kTooLong) thresholds_[i] = -kInfinity;
  std::fill(found_.begin(), found_.end(), 0);
  std::fill(misses_.begin(), misses_.end(), 0);
  std::fill(skips_.begin(), skips_.end(), 0);
}

// Neighbouring queries are patches of the same place in an image: the rows nearest to the leading query
// are seldom far from the others, and most rows are ruled out from the beginning.
void ChunkSearch::start_from_leads() {
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (!(norms_[i].full < kTooLong)) continue;
    const std::int64_t query = members_[i];
    const std::int64_t* found = task_.indices + leads_[i] * task_.k;
    for (std::int64_t j = 0; j < task_.k; ++j)
      if (found[j] >= 0 && !task_.left_out.holds(query, found[j]))
        insert(static_cast<std::int64_t>(i), distance(query, found[j]), found[j]);
  }
}

void ChunkSearch::search() {
  opened_ = -1;
  if (places_.given()) {
    search_near();
  } else {
    search_panels();
  }
  resolve_pairs();
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t place = 0; place < count; ++place)
    if (found_[place] < task_.k) compare_all(place);
}

void ChunkSearch::search_panels() {
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t panel = 0; panel < layout_.row_panels; ++panel) {
    for (std::int64_t first = 0; first < count; first += simd_.tile_rows) {
      compare_fronts(first, panel);
      if (pairs_.size() > kManyPairs) resolve_pairs();
    }
  }
}

// Tile by tile, the panels with rows near its places, from the middle one outward, for its rows are the
// nearest by place. What that one leaves is resolved at once: it rules out most of the others.
void ChunkSearch::search_near() {
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t first = 0; first < count; first += simd_.tile_rows) {
    places_.find_panels(members_.data() + first, std::min<std::int64_t>(simd_.tile_rows, count - first),
                        layout_.width, near_panels_);
    for (std::size_t i = 0; i < near_panels_.size(); ++i) {
      const std::size_t middle = near_panels_.size() / 2;
      compare_fronts(first, near_panels_[i % 2 == 0 ? middle + i / 2 : middle - (i + 1) / 2]);
      if (i == 0 || pairs_.size() > kManyPairs) resolve_pairs();
    }
  }
}

// The queries from place `first` with the rows of a panel: pairs that the fronts do not rule out.
void ChunkSearch::compare_fronts(std::int64_t first, std::int64_t panel) {
  const auto tile = static_cast<std::size_t>(first / simd_.tile_rows);
  ++compared_;
  if (skips_[tile] > 0 && opened_ == panel) {
    --skips_[tile];
    compare_fully(first, panel);
    return;
  }
  const std::size_t before = pairs_.size();
  std::uint32_t hits = simd_.tile(fronts_.data() + first * layout_.front, layout_.front, layout_.front,
                                  rows_.packed + layout_.fronts_at + panel * layout_.front * layout_.width,
                                  rows_.packed + layout_.starts_at + panel * layout_.width,
                                  thresholds_.data() + first, products_.data());
  for (; hits != 0; hits &= hits - 1) {
    const int r = __builtin_ctz(hits);
    add_pairs(first + r, panel * layout_.width, products_.data() + r * layout_.width, 0.0f,
              thresholds_[first + r], false);
  }
  const double left = static_cast<double>(pairs_.size() - before);
  if (left <= (opened_ == panel ? most_left_ : most_left_ * (1.0 + kPackCost))) {
    misses_[tile] = 0;
    return;
  }
  misses_[tile] = std::min(misses_[tile] + 1, kMostMisses);
  skips_[tile] = (std::int32_t{1} << misses_[tile]) - 2;
  pairs_.resize(before);
  compare_fully(first, panel);
}

// Compares by products over all dimensions. Queries that lie off the directions, as defects may, are near no
// row, and their fronts rule out little.
void ChunkSearch::compare_fully(std::int64_t first, std::int64_t panel) {
  ++compared_fully_;
  if (opened_ != panel) open_panel(panel);
  float thresholds[kMostTileRows];
  float raises[kMostTileRows];
  for (std::int64_t r = 0; r < simd_.tile_rows; ++r) {
    const SketchNorms norms = norms_[first + r];
    raises[r] = 0.5f * (norms.sketch - norms.full);
    const float threshold = thresholds_[first + r];
    thresholds[r] = std::isfinite(threshold) ? threshold - raises[r] : threshold;
  }
  std::uint32_t hits = simd_.tile(centred_.data() + first * rows_.dims, rows_.dims, rows_.dims, panel_.data(),
                                  panel_starts_.data(), thresholds, products_.data());
  for (; hits != 0; hits &= hits - 1) {
    const int r = __builtin_ctz(hits);
    add_pairs(first + r, panel * layout_.width, products_.data() + r * layout_.width, raises[r],
              thresholds[r], true);
  }
}

// Packs all dimensions of a panel's rows.
void ChunkSearch::open_panel(std::int64_t panel) {
  opened_ = panel;
  const std::int64_t column = panel * layout_.width;
  const std::int64_t dims = rows_.dims;
  const std::int64_t count = std::min(layout_.width, rows_.num_rows - column);
  std::fill(panel_starts_.begin(), panel_starts_.end(), -kInfinity);
  for (std::int64_t lane = 0; lane < count; ++lane) {
    float* centred = panel_rows_.data() + lane * dims;
    const float full = simd_.center(row(column + lane), rows_.middle, dims, centred);
    const bool fits = full < kTooLong;
    panel_starts_[lane] = fits ? product_start({full, full}, slack_) : kInfinity;
    if (!fits) std::fill_n(centred, dims, 0.0f);
  }
  // Transposed in squares that stay in the first-level cache.
  for (std::int64_t begin = 0; begin < dims; begin += 16)
    for (std::int64_t lane = 0; lane < count; ++lane)
      for (std::int64_t d = begin; d < std::min(dims, begin + 16); ++d)
        panel_[d * layout_.width + lane] = panel_rows_[lane * dims + d];
}

// The rows from `column` on whose products with a query are above the threshold.
void ChunkSearch::add_pairs(std::int64_t place, std::int64_t column, const float* products, float raise,
                            float threshold, bool whole) {
  const std::int64_t count = simd_.collect(products, layout_.width, threshold, 0, lanes_.data());
  for (std::int64_t i = 0; i < count; ++i)
    if (!task_.left_out.holds(members_[place], column + lanes_[i]))
      pairs_.push_back(
          {static_cast<std::int32_t>(place), whole, column + lanes_[i], products[lanes_[i]] + raise});
}

// The most promising row of each query first: its distance raises the threshold and spares most of the
// others.
void ChunkSearch::resolve_pairs() {
  const auto count = static_cast<std::int32_t>(pairs_.size());
  for (std::int32_t i = 0; i < count; ++i) best_pair_[pairs_[i].place] = i;
  for (std::int32_t i = 0; i < count; ++i)
    if (pairs_[i].product > pairs_[best_pair_[pairs_[i].place]].product) best_pair_[pairs_[i].place] = i;
  for (std::int32_t i = 0; i < count; ++i) {
    Pair& pair = pairs_[i];
    if (best_pair_[pair.place] != i) continue;
    insert(pair.place, distance(members_[pair.place], pair.index), pair.index);
    pair.product = -kInfinity;
  }
  compare_tails();
  compare_rows();
  pairs_.clear();
}

// Rows and tails are read from anywhere in memory: each is asked for some time before.
void ChunkSearch::compare_tails() {
  std::size_t left = 0;
  for (const Pair& pair : pairs_)
    if (pair.product > thresholds_[pair.place]) pairs_[left++] = pair;
  pairs_.resize(left);
  const std::int64_t tail = layout_.tail;
  const float* tails = rows_.packed + layout_.tails_at;
  left = 0;
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    if (i + kAhead < pairs_.size()) prefetch(tails + pairs_[i + kAhead].index * tail, tail);
    Pair pair = pairs_[i];
    if (!pair.whole) {
      pair.product -=
          0.5f * simd_.squared_distance(tails_.data() + pair.place * tail, tails + pair.index * tail, tail);
      tails_seen_ += 1.0;
      if (pair.product > thresholds_[pair.place]) tails_left_ += 1.0;
    }
    if (pair.product > thresholds_[pair.place]) pairs_[left++] = pair;
  }
  pairs_.resize(left);
  update_most_left();
}

// Finds the number of pairs of a tile that the fronts may leave before products over all dimensions cost
// less, by the share that the tails have left lately.
void ChunkSearch::update_most_left() {
  const auto dims = static_cast<double>(rows_.dims);
  const double cost = kTailCost + kDistanceCost * dims * tails_left_ / tails_seen_;
  most_left_ = dims / cost * static_cast<double>(simd_.tile_rows * layout_.width);
  if (tails_seen_ < kRemembered) return;
  tails_seen_ *= 0.5;
  tails_left_ *= 0.5;
}

void ChunkSearch::prefetch_row(std::int64_t index) const {
  if (rows_.rows != nullptr) {
    prefetch(rows_.rows + index * rows_.dims, rows_.dims);
  } else {
    prefetch(rows_.halves + index * rows_.dims, rows_.dims);
  }
}

void ChunkSearch::compare_rows() {
  for (std::size_t i = 0; i < pairs_.size(); ++i) {
    if (i + kAhead < pairs_.size()) prefetch_row(pairs_[i + kAhead].index);
    const Pair& pair = pairs_[i];
    if (pair.product > thresholds_[pair.place])
      insert(pair.place, distance(members_[pair.place], pair.index), pair.index);
  }
}

// Among the k nearest, in order of distance and then of index, if it belongs there and is not there yet.
void ChunkSearch::insert(std::int64_t place, float distance, std::int64_t index) {
  const std::int64_t k = task_.k;
  float* distances = task_.distances + members_[place] * k;
  std::int64_t* indices = task_.indices + members_[place] * k;
  std::int64_t at = found_[place];
  while (at > 0 &&
         (distance < distances[at - 1] || (distance == distances[at - 1] && index < indices[at - 1])))
    --at;
  if (at == k || (at > 0 && indices[at - 1] == index)) return;
  if (found_[place] < k) ++found_[place];
  for (std::int64_t j = found_[place] - 1; j > at; --j) {
    distances[j] = distances[j - 1];
    indices[j] = indices[j - 1];
  }
  distances[at] = distance;
  indices[at] = index;
  // The threshold lies beyond the k-th distance by the least step, so that an equal one with a lower index is
  // still compared.
  if (found_[place] == k && norms_[place].full < kTooLong)
    thresholds_[place] =
        product_threshold(norms_[place], std::nextafter(distances[k - 1], kInfinity), slack_);
}

// For queries without a sketch, because they are beyond the range of float32 or not finite, or because few
// rows are near. NaN counts as the longest distance.
void ChunkSearch::compare_all(std::int64_t place) {
  const std::int64_t query = members_[place];
  found_[place] = 0;
  bool any_nan = false;
  places_.for_each_range(query, [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t index = first; index < end; ++index) {
      if (task_.left_out.holds(query, index)) continue;
      const float value = distance(query, index);
      any_nan |= std::isnan(value);
      insert(place, std::isnan(value) ? kInfinity : value, index);
    }
  });
  for (std::int64_t j = 0; j < task_.k; ++j) {
    const std::int64_t at = query * task_.k + j;
    if (j >= found_[place]) {
      task_.indices[at] = -1;
      task_.distances[at] = kInfinity;
    } else if (any_nan) {
      task_.distances[at] = distance(query, task_.indices[at]);
    }
  }
}

}  // namespace ensemblead::cpu
