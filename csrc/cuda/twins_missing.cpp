// The symbols of the CUDA twins that do not exist yet: whatever the build, a CUDA array gets a clear error.
#include "core/checks.hpp"
#include "coreset.hpp"

namespace ensemblead::cuda {

std::int64_t select_coreset(const float*, std::int64_t, std::int64_t, const CoresetOptions&, std::int64_t*,
                            CoresetStatistics*) {
  throw ValueError("features is on a CUDA device, but select_coreset has no CUDA kernel in this build; pass a CPU array");
}

}  // namespace ensemblead::cuda
