// A stand-in for CUDA's header of this name, for tests alone: with it on the include path a C++ compiler
// takes the .cu files as they are, and kernels run on the CPU. It offers what our kernels use and nothing
// else; what is missing here does not compile.
//
// Blocks run one after another. The threads of a block are fibres that switch at barriers and at the
// operations of a warp, in forward, reverse or shuffled order, so that code which relies on an order shows.
// `__shared__` memory is filled with 0xff before every block. A barrier that not all threads of its block (or
// of its mask) reach, from the same line, ends the launch with std::runtime_error.
#pragma once

#include "emulation/device_functions.h"
#include "emulation/runtime_api.h"
#include "emulation/vector_types.h"
