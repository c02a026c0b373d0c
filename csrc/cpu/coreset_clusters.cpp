#include "cpu/coreset_clusters.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Measured; they only ever decide how the work is done.
constexpr std::int64_t kLeastRowsPerCluster = 8;
constexpr std::int64_t kLeastPending = 128;
// Above this share of the plain products, clusters wait until there are twice as many anchors.
constexpr double kWorthwhile = 0.9;

}  // namespace

Clusters::Clusters(Selection& selection) : selection_(selection) {
  workers_.reserve(static_cast<std::size_t>(selection.num_threads));
  for (int thread = 0; thread < selection.num_threads; ++thread) workers_.emplace_back(selection);
}

std::int64_t Clusters::product_pairs() const {
  std::int64_t pairs = 0;
  for (const Worker& worker : workers_) pairs += worker.product_pairs();
  return pairs;
}

std::int64_t Clusters::direct_pairs() const {
  std::int64_t pairs = 0;
  for (const Worker& worker : workers_) pairs += worker.direct_pairs();
  return pairs;
}

bool Clusters::worthwhile(const std::vector<std::int32_t>& rows) {
  const std::int64_t num_anchors = selection_.num_anchors();
  if (rows.empty() || num_anchors < std::max(next_try_, kLeastPending)) return false;
  const std::int64_t typical = selection_.seen[rows[rows.size() / 2]];
  if (num_anchors - typical < kLeastPending) return false;
  sizes_.assign(static_cast<std::size_t>(num_anchors + 2), 0);
  for (const std::int32_t row : rows) ++sizes_[root_of(row) + 1];
  num_clusters_ = num_anchors + 2 - std::count(sizes_.begin(), sizes_.end(), std::int64_t{0});
  return static_cast<std::int64_t>(rows.size()) >= kLeastRowsPerCluster * num_clusters_;
}

// Turns sizes_ into clusters_ and members_.
void Clusters::gather(const std::vector<std::int32_t>& rows) {
  const float up = 1.0f + relative_slack(selection_.dims);
  clusters_.clear();
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    if (sizes_[i] == 0) continue;
    const std::int64_t end = begin + sizes_[i];
    sizes_[i] = static_cast<std::int64_t>(clusters_.size());  // from now on: which cluster
    clusters_.push_back(
        {static_cast<std::int32_t>(i) - 1, std::numeric_limits<std::int32_t>::max(), 0.0f, begin, begin});
    begin = end;
  }
  members_.resize(rows.size());
  for (const std::int32_t row : rows) {
    Cluster& cluster = clusters_[sizes_[root_of(row) + 1]];
    members_[cluster.end++] = row;
    cluster.seen = std::min(cluster.seen, selection_.seen[row]);
    if (cluster.root < 0) continue;
    const float to_root = selection_.root_distances[selection_.nearest[row]];
    cluster.reach =
        std::max(cluster.reach,
                 to_root + 2.0f * up * std::sqrt(selection_.values[row] + std::numeric_limits<float>::min()));
  }
}

void Clusters::run(const std::vector<std::int32_t>& rows) {
  gather(rows);
  std::int64_t plain = 0;
  for (const std::int32_t row : rows) plain += selection_.num_anchors() - selection_.seen[row];
  const std::int64_t before = product_pairs();
  const std::int64_t tile = selection_.simd.tile_rows;
  const auto count = static_cast<std::int64_t>(clusters_.size());
  parallel_for((count + tile - 1) / tile, selection_.num_threads, Schedule::kDynamic,
               [&](std::int64_t item, int thread) {
                 const std::int64_t begin = item * tile;
                 workers_[thread].run(clusters_.data() + begin, std::min(tile, count - begin),
                                      members_.data());
               });
  if (static_cast<double>(product_pairs() - before) > kWorthwhile * static_cast<double>(plain))
    next_try_ = 2 * selection_.num_anchors();
}

Clusters::Worker::Worker(Selection& selection)
    : selection_(selection),
      slack_(relative_slack(selection.dims)),
      rows_(selection),
      picks_(selection.simd, selection.sketch.dims()),
      sketches_(static_cast<std::size_t>(selection.simd.tile_rows * selection.sketch.dims())),
      thresholds_(static_cast<std::size_t>(selection.simd.tile_rows)),
      products_(static_cast<std::size_t>(selection.simd.tile_rows * selection.simd.panel_width)),
      reached_(static_cast<std::size_t>(selection.simd.tile_rows)) {}

void Clusters::Worker::run(const Cluster* clusters, std::int64_t count, const std::int32_t* members) {
  find_reached(clusters, count);
  const PackedAnchors& all = selection_.packed;
  for (std::int64_t c = 0; c < count; ++c) {
    const Cluster& cluster = clusters[c];
    const std::int32_t* rows = members + cluster.begin;
    const std::int64_t size = cluster.end - cluster.begin;
    if (cluster.root < 0) {
      rows_.run(all, cluster.seen, rows, size);
      continue;
    }
    picks_.clear();
    for (const std::int32_t pick : reached_[c])
      picks_.add(selection_.anchor_sketch(pick), selection_.sketched[pick].start, pick);
    if (picks_.count() > 0) rows_.run(picks_, 0, rows, size);
  }
}

void Clusters::Worker::find_reached(const Cluster* clusters, std::int64_t count) {
  const CoresetSimd& simd = selection_.simd;
  const PackedAnchors& all = selection_.packed;
  const std::int64_t dims = selection_.sketch.dims();
  std::int64_t seen = all.count();
  for (std::int64_t r = 0; r < simd.tile_rows; ++r) {
    reached_[r].clear();
    thresholds_[r] = kInfinity;
    if (r >= count || clusters[r].root < 0) continue;
    std::copy_n(selection_.anchor_sketch(clusters[r].root), dims, sketches_.data() + r * dims);
    thresholds_[r] = product_threshold(selection_.sketched[clusters[r].root].norms,
                                       clusters[r].reach * clusters[r].reach, slack_);
    seen = std::min<std::int64_t>(seen, clusters[r].seen);
    root_pairs_ += all.count() - seen;
  }
  for (std::int64_t panel = seen / all.width(); panel < all.num_panels(); ++panel) {
    std::uint32_t hits = simd.tile(sketches_.data(), dims, dims, all.panel(panel), all.initial(panel),
                                   thresholds_.data(), products_.data());
    for (; hits != 0; hits &= hits - 1) {
      const int r = __builtin_ctz(hits);
      const float* products = products_.data() + r * all.width();
      const std::int64_t first = panel * all.width();
      for (std::int64_t lane = std::max<std::int64_t>(0, clusters[r].seen - first); lane < all.width();
           ++lane)
        if (products[lane] > thresholds_[r]) reached_[r].push_back(static_cast<std::int32_t>(first + lane));
    }
  }
}

}  // namespace ensemblead::cpu
