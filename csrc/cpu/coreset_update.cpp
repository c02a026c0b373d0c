#include "cpu/coreset_update.hpp"

#include <cmath>
#include <limits>

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kAhead = 8;  // rows between asking for a sketch and reading it
constexpr std::int64_t kMaxHits = 1024;
constexpr std::int64_t kChunkBytes = std::int64_t{64} << 10;

// The length of what a sketch leaves out, or a little more.
float rest(Sketch::Norms norms, float slack) {
  return std::sqrt(std::max(norms.full - norms.sketch, 0.0f) + slack * norms.full);
}

}  // namespace

PackedAnchors::PackedAnchors(const Sketch& sketch, const CoresetSimd& simd, std::int64_t full_dims)
    : dims_(sketch.dims()), width_(simd.panel_width), slack_(relative_slack(full_dims)) {}

void PackedAnchors::clear() {
  ids_.clear();
  norms_.clear();
  sketches_.clear();
  panels_.clear();
  initial_.clear();
}

void PackedAnchors::add(const float* sketch, Sketch::Norms norms, std::int32_t id) {
  const std::int64_t column = count();
  if (column % width_ == 0) {
    panels_.resize(panels_.size() + static_cast<std::size_t>(width_ * dims_), 0.0f);
    initial_.resize(initial_.size() + static_cast<std::size_t>(width_), -kInfinity);
  }
  ids_.push_back(id);
  norms_.push_back(norms);
  sketches_.insert(sketches_.end(), sketch, sketch + dims_);
  initial_[column] = product_start(norms, slack_);
  float* to = panels_.data() + column / width_ * width_ * dims_ + column % width_;
  for (std::int64_t d = 0; d < dims_; ++d) to[d * width_] = sketch[d];
}

void Selection::add_anchor(const float* point, std::int32_t near) {
  std::vector<float> sketched(static_cast<std::size_t>(sketch.dims()));
  add_sketched(point, sketched.data(), sketch.point(point, sketched.data()), near);
}

void Selection::add_row_as_anchor(std::int32_t index) {
  std::vector<float> sketched(static_cast<std::size_t>(sketch.dims()));
  add_sketched(row(index), sketched.data(), sketch.row(index, sketched.data()), nearest[index]);
}

void Selection::add_sketched(const float* point, const float* sketched, Sketch::Norms norms,
                             std::int32_t near) {
  const auto id = static_cast<std::int32_t>(anchors.size());
  packed.add(sketched, norms, id);
  anchors.push_back(point);
  const std::int32_t root = id < kRoots || near < 0 ? id : roots[near];
  roots.push_back(root);
  root_distances.push_back(std::sqrt(simd.squared_distance(point, anchors[root], dims)) *
                           (1.0f + relative_slack(dims)));
}

RowUpdate::RowUpdate(Selection& selection) : selection_(selection), slack_(relative_slack(selection.dims)) {
  const std::int64_t tile = selection.simd.tile_rows;
  const std::int64_t dims = selection.sketch.dims();
  capacity_ = std::clamp(kChunkBytes / (dims * 4 * tile), std::int64_t{1}, std::int64_t{16}) * tile;
  const auto size = static_cast<std::size_t>(capacity_);
  sketches_.resize(size * static_cast<std::size_t>(dims));
  norms_.resize(size);
  thresholds_.resize(size);
  products_.resize(static_cast<std::size_t>(tile * selection.simd.panel_width));
  hits_.reserve(kMaxHits);
  hit_products_.resize(static_cast<std::size_t>(kMaxHits * selection.simd.panel_width));
  best_.resize(size);
}

void RowUpdate::run(const PackedAnchors& anchors, std::int64_t first, const std::int32_t* rows,
                    std::int64_t count) {
  for (std::int64_t begin = 0; begin < count; begin += capacity_)
    run_chunk(anchors, first, rows + begin, std::min(capacity_, count - begin));
}

