// DLPack, consumer side: borrow any array for the length of a call, without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/array.hpp"

namespace ensemblead::bindings {

// Holds one array between the capsule and the end of a call. A capsule that has been taken is renamed, as the
// protocol asks, so that the deleter runs exactly once: by us when it was taken, by the capsule itself on any
// error before.
class Borrowed {
 public:
  // `object` has `__dlpack__`, or is a capsule. `argument` is the name that errors use.
  Borrowed(const pybind11::handle& object, const char* argument);
  ~Borrowed();
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Borrowed(Borrowed&& other) noexcept;
  Borrowed& operator=(Borrowed&&) = delete;

  const Array& array() const { return array_; }

 private:
  void take(const pybind11::object& capsule, const char* argument);

  Array array_;
  void* managed_ = nullptr;  // DLManagedTensor or DLManagedTensorVersioned
  bool versioned_ = false;
};

}  // namespace ensemblead::bindings
