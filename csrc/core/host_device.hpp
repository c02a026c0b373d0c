// The mark of functions that both twins share: nvcc compiles them for the device as well.
#pragma once

#if defined(__CUDACC__)
#define ENSEMBLEAD_HD __host__ __device__
#else
#define ENSEMBLEAD_HD
#endif
