// Exact nearest rows in squared Euclidean distance, among rows that are searched many times.
//
// There is no CUDA twin: on a GPU a plain matrix product over all rows is fast enough, and the frameworks
// have one.
#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "core/work.hpp"

namespace ensemblead {

// Rows and their packed sketches. A sketch is a row's coordinates along a few orthonormal directions,
// relative to a point in the middle of the rows. Distances in such a projection are never longer than the
// distances themselves, so sketches rule most rows out. The first directions, the front, are compared for all
// pairs by matrix products, the others for the pairs that remain.
struct SketchedRows {
  const float* rows = nullptr;      // [num_rows, dims]
  const Float16* halves = nullptr;  // the rows in half precision, where `rows` is null
  std::int64_t num_rows = 0;
  std::int64_t dims = 0;
  const float* middle = nullptr;  // [dims]
  std::int64_t num_directions = 0;
  std::int64_t num_front = 0;
  const float* packed = nullptr;  // written by pack_rows
};

// Preparation of rows for nearest_rows. `directions` [num_directions, dims] are orthonormal; principal
// directions of the rows, the first ones first, rule out most. `rows.packed` is not read.
struct PackTask {
  SketchedRows rows;
  const float* directions = nullptr;
  float* packed = nullptr;  // [packed_size(rows)], written
};

// The k nearest rows of every query, nearest first, the lower index first among equals: squared distances
// and indices [num_queries, k]; infinity and -1 where fewer than k rows are not left out. Every distance is
// a float32 sum of squared differences, of rows widened to float32. The result is that of comparing all pairs, for any number of threads
// and however queries are grouped. Distances between finite points that are beyond float32 are refused where
// they would be among the k; points that are not finite get the distances that arithmetic gives.
struct NearestTask {
  SketchedRows rows;
  const float* queries = nullptr;  // [num_queries, dims]
  std::int64_t num_queries = 0;
  std::int64_t k = 0;
  // A row is left out of a query's search where both are of one image. Null: none is.
  const std::int64_t* row_images = nullptr;    // [num_rows]
  const std::int64_t* query_images = nullptr;  // [num_queries]
  // A row is left out too where its place differs from the query's by more than the query's radius in y or in
  // x. Places are numbers of 0 or more, y before x; rows come in ascending order of theirs. Null: places do
  // not matter.
  const std::int64_t* row_places = nullptr;    // [num_rows, 2]
  const std::int64_t* query_places = nullptr;  // [num_queries, 2]
  const std::int64_t* query_radii = nullptr;   // [num_queries]
  float* distances = nullptr;
  std::int64_t* indices = nullptr;
};

namespace cpu {

// The number of floats that pack_rows writes.
std::int64_t packed_size(const SketchedRows& rows);

void pack_rows(const PackTask& task, const Work& work);

// Returns how many distances were computed.
std::int64_t nearest_rows(const NearestTask& task, const Work& work);

}  // namespace cpu
}  // namespace ensemblead
