// The loops of patch aggregation that are compiled once per instruction set.
//
// A plane is one channel's or one output dimension's grid, row by row in float32. Planes are read and written
// in whole vectors, so every buffer of planes reaches kPlaneSlack floats beyond its last plane.
#pragma once

#include <cstdint>

#include "core/patch_taps.hpp"
#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

constexpr std::int64_t kPlaneSlack = 16;
constexpr std::int64_t kPlaneGroup = 16;  // planes that are transposed together

// One term of a sum of planes.
struct PlaneTerm {
  const float* source;
  float weight;
};

// The place of a row of the output: position x at data + x * stride. `stream`: past the caches; then `data`
// and `stride` are multiples of 64 bytes.
struct RowTarget {
  float* data;
  std::int64_t stride;
  bool accumulate;
  bool stream;
};

// target[y * stride + x] = source[y * width + x], converted to float32.
using LoadPlane = void (*)(const void* source, std::int64_t height, std::int64_t width, float* target,
                           std::int64_t stride);
// LoadPlane from channels-last memory for `count` <= kPlaneGroup of `channels` channels at once: that of
// channel c starts at target + c * plane_stride.
using LoadPlanes = void (*)(const void* source, std::int64_t channels, std::int64_t count,
                            std::int64_t height, std::int64_t width, float* target, std::int64_t stride,
                            std::int64_t plane_stride);

struct PatchLoops {
  LoadPlane load_float32;
  LoadPlane load_float16;
  LoadPlane load_bfloat16;
  LoadPlanes load_last_float32;
  LoadPlanes load_last_float16;
  LoadPlanes load_last_bfloat16;
  // target[i] (+)= sum of weight * source[i], i < size.
  void (*combine)(float* target, std::int64_t size, const PlaneTerm* terms, std::int64_t count,
                  bool accumulate);
  // `width` positions of `count` <= kPlaneGroup planes, from planar to `target`.
  void (*transpose_row)(const float* planes, std::int64_t plane_stride, std::int64_t count,
                        std::int64_t width, const RowTarget& target);
  // One row of a bilinear resize: (1 - weight) * above + weight * below, then `columns` along x. Rows above,
  // below and `scratch` are [width_in, stride], of which the first `count` values are used.
  void (*resize_row)(const float* above, const float* below, float weight, std::int64_t width_in,
                     std::int64_t stride, std::int64_t count, const Interpolation* columns,
                     std::int64_t width_out, float* scratch, const RowTarget& target);
  // Makes streamed stores visible to other threads.
  void (*finish_streaming)();
};

ENSEMBLEAD_SIMD_TABLE(PatchLoops, patch_loops)

}  // namespace ensemblead::cpu
