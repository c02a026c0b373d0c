// The CUDA twins in a build without CUDA, throwing.
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

bool available() { return false; }

std::size_t coreset_scratch(std::int64_t, std::int64_t, std::int64_t) {
  unavailable("select_coreset", "features");
}
std::int64_t select_coreset(const float*, std::int64_t, std::int64_t, const CoresetOptions&, const CudaWork&,
                            std::int64_t*, CoresetStatistics*) {
  unavailable("select_coreset", "features");
}
std::size_t project_scratch() { unavailable("project", "features"); }
void project_rows(const float*, std::int64_t, std::int64_t, const float*, std::int64_t, const char* argument,
                  const CudaWork&, float*) {
  unavailable("project", argument);
}

std::int64_t aggregate_patches_scratch(const std::vector<FeatureMap>&, std::int64_t, const PatchOptions&) {
  return 0;
}
void aggregate_patches(const std::vector<FeatureMap>&, std::int64_t, const PatchOptions&, float*, void*, int,
                       std::intptr_t) {
  unavailable("aggregate_patches", "feature_maps");
}

void tile(const TileTask&, std::intptr_t) { unavailable("tile", "images"); }
void untile(const UntileTask&, std::intptr_t) { unavailable("untile", "tiles"); }
std::int64_t smooth_seams_scratch(const Shape&, DType, double) { return 0; }
void smooth_seams(const SmoothTask&, void*, std::intptr_t) { unavailable("smooth_seams", "maps"); }

}  // namespace ensemblead::cuda
