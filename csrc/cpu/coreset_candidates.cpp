#include "cpu/coreset_candidates.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

constexpr int kBuckets = 4096;

// Values are not negative, so their bit patterns are in their order. Buckets count downward from the largest
// value, 1/2048 of an octave each; the last one takes everything below.
std::int32_t bits_of(float value) {
  std::int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

int bucket(float value, std::int32_t top) { return std::min((top - bits_of(value)) >> 12, kBuckets - 1); }

// The first row of share `index` of `shares` of nearly equal size.
std::int64_t share_begin(std::int64_t rows, int shares, std::int64_t index) {
  return rows / shares * index + std::min<std::int64_t>(rows % shares, index);
}

}  // namespace

// Counts of values by bucket, and the largest value, to `top`.
void Candidates::count_all(const Selection& selection, std::int32_t& top) {
  const int threads = selection.num_threads;
  const float* values = selection.values.data();
  std::vector<float> maxima(static_cast<std::size_t>(threads), 0.0f);
  counts_.resize(static_cast<std::size_t>(threads));
  for (auto& counts : counts_) counts.assign(kBuckets, 0);
  parallel_for(threads, threads, Schedule::kStatic, [&](std::int64_t share, int) {
    const std::int64_t begin = share_begin(selection.rows, threads, share);
    const std::int64_t end = share_begin(selection.rows, threads, share + 1);
    if (end > begin) maxima[share] = selection.simd.maximum(values + begin, end - begin);
  });
  top = bits_of(*std::max_element(maxima.begin(), maxima.end()));
  parallel_for(threads, threads, Schedule::kStatic, [&](std::int64_t share, int) {
    std::int64_t* counts = counts_[share].data();
    const std::int64_t end = share_begin(selection.rows, threads, share + 1);
    for (std::int64_t i = share_begin(selection.rows, threads, share); i < end; ++i)
      ++counts[bucket(values[i], top)];
  });
}

// Counts the values of rows_ alone.
void Candidates::count_collected(const Selection& selection, std::int32_t& top) {
  counts_.assign(1, std::vector<std::int64_t>(kBuckets, 0));
  for (const std::int32_t row : rows_) top = std::max(top, bits_of(selection.values[row]));
  for (const std::int32_t row : rows_) ++counts_[0][bucket(selection.values[row], top)];
}

// A value that at least `num_candidates` of the rows that were counted exceed, or all do, and not many more.
float Candidates::floor_of_first(std::int32_t top, std::int64_t num_candidates) const {
  std::int64_t total = 0;
  for (int b = 0; b < kBuckets - 1; ++b) {
    for (const auto& counts : counts_) total += counts[b];
    // The largest value below bucket b, which ends at bits = top - (b << 12) - 4095.
    const std::int32_t below = top - (b << 12) - 4096;
    if (total >= num_candidates) return below < 0 ? -1.0f : float_of(below);
  }
  return -1.0f;
}

// Makes rows_ those with a value above the floor, in order.
void Candidates::collect(const Selection& selection, float floor) {
  // Where a pass is shorter than waking a thread, and than waiting for one that another program keeps from
  // its core.
  constexpr std::int64_t kSerial = std::int64_t{1} << 19;
  const int threads = selection.rows < kSerial ? 1 : selection.num_threads;
  collected_.resize(static_cast<std::size_t>(threads));
  constexpr std::int64_t kChunk = 4096;
  for (auto& rows : collected_) rows.clear();
  for (auto& rows : collected_) rows.reserve(4 * kChunk);
  parallel_for(threads, threads, Schedule::kStatic, [&](std::int64_t share, int) {
    std::vector<std::int32_t>& rows = collected_[share];
    const std::int64_t end = share_begin(selection.rows, threads, share + 1);
    std::int32_t chunk[kChunk];
    for (std::int64_t i = share_begin(selection.rows, threads, share); i < end; i += kChunk) {
      const std::int64_t found = selection.simd.collect(
          selection.values.data() + i, std::min(kChunk, end - i), floor, static_cast<std::int32_t>(i), chunk);
      rows.insert(rows.end(), chunk, chunk + found);
    }
  });
  rows_.clear();
  for (const auto& rows : collected_) rows_.insert(rows_.end(), rows.begin(), rows.end());
}

