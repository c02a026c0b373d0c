#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bindings.hpp"
#include "core/checks.hpp"
#include "cpu/instruction_set.hpp"
#include "cpu/parallel.hpp"
#include "cuda/device.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  using namespace ensemblead;

  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
    } catch (const ValueError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });

  module.attr("__version__") = ENSEMBLEAD_VERSION;
  module.attr("cuda_decision") = ENSEMBLEAD_CUDA_DECISION;
  module.attr("compiler") = ENSEMBLEAD_COMPILER;
  module.attr("threading") = cpu::threading();
  module.def("cuda_available", &cuda::available);
  module.def("instruction_set", [] { return cpu::name(cpu::instruction_set()); });
  module.def("default_threads", [] { return cpu::most_threads(0); });

  bindings::bind_convolution(module);
  bindings::bind_coreset(module);
  bindings::bind_nearest(module);
  bindings::bind_patches(module);
  bindings::bind_resize(module);
  bindings::bind_tiling(module);
  bindings::bind_weighted(module);
}
