#include <cuda_runtime.h>

#include <algorithm>
#include <iterator>

#include "cuda/device.hpp"

namespace ensemblead::cuda {
namespace {

#if defined(__CUDA_ARCH_LIST__)
// 100 times the capability, as 750, 900, 1200. Every architecture is embedded as PTX, too, which the driver
// compiles for newer devices; none runs on an older one.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
#else
constexpr int kArchitectures[] = {0};  // emulated
#endif

bool runs_kernels(int device) {
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return false;
  return major * 100 + minor * 10 >= *std::min_element(std::begin(kArchitectures), std::end(kArchitectures));
}

}  // namespace

bool available() {
  int count = 0;
  bool found = false;
  if (cudaGetDeviceCount(&count) == cudaSuccess)
    for (int device = 0; device < count && !found; ++device) found = runs_kernels(device);
  cudaGetLastError();  // a missing driver is an answer here, not an error to keep
  return found;
}

}  // namespace ensemblead::cuda
