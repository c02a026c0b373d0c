// The CUDA twins in a build without CUDA, throwing.
#include <string>

#include "core/checks.hpp"
#include "coreset.hpp"
#include "cuda/device.hpp"
#include "patches.hpp"
#include "tiling.hpp"
#include "weighted.hpp"

namespace ensemblead::cuda {
namespace {

[[noreturn]] void unavailable(const char* operation, const char* argument) {
  throw ValueError(std::string(operation) + " has no CUDA kernel in this build; move " + argument +
                   " to the CPU");
}

}  // namespace

bool available() { return false; }

std::size_t select_coreset_scratch(const CoresetTask&) { unavailable("select_coreset", "features"); }
CoresetResult select_coreset(const CoresetTask&, const Work&) { unavailable("select_coreset", "features"); }

std::size_t project_rows_scratch(const ProjectTask& task) { unavailable("project", task.argument); }
void project_rows(const ProjectTask& task, const Work&) { unavailable("project", task.argument); }

std::size_t aggregate_patches_scratch(const PatchTask&) { unavailable("aggregate_patches", "feature_maps"); }
void aggregate_patches(const PatchTask&, const Work&) { unavailable("aggregate_patches", "feature_maps"); }

void tile(const TileTask&, const Work&) { unavailable("tile", "images"); }
void untile(const UntileTask&, const Work&) { unavailable("untile", "tiles"); }

std::size_t smooth_seams_scratch(const SmoothTask&) { unavailable("smooth_seams", "maps"); }
void smooth_seams(const SmoothTask&, const Work&) { unavailable("smooth_seams", "maps"); }

std::size_t weighted_top_k_scratch(const WeightedTask&) { unavailable("weighted_top_k", "blocks"); }
void weighted_top_k(const WeightedTask&, const Work&) { unavailable("weighted_top_k", "blocks"); }

}  // namespace ensemblead::cuda
