// Sixteen rows at a time become columns of bytes, so that the sums along a row are of whole vectors; they are
// kept as rows again, which the sums down the columns take as they lie. Those that no further row of the
// result needs are dropped: an image of one pixel by many would need a row as wide as the result for each.
#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/resize_simd.hpp"

namespace ensemblead::cpu {
namespace {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The taps of the pixels [begin, begin + size) of `resized`, of an axis of `length` pixels.
class Taps {
 public:
  Taps(std::int64_t length, std::int64_t resized, std::int64_t begin, std::int64_t size);

  // The pixels that are read: from the first, so many.
  std::int64_t first() const { return first_; }
  std::int64_t count() const { return firsts_.back() + counts_.back(); }
  // `firsts` count from first().
  ResizeTaps view() const {
    const auto size = static_cast<std::int64_t>(firsts_.size());
    return {firsts_.data(), counts_.data(), weights_.data(), width_, size};
  }

 private:
  std::int64_t first_ = 0;
  std::int64_t width_ = 0;
  std::vector<std::int64_t> firsts_;
  std::vector<std::int64_t> counts_;
  std::vector<std::int32_t> weights_;
};

Taps::Taps(std::int64_t length, std::int64_t resized, std::int64_t begin, std::int64_t size) {
  const double scale = static_cast<double>(length) / static_cast<double>(resized);
  const double reach = std::max(scale, 1.0);
  width_ = std::min(length, 2 * static_cast<std::int64_t>(std::ceil(reach)) + 1);
  weights_.resize(static_cast<std::size_t>(size * width_));
  std::vector<double> shares(static_cast<std::size_t>(width_));
  for (std::int64_t i = 0; i < size; ++i) {
    const double centre = (static_cast<double>(begin + i) + 0.5) * scale;
    const auto first = static_cast<std::int64_t>(std::max(centre - reach + 0.5, 0.0));
    const auto end = std::min(static_cast<std::int64_t>(centre + reach + 0.5), length);
    double sum = 0.0;
    for (std::int64_t t = 0; t < end - first; ++t) {
      const double far = std::abs((static_cast<double>(first + t) - centre + 0.5) * (1.0 / reach));
      sum += shares[t] = std::max(1.0 - far, 0.0);
    }
    for (std::int64_t t = 0; t < end - first; ++t)
      weights_[i * width_ + t] = static_cast<std::int32_t>(0.5 + shares[t] / sum * (1 << kResizeBits));
    firsts_.push_back(first);
    counts_.push_back(end - first);
  }
  first_ = firsts_.front();
  for (std::int64_t& first : firsts_) first -= first_;
}

}  // namespace

void resize(const ResizeTask& task, const Work&) {
  const ResizeSimd& simd = resize_simd();
  const Taps along(task.width, task.resized_width, task.left, task.columns);
  const Taps below(task.height, task.resized_height, task.top, task.rows);
  const ResizeTaps rows = below.view();
  const std::int64_t bytes = kColors * task.columns;
  const std::int64_t stride = round_up(bytes, kResizedBytes);
  const std::int64_t at_once = std::min(std::max(kResizedPixels, along.view().width), along.count());
  // The rows that make one row of the result, and those read with them.
  std::vector<std::uint8_t> narrow(static_cast<std::size_t>((rows.width + kResizedRows) * stride));
  std::vector<std::uint8_t> lanes(static_cast<std::size_t>(kResizedRows * kColors * at_once));
  std::vector<std::uint8_t> wide(static_cast<std::size_t>(kResizedRows * round_up(bytes, 16)));
  std::vector<std::uint8_t> row(static_cast<std::size_t>(stride));
  const std::uint8_t* image = task.image + kColors * (below.first() * task.width + along.first());
  const std::uint8_t* sources[kResizedRows];
  std::int64_t first = 0, end = 0;  // of the rows in `narrow`
  for (std::int64_t i = 0; i < task.rows; ++i) {
    if (end < rows.firsts[i] + rows.counts[i]) {
      const std::uint8_t* kept = narrow.data() + (rows.firsts[i] - first) * stride;
      std::memmove(narrow.data(), kept, static_cast<std::size_t>((end - rows.firsts[i]) * stride));
      first = rows.firsts[i];
    }
    for (; end < rows.firsts[i] + rows.counts[i]; end += kResizedRows) {
      for (int r = 0; r < kResizedRows; ++r)
        sources[r] = image + kColors * task.width * std::min(end + r, below.count() - 1);
      std::uint8_t* results = narrow.data() + (end - first) * stride;
      simd.across(sources, along.view(), lanes.data(), wide.data(), results, stride);
    }
    simd.down(narrow.data() + (rows.firsts[i] - first) * stride, stride, rows.weights + i * rows.width,
              rows.counts[i], row.data());
    std::memcpy(task.result + i * bytes, row.data(), static_cast<std::size_t>(bytes));
  }
}

}  // namespace ensemblead::cpu
