// The pooling half of patch aggregation: one layer of one image at its own resolution, a few output
// dimensions at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/patch_program.hpp"
#include "cpu/patches_simd.hpp"
#include "patches.hpp"

namespace ensemblead::cpu {

// Uninitialised floats that start at a cache line.
class PlaneBuffer {
 public:
  explicit PlaneBuffer(std::int64_t size);
  float* data() const { return data_; }

 private:
  std::unique_ptr<float[]> storage_;
  float* data_;
};

struct RowRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// One layer's map with its program, and how its planes lie in the buffers. In a plane, row y + 1 starts
// `stride()` floats after row y, radius_x more than a row has: these zeros are the right margin of the one
// and the left one of the other.
struct PoolLayer {
  PoolLayer(const FeatureMap& feature_map, const LayerProgram& layer_program);

  std::int64_t stride() const { return map.width + program->radius_x; }
  // Floats of a plane for `height` rows: of a channel, with margins, and of a sum.
  std::int64_t input_plane(std::int64_t height) const;
  std::int64_t sum_plane(std::int64_t height) const;

  FeatureMap map;
  const LayerProgram* program;
  std::int64_t group;  // channels that are loaded together
  std::int64_t slots;  // planes of loaded channels that are kept: a multiple of `group`
};

// Sizes of buffers that suffice for every use of a Pooler, in floats.
struct PoolExtents {
  std::int64_t inputs = 0;
  std::int64_t box = 0;
  std::int64_t row = 0;
  std::int64_t sums = 0;

  // Makes room for `height` rows of `layer`.
  void include(const PoolLayer& layer, std::int64_t height);
};

class Pooler {
 public:
  Pooler(const PatchLoops& loops, const PoolExtents& extents);

  // Prepares for `rows` of `image`.
  void start(const PoolLayer& layer, std::int64_t image, RowRange rows);
  // Planes of the output dimensions [begin, end), at most kPlaneGroup of them: dimension `begin` + i has its
  // row y at the result + i * plane_stride() + y * layer.stride().
  const float* pool(std::int64_t begin, std::int64_t end);
  std::int64_t plane_stride() const { return sum_plane_; }

 private:
  void pool_dim(const DimProgram& dim, float* sum);
  void load(std::int64_t first, std::int64_t last);
  void load_group(std::int64_t group, float* target) const;
  const float* channel(std::int64_t index) const {
    return inputs_.data() + index % layer_->slots * input_plane_;
  }

  const PatchLoops& loops_;
  PlaneBuffer inputs_;
  PlaneBuffer box_;
  PlaneBuffer row_;
  PlaneBuffer sums_;
  std::vector<PlaneTerm> box_terms_;
  std::vector<PlaneTerm> row_terms_;
  std::vector<PlaneTerm> sum_terms_;
  std::vector<std::int64_t> loaded_;  // the group of channels that each part of the slots holds, or -1
  const PoolLayer* layer_ = nullptr;
  std::int64_t image_ = 0;
  RowRange rows_;  // pooled
  RowRange seen_;  // of the map, as far as the window reaches
  std::int64_t input_plane_ = 0;
  std::int64_t sum_plane_ = 0;
};

}  // namespace ensemblead::cpu
