#include "cuda/launch.hpp"

namespace ensemblead::cuda {

void check(cudaError_t error, const char* attempted) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw CudaError(std::string(attempted) + " failed on the CUDA device: " + cudaGetErrorName(error) + " (" +
                  cudaGetErrorString(error) + ")");
}

DeviceScope::DeviceScope(int device) {
  check(cudaGetDevice(&previous_), "asking for the current device");
  if (previous_ == device) return;
  check(cudaSetDevice(device), "making the arrays' device the current one");
  changed_ = true;
}

DeviceScope::~DeviceScope() {
  if (changed_) (void)cudaSetDevice(previous_);
}

int multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "asking for the number of multiprocessors");
  return count;
}

}  // namespace ensemblead::cuda
