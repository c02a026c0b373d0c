#include "emulation/runtime_api.h"

#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "scheduler.hpp"

namespace {

constexpr int kDevices = 2;
constexpr std::size_t kSharedWithoutAsking = 48 * 1024;

// One launch at a time, whatever the number of host threads.
std::mutex mutex;
cuda_emulation::Order order = 0;
bool capturing = false;
std::string log_text;
std::map<const void*, std::size_t> shared_allowed;
std::map<int, int> attributes;

const std::map<int, int> kDefaults = {
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxSharedMemoryPerBlock, 48 * 1024},
    {cudaDevAttrMultiProcessorCount, 4},
    {cudaDevAttrL2CacheSize, 1 << 20},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 * 1024},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 * 1024},
};

// As in the real thing these are per host thread.
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int attribute_of(int attribute) {
  const auto set = attributes.find(attribute);
  return set != attributes.end() ? set->second : kDefaults.at(attribute);
}

// One line per piece of work: what, device, stream, and its extents.
void note(const char* what, cudaStream_t stream, std::initializer_list<std::size_t> extents) {
  log_text += std::string(what) + " " + std::to_string(current_device) + " " +
              std::to_string(reinterpret_cast<std::uintptr_t>(stream));
  for (const std::size_t extent : extents) log_text += " " + std::to_string(extent);
  log_text += "\n";
}

bool valid(const cudaLaunchConfig_t& config) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  return grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
         grid.z <= 65535 && threads >= 1 && threads <= 1024 && block.z <= 64;
}

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return result(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  const std::lock_guard<std::mutex> lock(mutex);
  *value = attribute_of(attribute);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    default:
      return "cudaErrorStreamCaptureUnsupported";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  note("memset", stream, {bytes});
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  // Pageable host memory cannot be part of a graph, and nothing here has pinned memory.
  if (capturing && kind != cudaMemcpyDeviceToDevice) return result(cudaErrorStreamCaptureUnsupported);
  note("memcpy", stream, {bytes});
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  const std::lock_guard<std::mutex> lock(mutex);
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (capturing) return result(cudaErrorStreamCaptureUnsupported);
  note("synchronize", stream, {});
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > attribute_of(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return result(cudaErrorInvalidValue);
  shared_allowed[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t emulatedOccupancy(int* blocks, int block_size, std::size_t dynamic_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  const int by_threads = attribute_of(cudaDevAttrMaxThreadsPerMultiProcessor) / block_size;
  const int by_memory =
      attribute_of(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / static_cast<int>(dynamic_bytes + 1024);
  *blocks = by_threads < by_memory ? by_threads : by_memory;
  return cudaSuccess;
}

cudaError_t emulatedLaunch(const cudaLaunchConfig_t& config, const void* kernel, cuda_emulation::Body body) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto allowed = shared_allowed.find(kernel);
  const std::size_t limit = allowed == shared_allowed.end() ? kSharedWithoutAsking : allowed->second;
  if (!valid(config)) return result(cudaErrorInvalidConfiguration);
  if (config.dynamicSmemBytes > (limit > kSharedWithoutAsking ? limit : kSharedWithoutAsking))
    return result(cudaErrorInvalidValue);
  note("kernel", config.stream,
       {config.gridDim.x, config.gridDim.y, config.gridDim.z, config.blockDim.x, config.blockDim.y,
        config.blockDim.z, config.dynamicSmemBytes});
  // A thread whose thread-local memory is the shared memory of the blocks.
  std::exception_ptr error;
  std::thread device([&] {
    try {
      cuda_emulation::run_grid(config, order, body);
    } catch (...) {
      error = std::current_exception();
    }
  });
  device.join();
  if (error) std::rethrow_exception(error);
  return cudaSuccess;
}

// --- what tests turn and read, through ctypes ---

#define ENSEMBLEAD_FOR_TESTS extern "C" __attribute__((visibility("default")))

ENSEMBLEAD_FOR_TESTS void ensemblead_emulation_reset() {
  const std::lock_guard<std::mutex> lock(mutex);
  order = 0;
  capturing = false;
  log_text.clear();
  attributes.clear();
  last_error = cudaSuccess;
}

ENSEMBLEAD_FOR_TESTS void ensemblead_emulation_order(unsigned value) {
  const std::lock_guard<std::mutex> lock(mutex);
  order = value;
}

ENSEMBLEAD_FOR_TESTS void ensemblead_emulation_capture(int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  capturing = value != 0;
}

ENSEMBLEAD_FOR_TESTS void ensemblead_emulation_attribute(int attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  attributes[attribute] = value;
}

// Valid until the next piece of work.
ENSEMBLEAD_FOR_TESTS const char* ensemblead_emulation_log() { return log_text.c_str(); }

ENSEMBLEAD_FOR_TESTS int ensemblead_emulation_current_device() { return current_device; }

ENSEMBLEAD_FOR_TESTS int ensemblead_emulation_set_device(int device) { return cudaSetDevice(device); }
