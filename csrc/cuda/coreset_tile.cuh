// A tile of a matrix product: 128 rows against up to 128 others, in shared memory and registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_device.cuh"

#if defined(__CUDACC__)
#define ENSEMBLEAD_UNROLL _Pragma("unroll")
#else
#define ENSEMBLEAD_UNROLL
#endif

namespace ensemblead::cuda {

// Every block has 256 threads: 4 x 2 warps of 4 x 8 threads, each of which holds 8 rows by kWide columns. In
// the warp that makes 16 + 16 rows by 8 * kWide columns, so that one read of shared memory serves 4 or 8
// threads.
constexpr int kTileThreads = 256;
constexpr int kTileRows = 128;
constexpr int kMostColumns = 128;
constexpr int kRowsEach = 8;
constexpr int kTileDepth = 8;

// Two stages: one is read while the next is written. Four words behind every line keep the stores, which
// transpose, out of each other's banks.
struct TileMemory {
  float rows[2][kTileDepth][kTileRows + 4];
  float columns[2][kTileDepth][kMostColumns + 4];
};

// The place of a thread in the tile.
struct TilePlace {
  int row;          // of its first four rows; the others are 16 further
  int column_warp;  // 0 or 1
  int column_lane;  // 0..7

  __device__ TilePlace() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    row = warp / 2 * 32 + lane / 8 * 4;
    column_warp = warp % 2;
    column_lane = lane % 8;
  }
  __device__ int row_of(int i) const { return row + (i < 4 ? i : i + 12); }
  // kWide 8: two groups of four, 32 apart; else one group.
  template <int kWide>
  __device__ int column_of(int j) const {
    if (kWide == 8) return column_warp * 64 + (j < 4 ? j : j + 28) + column_lane * 4;
    return (column_warp * 8 + column_lane) * kWide + j;
  }
};

__device__ __forceinline__ void store_transposed(float (*to)[kTileRows + 4], int at, int k, float4 four) {
  to[k][at] = four.x;
  to[k + 1][at] = four.y;
  to[k + 2][at] = four.z;
  to[k + 3][at] = four.w;
}

// acc[i][j] = sum over k < depth, in order, of row i times column j. `row_at(k)` and `column_at(k)` give four
// values of the row (column) that this thread brings, from k on: number threadIdx.x / 2 of the tile. Depth is
// a multiple of kTileDepth. All threads call; the memory is free again when they return.
template <int kWide, class RowAt, class ColumnAt>
__device__ __forceinline__ void multiply_tile(TileMemory& memory, const TilePlace& place, std::int64_t depth,
                                              const RowAt& row_at, const ColumnAt& column_at,
                                              float (&acc)[kRowsEach][kWide]) {
  const int bring = static_cast<int>(threadIdx.x) / 2;
  const int offset = static_cast<int>(threadIdx.x) % 2 * 4;
  const bool brings_column = bring < 16 * kWide;
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    ENSEMBLEAD_UNROLL
    for (int j = 0; j < kWide; ++j) acc[i][j] = 0.0f;
  }
  store_transposed(memory.rows[0], bring, offset, row_at(offset));
  if (brings_column) store_transposed(memory.columns[0], bring, offset, column_at(offset));
  __syncthreads();
  int stage = 0;
  for (std::int64_t first = 0; first < depth; first += kTileDepth) {
    const bool more = first + kTileDepth < depth;
    float4 next_row = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 next_column = next_row;
    if (more) {
      next_row = row_at(first + kTileDepth + offset);
      if (brings_column) next_column = column_at(first + kTileDepth + offset);
    }
    ENSEMBLEAD_UNROLL
    for (int k = 0; k < kTileDepth; ++k) {
      float row[kRowsEach];
      float column[kWide];
      const float4* rows = reinterpret_cast<const float4*>(&memory.rows[stage][k][place.row]);
      const float4 low = rows[0];
      const float4 high = rows[4];
      row[0] = low.x, row[1] = low.y, row[2] = low.z, row[3] = low.w;
      row[4] = high.x, row[5] = high.y, row[6] = high.z, row[7] = high.w;
      const float* columns = &memory.columns[stage][k][place.template column_of<kWide>(0)];
      if (kWide == 2) {
        const float2 two = *reinterpret_cast<const float2*>(columns);
        column[0] = two.x, column[1] = two.y;
      } else {
        ENSEMBLEAD_UNROLL
        for (int j = 0; j < kWide; j += 4) {
          const float4 four = *reinterpret_cast<const float4*>(columns + j * 8);
          column[j] = four.x, column[j + 1] = four.y, column[j + 2] = four.z, column[j + 3] = four.w;
        }
      }
      ENSEMBLEAD_UNROLL
      for (int i = 0; i < kRowsEach; ++i) {
        ENSEMBLEAD_UNROLL
        for (int j = 0; j < kWide; ++j) acc[i][j] = __fmaf_rn(row[i], column[j], acc[i][j]);
      }
    }
    // The other stage was last read before the barrier that ended the step before.
    stage ^= 1;
    if (more) {
      store_transposed(memory.rows[stage], bring, offset, next_row);
      if (brings_column) store_transposed(memory.columns[stage], bring, offset, next_column);
    }
    __syncthreads();
  }
}

}  // namespace ensemblead::cuda
