#include "nearest.hpp"

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/work.hpp"
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

// Places and radii beyond this might overflow when they are added up.
constexpr std::int64_t kFarthest = std::int64_t{1} << 16;

void check_range(const std::int64_t* values, std::int64_t size, const char* argument) {
  for (std::int64_t i = 0; i < size; ++i)
    if (values[i] < 0 || values[i] > kFarthest)
      throw ValueError(std::string(argument) + " must be numbers of 0 to 65536, got " +
                       std::to_string(values[i]));
}

void check_ascending(const std::int64_t* places, std::int64_t count) {
  for (std::int64_t i = 1; i < count; ++i) {
    const std::int64_t* a = places + 2 * (i - 1);
    const std::int64_t* b = places + 2 * i;
    if (b[0] < a[0] || (b[0] == a[0] && b[1] < a[1]))
      throw ValueError("row_places must ascend, got (" + std::to_string(a[0]) + ", " + std::to_string(a[1]) +
                       ") before (" + std::to_string(b[0]) + ", " + std::to_string(b[1]) + ")");
  }
}

void check_rows(const Array& rows, const Array& middle) {
  check_input(rows, "rows", 2, "[N, D]", {DType::kFloat32, DType::kFloat16});
  check_on_cpu(rows, "rows");
  check_floats(middle, "middle", 1, "[D]");
  check_shape(middle, "middle", {rows.shape[1]});
}

// Sums of products of codes stay within 32 bits.
constexpr std::int64_t kMostDims = std::int64_t{1} << 17;

void check_sizes(std::int64_t dims, std::int64_t num_directions) {
  if (num_directions < 0 || num_directions > dims)
    throw ValueError("directions must be between 0 and the " + std::to_string(dims) + " dimensions, got " +
                     std::to_string(num_directions));
  if (dims > kMostDims)
    throw ValueError("rows must have at most " + std::to_string(kMostDims) + " dimensions, got " +
                     std::to_string(dims));
}

std::int64_t packed_size(std::int64_t num_rows, std::int64_t dims, std::int64_t num_directions) {
  check_sizes(dims, num_directions);
  return cpu::packed_size({nullptr, nullptr, num_rows, dims, nullptr, num_directions, nullptr});
}

// Without directions; checked before.
SketchedRows to_rows(const Array& rows, const Array& middle) {
  SketchedRows result;
  if (rows.dtype == DType::kFloat16) {
    result.halves = rows.as<const Float16>();
  } else {
    result.rows = rows.as<const float>();
  }
  result.num_rows = rows.shape[0];
  result.dims = rows.shape[1];
  result.middle = middle.as<const float>();
  return result;
}

SketchedRows to_sketched_rows(const Array& rows, const Array& middle, std::int64_t num_directions) {
  check_rows(rows, middle);
  check_sizes(rows.shape[1], num_directions);
  SketchedRows result = to_rows(rows, middle);
  result.num_directions = num_directions;
  return result;
}

// `directions` may be None: there are none.
void pack_rows(const py::object& rows, const py::object& middle, const py::object& directions,
               const py::object& packed, int num_threads, std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed_rows(rows, "rows");
  const Borrowed borrowed_middle(middle, "middle");
  std::optional<Borrowed> borrowed_directions;
  const Borrowed borrowed_packed(packed, "packed");
  const Array& x = borrowed_rows.array();
  PackTask task;
  std::int64_t num_directions = 0;
  if (!directions.is_none()) {
    borrowed_directions.emplace(directions, "directions");
    const Array& axes = borrowed_directions->array();
    check_floats(axes, "directions", 2, "[P, D]");
    check_rows(x, borrowed_middle.array());
    check_shape(axes, "directions", {axes.shape[0], x.shape[1]});
    num_directions = axes.shape[0];
    task.directions = axes.as<const float>();
  }
  task.rows = to_sketched_rows(x, borrowed_middle.array(), num_directions);
  check_on_cpu(borrowed_packed.array(), "packed");
  check_output(borrowed_packed.array(), "packed", DType::kFloat32, {cpu::packed_size(task.rows)});
  task.packed = borrowed_packed.array().as<float>();
  const Twins<PackTask, void> twins{cpu::pack_rows, nullptr};
  run(twins, task, {x, "rows"}, {num_threads, stream, scratch});
}

