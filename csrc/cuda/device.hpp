// The CUDA devices of this machine. Safe to ask on a machine without a driver.
#pragma once

namespace ensemblead::cuda {

// Was this build made with CUDA, and does the driver show at least one device that its kernels run on?
bool available();

}  // namespace ensemblead::cuda
