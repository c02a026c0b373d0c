// Checks whose errors name the argument and the value seen. The bindings turn them into Python's ValueError
// and TypeError.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "core/array.hpp"

namespace ensemblead {

// A wrong value or shape: ValueError in Python.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A wrong kind of thing, such as a dtype that no kernel takes: TypeError in Python.
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// `layout` is how the documentation writes the shape, "[N, D]"; its rank is `rank`.
void check_rank(const Array& array, const char* argument, int rank, const char* layout);
void check_dtype(const Array& array, const char* argument, std::initializer_list<DType> allowed);
void check_contiguous(const Array& array, const char* argument);
void check_not_empty(const Array& array, const char* argument);
void check_writable(const Array& array, const char* argument);
void check_same_device(const Array& array, const char* argument, const Array& other,
                       const char* other_argument);
void check_shape(const Array& array, const char* argument, const Shape& expected);
// Both are contiguous.
void check_apart(const Array& array, const char* argument, const Array& other, const char* other_argument);

// All of the above that hold for every input: rank, dtype, contiguity, at least one element.
void check_input(const Array& array, const char* argument, int rank, const char* layout,
                 std::initializer_list<DType> allowed);

// An output that the caller allocated: writable, contiguous, of exactly this dtype and shape.
void check_output(const Array& array, const char* argument, DType dtype, const Shape& expected);

}  // namespace ensemblead
