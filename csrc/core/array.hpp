// An array as the core sees it: borrowed memory, an element type, a device, a shape and strides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ensemblead {

enum class DType { kUInt8, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::kUInt8:
      return "uint8";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat32:
      return "float32";
    default:
      return "float64";
  }
}

enum class DeviceKind { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;

  bool operator==(const Device& other) const { return kind == other.kind && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

// "cpu" or "cuda:0".
std::string name(Device device);

using Shape = std::vector<std::int64_t>;

// "(3, 4, 5)", as Python writes a shape.
std::string name(const Shape& shape);

// A view of memory that the caller owns. `data` points at the first element, byte offset included, and is
// aligned to one element; no more is assumed.
struct Array {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device;
  Shape shape;
  Shape strides;  // in elements
  bool read_only = false;

  std::int64_t size() const {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    return count;
  }
  int rank() const { return static_cast<int>(shape.size()); }
  // Row-major without gaps; the stride of an axis of extent 1 means nothing.
  bool contiguous() const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace ensemblead