// The conditions that leave rows out, while they are borrowed; each of them may be None.
class BorrowedLeftOut {
 public:
  BorrowedLeftOut(const py::object& row_images, const py::object& query_images, const py::object& row_places,
                  const py::object& query_places, const py::object& query_radii) {
    if (!row_images.is_none()) {
      row_images_.emplace(row_images, "row_images");
      query_images_.emplace(query_images, "query_images");
    }
    if (!row_places.is_none()) {
      row_places_.emplace(row_places, "row_places");
      query_places_.emplace(query_places, "query_places");
      query_radii_.emplace(query_radii, "query_radii");
    }
  }

  LeftOut get(std::int64_t rows, std::int64_t queries) const {
    LeftOut result;
    if (row_images_) {
      result.row_images = numbers(row_images_->array(), "row_images", "[N]", {rows});
      result.query_images = numbers(query_images_->array(), "query_images", "[Q]", {queries});
    }
    if (row_places_) {
      result.row_places = numbers(row_places_->array(), "row_places", "[N, 2]", {rows, 2});
      result.query_places = numbers(query_places_->array(), "query_places", "[Q, 2]", {queries, 2});
      result.query_radii = numbers(query_radii_->array(), "query_radii", "[Q]", {queries});
      check_range(result.row_places, 2 * rows, "row_places");
      check_range(result.query_places, 2 * queries, "query_places");
      check_range(result.query_radii, queries, "query_radii");
      check_ascending(result.row_places, rows);
    }
    return result;
  }

 private:
  static const std::int64_t* numbers(const Array& array, const char* argument, const char* layout,
                                     const Shape& shape) {
    check_input(array, argument, static_cast<int>(shape.size()), layout, {DType::kInt64});
    check_on_cpu(array, argument);
    check_shape(array, argument, shape);
    return array.as<const std::int64_t>();
  }

  std::optional<Borrowed> row_images_;
  std::optional<Borrowed> query_images_;
  std::optional<Borrowed> row_places_;
  std::optional<Borrowed> query_places_;
  std::optional<Borrowed> query_radii_;
};

// The queries and outputs of a search among rows.
void check_search(const Array& queries, const Array& rows, const Array& values, const char* argument,
                  const Array& indices) {
  check_floats(queries, "queries", 2, "[Q, D]");
  check_shape(queries, "queries", {queries.shape[0], rows.shape[1]});
  check_rank(values, argument, 2, "[Q, k]");
  const std::int64_t k = values.shape[1];
  if (k < 1 || k > rows.shape[0])
    throw ValueError("k must be between 1 and the " + std::to_string(rows.shape[0]) + " rows, got " +
                     std::to_string(k));
  check_output(values, argument, DType::kFloat32, {queries.shape[0], k});
  check_on_cpu(values, argument);
  check_output(indices, "indices", DType::kInt64, {queries.shape[0], k});
  check_on_cpu(indices, "indices");
}

