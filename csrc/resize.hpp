// Bilinear resizing of photographs, as Pillow's `Image.resize` does it.
#pragma once

#include <cstdint>

#include "core/work.hpp"

namespace ensemblead {

// Of the whole image [height, width, 3] at the size resized_height x resized_width, the part that begins at
// (top, left) and has rows x columns pixels is written; it lies within. All are positive.
struct ResizeTask {
  const std::uint8_t* image = nullptr;  // [height, width, 3]
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t resized_height = 0;
  std::int64_t resized_width = 0;
  std::int64_t top = 0;
  std::int64_t left = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::uint8_t* result = nullptr;  // [rows, columns, 3], written
};

// Along rows first, then down columns, each rounded to eight bits, by a triangle that reaches one pixel of
// the smaller image to either side. Weights are whole numbers of 22 bits, so every processor gives the same
// bits. On the calling thread alone: images are decoded side by side.
namespace cpu {
void resize(const ResizeTask& task, const Work& work);
}  // namespace cpu

}  // namespace ensemblead
