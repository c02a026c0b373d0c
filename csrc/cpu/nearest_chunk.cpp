#include "cpu/nearest_chunk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// The cost of a dimension of a distance, whose row comes from anywhere in memory, in multiplications of a
// matrix product of codes. Roughly measured.
constexpr std::int64_t kDistanceCost = 40;
// Pairs that are resolved together.
constexpr std::size_t kManyPairs = 4096;
// Of the queries that are searched together: sketches, or whole ones where there are none. The latter take
// longer, and rows are read from memory less often.
constexpr std::int64_t kSketchBytes = std::int64_t{64} << 10;
constexpr std::int64_t kWholeBytes = std::int64_t{512} << 10;
constexpr std::int64_t kMaxTiles = 36;
constexpr std::int32_t kMostMisses = 6;
constexpr std::size_t kAhead = 4;  // pairs between asking for a row and reading it
// A query with at most so many rows near its place, and one more for so many directions, is compared with all
// of those: to sketch it would take longer.
constexpr std::int64_t kFewRows = 16;
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

std::int64_t ChunkSearch::capacity(const CoresetSimd& simd, const SketchedRows& rows) {
  const PackedLayout layout(simd, rows);
  const std::int64_t tile = simd.tile_rows;
  const std::int64_t tiles = layout.sketch_size > 0 ? kSketchBytes / (layout.sketch.words * 4 * tile)
                                                    : kWholeBytes / (layout.whole.words * 4 * tile);
  return std::clamp(tiles, std::int64_t{1}, kMaxTiles) * tile;
}

ChunkSearch::ChunkSearch(const CoresetSimd& simd, const NearestTask& task, const NearPlaces& places,
                         std::int64_t most_queries)
    : simd_(simd),
      task_(task),
      rows_(task.rows),
      places_(places),
      layout_(simd, rows_),
      coded_tile_(has_dot_products() && simd.coded_tile_by_dots != nullptr ? simd.coded_tile_by_dots
                                                                           : simd.coded_tile),
      slack_(sketch_slack(rows_.dims, rows_.num_directions)),
      coder_(simd, rows_, rows_.packed, Side::kQuery) {
  const std::int64_t tile = simd.tile_rows;
  const auto size = static_cast<std::size_t>(most_queries);
  members_.reserve(size);
  widened_.resize(static_cast<std::size_t>(rows_.rows == nullptr ? rows_.dims : 0));
  leads_.reserve(size);
  queries_.reserve(size);
  points_.resize(size);
  centred_.resize(size * static_cast<std::size_t>(rows_.dims));
  sketches_.resize(size * static_cast<std::size_t>(layout_.sketch.words));
  wholes_.resize(size * static_cast<std::size_t>(layout_.whole.words));
  sketch_scales_.resize(size);
  whole_scales_.resize(size);
  coded_.resize(size);
  norms_.resize(size);
  thresholds_.resize(size);
  found_.resize(size);
  best_pair_.resize(size);
  misses_.resize(size / static_cast<std::size_t>(tile));
  skips_.resize(misses_.size());
  has_wholes_.resize(misses_.size());
  products_.resize(static_cast<std::size_t>(tile * layout_.width));
  lanes_.resize(static_cast<std::size_t>(layout_.width));
  pairs_.reserve(kManyPairs + static_cast<std::size_t>(tile * layout_.width));
}

void ChunkSearch::run(const std::int64_t* queries, std::int64_t count) {
  queries_.clear();
  for (std::int64_t i = 0; i < count; ++i) {
    if (places_.given() && places_.count(queries[i]) <= kFewRows + rows_.num_directions / kDirectionsOfRow) {
      members_.assign(1, queries[i]);
      norms_[0].full = kInfinity;  // there is no sketch
      compare_all(0);
    } else {
      queries_.push_back(queries[i]);
    }
  }
  if (!queries_.empty()) search_queries();
}

void ChunkSearch::search_queries() {
  members_.clear();
  leads_.clear();
  const std::size_t count = queries_.size();
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
}

void ChunkSearch::begin() {
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t i = 0; i < count; ++i) points_[i] = point(members_[i]);
  for (std::int64_t i = 0; i < count; i += simd_.tile_rows)
    coder_.sketch(points_.data() + i, std::min<std::int64_t>(simd_.tile_rows, count - i),
                  centred_.data() + i * rows_.dims, sketches_.data() + i * layout_.sketch.words,
                  coded_.data() + i, norms_.data() + i);
  // Queries without a sketch, and places of the last tile without a query, hit nothing.
  std::fill(thresholds_.begin(), thresholds_.end(), kInfinity);
  for (std::int64_t i = 0; i < count; ++i) {
    sketch_scales_[i] = coded_[i].scale;
    if (norms_[i].full < kTooLong) thresholds_[i] = -kInfinity;
  }
  std::fill(found_.begin(), found_.end(), 0);
  std::fill(misses_.begin(), misses_.end(), 0);
  std::fill(skips_.begin(), skips_.end(), 0);
  std::fill(has_wholes_.begin(), has_wholes_.end(), 0);
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
      compare(first, panel);
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
      compare(first, near_panels_[i % 2 == 0 ? middle + i / 2 : middle - (i + 1) / 2]);
      if (i == 0 || pairs_.size() > kManyPairs) resolve_pairs();
    }
  }
}

