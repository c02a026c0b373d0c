#include "cpu/coreset_update.hpp"

#include <cmath>
#include <limits>

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kAhead = 8;      // rows between asking for a sketch and reading it
constexpr std::int32_t kHitsAhead = 4;  // the same of the points of a pair
constexpr std::size_t kMaxHits = 1024;
constexpr std::int64_t kChunkBytes = std::int64_t{64} << 10;

// An upper bound of the length of a row outside the directions of its sketch.
float rest(Sketch::Norms norms, float slack) {
  return std::sqrt(std::max(norms.full - norms.sketch, 0.0f) + slack * norms.full);
}

}  // namespace

void PackedAnchors::clear() {
  anchors_.clear();
  panels_.clear();
  initial_.clear();
}

void PackedAnchors::add(const float* sketch, float start, std::int32_t anchor) {
  const std::int64_t column = count();
  if (column % width_ == 0) {
    panels_.resize(panels_.size() + static_cast<std::size_t>(width_ * dims_), 0.0f);
    initial_.resize(initial_.size() + static_cast<std::size_t>(width_), -kInfinity);
  }
  anchors_.push_back(anchor);
  initial_[column] = start;
  float* to = panels_.data() + column / width_ * width_ * dims_ + column % width_;
  for (std::int64_t d = 0; d < dims_; ++d) to[d * width_] = sketch[d];
}

Selection::Selection(const CoresetSimd& loops, const CoresetTask& task, const Sketch& row_sketch, int threads)
    : simd(loops),
      features(task.features),
      rows(task.rows),
      dims(task.dims),
      num_threads(threads),
      sketch(row_sketch),
      values(static_cast<std::size_t>(task.rows)),
      nearest(static_cast<std::size_t>(task.rows), -1),
      seen(static_cast<std::size_t>(task.rows), 0),
      packed(loops, row_sketch.dims()) {}

void Selection::add_anchor(const float* point, std::int32_t near) {
  sketches.resize(sketches.size() + static_cast<std::size_t>(sketch.dims()));
  add_sketched(point, sketch.point(point, sketches.data() + num_anchors() * sketch.dims()), near);
}

void Selection::add_row_as_anchor(std::int32_t index) {
  sketches.resize(sketches.size() + static_cast<std::size_t>(sketch.dims()));
  add_sketched(row(index), sketch.row(index, sketches.data() + num_anchors() * sketch.dims()),
               nearest[index]);
}

void Selection::add_sketched(const float* point, Sketch::Norms norms, std::int32_t near) {
  const auto id = static_cast<std::int32_t>(anchors.size());
  const float slack = relative_slack(dims);
  const float start = product_start(norms, slack);
  packed.add(anchor_sketch(id), start, id);
  sketched.push_back({norms, start, rest(norms, slack)});
  anchors.push_back(point);
  const std::int32_t root = id < kRoots || near < 0 ? id : roots[near];
  roots.push_back(root);
  root_distances.push_back(std::sqrt(simd.squared_distance(point, anchors[root], dims)) * (1.0f + slack));
}

RowUpdate::RowUpdate(Selection& selection) : selection_(selection), slack_(relative_slack(selection.dims)) {
  const std::int64_t tile = selection.simd.tile_rows;
  capacity_ =
      std::clamp(kChunkBytes / (selection.sketch.dims() * 4 * tile), std::int64_t{1}, std::int64_t{16}) *
      tile;
  const auto size = static_cast<std::size_t>(capacity_);
  sketches_.resize(size * static_cast<std::size_t>(selection.sketch.dims()));
  rows_.resize(size);
  thresholds_.resize(size);
  products_.resize(static_cast<std::size_t>(tile * selection.simd.panel_width));
  hits_.reserve(kMaxHits);
  order_.reserve(kMaxHits);
  best_.resize(size);
}

void RowUpdate::run(const PackedAnchors& anchors, std::int64_t first, const std::int32_t* rows,
                    std::int64_t count) {
  for (std::int64_t begin = 0; begin < count; begin += capacity_) {
    const std::int64_t size = std::min(capacity_, count - begin);
    gather(rows + begin, size);
    run_chunk(anchors, first, size);
  }
}

void RowUpdate::gather(const std::int32_t* rows, std::int64_t count) {
  const std::int64_t dims = selection_.sketch.dims();
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) selection_.sketch.prefetch(rows[i + kAhead]);
    const Sketch::Norms norms = selection_.sketch.row(rows[i], sketches_.data() + i * dims);
    const float value = selection_.values[rows[i]];
    thresholds_[i] = product_threshold(norms, value, slack_);
    rows_[i] = {rows[i], norms, rest(norms, slack_)};
  }
  // The last tile may hang over; the rows of an earlier chunk that are still there must hit nothing.
  const std::int64_t tile = selection_.simd.tile_rows;
  for (std::int64_t i = count; i < (count + tile - 1) / tile * tile; ++i) thresholds_[i] = kInfinity;
}

