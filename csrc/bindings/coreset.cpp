#include "coreset.hpp"

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/progress.hpp"
#include "bindings/work.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

constexpr const char* kFeatures = "features";
constexpr const char* kBank = "bank";

CoresetStart parse_start(const std::string& start) {
  if (start == "mean") return CoresetStart::kMean;
  if (start == "row") return CoresetStart::kRow;
  throw ValueError("start must be \"mean\" or \"row\", got \"" + start + "\"");
}

void check_rows_in_range(const Array& indices, const char* argument, std::int64_t rows) {
  const auto* values = indices.as<std::int64_t>();
  for (std::int64_t i = 0; i < indices.size(); ++i) {
    if (values[i] < 0 || values[i] >= rows)
      throw ValueError(std::string(argument) + " must lie in [0, " + std::to_string(rows) + "), got " +
                       std::to_string(values[i]));
  }
}

py::tuple select_coreset(const py::object& features, const py::object& picks, const std::string& start,
                         const py::object& start_rows, const py::object& bank, double radius, bool plain,
                         const py::object& progress, std::int64_t num_candidates, int num_threads,
                         std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed_features(features, kFeatures);
  const Borrowed borrowed_picks(picks, "picks");
  const Borrowed borrowed_starts(start_rows, "start_indices");
  std::optional<Borrowed> borrowed_bank;
  const Array& x = borrowed_features.array();
  check_input(x, kFeatures, 2, "[N, D]", {DType::kFloat32});
  check_rank(borrowed_picks.array(), "picks", 1, "[M]");
  check_output(borrowed_picks.array(), "picks", DType::kInt64, borrowed_picks.array().shape);
  check_same_device(borrowed_picks.array(), "picks", x, kFeatures);
  check_rank(borrowed_starts.array(), "start_indices", 1, "[S]");
  check_dtype(borrowed_starts.array(), "start_indices", {DType::kInt64});
  if (borrowed_starts.array().device.kind != DeviceKind::kCpu)
    throw ValueError("start_indices must be on the CPU, got " + name(borrowed_starts.array().device));
  check_contiguous(borrowed_starts.array(), "start_indices");

  CoresetTask task;
  task.features = x.as<const float>();
  task.rows = x.shape[0];
  task.dims = x.shape[1];
  task.size = borrowed_picks.array().size();
  task.picks = borrowed_picks.array().as<std::int64_t>();
  task.radius = radius;
  task.plain = plain;
  task.num_candidates = num_candidates;
  task.progress = make_progress(progress);
  if (!bank.is_none()) {
    const Array& rows = borrowed_bank.emplace(bank, kBank).array();
    check_input(rows, kBank, 2, "[K, D]", {DType::kFloat32});
    check_same_device(rows, kBank, x, kFeatures);
    check_shape(rows, kBank, {rows.shape[0], x.shape[1]});
    task.start = CoresetStart::kBank;
    task.bank = rows.as<const float>();
    task.bank_rows = rows.shape[0];
  } else {
    task.start = parse_start(start);
    check_not_empty(borrowed_starts.array(), "start_indices");
    check_rows_in_range(borrowed_starts.array(), "start_indices", x.shape[0]);
    task.start_rows = borrowed_starts.array().as<const std::int64_t>();
    task.num_start_rows = borrowed_starts.array().size();
  }
  const Twins<CoresetTask, CoresetResult> twins{cpu::select_coreset, cuda::select_coreset,
                                                cuda::select_coreset_scratch};
  const CoresetResult result = run(twins, task, {x, kFeatures}, {num_threads, stream, scratch});
  py::dict figures;
  figures["blocks"] = result.blocks;
  figures["product_pairs"] = result.product_pairs;
  figures["direct_pairs"] = result.direct_pairs;
  return py::make_tuple(result.count, figures);
}

// Bytes of scratch that select_coreset needs on a CUDA device.
std::size_t select_coreset_scratch(std::int64_t rows, std::int64_t dims, std::int64_t num_candidates) {
  CoresetTask task;
  task.rows = rows;
  task.dims = dims;
  task.num_candidates = num_candidates;
  return cuda::select_coreset_scratch(task);
}

void project_rows(const py::object& features, const py::object& projection, const py::object& projected,
                  const std::string& argument, int num_threads, std::intptr_t stream,
                  const py::object& scratch) {
  const char* name = argument.c_str();  // of `features` in errors
  const Borrowed borrowed_features(features, name);
  const Borrowed borrowed_projection(projection, "projection");
  const Borrowed borrowed_projected(projected, "projected");
  const Array& x = borrowed_features.array();
  const Array& map = borrowed_projection.array();
  check_input(x, name, 2, "[N, D]", {DType::kFloat32});
  check_input(map, "projection", 2, "[P, D]", {DType::kFloat32});
  check_same_device(map, "projection", x, name);
  check_shape(map, "projection", {map.shape[0], x.shape[1]});
  check_output(borrowed_projected.array(), "projected", DType::kFloat32, {x.shape[0], map.shape[0]});
  check_same_device(borrowed_projected.array(), "projected", x, name);
  const ProjectTask task{x.as<const float>(),
                         x.shape[0],
                         x.shape[1],
                         map.as<const float>(),
                         map.shape[0],
                         borrowed_projected.array().as<float>(),
                         name};
  const Twins<ProjectTask, void> twins{cpu::project_rows, cuda::project_rows, cuda::project_rows_scratch};
  run(twins, task, {x, name}, {num_threads, stream, scratch});
}

// Bytes of scratch that project_rows needs on a CUDA device.
std::size_t project_rows_scratch() { return cuda::project_rows_scratch({}); }

}  // namespace

void bind_coreset(py::module_& module) {
  define(module, "select_coreset", &select_coreset, py::arg("features"), py::arg("picks"), py::kw_only(),
         py::arg("start"), py::arg("start_rows"), py::arg("bank"), py::arg("radius"), py::arg("plain"),
         py::arg("progress"), py::arg("num_candidates") = 0);
  module.def("select_coreset_scratch", &select_coreset_scratch, py::arg("rows"), py::arg("dims"),
             py::arg("num_candidates") = 0);
  define(module, "project_rows", &project_rows, py::arg("features"), py::arg("projection"),
         py::arg("projected"), py::kw_only(), py::arg("argument") = kFeatures);
  module.def("project_rows_scratch", &project_rows_scratch);
}

}  // namespace ensemblead::bindings
