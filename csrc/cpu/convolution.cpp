// Block after block of tiles: transformed tiles lie in the cache while they are multiplied.
#include "convolution.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/convolution_simd.hpp"
#include "cpu/huge_pages.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

// Bytes of a block's transformed images, and the least and the most tiles of one.
constexpr std::int64_t kBlockBytes = std::int64_t{512} << 10;
constexpr std::int64_t kLeastTiles = 48, kMostTiles = 96;
// The same of both operands of a gradient.
constexpr std::int64_t kGradientBytes = std::int64_t{4} << 20;
constexpr std::int64_t kLeastGradientTiles = 128;
// Between rows and between elements: strides that are multiples of a page would put all into one set of the cache.
constexpr std::int64_t kPadding = 16;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Memory without values, in large pages.
std::unique_ptr<float[]> room(std::int64_t count) {
  std::unique_ptr<float[]> memory(new float[static_cast<std::size_t>(count)]);
  prefer_huge_pages(memory.get(), count * static_cast<std::int64_t>(sizeof(float)));
  return memory;
}

// All tiles of all images, numbered row by row.
class Tiles {
 public:
  explicit Tiles(const ConvolutionShape& shape)
      : shape_(shape), down_(divide_up(shape.height, kTile)), across_(divide_up(shape.width, kTile)) {}

  std::int64_t count() const { return shape_.batch * down_ * across_; }

  // What lies from `before` before a tile on, `size` values in both directions.
  template <class Value>
  Patch<Value> patch(Value* images, std::int64_t channels, std::int64_t tile, int before, int size) const {
    const std::int64_t image = tile / (down_ * across_), within = tile % (down_ * across_);
    const std::int64_t y = within / across_ * kTile - before, x = within % across_ * kTile - before;
    const std::int64_t row_stride = shape_.width * channels;
    // Which may lie before the images; values there are not read.
    Value* origin = images + (image * shape_.height * row_stride + y * row_stride + x * channels);
    return {origin,
            row_stride,
            channels,
            static_cast<int>(std::max<std::int64_t>(-y, 0)),
            static_cast<int>(std::min<std::int64_t>(shape_.height - y, size)),
            static_cast<int>(std::max<std::int64_t>(-x, 0)),
            static_cast<int>(std::min<std::int64_t>(shape_.width - x, size))};
  }

 private:
  const ConvolutionShape& shape_;
  std::int64_t down_;
  std::int64_t across_;
};

// One thread's buffers for a block of tiles.
class BlockConvolution {
 public:
  BlockConvolution(const ConvolutionSimd& simd, const ConvolutionTask& task, const float* taps,
                   std::int64_t most_tiles)
      : simd_(simd),
        task_(task),
        tiles_(task.shape),
        taps_(taps),
        row_stride_(task.shape.channels + kPadding),
        stride_(most_tiles * row_stride_ + kPadding),
        width_(2 * simd.lanes),
        product_stride_(most_tiles * width_ + kPadding),
        transformed_(static_cast<std::size_t>(kElements * stride_)),
        products_(static_cast<std::size_t>(kElements * product_stride_)) {}

  void run(std::int64_t first, std::int64_t count) {
    const ConvolutionShape& shape = task_.shape;
    for (std::int64_t t = 0; t < count; ++t)
      simd_.transform_images(tiles_.patch(task_.images, shape.channels, first + t, 1, kTile + 2),
                             shape.channels, stride_, transformed_.data() + t * row_stride_);
    for (std::int64_t o = 0; o < shape.outputs; o += width_) multiply(first, count, o);
  }

 private:
  // Of one panel of outputs.
  void multiply(std::int64_t first, std::int64_t count, std::int64_t output) {
    const ConvolutionShape& shape = task_.shape;
    const std::int64_t width = std::min(width_, shape.outputs - output);
    const int vectors = static_cast<int>(width / simd_.lanes);
    for (int e = 0; e < kElements; ++e) {
      const float* panel = taps_ + e * shape.channels * shape.outputs + output * shape.channels;
      // Rows behind the last tile are of an earlier block, or zeros.
      for (std::int64_t t = 0; t < count; t += simd_.rows)
        simd_.multiply({transformed_.data() + e * stride_ + t * row_stride_, row_stride_, 1, panel, width,
                        shape.channels},
                       vectors, products_.data() + e * product_stride_ + t * width_, width_, false);
    }
    const float* bias = task_.bias == nullptr ? nullptr : task_.bias + output;
    for (std::int64_t t = 0; t < count; ++t)
      simd_.restore_results(products_.data() + t * width_, product_stride_, vectors, bias,
                            tiles_.patch(task_.results + output, shape.outputs, first + t, 0, kTile));
  }