void RowUpdate::run_chunk(const PackedAnchors& anchors, std::int64_t first, std::int64_t count) {
  const CoresetSimd& simd = selection_.simd;
  const std::int64_t dims = selection_.sketch.dims();
  const std::int64_t width = simd.panel_width;
  for (std::int64_t panel = first / width; panel < anchors.num_panels(); ++panel) {
    // Anchors before `first` have been dealt with; the rows' nearest may be among them and would hit again.
    const std::int64_t skipped = std::max<std::int64_t>(0, first - panel * width);
    for (std::int64_t i = 0; i < count; i += simd.tile_rows) {
      std::uint32_t hits = simd.tile(sketches_.data() + i * dims, dims, dims, anchors.panel(panel),
                                     anchors.initial(panel), thresholds_.data() + i, products_.data());
      for (; hits != 0; hits &= hits - 1) {
        const int r = __builtin_ctz(hits);
        const float* products = products_.data() + r * width;
        const std::uint32_t lanes = simd.lanes_above(products, thresholds_[i + r]) >> skipped << skipped;
        add_hits(anchors, panel * width, lanes, i + r, products);
      }
    }
  }
  resolve_hits();
  product_pairs_ += count * (anchors.count() - first);
}

void RowUpdate::add_hits(const PackedAnchors& anchors, std::int64_t column, std::uint32_t lanes,
                         std::int64_t place, const float* products) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    if (hits_.size() == kMaxHits) resolve_hits();  // which raises thresholds
    if (!(products[lane] > thresholds_[place])) continue;
    hits_.push_back({static_cast<std::int32_t>(place), anchors.anchor(column + lane), products[lane]});
    raise_threshold(hits_.back());
  }
}

// An upper bound of the row's value after this pair: outside the sketches the distance is at most the sum of
// both rests. Products that do not promise a lower value need not be kept.
void RowUpdate::raise_threshold(const Hit& hit) {
  const Row& row = rows_[hit.place];
  const SketchedAnchor& anchor = selection_.sketched[hit.anchor];
  const float rounding =
      2.0f * slack_ * (row.norms.full + 2.0f * anchor.norms.full) + std::numeric_limits<float>::min();
  const float rests = row.rest + anchor.rest;
  const float bound = std::max(row.norms.sketch - 2.0f * hit.product, 0.0f) + rests * rests + rounding;
  float& threshold = thresholds_[hit.place];
  threshold = std::max(threshold, product_threshold(row.norms, bound, slack_));
  // The pair itself has yet to be resolved.
  if (threshold >= hit.product) threshold = std::nextafter(hit.product, -kInfinity);
}

// The most promising anchor of each row first: its distance raises the threshold and spares most of the
// others.
void RowUpdate::resolve_hits() {
  const auto count = static_cast<std::int32_t>(hits_.size());
  for (std::int32_t h = 0; h < count; ++h) best_[hits_[h].place] = h;
  for (std::int32_t h = 0; h < count; ++h)
    if (hits_[h].product > hits_[best_[hits_[h].place]].product) best_[hits_[h].place] = h;
  order_.clear();
  for (std::int32_t h = 0; h < count; ++h)
    if (best_[hits_[h].place] == h) order_.push_back(h);
  for (std::size_t i = 0; i < order_.size(); ++i) {
    if (i + kHitsAhead < order_.size()) {
      const Hit& next = hits_[order_[i + kHitsAhead]];
      selection_.prefetch(selection_.row(rows_[next.place].index));
      selection_.prefetch(selection_.anchors[next.anchor]);
    }
    lower(hits_[order_[i]]);
  }
  for (const Hit& hit : hits_)
    if (best_[hit.place] != &hit - hits_.data()) lower(hit);
  hits_.clear();
}

void RowUpdate::lower(const Hit& hit) {
  float& threshold = thresholds_[hit.place];
  if (!(hit.product > threshold)) return;
  const Row& row = rows_[hit.place];
  const float distance = selection_.squared_distance(row.index, hit.anchor);
  ++direct_pairs_;
  if (distance >= selection_.values[row.index]) return;
  selection_.values[row.index] = distance;
  selection_.nearest[row.index] = hit.anchor;
  threshold = std::max(threshold, product_threshold(row.norms, distance, slack_));
}

}  // namespace ensemblead::cpu
