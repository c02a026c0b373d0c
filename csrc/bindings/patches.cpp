#include "bindings/bindings.hpp"

namespace ensemblead::bindings {
void bind_patches(pybind11::module_&) {}
}  // namespace ensemblead::bindings
