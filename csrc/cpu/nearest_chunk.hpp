// The nearest rows of a few queries.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/nearest_pack.hpp"
#include "cpu/nearest_places.hpp"
#include "nearest.hpp"

namespace ensemblead::cpu {

// One thread's buffers for a chunk of queries: products of sketches rule rows out, distances decide.
class ChunkSearch {
 public:
  // `most_queries`, a multiple of simd.tile_rows: what run() may be given at a time.
  ChunkSearch(const CoresetSimd& simd, const NearestTask& task, const NearPlaces& places,
              std::int64_t most_queries);

  // The number of queries that are best searched together, where there are so many: their sketches stay in the
  // second-level cache. A multiple of simd.tile_rows.
  static std::int64_t capacity(const CoresetSimd& simd, const SketchedRows& rows);
  std::int64_t direct_pairs() const { return direct_pairs_; }

  // So many queries.
  void run(const std::int64_t* queries, std::int64_t count);

 private:
  // A query and a row, and a bound of their product along the directions, or what it stands for.
  struct Pair {
    std::int32_t place;
    std::int64_t index;
    float product;
  };

  const float* point(std::int64_t query) const { return task_.queries + query * rows_.dims; }
  const float* row(std::int64_t index) { return row_of(simd_, rows_, index, widened_.data()); }
  void prefetch_row(std::int64_t index) const;
  float distance(std::int64_t query, std::int64_t index) {
    ++direct_pairs_;
    return simd_.squared_distance(point(query), row(index), rows_.dims);
  }

  void search_queries();
  void begin();
  void start_from_leads();
  void search();
  void search_panels();
  void search_near();
  void compare(std::int64_t first, std::int64_t panel);
  void compare_sketches(std::int64_t first, std::int64_t panel);
  void compare_wholes(std::int64_t first, std::int64_t panel);
  void code_wholes(std::int64_t first);
  void add_pairs(std::uint32_t hits, std::int64_t first, std::int64_t panel, const float* thresholds,
                 const float* raises);
  void resolve_pairs();
  void compare_best(std::size_t begin);
  void compare_rows();
  void insert(std::int64_t place, float distance, std::int64_t index);
  void compare_all(std::int64_t place);

  const CoresetSimd& simd_;
  const NearestTask& task_;
  const SketchedRows& rows_;  // of the task
  const NearPlaces& places_;
  PackedLayout layout_;
  // By products of codes in whichever way this processor has.
  decltype(CoresetSimd::coded_tile) coded_tile_;
  float slack_;
  Coder coder_;
  // The queries that are searched together, by place.
  std::vector<std::int64_t> members_;
  std::vector<std::int64_t> leads_;  // the query that was searched ahead of each; empty for those themselves
  std::vector<float> widened_;       // one row, of rows in half precision
  std::vector<const float*> points_;
  std::vector<float> centred_;
  std::vector<float> sketches_;
  std::vector<float> wholes_;
  std::vector<float> sketch_scales_;
  std::vector<float> whole_scales_;
  std::vector<CodedPoint> coded_;  // of the sketches
  std::vector<SketchNorms> norms_;
  std::vector<float> thresholds_;
  std::vector<std::int64_t> found_;
  std::vector<std::size_t> best_pair_;  // the one with the largest product
  std::vector<float> products_;
  std::vector<std::int64_t> near_panels_;
  std::vector<std::int64_t> queries_;  // of the chunk, without those that are compared with all rows near
  // By tile: for how many panels in turn sketches left too much, up to a limit, how many more will be
  // compared as wholes before sketches are tried again, and whether the wholes of its queries are coded.
  std::vector<std::int32_t> misses_;
  std::vector<std::int32_t> skips_;
  std::vector<char> has_wholes_;
  std::vector<std::int32_t> lanes_;
  std::vector<Pair> pairs_;
  std::int64_t direct_pairs_ = 0;
};

}  // namespace ensemblead::cpu
