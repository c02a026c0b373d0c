// Which inputs an output dimension of patch aggregation averages, and with what weight: the pooling steps of
// csrc/patches.hpp composed, without the resize. Both twins start from these lists.
#pragma once

#include <cstdint>
#include <vector>

namespace ensemblead {

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
std::vector<Interpolation> interpolation(std::int64_t in, std::int64_t out);

}  // namespace ensemblead
