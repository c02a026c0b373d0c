// The refusal of distances beyond float32.
#pragma once

#include "nearest.hpp"

namespace ensemblead::cpu {

// Throws a ValueError for the first query that has, among its nearest rows, one whose squared distance is
// beyond float32 though query and row are finite: such rows would all look equally far.
void refuse_overflow(const NearestTask& task);

}  // namespace ensemblead::cpu
