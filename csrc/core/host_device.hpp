// Marks what both twins share: a plain function to a C++ compiler, one for the device as well to nvcc.
#pragma once

#if defined(__CUDACC__)
#define ENSEMBLEAD_HD __host__ __device__
#else
#define ENSEMBLEAD_HD
#endif
