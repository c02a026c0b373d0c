// Working memory that the caller's framework allocated for a CUDA kernel.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/dlpack.hpp"
#include "core/checks.hpp"

namespace ensemblead::bindings {

class BorrowedScratch {
 public:
  // `object` is None where no bytes are needed, else a uint8 array on the device of `other`, aligned to 16
  // bytes.
  BorrowedScratch(const pybind11::object& object, const Array& other, const char* other_argument,
                  std::int64_t bytes) {
    if (bytes == 0) return;
    if (object.is_none()) throw ValueError("scratch must have " + std::to_string(bytes) + " bytes, got None");
    const Array& array = borrowed_.emplace(object, "scratch").array();
    check_rank(array, "scratch", 1, "[bytes]");
    check_dtype(array, "scratch", {DType::kUInt8});
    check_contiguous(array, "scratch");
    check_writable(array, "scratch");
    check_same_device(array, "scratch", other, other_argument);
    if (array.size() < bytes)
      throw ValueError("scratch must have " + std::to_string(bytes) + " bytes, got " +
                       std::to_string(array.size()));
    if (reinterpret_cast<std::uintptr_t>(array.data) % 16 != 0)
      throw ValueError("scratch must start at a multiple of 16 bytes");
  }

  void* data() const { return borrowed_ ? borrowed_->array().data : nullptr; }

 private:
  std::optional<Borrowed> borrowed_;
};

}  // namespace ensemblead::bindings
