#include "convolution.hpp"

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

void check_channels(const Array& array, const char* argument, int axis) {
  if (array.shape[axis] % kConvolutionChannels != 0)
    throw ValueError(std::string(argument) + " must have a multiple of " +
                     std::to_string(kConvolutionChannels) + " channels, got " +
                     std::to_string(array.shape[axis]));
}

void check_images(const Array& images, const char* argument) {
  check_input(images, argument, 4, "[B, H, W, C]", {DType::kFloat32});
  if (images.device.kind != DeviceKind::kCpu)
    throw ValueError(std::string(argument) + " must be on the CPU, got " + name(images.device));
  check_channels(images, argument, 3);
}

ConvolutionShape shape_of(const Array& images, std::int64_t outputs) {
  return {images.shape[0], images.shape[1], images.shape[2], images.shape[3], outputs};
}

void convolution(const py::object& images, const py::object& taps, const py::object& bias,
                 const py::object& results, int num_threads, std::intptr_t stream,
                 const py::object& scratch) {
  const Borrowed borrowed_images(images, "images");
  const Borrowed borrowed_taps(taps, "taps");
  const Borrowed borrowed_results(results, "out");
  const Array& x = borrowed_images.array();
  const Array& w = borrowed_taps.array();
  check_images(x, "images");
  check_input(w, "taps", 4, "[3, 3, C, O]", {DType::kFloat32});
  check_same_device(w, "taps", x, "images");
  check_shape(w, "taps", {3, 3, x.shape[3], w.shape[3]});
  check_channels(w, "taps", 3);
  ConvolutionTask task;
  task.shape = shape_of(x, w.shape[3]);
  std::optional<Borrowed> borrowed_bias;
  if (!bias.is_none()) {
    const Array& b = borrowed_bias.emplace(bias, "bias").array();
    check_input(b, "bias", 1, "[O]", {DType::kFloat32});
    check_same_device(b, "bias", x, "images");
    check_shape(b, "bias", {w.shape[3]});
    task.bias = b.as<const float>();
  }
  const Array& out = borrowed_results.array();
  check_output(out, "out", DType::kFloat32, {x.shape[0], x.shape[1], x.shape[2], w.shape[3]});
  check_same_device(out, "out", x, "images");
  check_apart(out, "out", x, "images");
  check_apart(out, "out", w, "taps");
  if (borrowed_bias) check_apart(out, "out", borrowed_bias->array(), "bias");
  task.images = x.as<const float>();
  task.taps = w.as<const float>();
  task.results = out.as<float>();
  const Twins<ConvolutionTask, void> twins{cpu::convolution, nullptr};
  run(twins, task, {x, "images"}, {num_threads, stream, scratch});
}

void convolution_gradient(const py::object& images, const py::object& gradients, const py::object& taps,
                          int num_threads, std::intptr_t stream, const py::object& scratch) {
  const Borrowed borrowed_images(images, "images");
  const Borrowed borrowed_gradients(gradients, "gradients");
  const Borrowed borrowed_taps(taps, "taps");
  const Array& x = borrowed_images.array();
  const Array& g = borrowed_gradients.array();
  check_images(x, "images");
  check_images(g, "gradients");
  check_shape(g, "gradients", {x.shape[0], x.shape[1], x.shape[2], g.shape[3]});
  check_output(borrowed_taps.array(), "taps", DType::kFloat32, {3, 3, x.shape[3], g.shape[3]});
  check_same_device(borrowed_taps.array(), "taps", x, "images");
  ConvolutionGradientTask task;
  task.shape = shape_of(x, g.shape[3]);
  task.images = x.as<const float>();
  task.gradients = g.as<const float>();
  task.taps = borrowed_taps.array().as<float>();
  const Twins<ConvolutionGradientTask, void> twins{cpu::convolution_gradient, nullptr};
  run(twins, task, {x, "images"}, {num_threads, stream, scratch});
}

}  // namespace

void bind_convolution(py::module_& module) {
  define(module, "convolution", &convolution, py::arg("images"), py::arg("taps"), py::arg("bias"),
         py::arg("out"));
  define(module, "convolution_gradient", &convolution_gradient, py::arg("images"), py::arg("gradients"),
         py::arg("taps"));
}

}  // namespace ensemblead::bindings
