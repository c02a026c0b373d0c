// A tile of a matrix product: 128 rows against up to 128 others, in shared memory and registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/coreset_device.cuh"

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

// The part of the tile that a thread brings to shared memory: four values of this row (or column) in every
// step.
struct Brought {
  int line = static_cast<int>(threadIdx.x) / 2;
  int offset = static_cast<int>(threadIdx.x) % 2 * 4;
};

// acc[i][j] = sum over k < depth, in order, of row i times column j. `rows` and `columns` bring the values
// that Brought describes, each in two halves: fetch(k) reads four values from k on; finish(values, k), called
// long after it, makes factors of them. So no arithmetic waits for memory. Depth is a multiple of kTileDepth.
// All threads call; the memory is free again when they return.
template <int kWide, class Rows, class Columns>
__device__ __forceinline__ void multiply_tile(TileMemory& memory, const TilePlace& place, int depth,
                                              const Rows& rows, const Columns& columns,
                                              float (&acc)[kRowsEach][kWide]) {
  const Brought brought;
  const bool brings_column = 16 * kWide >= kTileRows || brought.line < 16 * kWide;
  ENSEMBLEAD_UNROLL
  for (int i = 0; i < kRowsEach; ++i) {
    ENSEMBLEAD_UNROLL
    for (int j = 0; j < kWide; ++j) acc[i][j] = 0.0f;
  }
  float4 next_row = rows.fetch(brought.offset);
  float4 next_column = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (brings_column) next_column = columns.fetch(brought.offset);
  const auto store = [&](int stage, int k) {
    store_transposed(memory.rows[stage], brought.line, brought.offset, rows.finish(next_row, k));
    if (brings_column)
      store_transposed(memory.columns[stage], brought.line, brought.offset, columns.finish(next_column, k));
  };
  store(0, brought.offset);
  __syncthreads();
  int stage = 0;
  for (int first = kTileDepth; first <= depth; first += kTileDepth) {
    // The last step fetches the first values again, which are not used: without a condition the compiler
    // leaves the reads up here, where the arithmetic hides them.
    const int next = (first < depth ? first : 0) + brought.offset;
    next_row = rows.fetch(next);
    if (brings_column) next_column = columns.fetch(next);
    ENSEMBLEAD_UNROLL
    for (int k = 0; k < kTileDepth; ++k) {
      float row[kRowsEach];
      float column[kWide];
      const float4* fours = reinterpret_cast<const float4*>(&memory.rows[stage][k][place.row]);
      const float4 low = fours[0];
      const float4 high = fours[4];
      row[0] = low.x, row[1] = low.y, row[2] = low.z, row[3] = low.w;
      row[4] = high.x, row[5] = high.y, row[6] = high.z, row[7] = high.w;
      const float* line = &memory.columns[stage][k][place.template column_of<kWide>(0)];
      if (kWide == 2) {
        const float2 two = *reinterpret_cast<const float2*>(line);
        column[0] = two.x, column[1] = two.y;
      } else {
        ENSEMBLEAD_UNROLL
        for (int j = 0; j < kWide; j += 4) {
          const float4 four = *reinterpret_cast<const float4*>(line + j * 8);
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
    store(stage, next);
    __syncthreads();
  }
}

}  // namespace ensemblead::cuda
