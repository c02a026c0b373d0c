#include "patches.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/work.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

bool dense_channels_last(const Array& map) {
  Array permuted = map;
  permuted.shape = {map.shape[0], map.shape[2], map.shape[3], map.shape[1]};
  permuted.strides = {map.strides[0], map.strides[2], map.strides[3], map.strides[1]};
  return permuted.contiguous();
}

FeatureMap to_feature_map(const Array& map, const Array& first, const char* argument) {
  check_rank(map, argument, 4, "[B, C, H, W]");
  check_dtype(map, argument, {DType::kFloat32, DType::kFloat16, DType::kBFloat16});
  check_not_empty(map, argument);
  const bool channels_last = !map.contiguous() && dense_channels_last(map);
  if (!channels_last) check_contiguous(map, argument);
  check_same_device(map, argument, first, "feature_maps[0]");
  if (map.dtype != first.dtype)
    throw TypeError(std::string(argument) + " has dtype " + name(map.dtype) + " but feature_maps[0] has " +
                    name(first.dtype) + "; give all layers one dtype");
  if (map.shape[0] != first.shape[0])
    throw ValueError(std::string(argument) + " has batch size " + std::to_string(map.shape[0]) +
                     " but feature_maps[0] has " + std::to_string(first.shape[0]));
  return {map.data, map.dtype, map.shape[1], map.shape[2], map.shape[3], channels_last};
}

void check_positive(std::int64_t value, const char* argument) {
  if (value < 1)
    throw ValueError(std::string(argument) + " must be at least 1, got " + std::to_string(value));
}

// Sizes are multiplied with each other in 64 bits; these bounds keep every product exact.
void check_bounds(const std::vector<std::int64_t>& channels, const PatchOptions& options) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (options.patch_size >= 1 << 15)
    throw ValueError("patch_size must be below 32768, got " + std::to_string(options.patch_size));
  if (options.target_dim >= kLimit)
    throw ValueError("target_dim must be below 2147483648, got " + std::to_string(options.target_dim));
  for (std::size_t layer = 0; layer < channels.size(); ++layer) {
    if (channels[layer] * options.patch_size * options.patch_size >= kLimit)
      throw ValueError("patch_size is too large for the " + std::to_string(channels[layer]) +
                       " channels of layer " + std::to_string(layer) + ", got " +
                       std::to_string(options.patch_size));
    if (options.pretrain_dims[layer] >= kLimit / static_cast<std::int64_t>(channels.size()))
      throw ValueError("pretrain_dim is too large, got " + std::to_string(options.pretrain_dims[layer]));
  }
}

PatchOptions to_options(const std::vector<std::int64_t>& channels, std::int64_t patch_size,
                        const std::vector<std::int64_t>& pretrain_dims, std::int64_t target_dim,
                        const std::string& mode) {
  if (mode != "adaptive" && mode != "concat")
    throw ValueError("mode must be 'adaptive' or 'concat', got '" + mode + "'");
  check_positive(patch_size, "patch_size");
  if (patch_size % 2 == 0) throw ValueError("patch_size must be odd, got " + std::to_string(patch_size));
  check_positive(target_dim, "target_dim");
  for (const std::int64_t dim : pretrain_dims) check_positive(dim, "pretrain_dim");
  if (pretrain_dims.size() != channels.size())
    throw ValueError("pretrain_dim must have one value per layer (" + std::to_string(channels.size()) +
                     "), got " + std::to_string(pretrain_dims.size()));
  PatchOptions options{mode == "concat" ? PatchMode::kConcat : PatchMode::kAdaptive, patch_size,
                       pretrain_dims, target_dim};
  check_bounds(channels, options);
  return options;
}

std::int64_t patch_dim(const std::vector<std::int64_t>& channels, std::int64_t patch_size,
                       const std::vector<std::int64_t>& pretrain_dims, std::int64_t target_dim,
                       const std::string& mode) {
  return output_dim(channels, to_options(channels, patch_size, pretrain_dims, target_dim, mode));
}

void aggregate_patches(const py::sequence& feature_maps, const py::object& output, std::int64_t patch_size,
                       const std::vector<std::int64_t>& pretrain_dims, std::int64_t target_dim,
                       const std::string& mode, int num_threads, std::intptr_t stream,
                       const py::object& scratch) {
  if (py::len(feature_maps) == 0) throw ValueError("feature_maps is empty; pass one map per layer");
  std::vector<Borrowed> borrowed;
  PatchTask task;
  std::vector<std::int64_t> channels;
  for (std::size_t i = 0; i < py::len(feature_maps); ++i) {
    const std::string argument = "feature_maps[" + std::to_string(i) + "]";
    borrowed.emplace_back(py::object(feature_maps[i]), argument.c_str());
    task.maps.push_back(to_feature_map(borrowed.back().array(), borrowed.front().array(), argument.c_str()));
    channels.push_back(task.maps.back().channels);
  }
  task.options = to_options(channels, patch_size, pretrain_dims, target_dim, mode);
  const Array& first = borrowed.front().array();
  task.batch = first.shape[0];
  const Borrowed borrowed_output(output, "output");
  check_output(borrowed_output.array(), "output", DType::kFloat32,
               {task.batch, first.shape[2], first.shape[3], output_dim(channels, task.options)});
  check_same_device(borrowed_output.array(), "output", first, "feature_maps[0]");
  task.output = borrowed_output.array().as<float>();
  const Twins<PatchTask, void> twins{cpu::aggregate_patches, cuda::aggregate_patches,
                                     cuda::aggregate_patches_scratch};
  run(twins, task, {first, "feature_maps[0]"}, {num_threads, stream, scratch});
}

// Bytes of scratch that aggregate_patches needs on a CUDA device for maps of these shapes.
std::size_t aggregate_patches_scratch(const std::vector<Shape>& shapes, std::int64_t patch_size,
                                      const std::vector<std::int64_t>& pretrain_dims, std::int64_t target_dim,
                                      const std::string& mode) {
  if (shapes.empty()) throw ValueError("feature_maps is empty; pass one map per layer");
  PatchTask task;
  std::vector<std::int64_t> channels;
  for (const Shape& shape : shapes) {
    if (shape.size() != 4)
      throw ValueError("feature_maps must be 4-D [B, C, H, W], got shape " + name(shape));
    channels.push_back(shape[1]);
    task.maps.push_back({nullptr, DType::kFloat32, shape[1], shape[2], shape[3], false});
  }
  task.batch = shapes.front()[0];
  task.options = to_options(channels, patch_size, pretrain_dims, target_dim, mode);
  return cuda::aggregate_patches_scratch(task);
}

}  // namespace

void bind_patches(py::module_& module) {
  module.def("patch_dim", &patch_dim, py::arg("channels"), py::arg("patch_size"), py::arg("pretrain_dims"),
             py::arg("target_dim"), py::arg("mode"));
  define(module, "aggregate_patches", &aggregate_patches, py::arg("feature_maps"), py::arg("output"),
         py::arg("patch_size"), py::arg("pretrain_dims"), py::arg("target_dim"), py::arg("mode"),
         py::kw_only());
  module.def("aggregate_patches_scratch", &aggregate_patches_scratch, py::arg("shapes"),
             py::arg("patch_size"), py::arg("pretrain_dims"), py::arg("target_dim"), py::arg("mode"));
}

}  // namespace ensemblead::bindings
