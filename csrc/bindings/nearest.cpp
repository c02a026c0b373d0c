#include "nearest.hpp"

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

void check_on_cpu(const Array& array, const char* argument) {
  if (array.device.kind != DeviceKind::kCpu)
    throw ValueError(std::string(argument) + " must be on the CPU, got " + name(array.device));
}

void check_floats(const Array& array, const char* argument, int rank, const char* layout) {
  check_input(array, argument, rank, layout, {DType::kFloat32});
  check_on_cpu(array, argument);
}

void check_images(const Array& images, const char* argument, std::int64_t size) {
  check_input(images, argument, 1, "[N]", {DType::kInt64});
  check_on_cpu(images, argument);
  check_shape(images, argument, {size});
}

void check_rows(const Array& rows, const Array& middle) {
  check_floats(rows, "rows", 2, "[N, D]");
  check_floats(middle, "middle", 1, "[D]");
  check_shape(middle, "middle", {rows.shape[1]});
}

void check_front(std::int64_t num_front, std::int64_t num_directions) {
  if (num_front < 1 || num_front > num_directions)
    throw ValueError("num_front must be between 1 and the " + std::to_string(num_directions) +
                     " directions, got " + std::to_string(num_front));
}

std::int64_t packed_size(std::int64_t num_rows, std::int64_t dims, std::int64_t num_directions,
                         std::int64_t num_front) {
  check_front(num_front, num_directions);
  return cpu::packed_size(num_rows, dims, num_directions, num_front);
}

void pack_rows(const py::object& rows, const py::object& middle, const py::object& directions,
               const py::object& packed, std::int64_t num_front, int num_threads) {
  const Borrowed borrowed_rows(rows, "rows");
  const Borrowed borrowed_middle(middle, "middle");
  const Borrowed borrowed_directions(directions, "directions");
  const Borrowed borrowed_packed(packed, "packed");
  const Array& x = borrowed_rows.array();
  const Array& axes = borrowed_directions.array();
  check_rows(x, borrowed_middle.array());
  check_floats(axes, "directions", 2, "[P, D]");
  check_shape(axes, "directions", {axes.shape[0], x.shape[1]});
  check_on_cpu(borrowed_packed.array(), "packed");
  check_front(num_front, axes.shape[0]);
  check_output(borrowed_packed.array(), "packed", DType::kFloat32,
               {cpu::packed_size(x.shape[0], x.shape[1], axes.shape[0], num_front)});
  const SketchedRows task{
      x.as<const float>(), x.shape[0], x.shape[1], borrowed_middle.array().as<const float>(),
      axes.shape[0],       num_front,  nullptr};
  const py::gil_scoped_release release;
  cpu::pack_rows(task, axes.as<const float>(), num_threads, borrowed_packed.array().as<float>());
}

SketchedRows to_sketched_rows(const Array& rows, const Array& middle, const Array& packed,
                              std::int64_t num_directions, std::int64_t num_front) {
  check_rows(rows, middle);
  check_front(num_front, num_directions);
  check_floats(packed, "packed", 1, "[size]");
  check_shape(packed, "packed", {cpu::packed_size(rows.shape[0], rows.shape[1], num_directions, num_front)});
  return {rows.as<const float>(), rows.shape[0], rows.shape[1],           middle.as<const float>(),
          num_directions,         num_front,     packed.as<const float>()};
}

std::int64_t nearest_rows(const py::object& queries, const py::object& rows, const py::object& middle,
                          const py::object& packed, std::int64_t num_directions, std::int64_t num_front,
                          const py::object& distances, const py::object& indices,
                          const py::object& row_images, const py::object& query_images, int num_threads) {
  const Borrowed borrowed_queries(queries, "queries");
  const Borrowed borrowed_rows(rows, "rows");
  const Borrowed borrowed_middle(middle, "middle");
  const Borrowed borrowed_packed(packed, "packed");
  const Borrowed borrowed_distances(distances, "distances");
  const Borrowed borrowed_indices(indices, "indices");
  const Array& q = borrowed_queries.array();
  const Array& x = borrowed_rows.array();
  const SketchedRows sketched =
      to_sketched_rows(x, borrowed_middle.array(), borrowed_packed.array(), num_directions, num_front);
  check_floats(q, "queries", 2, "[Q, D]");
  check_shape(q, "queries", {q.shape[0], x.shape[1]});
  check_rank(borrowed_distances.array(), "distances", 2, "[Q, k]");
  const std::int64_t k = borrowed_distances.array().shape[1];
  if (k < 1 || k > x.shape[0])
    throw ValueError("k must be between 1 and the " + std::to_string(x.shape[0]) + " rows, got " +
                     std::to_string(k));
  check_output(borrowed_distances.array(), "distances", DType::kFloat32, {q.shape[0], k});
  check_on_cpu(borrowed_distances.array(), "distances");
  check_output(borrowed_indices.array(), "indices", DType::kInt64, {q.shape[0], k});
  check_on_cpu(borrowed_indices.array(), "indices");
  std::optional<Borrowed> of_rows;
  std::optional<Borrowed> of_queries;
  NearestQueries task{q.as<const float>(), q.shape[0], k, nullptr, nullptr};
  if (!row_images.is_none()) {
    const Array& images = of_rows.emplace(row_images, "row_images").array();
    const Array& own = of_queries.emplace(query_images, "query_images").array();
    check_images(images, "row_images", x.shape[0]);
    check_images(own, "query_images", q.shape[0]);
    task.row_images = images.as<const std::int64_t>();
    task.query_images = own.as<const std::int64_t>();
  }
  const py::gil_scoped_release release;
  return cpu::nearest_rows(sketched, task, num_threads, borrowed_distances.array().as<float>(),
                           borrowed_indices.array().as<std::int64_t>());
}

}  // namespace

void bind_nearest(py::module_& module) {
  module.def("packed_size", &packed_size, py::arg("num_rows"), py::arg("dims"), py::arg("num_directions"),
             py::arg("num_front"));
  module.def("pack_rows", &pack_rows, py::arg("rows"), py::arg("middle"), py::arg("directions"),
             py::arg("packed"), py::arg("num_front"), py::arg("num_threads"));
  module.def("nearest_rows", &nearest_rows, py::arg("queries"), py::arg("rows"), py::arg("middle"),
             py::arg("packed"), py::arg("num_directions"), py::arg("num_front"), py::kw_only(),
             py::arg("distances"), py::arg("indices"), py::arg("row_images"), py::arg("query_images"),
             py::arg("num_threads"));
}

}  // namespace ensemblead::bindings
