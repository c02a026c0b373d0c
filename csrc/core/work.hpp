// The place and the means of one call of an operation: the second parameter of every operation on every
// device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/array.hpp"

namespace ensemblead {

// Working memory that the caller allocated on the device of a call; its contents are undefined afterwards.
struct Scratch {
  void* data = nullptr;  // aligned to 16 bytes
  std::size_t bytes = 0;
};

struct Work {
  Device device;
  std::intptr_t stream = 0;  // a cudaStream_t of `device`; not used on the CPU
  Scratch scratch;           // at least as many bytes as `..._scratch(task)`; none on the CPU
  int threads = 0;           // 0: OpenMP's default; not used on CUDA devices
};

}  // namespace ensemblead