std::int64_t nearest_rows(const py::object& queries, const py::object& rows, const py::object& middle,
                          const py::object& packed, std::int64_t num_directions, const py::object& distances,
                          const py::object& indices, const py::object& row_images,
                          const py::object& query_images, const py::object& row_places,
                          const py::object& query_places, const py::object& query_radii, int num_threads,
                          std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed_queries(queries, "queries");
  const Borrowed borrowed_rows(rows, "rows");
  const Borrowed borrowed_middle(middle, "middle");
  const Borrowed borrowed_packed(packed, "packed");
  const Borrowed borrowed_distances(distances, "distances");
  const Borrowed borrowed_indices(indices, "indices");
  const Array& q = borrowed_queries.array();
  const Array& x = borrowed_rows.array();
  NearestTask task;
  task.rows = to_sketched_rows(x, borrowed_middle.array(), num_directions);
  check_floats(borrowed_packed.array(), "packed", 1, "[size]");
  check_shape(borrowed_packed.array(), "packed", {cpu::packed_size(task.rows)});
  task.rows.packed = borrowed_packed.array().as<const float>();
  check_search(q, x, borrowed_distances.array(), "distances", borrowed_indices.array());
  task.queries = q.as<const float>();
  task.num_queries = q.shape[0];
  task.k = borrowed_distances.array().shape[1];
  task.distances = borrowed_distances.array().as<float>();
  task.indices = borrowed_indices.array().as<std::int64_t>();
  const BorrowedLeftOut left_out(row_images, query_images, row_places, query_places, query_radii);
  task.left_out = left_out.get(x.shape[0], task.num_queries);
  const Twins<NearestTask, std::int64_t> twins{cpu::nearest_rows, nullptr};
  return run(twins, task, {q, "queries"}, {num_threads, stream, scratch});
}

void nearest_by_products(const py::object& queries, const py::object& rows, const py::object& middle,
                         const py::object& squares, const py::object& values, const py::object& indices,
                         const py::object& row_images, const py::object& query_images,
                         const py::object& row_places, const py::object& query_places,
                         const py::object& query_radii, int num_threads, std::intptr_t stream,
                         const py::object& scratch) {
  const Borrowed borrowed_queries(queries, "queries");
  const Borrowed borrowed_rows(rows, "rows");
  const Borrowed borrowed_middle(middle, "middle");
  const Borrowed borrowed_squares(squares, "squares");
  const Borrowed borrowed_values(values, "values");
  const Borrowed borrowed_indices(indices, "indices");
  const Array& q = borrowed_queries.array();
  const Array& x = borrowed_rows.array();
  check_rows(x, borrowed_middle.array());
  check_floats(borrowed_squares.array(), "squares", 1, "[N]");
  check_shape(borrowed_squares.array(), "squares", {x.shape[0]});
  check_search(q, x, borrowed_values.array(), "values", borrowed_indices.array());
  ProductsTask task;
  task.rows = to_rows(x, borrowed_middle.array());
  task.squares = borrowed_squares.array().as<const float>();
  task.queries = q.as<const float>();
  task.num_queries = q.shape[0];
  task.k = borrowed_values.array().shape[1];
  task.values = borrowed_values.array().as<float>();
  task.indices = borrowed_indices.array().as<std::int64_t>();
  const BorrowedLeftOut left_out(row_images, query_images, row_places, query_places, query_radii);
  task.left_out = left_out.get(x.shape[0], task.num_queries);
  const Twins<ProductsTask, void> twins{cpu::nearest_by_products, nullptr};
  run(twins, task, {q, "queries"}, {num_threads, stream, scratch});
}

}  // namespace

void bind_nearest(py::module_& module) {
  module.def("packed_size", &packed_size, py::arg("num_rows"), py::arg("dims"), py::arg("num_directions"));
  define(module, "pack_rows", &pack_rows, py::arg("rows"), py::arg("middle"), py::arg("directions"),
         py::arg("packed"), py::kw_only());
  define(module, "nearest_rows", &nearest_rows, py::arg("queries"), py::arg("rows"), py::arg("middle"),
         py::arg("packed"), py::arg("num_directions"), py::kw_only(), py::arg("distances"),
         py::arg("indices"), py::arg("row_images"), py::arg("query_images"), py::arg("row_places"),
         py::arg("query_places"), py::arg("query_radii"));
  define(module, "nearest_by_products", &nearest_by_products, py::arg("queries"), py::arg("rows"),
         py::arg("middle"), py::arg("squares"), py::kw_only(), py::arg("values"), py::arg("indices"),
         py::arg("row_images"), py::arg("query_images"), py::arg("row_places"), py::arg("query_places"),
         py::arg("query_radii"));
}

}  // namespace ensemblead::bindings
