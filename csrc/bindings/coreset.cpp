#include "bindings/bindings.hpp"

namespace ensemblead::bindings {
void bind_coreset(pybind11::module_&) {}
}  // namespace ensemblead::bindings