void RowUpdate::run_chunk(const PackedAnchors& anchors, std::int64_t first, const std::int32_t* rows,
                          std::int64_t count) {
  const CoresetSimd& simd = selection_.simd;
  const std::int64_t dims = selection_.sketch.dims();
  const std::int64_t width = simd.panel_width;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) selection_.sketch.prefetch(rows[i + kAhead]);
    norms_[i] = selection_.sketch.row(rows[i], sketches_.data() + i * dims);
    thresholds_[i] = product_threshold(norms_[i], selection_.values[rows[i]], slack_);
  }
  // The last tile may hang over: what an earlier chunk left there hits nothing.
  const std::int64_t padded = (count + simd.tile_rows - 1) / simd.tile_rows * simd.tile_rows;
  for (std::int64_t i = count; i < padded; ++i) thresholds_[i] = kInfinity;
  for (std::int64_t panel = first / width; panel < anchors.num_panels(); ++panel) {
    for (std::int64_t i = 0; i < count; i += simd.tile_rows) {
      std::uint32_t hits = simd.tile(sketches_.data() + i * dims, dims, dims, anchors.panel(panel),
                                     anchors.initial(panel), thresholds_.data() + i, products_.data());
      for (; hits != 0; hits &= hits - 1) {
        const int r = __builtin_ctz(hits);
        add_hit(anchors, first, i + r, panel * width, products_.data() + r * width);
        selection_.prefetch(rows[i + r]);
      }
      if (static_cast<std::int64_t>(hits_.size()) > kMaxHits - simd.tile_rows) settle_hits(anchors, rows);
    }
  }
  settle_hits(anchors, rows);
  product_pairs_ += count * (anchors.count() - first);
}

void RowUpdate::add_hit(const PackedAnchors& anchors, std::int64_t first, std::int64_t place,
                        std::int64_t column, const float* products) {
  const std::int64_t width = selection_.simd.panel_width;
  float* kept = hit_products_.data() + static_cast<std::int64_t>(hits_.size()) * width;
  std::copy_n(products, width, kept);
  // Anchors before `first` have been dealt with; the row's nearest may be among them and would hit again.
  for (std::int64_t lane = 0; lane < first - column; ++lane) kept[lane] = -kInfinity;
  const int lane = selection_.simd.largest_lane(kept);
  if (!(kept[lane] > thresholds_[place])) return;
  hits_.push_back({static_cast<std::int32_t>(place), static_cast<std::int32_t>(column), lane, kept[lane]});
  // What the sketches leave out is no longer than both rests together: the row will end at this value or a
  // lower one, so products that do not promise less need not be kept.
  const Sketch::Norms other = anchors.norms(column + lane);
  const Sketch::Norms own = norms_[place];
  const float rounding = 2.0f * slack_ * (own.full + 2.0f * other.full) + std::numeric_limits<float>::min();
  const float rests = rest(own, slack_) + rest(other, slack_);
  const float bound = std::max(own.sketch - 2.0f * kept[lane], 0.0f) + rests * rests + rounding;
  // It stays below this product in any case: the pair itself has yet to be settled.
  const float promised =
      std::min(product_threshold(own, bound, slack_), std::nextafter(kept[lane], -kInfinity));
  thresholds_[place] = std::max(thresholds_[place], promised);
}

// The most promising anchor of each row first: its distance raises the threshold and spares most of the
// others.
void RowUpdate::settle_hits(const PackedAnchors& anchors, const std::int32_t* rows) {
  const std::int64_t width = selection_.simd.panel_width;
  const auto count = static_cast<std::int32_t>(hits_.size());
  for (std::int32_t h = 0; h < count; ++h) best_[hits_[h].place] = h;
  for (std::int32_t h = 0; h < count; ++h)
    if (hits_[h].product > hits_[best_[hits_[h].place]].product) best_[hits_[h].place] = h;
  for (std::int32_t h = 0; h < count; ++h)
    if (best_[hits_[h].place] == h)
      lower(anchors, rows[hits_[h].place], hits_[h], hit_products_.data() + h * width);
  for (std::int32_t h = 0; h < count; ++h)
    lower(anchors, rows[hits_[h].place], hits_[h], hit_products_.data() + h * width);
  hits_.clear();
}

void RowUpdate::lower(const PackedAnchors& anchors, std::int32_t row, Hit& hit, float* products) {
  float& threshold = thresholds_[hit.place];
  while (hit.product > threshold) {
    const std::int32_t anchor = anchors.id(hit.column + hit.lane);
    const float distance = selection_.squared_distance(row, anchor);
    ++direct_pairs_;
    if (distance < selection_.values[row]) {
      selection_.values[row] = distance;
      selection_.nearest[row] = anchor;
      threshold = std::max(threshold, product_threshold(norms_[hit.place], distance, slack_));
    }
    products[hit.lane] = -kInfinity;
    hit.lane = selection_.simd.largest_lane(products);
    hit.product = products[hit.lane];
  }
}

}  // namespace ensemblead::cpu
