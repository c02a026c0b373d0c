// The inner loops of convolutions, one build per instruction set (see instruction_set.hpp).
//
// A tile of 4 x 4 results reads 6 x 6 values. Transformed, both have 6 x 6 = 36 elements, each of which is a matrix
// product over channels of its own.
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

constexpr int kElements = 36;
constexpr int kTile = 4;

// Values [rows, columns, channels] of an image that a tile reads or writes: those of rows [top, bottom) and columns
// [left, right) exist, the others are zeros. `origin` is where row 0 and column 0 would be.
template <class Value>
struct Patch {
  Value* origin;
  std::int64_t row_stride;
  std::int64_t column_stride;
  int top, bottom, left, right;
};

// Rows and columns of a matrix product's operands: value (i, j) is at from[i * outer + j * inner].
struct Factors {
  const float* rows;
  std::int64_t row_stride;
  std::int64_t row_step;  // from one term of a sum to the next
  const float* panel;
  std::int64_t panel_step;
  std::int64_t terms;
};

struct ConvolutionSimd {
  int rows;   // of a product
  int lanes;  // of a vector; products have one or two vectors of columns

  // Taps [3, 3, channels, outputs] of channels [begin, end): an element has panels of two vectors of outputs, the
  // last one maybe of one, and a panel is [channels, its width].
  void (*transform_taps)(const float* taps, std::int64_t channels, std::int64_t outputs, std::int64_t begin,
                         std::int64_t end, float* transformed);
  // 6 x 6 values of the images; elements lie `stride` apart.
  void (*transform_images)(const Patch<const float>& patch, std::int64_t channels, std::int64_t stride,
                           float* transformed);
  // 4 x 4 values of the gradients.
  void (*transform_gradients)(const Patch<const float>& patch, std::int64_t outputs, std::int64_t stride,
                              float* transformed);
  // `rows` times `vectors` sums; they are added to what `sums` holds, or take its place.
  void (*multiply)(const Factors& factors, int vectors, float* sums, std::int64_t stride, bool add);
  // The results of a tile, of so many vectors of outputs; bias may be null.
  void (*restore_results)(const float* transformed, std::int64_t stride, int vectors, const float* bias,
                          const Patch<float>& patch);
  // The gradients of taps [3, 3, channels, outputs], of channels [begin, end); transformed is
  // [36, channels, outputs].
  void (*restore_taps)(const float* transformed, std::int64_t channels, std::int64_t outputs,
                       std::int64_t begin, std::int64_t end, float* taps);
};

ENSEMBLEAD_SIMD_TABLE(ConvolutionSimd, convolution_simd)

}  // namespace ensemblead::cpu
