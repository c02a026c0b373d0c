// Rules that both twins of select_coreset share: limits, scaling, the radius, refusals.
#pragma once

#include <cstdint>

namespace ensemblead {

// Throws a ValueError unless rows, and bank rows with picks, can be numbered by an int32.
void check_coreset_extents(std::int64_t rows, std::int64_t bank_rows, std::int64_t size);

// The ValueError for the first value that is not finite: `index` counts along rows of `dims`.
[[noreturn]] void refuse_not_finite(const char* argument, std::int64_t index, std::int64_t dims, bool is_nan);

// The factor for the features with which squares neither overflow nor vanish. It is a power of two, so it
// changes neither the order of distances nor a bit of a mantissa. 1 unless the largest magnitude is extreme.
float coreset_scale(float largest);

// The largest squared distance whose root does not exceed `radius`, so that the kernels compare squares;
// negative for a negative radius, which no distance is within.
float squared_radius(double radius);

}  // namespace ensemblead
