#include "bindings/dlpack.hpp"

#include <string>
#include <utility>

#include "core/checks.hpp"
#include "third_party/dlpack/dlpack.h"

namespace py = pybind11;

namespace ensemblead::bindings {
namespace {

constexpr const char* kPlain = "dltensor";
constexpr const char* kVersioned = "dltensor_versioned";

DType to_dtype(DLDataType dtype, const char* argument) {
  if (dtype.lanes == 1) {
    const int bits = dtype.bits;
    if (dtype.code == kDLFloat && bits == 32) return DType::kFloat32;
    if (dtype.code == kDLFloat && bits == 64) return DType::kFloat64;
    if (dtype.code == kDLFloat && bits == 16) return DType::kFloat16;
    if (dtype.code == kDLBfloat && bits == 16) return DType::kBFloat16;
    if (dtype.code == kDLUInt && bits == 8) return DType::kUInt8;
    if (dtype.code == kDLInt && bits == 32) return DType::kInt32;
    if (dtype.code == kDLInt && bits == 64) return DType::kInt64;
  }
  const char* kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string kind = dtype.code < 7 ? kinds[dtype.code] : "type " + std::to_string(dtype.code) + " ";
  throw TypeError(std::string(argument) + " has dtype " + kind + std::to_string(dtype.bits) +
                  ", which no kernel takes");
}

Device to_device(DLDevice device, const char* argument) {
  if (device.device_type == kDLCPU || device.device_type == kDLCUDAHost) return {DeviceKind::kCpu, 0};
  if (device.device_type == kDLCUDA || device.device_type == kDLCUDAManaged)
    return {DeviceKind::kCuda, device.device_id};
  throw TypeError(std::string(argument) + " is on a device of DLPack type " +
                  std::to_string(device.device_type) + "; only CPU and CUDA arrays are taken");
}

Array to_array(const DLTensor& tensor, bool read_only, const char* argument) {
  Array array;
  array.dtype = to_dtype(tensor.dtype, argument);
  array.device = to_device(tensor.device, argument);
  array.read_only = read_only;
  array.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides != nullptr) {
    array.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  } else {
    array.strides.assign(array.shape.size(), 1);
    for (std::size_t axis = array.shape.size(); axis-- > 1;)
      array.strides[axis - 1] = array.strides[axis] * array.shape[axis];
  }
  // A framework may describe an array that has no memory (torch's meta and efficient-zero tensors).
  if (array.size() > 0 && tensor.data == nullptr)
    throw ValueError(std::string(argument) + " of shape " + name(array.shape) + " has no memory behind it");
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.byte_offset;
  if (array.size() > 0 && address % item_size(array.dtype) != 0)
    throw ValueError(std::string(argument) + " starts at an address that is no multiple of its item size (" +
                     std::to_string(item_size(array.dtype)) + " bytes); pass an aligned array");
  array.data = reinterpret_cast<void*>(address);
  return array;
}

// Whether the array lies in memory that a CUDA stream works on.
bool on_cuda(const py::handle& object, const char* argument) {
  const py::object device = object.attr("__dlpack_device__")();
  if (py::isinstance<py::tuple>(device) && py::len(device) == 2) {
    const auto type = py::reinterpret_steal<py::object>(PyNumber_Index(device[py::int_(0)].ptr()));
    if (!type) throw py::error_already_set();
    const auto number = type.cast<std::int64_t>();
    return number == kDLCUDA || number == kDLCUDAManaged;
  }
  throw TypeError(std::string(argument) + " has a __dlpack_device__ that gave " +
                  py::repr(device).cast<std::string>() + " instead of (device type, device id)");
}

py::object export_capsule(const py::handle& object, const char* argument) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__"))
    throw TypeError(std::string(argument) + " must be an array with __dlpack__ (NumPy, torch, CuPy), got " +
                    py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>());
  const py::object method = object.attr("__dlpack__");
  // On a GPU the kernels run on the producer's own current stream, so the producer need not wait: stream -1.
  py::dict options;
  if (on_cuda(object, argument)) options["stream"] = -1;
  try {
    return method(**options, py::arg("max_version") = py::make_tuple(DLPACK_MAJOR_VERSION, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**options);  // a producer from before DLPack 1.0
}

}  // namespace

Borrowed::Borrowed(const py::handle& object, const char* argument) {
  if (PyCapsule_CheckExact(object.ptr())) {
    take(py::reinterpret_borrow<py::object>(object), argument);
    return;
  }
  py::object capsule;
  try {
    capsule = export_capsule(object, argument);
  } catch (py::error_already_set& error) {
    // A refusal of the producer (of a tensor that requires grad, say) becomes a ValueError or TypeError that
    // names the argument.
    PyObject* kind = nullptr;
    for (PyObject* refusal : {PyExc_BufferError, PyExc_RuntimeError, PyExc_ValueError})
      if (error.matches(refusal)) kind = PyExc_ValueError;
    if (error.matches(PyExc_TypeError)) kind = PyExc_TypeError;
    if (kind == nullptr) throw;
    const std::string reason = py::str(error.value()).cast<std::string>();
    py::raise_from(error, kind, (std::string(argument) + " cannot be read: " + reason).c_str());
    throw py::error_already_set();
  }
  take(capsule, argument);
}

void Borrowed::take(const py::object& capsule, const char* argument) {
  if (PyCapsule_IsValid(capsule.ptr(), kVersioned)) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersioned));
    if (managed->version.major != DLPACK_MAJOR_VERSION)
      throw TypeError(std::string(argument) + " speaks DLPack " + std::to_string(managed->version.major) +
                      ".x; this build knows " + std::to_string(DLPACK_MAJOR_VERSION) + ".x");
    array_ = to_array(managed->dl_tensor, (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0, argument);
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) throw py::error_already_set();
    managed_ = managed;
    versioned_ = true;
  } else if (PyCapsule_IsValid(capsule.ptr(), kPlain)) {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kPlain));
    array_ = to_array(managed->dl_tensor, false, argument);
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    managed_ = managed;
  } else {
    const char* name = PyCapsule_CheckExact(capsule.ptr()) ? PyCapsule_GetName(capsule.ptr()) : nullptr;
    PyErr_Clear();
    throw TypeError(std::string(argument) + " gave " +
                    (name != nullptr ? "a capsule named '" + std::string(name) + "'" : "no capsule") +
                    " where an unused DLPack capsule was expected");
  }
}

Borrowed::Borrowed(Borrowed&& other) noexcept
    : array_(std::move(other.array_)),
      managed_(std::exchange(other.managed_, nullptr)),
      versioned_(other.versioned_) {}

Borrowed::~Borrowed() {
  if (managed_ == nullptr) return;
  // A producer's deleter may need the interpreter; an error that is on its way out must survive it.
  py::gil_scoped_acquire gil;
  py::error_scope keep_error;
  if (versioned_) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(managed_);
    if (managed->deleter != nullptr) managed->deleter(managed);
  } else {
    auto* managed = static_cast<DLManagedTensor*>(managed_);
    if (managed->deleter != nullptr) managed->deleter(managed);
  }
}

}  // namespace ensemblead::bindings
