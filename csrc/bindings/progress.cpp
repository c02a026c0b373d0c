#include "bindings/progress.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {

Progress make_progress(const py::object& callback) {
  // The caller keeps `callback` alive for the length of its call, so the handle is enough and copies need no
  // GIL.
  const py::handle function = callback.is_none() ? py::handle() : py::handle(callback);
  return [function](std::int64_t done, std::int64_t total) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (function) function(done, total);
  };
}

}  // namespace ensemblead::bindings
