// project_rows: the tile of the selection, used as a plain matrix product.
//
// Every sum runs over the dimensions in order, in one accumulator, so that a row's result depends on that row
// alone; a library's product promises no such thing, because it chooses its way by the number of rows.
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_kernels.hpp"
#include "cuda/coreset_tile.cuh"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

// A ProjectTask as the kernel sees it.
struct Projection {
  const float* features;
  std::int64_t rows;
  std::int64_t dims;
  std::int64_t padded;  // dims, up to a multiple of the tile's depth
  const float* projection;
  std::int64_t out_dims;
  float* projected;
};

template <bool kVector>
struct PlainRow {
  const float* data;
  int dims;

  __device__ __forceinline__ float4 fetch(int k) const { return four_of_row<kVector>(data, k, dims); }
  __device__ __forceinline__ float4 finish(float4 values, int) const { return values; }
};

template <int kWide, bool kVector>
__device__ __forceinline__ void project_tile(const Projection& task, TileMemory& memory,
                                             const TilePlace& place, std::int64_t first_row,
                                             std::int64_t first_column) {
  const int line = Brought().line;
  // Beyond the ends the last line is repeated, and nothing written.
  const auto within = [](std::int64_t at, std::int64_t count) { return at < count ? at : count - 1; };
  const int dims = static_cast<int>(task.dims);
  const PlainRow<kVector> features{task.features + within(first_row + line, task.rows) * task.dims, dims};
  const PlainRow<kVector> weights{task.projection + within(first_column + line, task.out_dims) * task.dims,
                                  dims};
  float acc[kRowsEach][kWide];
  multiply_tile<kWide>(memory, place, static_cast<int>(task.padded), features, weights, acc);
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    const std::int64_t row = first_row + place.row_of(i);
    ENSEMBLEAD_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const std::int64_t column = first_column + place.template column_of<kWide>(j);
      if (row < task.rows && column < task.out_dims) task.projected[row * task.out_dims + column] = acc[i][j];
    }
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kTileThreads, kVector ? 2 : 1) project_kernel(Projection task) {
  __shared__ __align__(16) TileMemory memory;
  const TilePlace place;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kTileRows;
  for (std::int64_t first = 0; first < task.out_dims;) {
    const std::int64_t left = task.out_dims - first;
    if (left > 64) {
      project_tile<8, kVector>(task, memory, place, first_row, first);
      first += 128;
    } else if (left > 32) {
      project_tile<4, kVector>(task, memory, place, first_row, first);
      first += 64;
    } else {
      project_tile<2, kVector>(task, memory, place, first_row, first);
      first += 32;
    }
  }
}

bool aligned(const float* memory) { return reinterpret_cast<std::uintptr_t>(memory) % sizeof(float4) == 0; }

}  // namespace

void launch_project(const ProjectTask& task, cudaStream_t stream) {
  const Projection projection{task.features,   task.rows,     task.dims,     padded_dims(task.dims),
                              task.projection, task.out_dims, task.projected};
  const bool vector = task.dims % 4 == 0 && aligned(task.features) && aligned(task.projection);
  const LaunchShape shape{dim3(grid_size(task.rows, kTileRows)), dim3(kTileThreads), 0, stream};
  launch("project_kernel", vector ? project_kernel<true> : project_kernel<false>, shape, projection);
}

}  // namespace ensemblead::cuda
