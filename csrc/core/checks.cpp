#include "core/checks.hpp"

#include <functional>

namespace ensemblead {

void check_rank(const Array& array, const char* argument, int rank, const char* layout) {
  if (array.rank() == rank) return;
  throw ValueError(std::string(argument) + " must be " + std::to_string(rank) + "-D " + layout +
                   ", got shape " + name(array.shape));
}

void check_dtype(const Array& array, const char* argument, std::initializer_list<DType> allowed) {
  std::string list;
  std::size_t seen = 0;
  for (const DType dtype : allowed) {
    if (array.dtype == dtype) return;
    ++seen;
    if (seen > 1) list += seen == allowed.size() ? " or " : ", ";
    list += name(dtype);
  }
  throw TypeError(std::string(argument) + " must be " + list + ", got " + name(array.dtype));
}

void check_contiguous(const Array& array, const char* argument) {
  if (array.contiguous()) return;
  throw ValueError(std::string(argument) + " is not contiguous (shape " + name(array.shape) + ", strides " +
                   name(array.strides) + " in elements); pass a contiguous array");
}

void check_not_empty(const Array& array, const char* argument) {
  if (array.size() > 0) return;
  throw ValueError(std::string(argument) + " is empty, got shape " + name(array.shape));
}

void check_writable(const Array& array, const char* argument) {
  if (!array.read_only) return;
  throw ValueError(std::string(argument) + " is read-only; an output must be writable");
}

void check_same_device(const Array& array, const char* argument, const Array& other,
                       const char* other_argument) {
  if (array.device == other.device) return;
  throw ValueError(std::string(argument) + " is on " + name(array.device) + " but " + other_argument +
                   " is on " + name(other.device) + "; put both on one device");
}

void check_shape(const Array& array, const char* argument, const Shape& expected) {
  if (array.shape == expected) return;
  throw ValueError(std::string(argument) + " must have shape " + name(expected) + ", got " +
                   name(array.shape));
}

void check_apart(const Array& array, const char* argument, const Array& other, const char* other_argument) {
  const std::less<const char*> before;
  const char* first = array.as<const char>();
  const char* second = other.as<const char>();
  const char* first_end = first + array.size() * static_cast<std::int64_t>(item_size(array.dtype));
  const char* second_end = second + other.size() * static_cast<std::int64_t>(item_size(other.dtype));
  if (before(first, second_end) && before(second, first_end))
    throw ValueError(std::string(argument) + " shares memory with " + other_argument);
}

void check_input(const Array& array, const char* argument, int rank, const char* layout,
                 std::initializer_list<DType> allowed) {
  check_rank(array, argument, rank, layout);
  check_dtype(array, argument, allowed);
  check_not_empty(array, argument);
  check_contiguous(array, argument);
}

void check_output(const Array& array, const char* argument, DType dtype, const Shape& expected) {
  check_writable(array, argument);
  check_dtype(array, argument, {dtype});
  check_shape(array, argument, expected);
  check_contiguous(array, argument);
}

}  // namespace ensemblead
