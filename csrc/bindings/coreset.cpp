#include "coreset.hpp"

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/progress.hpp"
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

// The caller's memory for a kernel to work in: uint8 [B] where the features are, at least `needed` long.
class Scratch {
 public:
  Scratch(const py::object& memory, const Array& features, const char* argument, std::int64_t stream) {
    if (memory.is_none())
      throw ValueError(std::string(argument) + " is on " + name(features.device) +
                       ", where scratch is needed");
    const Array& array = borrowed_.emplace(memory, "scratch").array();
    check_rank(array, "scratch", 1, "[B]");
    check_output(array, "scratch", DType::kUInt8, array.shape);
    check_same_device(array, "scratch", features, argument);
    work_ = {features.device.index, static_cast<std::intptr_t>(stream), array.data,
             static_cast<std::size_t>(array.size())};
  }
  // The memory, once its size is known to do.
  const cuda::CudaWork& of(std::size_t needed) const {
    if (work_.scratch_bytes < needed)
      throw ValueError("scratch must have " + std::to_string(needed) + " bytes, got " +
                       std::to_string(work_.scratch_bytes));
    return work_;
  }

 private:
  std::optional<Borrowed> borrowed_;
  cuda::CudaWork work_;
};

py::tuple select_coreset(const py::object& features, const py::object& picks, const std::string& start,
                         const py::object& start_rows, const py::object& bank, double radius, int num_threads,
                         bool plain, const py::object& progress, const py::object& scratch,
                         std::int64_t stream, std::int64_t num_candidates) {
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

  CoresetOptions options;
  options.size = borrowed_picks.array().size();
  options.radius = radius;
  options.num_threads = num_threads;
  options.plain = plain;
  options.num_candidates = num_candidates;
  options.progress = make_progress(progress);
  if (!bank.is_none()) {
    const Array& rows = borrowed_bank.emplace(bank, kBank).array();
    check_input(rows, kBank, 2, "[K, D]", {DType::kFloat32});
    check_same_device(rows, kBank, x, kFeatures);
    check_shape(rows, kBank, {rows.shape[0], x.shape[1]});
    options.start = CoresetStart::kBank;
    options.bank = rows.as<const float>();
    options.bank_rows = rows.shape[0];
  } else {
    options.start = parse_start(start);
    check_not_empty(borrowed_starts.array(), "start_indices");
    check_rows_in_range(borrowed_starts.array(), "start_indices", x.shape[0]);
    options.start_rows = borrowed_starts.array().as<const std::int64_t>();
    options.num_start_rows = borrowed_starts.array().size();
  }
  CoresetStatistics statistics;
  std::int64_t count = 0;
  const auto* rows = x.as<const float>();
  auto* found = borrowed_picks.array().as<std::int64_t>();
  if (x.device.kind == DeviceKind::kCpu) {
    const py::gil_scoped_release release;
    count = cpu::select_coreset(rows, x.shape[0], x.shape[1], options, found, &statistics);
  } else {
    const std::size_t needed = cuda::coreset_scratch(x.shape[0], x.shape[1], num_candidates);
    const Scratch memory(scratch, x, kFeatures, stream);
    const cuda::CudaWork& work = memory.of(needed);
    const py::gil_scoped_release release;
    count = cuda::select_coreset(rows, x.shape[0], x.shape[1], options, work, found, &statistics);
  }
  py::dict figures;
  figures["blocks"] = statistics.blocks;
  figures["product_pairs"] = statistics.product_pairs;
  figures["direct_pairs"] = statistics.direct_pairs;
  return py::make_tuple(count, figures);
}

void project_rows(const py::object& features, const py::object& projection, const py::object& projected,
                  int num_threads, const std::string& argument, const py::object& scratch,
                  std::int64_t stream) {
  const char* name = argument.c_str();  // what errors call `features`
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
  const Array& result = borrowed_projected.array();
  if (x.device.kind != DeviceKind::kCpu) {
    const std::size_t needed = cuda::project_scratch();
    const Scratch memory(scratch, x, name, stream);
    const cuda::CudaWork& work = memory.of(needed);
    const py::gil_scoped_release release;
    return cuda::project_rows(x.as<const float>(), x.shape[0], x.shape[1], map.as<const float>(),
                              map.shape[0], name, work, result.as<float>());
  }
  const py::gil_scoped_release release;
  cpu::check_finite(x.as<const float>(), x.shape[0], x.shape[1], name, num_threads);
  cpu::check_finite(map.as<const float>(), map.shape[0], map.shape[1], "projection", num_threads);
  cpu::project_rows(x.as<const float>(), x.shape[0], x.shape[1], map.as<const float>(), map.shape[0],
                    num_threads, result.as<float>());
  cpu::check_finite(result.as<const float>(), x.shape[0], map.shape[0], "the projection of features",
                    num_threads);
}

}  // namespace

void bind_coreset(py::module_& module) {
  module.def("select_coreset", &select_coreset, py::arg("features"), py::arg("picks"), py::kw_only(),
             py::arg("start"), py::arg("start_rows"), py::arg("bank"), py::arg("radius"),
             py::arg("num_threads"), py::arg("plain"), py::arg("progress"), py::arg("scratch") = py::none(),
             py::arg("stream") = 0, py::arg("num_candidates") = 0);
  module.def("project_rows", &project_rows, py::arg("features"), py::arg("projection"), py::arg("projected"),
             py::kw_only(), py::arg("num_threads"), py::arg("argument") = kFeatures,
             py::arg("scratch") = py::none(), py::arg("stream") = 0);
  module.def("coreset_scratch", &cuda::coreset_scratch, py::arg("rows"), py::arg("dims"),
             py::arg("num_candidates") = 0);
  module.def("project_scratch", &cuda::project_scratch);
}

}  // namespace ensemblead::bindings