// Makes rows_ the first rows or some more; returns a value that no other row exceeds.
float Candidates::collect_first(const Selection& selection, std::int64_t num_candidates) {
  // Floors fall little from round to round, so mostly the few rows above a guess are all that need counting.
  const float guess = last_floor_ * fall_ * fall_;
  collect(selection, guess);
  std::int32_t top = 0;
  float floor = -1.0f;
  if (static_cast<std::int64_t>(rows_.size()) >= num_candidates) {
    count_collected(selection, top);
    floor = std::max(guess, floor_of_first(top, num_candidates));
    const auto below = [&](std::int32_t row) { return !(selection.values[row] > floor); };
    rows_.erase(std::remove_if(rows_.begin(), rows_.end(), below), rows_.end());
  } else {
    count_all(selection, top);
    floor = floor_of_first(top, num_candidates);
    collect(selection, floor);
  }
  fall_ = floor > 0.0f ? std::clamp(floor / last_floor_, 0.25f, 0.99f) : 0.0f;
  last_floor_ = std::max(floor, 0.0f);
  return floor;
}

void Candidates::find(const Selection& selection, std::int64_t num_candidates) {
  float floor = -1.0f;
  if (selection.rows > num_candidates) {
    floor = collect_first(selection, num_candidates);
  } else {
    collect(selection, floor);
  }
  const auto found = static_cast<std::int64_t>(rows_.size());
  has_threshold_ = found < selection.rows;
  threshold_ = {floor, -1};          // the largest of the others may equal the floor, with any index
  if (found > 2 * num_candidates) {  // many equal values: the order among them decides
    const auto comes_first = [&selection](std::int32_t a, std::int32_t b) {
      return comes_later({selection.values[b], b}, {selection.values[a], a});
    };
    std::nth_element(rows_.begin(), rows_.begin() + num_candidates, rows_.end(), comes_first);
    threshold_ = {selection.values[rows_[num_candidates]], rows_[num_candidates]};
    rows_.resize(static_cast<std::size_t>(num_candidates));
    has_threshold_ = true;
  }
}

// Brings the first candidate up to date with the picks just made, or far enough to see that it is out of the
// running.
void Candidates::refresh_top(Selection& selection) {
  std::pop_heap(heap_.begin(), heap_.end(), comes_later);
  Candidate& candidate = heap_.back();
  const Sketch& sketch = selection.sketch;
  const PackedAnchors& packed = selection.packed;
  const std::int64_t width = packed.width();
  Sketch::Norms norms{};
  bool sketched = false;
  std::int32_t& seen = selection.seen[candidate.row];
  while (seen < selection.num_anchors() && within_threshold(candidate)) {
    const std::int64_t panel = seen / width;
    const std::int64_t first = panel * width;
    const std::int64_t end = std::min(first + width, selection.num_anchors());
    std::uint32_t lanes = ~std::uint32_t{0} >> (32 - (end - first));
    // A panel is multiplied whole: where little of it is new, distances to that are less work.
    if (2 * (end - seen) * selection.dims > width * sketch.dims()) {
      if (!sketched) {
        own_.resize(static_cast<std::size_t>(sketch.dims()));
        norms = sketch.row(candidate.row, own_.data());
        sketched = true;
      }
      float products[kMostPanelWidth];
      lanes = selection.simd.row_by_panel(
          own_.data(), sketch.dims(), packed.panel(panel), packed.initial(panel),
          product_threshold(norms, candidate.value, relative_slack(selection.dims)), products);
    }
    for (lanes = lanes >> (seen - first) << (seen - first); lanes != 0; lanes &= lanes - 1) {
      const auto anchor = static_cast<std::int32_t>(first + __builtin_ctz(lanes));
      const float distance = selection.squared_distance(candidate.row, anchor);
      if (!(distance < candidate.value)) continue;
      candidate.value = distance;
      selection.values[candidate.row] = distance;
      selection.nearest[candidate.row] = anchor;
    }
    seen = static_cast<std::int32_t>(end);
  }
  std::push_heap(heap_.begin(), heap_.end(), comes_later);
}

Candidates::Stop Candidates::pick(Selection& selection, std::int64_t limit, double radius,
                                  std::vector<std::int64_t>& picks) {
  heap_.clear();
  for (const std::int32_t row : rows_) {
    const Candidate candidate{selection.values[row], row};
    if (within_threshold(candidate)) heap_.push_back(candidate);
  }
  if (heap_.empty()) return Stop::kThreshold;
  std::make_heap(heap_.begin(), heap_.end(), comes_later);
  std::int64_t made = 0;
  while (made < limit) {
    const Candidate best = heap_.front();
    if (!within_threshold(best)) return Stop::kThreshold;
    if (selection.seen[best.row] < selection.num_anchors()) {
      refresh_top(selection);
      continue;
    }
    if (std::sqrt(static_cast<double>(best.value)) <= radius) return Stop::kRadius;
    if (best.value == 0.0f) return Stop::kZero;
    picks.push_back(best.row);
    selection.add_row_as_anchor(best.row);
    ++made;
  }
  return Stop::kLimit;
}

}  // namespace ensemblead::cpu
