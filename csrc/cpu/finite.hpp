// The check that all values of an argument are finite.
#pragma once

#include <cstdint>

namespace ensemblead::cpu {

// Throws a ValueError that names the place of the first NaN or infinity; returns the largest magnitude.
// `num_threads` as a Work has it.
float check_finite(const float* values, std::int64_t rows, std::int64_t dims, const char* argument,
                   int num_threads);

}  // namespace ensemblead::cpu