  const ConvolutionSimd& simd_;
  const ConvolutionTask& task_;
  Tiles tiles_;
  const float* taps_;
  std::int64_t row_stride_;
  std::int64_t stride_;
  std::int64_t width_;
  std::int64_t product_stride_;
  std::vector<float> transformed_;  // [36][tiles][channels]
  std::vector<float> products_;     // [36][tiles][width]
};

}  // namespace

void convolution(const ConvolutionTask& task, const Work& work) {
  const ConvolutionSimd& simd = convolution_simd();
  const ConvolutionShape& shape = task.shape;
  const std::int64_t count = Tiles(shape).count();
  const std::int64_t products = kElements * count * shape.channels * shape.outputs;
  const int threads = team_size(work.threads, products, kValuesPerThread);
  const std::unique_ptr<float[]> taps = room(kElements * shape.channels * shape.outputs);
  parallel_for(shape.channels, threads, Schedule::kStatic, [&](std::int64_t c, int) {
    simd.transform_taps(task.taps, shape.channels, shape.outputs, c, c + 1, taps.get());
  });
  const std::int64_t fitting = kBlockBytes / (kElements * 4 * shape.channels);
  const std::int64_t most = std::clamp(fitting, kLeastTiles, kMostTiles);
  // As many for every thread.
  const std::int64_t blocks = divide_up(divide_up(count, most), threads) * threads;
  const std::int64_t size = divide_up(divide_up(count, blocks), simd.rows) * simd.rows;
  std::vector<BlockConvolution> convolutions;
  convolutions.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) convolutions.emplace_back(simd, task, taps.get(), size);
  parallel_for(divide_up(count, size), threads, Schedule::kDynamic, [&](std::int64_t block, int thread) {
    convolutions[thread].run(block * size, std::min(size, count - block * size));
  });
}

void convolution_gradient(const ConvolutionGradientTask& task, const Work& work) {
  const ConvolutionSimd& simd = convolution_simd();
  const ConvolutionShape& shape = task.shape;
  const Tiles tiles(shape);
  const std::int64_t channels = shape.channels, outputs = shape.outputs, count = tiles.count();
  const int threads = team_size(work.threads, kElements * count * channels * outputs, kValuesPerThread);
  const std::int64_t fitting = kGradientBytes / (kElements * 4 * (channels + outputs));
  const std::int64_t size = std::min(std::max(fitting, kLeastGradientTiles), count);
  const std::int64_t image_row = channels + kPadding, gradient_row = outputs + kPadding;
  const std::int64_t image_stride = size * image_row + kPadding;
  const std::int64_t gradient_stride = size * gradient_row + kPadding;
  const std::unique_ptr<float[]> images = room(kElements * image_stride);
  const std::unique_ptr<float[]> gradients = room(kElements * gradient_stride);
  const std::unique_ptr<float[]> sums = room(kElements * channels * outputs);
  const std::int64_t width = 2 * simd.lanes, panels = divide_up(outputs, width);
  for (std::int64_t first = 0; first < count; first += size) {
    const std::int64_t block = std::min(size, count - first);
    parallel_for(block, threads, Schedule::kStatic, [&](std::int64_t t, int) {
      simd.transform_images(tiles.patch(task.images, channels, first + t, 1, kTile + 2), channels,
                            image_stride, images.get() + t * image_row);
      simd.transform_gradients(tiles.patch(task.gradients, outputs, first + t, 0, kTile), outputs,
                               gradient_stride, gradients.get() + t * gradient_row);
    });
    parallel_for(kElements * panels, threads, Schedule::kDynamic, [&](std::int64_t item, int) {
      const std::int64_t e = item / panels, o = item % panels * width;
      const int vectors = static_cast<int>(std::min(width, outputs - o) / simd.lanes);
      for (std::int64_t c = 0; c < channels; c += simd.rows)
        simd.multiply({images.get() + e * image_stride + c, 1, image_row,
                       gradients.get() + e * gradient_stride + o, gradient_row, block},
                      vectors, sums.get() + (e * channels + c) * outputs + o, outputs, first > 0);
    });
  }
  parallel_for(channels, threads, Schedule::kStatic, [&](std::int64_t c, int) {
    simd.restore_taps(sums.get(), channels, outputs, c, c + 1, task.taps);
  });
}

}  // namespace ensemblead::cpu
