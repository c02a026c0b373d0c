// The inputs that an output dimension of patch aggregation averages, and their weights: the pooling steps of
// csrc/patches.hpp composed, without the resize. Both twins start from these lists.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.hpp"

namespace ensemblead {

// Adaptive average pooling of n inputs to m bins: bin i is [begin(i), end(i)). `Divide` is one of
// fast_divide.hpp; (m + 1) * n + m must be within its reach.
template <class Divide>
struct PoolingBins {
  using Index = typename Divide::Index;

  PoolingBins() = default;
  PoolingBins(Index n, Index m) : inputs(n), bins(m), by_inputs(n), by_bins(m) {}

  ENSEMBLEAD_HD Index begin(Index i) const { return by_bins(i * inputs); }
  ENSEMBLEAD_HD Index end(Index i) const { return by_bins((i + 1) * inputs + bins - 1); }
  // The bins that have an input in [x, y) are [first_from(x), end_before(y)).
  ENSEMBLEAD_HD Index first_from(Index x) const { return by_inputs(x * bins); }
  ENSEMBLEAD_HD Index end_before(Index y) const { return by_inputs(y * bins + inputs - 1); }

  Index inputs = 1;
  Index bins = 1;
  Divide by_inputs;
  Divide by_bins;
};

enum class PatchMode { kAdaptive, kConcat };

struct PatchOptions {
  PatchMode mode = PatchMode::kAdaptive;
  std::int64_t patch_size = 3;
  std::vector<std::int64_t> pretrain_dims;  // one per layer
  std::int64_t target_dim = 1024;
};

// The inputs [begin, end) of the flattened axis c*p*p + ky*p + kx, each with this weight.
struct TapRun {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  double weight = 0;
};

// The runs of output dimension d in one layer: runs[offsets[d]] up to runs[offsets[d + 1]], disjoint and
// ascending.
struct LayerTaps {
  std::vector<std::int64_t> offsets;
  std::vector<TapRun> runs;
};

// D, the number of output dimensions.
std::int64_t output_dim(const std::vector<std::int64_t>& channels, const PatchOptions& options);

// One list per layer. Over all layers the weights of an output dimension sum to 1.
std::vector<LayerTaps> patch_taps(const std::vector<std::int64_t>& channels, const PatchOptions& options);

// Bilinear resize of one axis from `in` to `out` points, align_corners=False, as torch's interpolate does it:
// point i is (1 - weight) * source[low] + weight * source[high].
struct Interpolation {
  std::int64_t low = 0;
  std::int64_t high = 0;
  float weight = 0;
};

// Point i: its place in the source is ((2 i + 1) in - out) / (2 out), or 0 where that is negative.
ENSEMBLEAD_HD inline Interpolation interpolation_point(std::int64_t i, std::int64_t in, std::int64_t out) {
  const std::int64_t place = (2 * i + 1) * in - out;
  if (place <= 0) return {0, in > 1 ? 1 : 0, 0.0f};
  const std::int64_t low = place / (2 * out);
  const float weight = static_cast<float>(place - low * 2 * out) / static_cast<float>(2 * out);
  return {low, low + 1 < in ? low + 1 : in - 1, weight};
}

std::vector<Interpolation> interpolation(std::int64_t in, std::int64_t out);

}  // namespace ensemblead
