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
  ChunkSearch(const CoresetSimd& simd, const NearestTask& task, const NearPlaces& places);

  // The number of queries that are best searched together: their sketches stay in the second-level cache.
  std::int64_t capacity() const { return capacity_; }
  std::int64_t direct_pairs() const { return direct_pairs_; }

  // So many queries, at most capacity() of them.
  void run(const std::int64_t* queries, std::int64_t count);

 private:
  // A query and a row. The product is that of their fronts, less half the squared distance of their tails
  // where those were compared.
  struct Pair {
    std::int32_t place;
    bool whole;  // all of their dimensions were
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
  void compare_fronts(std::int64_t first, std::int64_t panel);
  void compare_fully(std::int64_t first, std::int64_t panel);
  void open_panel(std::int64_t panel);
  void add_pairs(std::int64_t place, std::int64_t column, const float* products, float raise, float threshold,
                 bool whole);
  void resolve_pairs();
  void compare_tails();
  void update_most_left();
  void compare_rows();
  void insert(std::int64_t place, float distance, std::int64_t index);
  void compare_all(std::int64_t place);

  const CoresetSimd& simd_;
  const NearestTask& task_;
  const SketchedRows& rows_;  // of the task
  const NearPlaces& places_;
  PackedLayout layout_;
  float slack_;
  Sketcher sketcher_;
  std::int64_t capacity_;
  // The queries that are searched together, by place.
  std::vector<std::int64_t> members_;
  std::vector<std::int64_t> leads_;  // the query that was searched ahead of each; empty for those themselves
  std::vector<float> widened_;       // one row, of rows in half precision
  std::vector<const float*> points_;
  std::vector<float> centred_;
  std::vector<float> fronts_;
  std::vector<float> tails_;
  std::vector<SketchNorms> norms_;
  std::vector<float> thresholds_;
  std::vector<std::int64_t> found_;
  std::vector<std::int32_t> best_pair_;  // the one with the largest product
  std::vector<float> products_;
  // All dimensions of the panel `opened_`, and the starts of its rows' products.
  std::int64_t opened_ = -1;
  std::vector<float> panel_;
  std::vector<float> panel_starts_;
  std::vector<float> panel_rows_;
  std::vector<std::int64_t> near_panels_;
  std::vector<std::int64_t> queries_;  // of the chunk, without those that are compared with all rows near
  // By tile: how many panels in turn were compared fully because the fronts left too much, up to a limit, and
  // how many more will be before the fronts are tried again.
  std::vector<std::int32_t> misses_;
  std::vector<std::int32_t> skips_;
  // Of the products of a tile and a panel in the chunk, all and those over all dimensions.
  std::int64_t compared_ = 0;
  std::int64_t compared_fully_ = 0;
  bool mostly_fully_ = false;  // in the chunk before
  double most_left_ = 0.0;     // of the pairs of a tile
  double tails_seen_ = 10.0;
  double tails_left_ = 3.0;  // which is usual
  std::vector<std::int32_t> lanes_;
  std::vector<Pair> pairs_;
  std::int64_t direct_pairs_ = 0;
};

}  // namespace ensemblead::cpu