// The queries from place `first` with the rows of a panel: pairs that products do not rule out. Queries that
// lie off the directions, as defects may, are near no row, and their sketches rule out little.
void ChunkSearch::compare(std::int64_t first, std::int64_t panel) {
  const auto tile = static_cast<std::size_t>(first / simd_.tile_rows);
  if (layout_.sketch_size == 0 || skips_[tile] > 0) {
    skips_[tile] = std::max(skips_[tile] - 1, 0);
    compare_wholes(first, panel);
    return;
  }
  const std::size_t before = pairs_.size();
  compare_sketches(first, panel);
  // As many pairs as take as long as products over all dimensions.
  const auto most = static_cast<std::size_t>(simd_.tile_rows * layout_.width / kDistanceCost);
  if (pairs_.size() - before > most) compare_best(before);
  if (pairs_.size() - before <= most) {
    misses_[tile] = 0;
    return;
  }
  misses_[tile] = std::min(misses_[tile] + 1, kMostMisses);
  skips_[tile] = (std::int32_t{1} << misses_[tile]) - 2;
  pairs_.resize(before);
  compare_wholes(first, panel);
}

void ChunkSearch::compare_sketches(std::int64_t first, std::int64_t panel) {
  static constexpr float kNoRaises[kMostTileRows] = {};
  const CodedForm& form = layout_.sketch;
  const std::uint32_t hits = coded_tile_(sketches_.data() + first * form.words, form.words, form.front,
                                         form.groups, sketch_scales_.data() + first,
                                         rows_.packed + layout_.sketches_at + panel * layout_.sketch_size,
                                         thresholds_.data() + first, products_.data());
  add_pairs(hits, first, panel, thresholds_.data() + first, kNoRaises);
}

void ChunkSearch::compare_wholes(std::int64_t first, std::int64_t panel) {
  if (has_wholes_[static_cast<std::size_t>(first / simd_.tile_rows)] == 0) code_wholes(first);
  float thresholds[kMostTileRows];
  float raises[kMostTileRows];
  for (std::int64_t r = 0; r < simd_.tile_rows; ++r) {
    const SketchNorms norms = norms_[first + r];
    raises[r] = 0.5f * (norms.sketch - norms.full);
    const float threshold = thresholds_[first + r];
    thresholds[r] = std::isfinite(threshold) ? threshold - raises[r] : threshold;
  }
  const CodedForm& form = layout_.whole;
  const std::uint32_t hits = coded_tile_(
      wholes_.data() + first * form.words, form.words, form.front, form.groups, whole_scales_.data() + first,
      rows_.packed + layout_.wholes_at + panel * layout_.whole_size, thresholds, products_.data());
  add_pairs(hits, first, panel, thresholds, raises);
}

void ChunkSearch::code_wholes(std::int64_t first) {
  has_wholes_[static_cast<std::size_t>(first / simd_.tile_rows)] = 1;
  const auto count = static_cast<std::int64_t>(members_.size());
  for (std::int64_t i = first; i < std::min<std::int64_t>(first + simd_.tile_rows, count); ++i)
    if (norms_[i].full < kTooLong)
      whole_scales_[i] =
          coder_
              .whole(sketches_.data() + i * layout_.sketch.words, centred_.data() + i * rows_.dims,
                     wholes_.data() + i * layout_.whole.words)
              .scale;
}

// The rows of a panel whose products with these queries are above their thresholds.
void ChunkSearch::add_pairs(std::uint32_t hits, std::int64_t first, std::int64_t panel,
                            const float* thresholds, const float* raises) {
  const std::int64_t column = panel * layout_.width;
  for (; hits != 0; hits &= hits - 1) {
    const int r = __builtin_ctz(hits);
    const float* products = products_.data() + r * layout_.width;
    const std::int64_t count = simd_.collect(products, layout_.width, thresholds[r], 0, lanes_.data());
    for (std::int64_t i = 0; i < count; ++i)
      if (!task_.left_out.holds(members_[first + r], column + lanes_[i]))
        pairs_.push_back(
            {static_cast<std::int32_t>(first + r), column + lanes_[i], products[lanes_[i]] + raises[r]});
  }
}

void ChunkSearch::resolve_pairs() {
  compare_best(0);
  compare_rows();
  pairs_.clear();
}

// Of the pairs from `begin` on the most promising one of each query: its distance raises the threshold and
// spares most of the others.
void ChunkSearch::compare_best(std::size_t begin) {
  const std::size_t count = pairs_.size();
  for (std::size_t i = begin; i < count; ++i) best_pair_[pairs_[i].place] = i;
  for (std::size_t i = begin; i < count; ++i)
    if (pairs_[i].product > pairs_[best_pair_[pairs_[i].place]].product) best_pair_[pairs_[i].place] = i;
  for (std::size_t i = begin; i < count; ++i) {
    Pair& pair = pairs_[i];
    if (best_pair_[pair.place] != i) continue;
    insert(pair.place, distance(members_[pair.place], pair.index), pair.index);
    pair.product = -kInfinity;
  }
  std::size_t left = begin;
  for (std::size_t i = begin; i < count; ++i)
    if (pairs_[i].product > thresholds_[pairs_[i].place]) pairs_[left++] = pairs_[i];
  pairs_.resize(left);
}

void ChunkSearch::prefetch_row(std::int64_t index) const {
  if (rows_.rows != nullptr) {
    prefetch(rows_.rows + index * rows_.dims, rows_.dims);
  } else {
    prefetch(rows_.halves + index * rows_.dims, rows_.dims);
  }
}

// Rows are read from anywhere in memory: each is asked for some time before.
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
