// The Work of a call from the arguments that every operation ends with, and the choice between twins.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "bindings/dlpack.hpp"
#include "core/work.hpp"

namespace ensemblead::bindings {

// num_threads, stream and scratch, as Python gives them.
struct WorkArguments {
  int num_threads = 0;
  std::intptr_t stream = 0;
  pybind11::object scratch;  // None, or a uint8 array on the device of the call's arrays
};

// The array that decides where a call works, and its name in errors.
struct Leading {
  const Array& array;
  const char* argument;
};

// A Work whose scratch stays borrowed for the length of the call.
class BorrowedWork {
 public:
  // Throws a ValueError unless scratch has `bytes`, is aligned to 16 and lies on the device of `leading`;
  // with `bytes` = 0 scratch is not looked at.
  BorrowedWork(const Leading& leading, const WorkArguments& arguments, std::size_t bytes);

  const Work& work() const { return work_; }

 private:
  std::optional<Borrowed> scratch_;
  Work work_;
};

template <class Task, class Result>
using Operation = Result (*)(const Task& task, const Work& work);

// The twins of an operation, and how many bytes of scratch the CUDA one needs (null: none).
template <class Task, class Result>
struct Twins {
  Operation<Task, Result> cpu;
  Operation<Task, Result> cuda;
  std::size_t (*cuda_scratch)(const Task& task) = nullptr;
};

// Runs the twin for the device of `leading`, without the GIL.
template <class Task, class Result>
Result run(const Twins<Task, Result>& twins, const Task& task, const Leading& leading,
           const WorkArguments& arguments) {
  const bool on_cpu = leading.array.device.kind == DeviceKind::kCpu;
  const bool needs_scratch = !on_cpu && twins.cuda_scratch != nullptr;
  const BorrowedWork borrowed(leading, arguments, needs_scratch ? twins.cuda_scratch(task) : 0);
  const pybind11::gil_scoped_release release;
  return (on_cpu ? twins.cpu : twins.cuda)(task, borrowed.work());
}

// Registers an operation. `function` takes `arguments` and then a WorkArguments' members, by name.
template <class Function, class... Arguments>
void define(pybind11::module_& module, const char* name, Function function, const Arguments&... arguments) {
  module.def(name, function, arguments..., pybind11::arg("num_threads") = 0, pybind11::arg("stream") = 0,
             pybind11::arg("scratch") = pybind11::none());
}

}  // namespace ensemblead::bindings
