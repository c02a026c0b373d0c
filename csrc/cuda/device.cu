#include <cuda_runtime.h>

#include "cuda/device.hpp"

namespace ensemblead::cuda {

bool available() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count > 0;
  cudaGetLastError();  // a missing driver is an answer here, not an error to keep
  return false;
}

}  // namespace ensemblead::cuda
