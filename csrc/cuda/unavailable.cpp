// The CUDA twins that this build lacks, throwing: all of them without CUDA, with it those that are not
// written yet.
#include <string>

#include "core/checks.hpp"
#include "coreset.hpp"
#include "cuda/device.hpp"
#include "patches.hpp"
#include "tiling.hpp"

namespace ensemblead::cuda {
namespace {

[[noreturn]] void unavailable(const char* operation, const char* argument) {
  throw ValueError(std::string(operation) + " has no CUDA kernel in this build; move " + argument +
                   " to the CPU");
}

}  // namespace

#if !defined(ENSEMBLEAD_WITH_CUDA)
bool available() { return false; }
#endif

std::int64_t select_coreset(const float*, std::int64_t, std::int64_t, const CoresetOptions&, std::int64_t*,
                            CoresetStatistics*) {
  unavailable("select_coreset", "features");
}

void aggregate_patches(const std::vector<FeatureMap>&, std::int64_t, const PatchOptions&, float*, int,
                       void*) {
  unavailable("aggregate_patches", "feature_maps");
}

void tile(const TileTask&, std::intptr_t) { unavailable("tile", "images"); }
void untile(const UntileTask&, std::intptr_t) { unavailable("untile", "tiles"); }
void smooth_seams(const SmoothTask&, std::intptr_t) { unavailable("smooth_seams", "maps"); }

}  // namespace ensemblead::cuda
