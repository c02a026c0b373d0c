// Convolutions of 3 x 3 by Winograd's method, and their gradient by the taps.
#pragma once

#include <cstdint>

#include "core/work.hpp"

namespace ensemblead {

// Channels are a multiple of this.
constexpr std::int64_t kConvolutionChannels = 16;

// Images lie with channels last, [batch, height, width, channels], and have zeros around them.
struct ConvolutionShape {
  std::int64_t batch = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;
  std::int64_t outputs = 0;
};

// results[b][y][x][o] = bias[o] + sum of images[b][y + i - 1][x + j - 1][c] * taps[i][j][c][o]
struct ConvolutionTask {
  ConvolutionShape shape;
  const float* images = nullptr;
  const float* taps = nullptr;  // [3, 3, channels, outputs]
  const float* bias = nullptr;  // [outputs]; null: zeros
  float* results = nullptr;     // [batch, height, width, outputs], written
};

// taps[i][j][c][o] = sum of images[b][y + i - 1][x + j - 1][c] * gradients[b][y][x][o]
struct ConvolutionGradientTask {
  ConvolutionShape shape;
  const float* images = nullptr;
  const float* gradients = nullptr;  // [batch, height, width, outputs]
  float* taps = nullptr;             // [3, 3, channels, outputs], written
};

// F(4 x 4, 3 x 3): a tile of 4 x 4 results takes 36 products for each pair of channels in place of 144. Rounding
// is larger than that of the sum itself, ten to thirty times. Results do not depend on the number of threads.
namespace cpu {
void convolution(const ConvolutionTask& task, const Work& work);
void convolution_gradient(const ConvolutionGradientTask& task, const Work& work);
}  // namespace cpu

}  // namespace ensemblead
