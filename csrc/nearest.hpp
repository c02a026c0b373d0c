// Exact nearest rows in squared Euclidean distance, among rows that are searched many times.
//
// There is no CUDA twin: on a GPU a plain matrix product over all rows is fast enough, and the frameworks
// have one.
#pragma once

#include <cstdint>

namespace ensemblead {

// Rows with what rules most of them out: their sketches along a few orthonormal directions, relative to a
// point in their middle. Distances in such a projection are never longer than the distances themselves. The
// first directions, the front, are compared for all pairs by matrix products, the others for what those
// leave.
struct SketchedRows {
  const float* rows;  // [num_rows, dims]
  std::int64_t num_rows;
  std::int64_t dims;
  const float* middle;  // [dims]
  std::int64_t num_directions;
  std::int64_t num_front;
  const float* packed;  // what pack_rows wrote
};

struct NearestQueries {
  const float* queries;  // [num_queries, dims]
  std::int64_t num_queries;
  std::int64_t k;
  // A row is left out of a query's search where both are of one image. Null: none is.
  const std::int64_t* row_images;    // [num_rows]
  const std::int64_t* query_images;  // [num_queries]
};

namespace cpu {

// How many floats pack_rows writes.
std::int64_t packed_size(std::int64_t num_rows, std::int64_t dims, std::int64_t num_directions,
                         std::int64_t num_front);

// Prepares rows.rows for nearest_rows: writes `packed`, whatever rows.packed is. `directions`
// [num_directions, dims] are orthonormal; principal directions of the rows, the first ones first, rule out
// most.
void pack_rows(const SketchedRows& rows, const float* directions, int num_threads, float* packed);

// The k nearest rows of every query, nearest first, the lower index first among equals: squared distances
// and indices [num_queries, k]; infinity and -1 where fewer than k rows are not left out. Every distance is
// a float32 sum of squared differences, and no pair that could be among the k goes without: the result is
// that of comparing all of them, for any number of threads and however queries are grouped. Returns how many
// distances were computed.
std::int64_t nearest_rows(const SketchedRows& rows, const NearestQueries& queries, int num_threads,
                          float* distances, std::int64_t* indices);

}  // namespace cpu
}  // namespace ensemblead
