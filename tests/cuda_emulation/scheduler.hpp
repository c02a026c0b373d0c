// Runs a grid of blocks, each of fibres.
#pragma once

#include <cstddef>

#include "emulation/runtime_api.h"
#include "emulation/scheduler.h"

namespace cuda_emulation {

// 0: threads and blocks in ascending order; 1: descending; any other: shuffled, this number being the seed.
using Order = unsigned;

// Throws what a thread throws, and std::runtime_error when threads wait for each other in vain.
void run_grid(const cudaLaunchConfig_t& config, Order order, const Body& body);

}  // namespace cuda_emulation
