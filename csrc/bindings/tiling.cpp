#include "tiling.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/work.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;

Size2 size_of(Pair pair) { return {pair.first, pair.second}; }
Size2 last_two(const Shape& shape) { return {shape[shape.size() - 2], shape[shape.size() - 1]}; }

TileEdge parse_edge(const std::string& edge) {
  if (edge == "pad") return TileEdge::kPad;
  if (edge == "flush") return TileEdge::kFlush;
  throw ValueError("edge must be \"pad\" or \"flush\", got \"" + edge + "\"");
}

Pair tile_grid(Pair image_size, Pair tile_size, Pair stride) {
  const TileGrid grid = make_tile_grid(size_of(image_size), size_of(tile_size), size_of(stride));
  return {grid.rows.count, grid.cols.count};
}

// The shape of the tiles of `images` ([B, C, ...]) under `grid`.
Shape tiles_shape(const Shape& images, const TileGrid& grid) {
  return {grid.rows.count, grid.cols.count, images[0], images[1], grid.rows.tile, grid.cols.tile};
}

void tile(const py::object& images, const py::object& tiles, Pair tile_size, Pair stride,
          const std::string& edge, int num_threads, std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed(images, "images");
  const Borrowed borrowed_out(tiles, "tiles");
  TileTask task{borrowed.array(), borrowed_out.array(), {}};
  check_input(task.images, "images", 4, "[B, C, H, W]",
              {DType::kUInt8, DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64});
  task.grid =
      make_tile_grid(last_two(task.images.shape), size_of(tile_size), size_of(stride), parse_edge(edge));
  check_output(task.tiles, "tiles", task.images.dtype, tiles_shape(task.images.shape, task.grid));
  check_same_device(task.tiles, "tiles", task.images, "images");
  const Twins<TileTask, void> twins{cpu::tile, cuda::tile};
  run(twins, task, {task.images, "images"}, {num_threads, stream, scratch});
}

void untile(const py::object& tiles, const py::object& images, Pair stride, const std::string& edge,
            int num_threads, std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed(tiles, "tiles");
  const Borrowed borrowed_out(images, "images");
  UntileTask task{borrowed.array(), borrowed_out.array(), {}};
  check_input(task.tiles, "tiles", 6, "[rows, cols, B, C, h, w]",
              {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64});
  check_rank(task.images, "images", 4, "[B, C, H, W]");
  check_output(task.images, "images", task.tiles.dtype, task.images.shape);
  task.grid = make_tile_grid(last_two(task.images.shape), last_two(task.tiles.shape), size_of(stride),
                             parse_edge(edge));
  check_shape(task.tiles, "tiles", tiles_shape(task.images.shape, task.grid));
  check_same_device(task.images, "images", task.tiles, "tiles");
  const Twins<UntileTask, void> twins{cpu::untile, cuda::untile};
  run(twins, task, {task.tiles, "tiles"}, {num_threads, stream, scratch});
}

void smooth_seams(const py::object& maps, const py::object& smoothed, Pair tile_size, Pair stride,
                  double sigma, double width, const std::string& edge, int num_threads, std::intptr_t stream,
                  const py::object& scratch) {
  const Borrowed borrowed(maps, "maps");
  const Borrowed borrowed_out(smoothed, "smoothed");
  SmoothTask task{borrowed.array(), borrowed_out.array(), {}, sigma, width};
  if (task.maps.rank() < 2) throw ValueError("maps must be [..., H, W], got shape " + name(task.maps.shape));
  check_input(task.maps, "maps", task.maps.rank(), "[..., H, W]",
              {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64});
  check_output(task.smoothed, "smoothed", task.maps.dtype, task.maps.shape);
  check_same_device(task.smoothed, "smoothed", task.maps, "maps");
  check_seam_parameters(sigma, width);
  task.grid =
      make_tile_grid(last_two(task.maps.shape), size_of(tile_size), size_of(stride), parse_edge(edge));
  const Twins<SmoothTask, void> twins{cpu::smooth_seams, cuda::smooth_seams, cuda::smooth_seams_scratch};
  run(twins, task, {task.maps, "maps"}, {num_threads, stream, scratch});
}

// Bytes of scratch that smooth_seams needs on a CUDA device.
std::size_t smooth_seams_scratch(const Shape& maps, const std::string& dtype, double sigma) {
  check_seam_parameters(sigma, 0.0);
  SmoothTask task;
  task.maps.shape = maps;
  task.maps.dtype = dtype == "float64" ? DType::kFloat64 : DType::kFloat32;
  task.sigma = sigma;
  return cuda::smooth_seams_scratch(task);
}

}  // namespace

void bind_tiling(py::module_& module) {
  module.def("tile_grid", &tile_grid, py::arg("image_size"), py::arg("tile_size"), py::arg("stride"));
  define(module, "tile", &tile, py::arg("images"), py::arg("tiles"), py::arg("tile_size"), py::arg("stride"),
         py::kw_only(), py::arg("edge") = "pad");
  define(module, "untile", &untile, py::arg("tiles"), py::arg("images"), py::arg("stride"), py::kw_only(),
         py::arg("edge") = "pad");
  define(module, "smooth_seams", &smooth_seams, py::arg("maps"), py::arg("smoothed"), py::arg("tile_size"),
         py::arg("stride"), py::arg("sigma"), py::arg("width"), py::kw_only(), py::arg("edge") = "pad");
  module.def("smooth_seams_scratch", &smooth_seams_scratch, py::arg("shape"), py::arg("dtype"),
             py::arg("sigma"));
}

}  // namespace ensemblead::bindings
