#include "resize.hpp"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bindings.hpp"
#include "bindings/dlpack.hpp"
#include "bindings/work.hpp"
#include "core/checks.hpp"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

void resize(const py::object& image, std::int64_t height, std::int64_t width, std::int64_t top,
            std::int64_t left, const py::object& out, int num_threads, std::intptr_t stream,
            const py::object& scratch) {
  const Borrowed borrowed_image(image, "image");
  const Borrowed borrowed_out(out, "out");
  const Array& pixels = borrowed_image.array();
  const Array& result = borrowed_out.array();
  check_input(pixels, "image", 3, "[H, W, 3]", {DType::kUInt8});
  check_shape(pixels, "image", {pixels.shape[0], pixels.shape[1], 3});
  if (pixels.device.kind != DeviceKind::kCpu)
    throw ValueError("image must be on the CPU, got " + name(pixels.device));
  check_rank(result, "out", 3, "[h, w, 3]");
  const std::int64_t rows = result.shape[0], columns = result.shape[1];
  check_output(result, "out", DType::kUInt8, {rows, columns, 3});
  check_same_device(result, "out", pixels, "image");
  if (rows < 1 || columns < 1 || top < 0 || left < 0 || top > height - rows || left > width - columns)
    throw ValueError("box must be a part of the resized image of " + name(Shape{height, width}) +
                     ", got one of " + name(Shape{rows, columns}) + " at " + name(Shape{top, left}));
  check_apart(result, "out", pixels, "image");
  ResizeTask task;
  task.image = pixels.as<const std::uint8_t>();
  task.height = pixels.shape[0];
  task.width = pixels.shape[1];
  task.resized_height = height;
  task.resized_width = width;
  task.top = top;
  task.left = left;
  task.rows = rows;
  task.columns = columns;
  task.result = result.as<std::uint8_t>();
  const Twins<ResizeTask, void> twins{cpu::resize, nullptr};
  run(twins, task, {pixels, "image"}, {num_threads, stream, scratch});
}

}  // namespace

void bind_resize(py::module_& module) {
  define(module, "resize", &resize, py::arg("image"), py::arg("height"), py::arg("width"), py::arg("top"),
         py::arg("left"), py::arg("out"));
}

}  // namespace ensemblead::bindings
