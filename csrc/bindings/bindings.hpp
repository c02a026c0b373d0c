// The functions that module.cpp calls: one per operation, defined in the file of that name.
#pragma once

#include <pybind11/pybind11.h>

namespace ensemblead::bindings {

void bind_convolution(pybind11::module_& module);
void bind_coreset(pybind11::module_& module);
void bind_nearest(pybind11::module_& module);
void bind_patches(pybind11::module_& module);
void bind_resize(pybind11::module_& module);
void bind_tiling(pybind11::module_& module);
void bind_weighted(pybind11::module_& module);

}  // namespace ensemblead::bindings
