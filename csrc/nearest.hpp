// Exact nearest rows in squared Euclidean distance, among rows that are searched many times.
//
// There is no CUDA twin: on a GPU a plain matrix product over all rows is fast enough, and the frameworks
// have one.
#pragma once

#include <cstdint>

#include "core/half.hpp"
#include "core/work.hpp"

namespace ensemblead {

// Rows and their packed codes. A sketch is a row's coordinates along a few orthonormal directions, relative
// to a point in the middle of the rows. Distances in such a projection are never longer than the distances
// themselves, so products of sketches rule most rows out. They are made of whole numbers of eight bits, with
// bounds on what those leave out, and so are products of whole rows, for the queries that sketches do not
// serve.
struct SketchedRows {
  const float* rows = nullptr;      // [num_rows, dims]
  const Float16* halves = nullptr;  // the rows in half precision, where `rows` is null
  std::int64_t num_rows = 0;
  std::int64_t dims = 0;
  const float* middle = nullptr;    // [dims]
  std::int64_t num_directions = 0;  // up to kMostLead serve whole rows alone: there are no sketches
  const float* packed = nullptr;    // written by pack_rows
};

// Preparation of rows for nearest_rows. `directions` [num_directions, dims] are orthonormal; principal
// directions of the rows, the first ones first, rule out most. `rows.packed` is not read.
struct PackTask {
  SketchedRows rows;
  const float* directions = nullptr;  // [rows.num_directions, dims]
  float* packed = nullptr;            // [packed_size(rows)], written
};

// Which rows are left out of a query's search. Each of the two conditions is given whole, or null and leaves
// none out.
struct LeftOut {
  // Rows of the query's own image.
  const std::int64_t* row_images = nullptr;    // [num_rows]
  const std::int64_t* query_images = nullptr;  // [num_queries]
  // Rows whose place differs from the query's by more than the query's radius in y or in x. Places are
  // numbers of 0 or more, y before x; rows come in ascending order of theirs.
  const std::int64_t* row_places = nullptr;    // [num_rows, 2]
  const std::int64_t* query_places = nullptr;  // [num_queries, 2]
  const std::int64_t* query_radii = nullptr;   // [num_queries]

  bool holds(std::int64_t query, std::int64_t row) const {
    if (row_images != nullptr && row_images[row] == query_images[query]) return true;
    if (row_places == nullptr) return false;
    const std::int64_t* a = query_places + 2 * query;
    const std::int64_t* b = row_places + 2 * row;
    const std::int64_t radius = query_radii[query];
    return b[0] - a[0] > radius || a[0] - b[0] > radius || b[1] - a[1] > radius || a[1] - b[1] > radius;
  }
};

// The k nearest rows of every query, nearest first, the lower index first among equals: squared distances
// and indices [num_queries, k]; infinity and -1 where fewer than k rows are not left out. Every distance is a
// float32 sum of squared differences, of rows widened to float32. The result is that of comparing all pairs,
// for any number of threads and however queries are grouped. Distances between finite points that are beyond
// float32 are refused where they would be among the k; points that are not finite get the distances that
// arithmetic gives.
struct NearestTask {
  SketchedRows rows;
  const float* queries = nullptr;  // [num_queries, dims]
  std::int64_t num_queries = 0;
  std::int64_t k = 0;
  LeftOut left_out;
  float* distances = nullptr;
  std::int64_t* indices = nullptr;
};

// The k rows of every query with the smallest |p|^2 - 2 x.p, for rows p and queries x relative to the middle,
// smallest first and the lower index first among equal values: values and indices [num_queries, k]; infinity
// and -1 where fewer than k rows are not left out. By that value rows come in the order of their distances,
// up to its rounding: 2 x.p is a float32 sum of products dimension by dimension, and -|p|^2 is added last.
// The result is the same for any number of threads and however queries are grouped. Values that are NaN or
// infinite count as left out.
struct ProductsTask {
  SketchedRows rows;               // without directions and packed sketches
  const float* squares = nullptr;  // [num_rows], |p|^2
  const float* queries = nullptr;  // [num_queries, dims]
  std::int64_t num_queries = 0;
  std::int64_t k = 0;
  LeftOut left_out;
  float* values = nullptr;
  std::int64_t* indices = nullptr;
};

namespace cpu {

// The number of floats that pack_rows writes.
std::int64_t packed_size(const SketchedRows& rows);

void pack_rows(const PackTask& task, const Work& work);

// Returns how many distances were computed.
std::int64_t nearest_rows(const NearestTask& task, const Work& work);

void nearest_by_products(const ProductsTask& task, const Work& work);

}  // namespace cpu
}  // namespace ensemblead
