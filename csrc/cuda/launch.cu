#include "cuda/launch.hpp"

namespace ensemblead::cuda {

void check(cudaError_t error, const char* attempted) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw CudaError(std::string(attempted) + " failed on the CUDA device: " + cudaGetErrorName(error) + " (" +
                  cudaGetErrorString(error) + ")");
}

namespace {

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  return device;
}

}  // namespace

DeviceScope::DeviceScope(int device) : device_(device), previous_(current_device()) { enter_again(); }

// Setting a device that is current already is not always free.
void DeviceScope::enter_again() {
  if (current_device() != device_) check(cudaSetDevice(device_), "making the arrays' device the current one");
}

DeviceScope::~DeviceScope() {
  int current = previous_;
  (void)cudaGetDevice(&current);
  if (current != previous_) (void)cudaSetDevice(previous_);
}

int multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device()),
        "asking for the number of multiprocessors");
  return count;
}

}  // namespace ensemblead::cuda
