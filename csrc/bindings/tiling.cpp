#include "bindings/bindings.hpp"

namespace ensemblead::bindings {
void bind_tiling(pybind11::module_&) {}
}  // namespace ensemblead::bindings
