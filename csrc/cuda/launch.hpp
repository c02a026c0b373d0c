// Host side of every kernel: the device, checked launches, and helpers with which nvcc and the emulation of
// tests/cuda_emulation compile the same kernels (no <<<>>>, no library of device code).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/work.hpp"

namespace ensemblead::cuda {

// A call of the CUDA runtime failed, or a launch did: RuntimeError in Python.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws CudaError naming the attempted step, unless `error` is cudaSuccess. The runtime then forgets the
// error, so that the next caller of cudaGetLastError does not take it for its own.
void check(cudaError_t error, const char* attempted);

// Makes `device` the calling thread's current one, for the length of a scope; behind it the one before is
// current again, whatever happened within.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  // Makes it the current one again, after code of the caller's that may have chosen another.
  void enter_again();

 private:
  int device_;
  int previous_;
};

inline cudaStream_t to_stream(const Work& work) { return reinterpret_cast<cudaStream_t>(work.stream); }

// The multiprocessors of the current device.
int multiprocessors();

// Limits of a grid on every device: the x axis, and each of the others. Under emulation the latter is so low
// that tests need no thousands of blocks to see kernels go round.
constexpr std::int64_t kMaxGridX = 0x7fffffff;
#if defined(ENSEMBLEAD_CUDA_EMULATED)
constexpr std::int64_t kMaxGridYZ = 3;
#else
constexpr std::int64_t kMaxGridYZ = 65535;
#endif
// A kernel gets more dynamic shared memory than this only when asked beforehand.
constexpr std::size_t kSharedWithoutAsking = 48 * 1024;

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// Kernels say in __launch_bounds__ how many of their blocks a multiprocessor is to hold: left to itself, the
// compiler spills registers for the sake of more.

// The number of blocks for `items`, of `per_block` each; at most `limit`, beyond which the kernel loops.
inline unsigned grid_size(std::int64_t items, std::int64_t per_block, std::int64_t limit = kMaxGridX) {
  const std::int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks > limit ? limit : blocks));
}

// Launches on the current device, or throws CudaError naming the kernel. `args` are converted to the types of
// the kernel's parameters.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const LaunchShape& shape, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "a kernel takes exactly its parameters");
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  if (shape.shared_bytes > kSharedWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          name);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), name);
}

// The dynamic shared memory of the running block, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(ENSEMBLEAD_CUDA_EMULATED)
  return static_cast<T*>(cuda_emulation::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char ensemblead_dynamic_shared[];
  return reinterpret_cast<T*>(ensemblead_dynamic_shared);
#endif
}

}  // namespace ensemblead::cuda
