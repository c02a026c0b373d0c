#include "cpu/nearest_overflow.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <vector>

#include "core/checks.hpp"
#include "cpu/nearest_pack.hpp"

namespace ensemblead::cpu {
namespace {

float largest_magnitude(const float* values, std::int64_t size) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < size; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

bool all_finite(const float* values, std::int64_t size) {
  return std::all_of(values, values + size, [](float value) { return std::isfinite(value); });
}

}  // namespace

void refuse_overflow(const NearestTask& task) {
  const std::int64_t dims = task.rows.dims;
  std::vector<float> widened(static_cast<std::size_t>(dims));
  for (std::int64_t at = 0; at < task.num_queries * task.k; ++at) {
    if (!std::isinf(task.distances[at]) || task.indices[at] < 0) continue;
    const std::int64_t number = at / task.k;
    const float* query = task.queries + number * dims;
    const float* row = row_of(coreset_simd(), task.rows, task.indices[at], widened.data());
    if (!all_finite(query, dims) || !all_finite(row, dims)) continue;
    const float of_query = largest_magnitude(query, dims);
    const float of_row = largest_magnitude(row, dims);
    std::ostringstream message;
    if (of_query >= of_row) {
      message << "queries[" << number << "] has the value " << of_query;
    } else {
      message << "rows[" << task.indices[at] << "] has the value " << of_row;
    }
    message << ", and the squared distance of queries[" << number << "] and rows[" << task.indices[at]
            << "] is beyond float32; scale queries and rows down";
    throw ValueError(message.str());
  }
}

}  // namespace ensemblead::cpu
