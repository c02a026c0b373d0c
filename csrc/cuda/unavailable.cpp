// The symbols of the CUDA twins for a build without CUDA.
#include "coreset.hpp"
#include "cuda/device.hpp"

namespace ensemblead::cuda {

bool available() { return false; }

}  // namespace ensemblead::cuda
