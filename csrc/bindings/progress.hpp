// A Progress that lets Ctrl-C through and calls a Python callback.
#pragma once

#include <pybind11/pybind11.h>

#include "core/progress.hpp"

namespace ensemblead::bindings {

// `callback(done, total)` may be None. The result takes the GIL for each call, so it is used while the GIL is
// released; a pending signal or an exception in the callback leaves it as pybind11::error_already_set.
Progress make_progress(const pybind11::object& callback);

}  // namespace ensemblead::bindings
