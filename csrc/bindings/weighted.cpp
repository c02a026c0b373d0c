#include "weighted.hpp"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/work.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

// What is None, or one of the arrays that not every call has.
class MaybeBorrowed {
 public:
  // Its array, of this dtype and shape and on the device of the blocks; null for None.
  template <class T>
  const T* take(const py::object& object, const char* argument, DType dtype, const Shape& shape,
                const Array& first) {
    if (object.is_none()) return nullptr;
    const Array& array = borrowed_.emplace(object, argument).array();
    check_input(array, argument, static_cast<int>(shape.size()), name(shape).c_str(), {dtype});
    check_shape(array, argument, shape);
    check_same_device(array, argument, first, "blocks[0]");
    return array.as<const T>();
  }

 private:
  std::optional<Borrowed> borrowed_;
};

void check_extents(const WeightedTask& task) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const auto blocks = static_cast<std::int64_t>(task.blocks.size());
  if (blocks > kMostBlocks)
    throw ValueError("blocks must be at most " + std::to_string(kMostBlocks) + ", got " +
                     std::to_string(blocks));
  if (task.num_columns >= kLimit)
    throw ValueError("blocks must have below 2147483648 columns, got " + std::to_string(task.num_columns));
  if (task.k < 1 || task.k > task.num_columns)
    throw ValueError("k must be between 1 and the " + std::to_string(task.num_columns) + " columns, got " +
                     std::to_string(task.k));
}

void weighted_top_k(const py::sequence& blocks, const py::object& weights, const py::object& values,
                    const py::object& indices, const py::object& scales, const py::object& left_out_column,
                    const py::object& left_out, int num_threads, std::intptr_t stream,
                    const py::object& scratch) {
  if (py::len(blocks) == 0) throw ValueError("blocks is empty; pass one block of similarities per network");
  std::vector<Borrowed> borrowed;
  WeightedTask task;
  for (std::size_t b = 0; b < py::len(blocks); ++b) {
    const std::string argument = "blocks[" + std::to_string(b) + "]";
    borrowed.emplace_back(py::object(blocks[b]), argument.c_str());
    const Array& block = borrowed.back().array();
    check_input(block, argument.c_str(), 2, "[Q, N]", {DType::kFloat32});
    check_shape(block, argument.c_str(), borrowed.front().array().shape);
    check_same_device(block, argument.c_str(), borrowed.front().array(), "blocks[0]");
    task.blocks.push_back(block.as<const float>());
  }
  const Array& first = borrowed.front().array();
  const auto count = static_cast<std::int64_t>(task.blocks.size());
  task.num_queries = first.shape[0];
  task.num_columns = first.shape[1];
  const Borrowed borrowed_weights(weights, "weights");
  const Array& w = borrowed_weights.array();
  check_input(w, "weights", 2, "[W, K]", {DType::kFloat32});
  check_shape(w, "weights", {w.shape[0], count});
  check_same_device(w, "weights", first, "blocks[0]");
  task.weights = w.as<const float>();
  task.num_combinations = w.shape[0];
  const Borrowed borrowed_values(values, "values");
  const Borrowed borrowed_indices(indices, "indices");
  check_rank(borrowed_values.array(), "values", 3, "[W, Q, k]");
  task.k = borrowed_values.array().shape[2];
  check_extents(task);
  const Shape shape{task.num_combinations, task.num_queries, task.k};
  check_output(borrowed_values.array(), "values", DType::kFloat32, shape);
  check_same_device(borrowed_values.array(), "values", first, "blocks[0]");
  check_output(borrowed_indices.array(), "indices", DType::kInt64, shape);
  check_same_device(borrowed_indices.array(), "indices", first, "blocks[0]");
  task.values = borrowed_values.array().as<float>();
  task.indices = borrowed_indices.array().as<std::int64_t>();
  MaybeBorrowed borrowed_scales;
  MaybeBorrowed borrowed_column;
  MaybeBorrowed borrowed_mask;
  task.scales = borrowed_scales.take<float>(scales, "scales", DType::kFloat32,
                                            {task.num_combinations, task.num_columns}, first);
  task.left_out_column = borrowed_column.take<std::int64_t>(left_out_column, "exclude", DType::kInt64,
                                                            {task.num_queries}, first);
  task.left_out = borrowed_mask.take<std::uint8_t>(left_out, "exclude", DType::kUInt8, first.shape, first);
  const Twins<WeightedTask, void> twins{cpu::weighted_top_k, cuda::weighted_top_k,
                                        cuda::weighted_top_k_scratch};
  run(twins, task, {first, "blocks[0]"}, {num_threads, stream, scratch});
}

// Bytes of scratch that weighted_top_k needs on a CUDA device.
std::size_t weighted_top_k_scratch(std::int64_t num_combinations, std::int64_t num_queries, std::int64_t k) {
  WeightedTask task;
  task.num_combinations = num_combinations;
  task.num_queries = num_queries;
  task.k = k;
  return cuda::weighted_top_k_scratch(task);
}

}  // namespace

void bind_weighted(py::module_& module) {
  define(module, "weighted_top_k", &weighted_top_k, py::arg("blocks"), py::arg("weights"), py::arg("values"),
         py::arg("indices"), py::kw_only(), py::arg("scales") = py::none(),
         py::arg("left_out_column") = py::none(), py::arg("left_out") = py::none());
  module.def("weighted_top_k_scratch", &weighted_top_k_scratch, py::arg("num_combinations"),
             py::arg("num_queries"), py::arg("k"));
}

}  // namespace ensemblead::bindings
