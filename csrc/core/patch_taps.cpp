#include "core/patch_taps.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/fast_divide.hpp"

namespace ensemblead {
namespace {

struct Range {
  std::int64_t begin;
  std::int64_t end;
};

// Bin i of m over n inputs, as adaptive average pooling cuts them.
Range pooling_bin(std::int64_t i, std::int64_t n, std::int64_t m) {
  const PoolingBins<PlainDivide> bins(static_cast<std::uint64_t>(n), static_cast<std::uint64_t>(m));
  const auto at = static_cast<std::uint64_t>(i);
  return {static_cast<std::int64_t>(bins.begin(at)), static_cast<std::int64_t>(bins.end(at))};
}

bool nearly_equal(double a, double b) { return std::abs(a - b) <= 1e-12 * std::max(a, b); }

// Adds `weight` over `range` to runs that end in `runs` at or after `first`. Successive ranges of one output
// dimension neither start nor end before their predecessor, and leave no gap to it.
void add(std::vector<TapRun>& runs, std::size_t first, Range range, double weight) {
  std::size_t at = runs.size();
  while (at > first && runs[at - 1].end > range.begin) --at;
  std::int64_t begin = range.begin;
  if (at < runs.size() && runs[at].begin < range.begin) {
    const TapRun head{runs[at].begin, range.begin, runs[at].weight};
    runs[at].begin = range.begin;
    runs.insert(runs.begin() + static_cast<std::ptrdiff_t>(at), head);
    ++at;
  }
  for (; at < runs.size(); ++at) {
    runs[at].weight += weight;
    begin = runs[at].end;
  }
  if (begin < range.end) runs.push_back({begin, range.end, weight});
}

void merge_equal_neighbours(std::vector<TapRun>& runs, std::size_t first) {
  std::size_t last = first;
  for (std::size_t i = first + 1; i < runs.size(); ++i) {
    if (runs[i].begin == runs[last].end && nearly_equal(runs[i].weight, runs[last].weight)) {
      runs[last].end = runs[i].end;
    } else {
      runs[++last] = runs[i];
    }
  }
  if (first < runs.size()) runs.resize(last + 1);
}

std::vector<LayerTaps> concat_taps(const std::vector<std::int64_t>& channels, std::int64_t window) {
  const std::int64_t dims = std::accumulate(channels.begin(), channels.end(), std::int64_t{0});
  std::vector<LayerTaps> taps(channels.size());
  std::int64_t first_dim = 0;
  for (std::size_t layer = 0; layer < channels.size(); ++layer) {
    taps[layer].offsets.push_back(0);
    for (std::int64_t dim = 0; dim < dims; ++dim) {
      const std::int64_t channel = dim - first_dim;
      if (channel >= 0 && channel < channels[layer])
        taps[layer].runs.push_back(
            {channel * window, (channel + 1) * window, 1.0 / static_cast<double>(window)});
      taps[layer].offsets.push_back(static_cast<std::int64_t>(taps[layer].runs.size()));
    }
    first_dim += channels[layer];
  }
  return taps;
}

}  // namespace

std::int64_t output_dim(const std::vector<std::int64_t>& channels, const PatchOptions& options) {
  if (options.mode == PatchMode::kAdaptive) return options.target_dim;
  return std::accumulate(channels.begin(), channels.end(), std::int64_t{0});
}

std::vector<LayerTaps> patch_taps(const std::vector<std::int64_t>& channels, const PatchOptions& options) {
  const std::int64_t window = options.patch_size * options.patch_size;
  if (options.mode == PatchMode::kConcat) return concat_taps(channels, window);
  const std::vector<std::int64_t>& dims = options.pretrain_dims;
  const std::int64_t total = std::accumulate(dims.begin(), dims.end(), std::int64_t{0});
  std::vector<LayerTaps> taps(channels.size());
  std::int64_t offset = 0;  // of the layer in the concatenation
  for (std::size_t layer = 0; layer < channels.size(); ++layer) {
    std::vector<TapRun>& runs = taps[layer].runs;
    taps[layer].offsets.push_back(0);
    for (std::int64_t dim = 0; dim < options.target_dim; ++dim) {
      const Range target = pooling_bin(dim, total, options.target_dim);
      const std::size_t first = runs.size();
      const std::int64_t end = std::min(target.end - offset, dims[layer]);
      for (std::int64_t i = std::max<std::int64_t>(target.begin - offset, 0); i < end; ++i) {
        const Range bin = pooling_bin(i, channels[layer] * window, dims[layer]);
        add(runs, first, bin,
            1.0 /
                (static_cast<double>(target.end - target.begin) * static_cast<double>(bin.end - bin.begin)));
      }
      merge_equal_neighbours(runs, first);
      taps[layer].offsets.push_back(static_cast<std::int64_t>(runs.size()));
    }
    offset += dims[layer];
  }
  return taps;
}

std::vector<Interpolation> interpolation(std::int64_t in, std::int64_t out) {
  std::vector<Interpolation> points;
  for (std::int64_t i = 0; i < out; ++i) points.push_back(interpolation_point(i, in, out));
  return points;
}

}  // namespace ensemblead
