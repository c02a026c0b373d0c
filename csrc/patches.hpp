// Patch aggregation: feature maps of several layers to one row of features per position of the first layer's
// grid.
//
// Input: one map [B, C_l, H_l, W_l] per layer. Output: [B, H_0, W_0, D] float32, rows channels-last. With p =
// patch_size (odd, zero padding (p-1)/2, stride 1) the result is that of these steps:
//   kAdaptive: unfold each layer into (c, ky, kx) planes; resize every plane to H_0 x W_0 (bilinear,
//     align_corners=False, no antialiasing); adaptive average pooling of the flattened (c, ky, kx) axis to
//     pretrain_dims[l]; concatenate the layers; adaptive average pooling to target_dim. D = target_dim.
//   kConcat: p x p average with the padding counted; resize to H_0 x W_0; concatenate. D = sum of C_l;
//     pretrain_dims and target_dim have no effect.
// The steps are linear and act on different axes, so the twins pool at each layer's own resolution first and
// upsample the small result last; nothing of size p*p*C exists. Accumulation is in float32 whatever the dtype
// of the maps. NaN and inf are not looked for: they spread to every output whose patch or whose four resized
// neighbours hold them. The result does not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/array.hpp"
#include "core/patch_taps.hpp"
#include "core/work.hpp"

namespace ensemblead {

// One layer's map, dense in memory: [B, C, H, W], or [B, H, W, C] when `channels_last`.
struct FeatureMap {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;  // kFloat32, kFloat16 or kBFloat16
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  bool channels_last = false;
};

struct PatchTask {
  std::vector<FeatureMap> maps;  // one per layer, at least one
  std::int64_t batch = 0;
  PatchOptions options;
  float* output = nullptr;
};

namespace cpu {
// Safe from several threads at once.
void aggregate_patches(const PatchTask& task, const Work& work);
}  // namespace cpu

namespace cuda {
// Bytes of scratch, for the pooled layers of another grid than the first one's. Only the extents of the maps
// matter.
std::size_t aggregate_patches_scratch(const PatchTask& task);

// Enqueues the kernels and does not wait for the stream.
void aggregate_patches(const PatchTask& task, const Work& work);
}  // namespace cuda

}  // namespace ensemblead
