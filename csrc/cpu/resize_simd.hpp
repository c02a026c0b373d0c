// The inner loops of resize, one build per instruction set (see instruction_set.hpp).
#pragma once

#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace ensemblead::cpu {

constexpr int kResizedRows = 16;               // that `across` takes at once
constexpr std::int64_t kResizedPixels = 1024;  // of a row at once, or all that one result needs, if more
constexpr int kResizedBytes = 64;              // of which the length of a row of `down` is a multiple
constexpr int kResizeBits = 22;                // of the fraction of a weight
constexpr std::int64_t kColors = 3;

// Which pixels make each pixel of a result: sum over t < counts[i] of weights[i * width + t] times the pixel
// firsts[i] + t.
struct ResizeTaps {
  const std::int64_t* firsts;
  const std::int64_t* counts;
  const std::int32_t* weights;
  std::int64_t width;
  std::int64_t size;
};

struct ResizeSimd {
  // kResizedRows rows along their pixels. `lanes` and `wide` are scratch: kResizedRows bytes for each byte of
  // the pixels taken at once, and of a result, rounded up to 16. Results lie `stride` bytes apart, and are
  // written up to a multiple of 16 bytes.
  void (*across)(const std::uint8_t* const* rows, const ResizeTaps& taps, std::uint8_t* lanes,
                 std::uint8_t* wide, std::uint8_t* results, std::int64_t stride);

  // One row out of `count` rows that lie `bytes` apart.
  void (*down)(const std::uint8_t* rows, std::int64_t bytes, const std::int32_t* weights, std::int64_t count,
               std::uint8_t* result);
};

ENSEMBLEAD_SIMD_TABLE(ResizeSimd, resize_simd)

}  // namespace ensemblead::cpu
