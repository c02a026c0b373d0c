// nearest_by_products: products of all rows and queries, of which only the few best are kept.
#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "cpu/nearest_pack.hpp"
#include "cpu/parallel.hpp"
#include "nearest.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// The packed queries of a block, with what is found for them. They are read in order, from whichever cache holds
// them. Rows come from memory once for every block, and nothing hides that: a fifth of the time at 1,280
// dimensions with a quarter of the bytes.
constexpr std::int64_t kBlockBytes = std::int64_t{1536} << 10;
// Items of work for each of several threads, and the least products of tiles that are worth a thread or an
// item.
constexpr std::int64_t kItemsPerThread = 4;
constexpr std::int64_t kLeastTiles = 32;

// A row and its product 2 x.p - |p|^2, the value with its sign turned.
struct Found {
  float product;
  std::int64_t index;
};

bool is_better(const Found& a, const Found& b) {
  return a.product > b.product || (a.product == b.product && a.index < b.index);
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// One thread's buffers for a block of queries. Queries are packed in panels, and rows pass by in tiles. Behind
// the dimensions of a row comes -|p|^2, and behind those of a query 1: so the last step of a sum adds it.
class BlockSearch {
 public:
  BlockSearch(const CoresetSimd& simd, const ProductsTask& task, std::int64_t most_queries)
      : simd_(simd),
        task_(task),
        dims_(task.rows.dims),
        width_(simd.panel_width),
        // An odd number of lines of the cache: a multiple of a page would put all rows of a tile into one set.
        stride_((divide_up(dims_ + 1, 16) | 1) * 16),
        panels_(static_cast<std::size_t>(most_queries * (dims_ + 1))),
        thresholds_(static_cast<std::size_t>(most_queries)),
        best_(static_cast<std::size_t>(most_queries)),
        tile_(static_cast<std::size_t>(simd.tile_rows * stride_)),
        widened_(static_cast<std::size_t>(task.rows.rows == nullptr ? dims_ : 0)),
        centred_(static_cast<std::size_t>(dims_)),
        products_(static_cast<std::size_t>(simd.tile_rows * width_)) {}

  // Finds the best of the rows [begin, end) for `count` queries from `first` on.
  void run(std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end) {
    pack_queries(first, count);
    for (std::int64_t row = begin; row < end; row += simd_.tile_rows) {
      open_tile(row, std::min<std::int64_t>(simd_.tile_rows, end - row));
      for (std::int64_t at = 0; at < count; at += width_) compare(at, row);
    }
  }

  // Writes what was found, with what the output holds of other rows.
  void merge();

 private:
  void pack_queries(std::int64_t first, std::int64_t count);
  void open_tile(std::int64_t row, std::int64_t count);
  void compare(std::int64_t at, std::int64_t row);
  void offer(std::int64_t at, Found found);

  const CoresetSimd& simd_;
  const ProductsTask& task_;
  std::int64_t dims_;
  std::int64_t width_;
  std::int64_t stride_;
  std::int64_t first_ = 0;
  std::int64_t count_ = 0;
  std::vector<float> panels_;             // [panel][dims + 1][width]
  std::vector<float> thresholds_;         // by query: the product of the last of k, which others must exceed
  std::vector<std::vector<Found>> best_;  // by query: a heap, its worst in front
  std::vector<float> tile_;               // [tile_rows][stride]
  std::vector<float> widened_;            // one row, of rows in half precision
  std::vector<float> centred_;            // one query
  std::vector<float> products_;
};

void BlockSearch::pack_queries(std::int64_t first, std::int64_t count) {
  first_ = first;
  count_ = count;
  // Columns of the last panel without a query hit nothing.
  std::fill(thresholds_.begin(), thresholds_.end(), kInfinity);
  std::fill(panels_.begin(), panels_.end(), 0.0f);
  for (std::int64_t i = 0; i < count; ++i) {
    thresholds_[i] = -kInfinity;
    best_[i].clear();
    simd_.center(task_.queries + (first + i) * dims_, task_.rows.middle, dims_, centred_.data());
    float* panel = panels_.data() + i / width_ * width_ * (dims_ + 1) + i % width_;
    for (std::int64_t d = 0; d < dims_; ++d) panel[d * width_] = 2.0f * centred_[d];
    panel[dims_ * width_] = 1.0f;
  }
}

void BlockSearch::open_tile(std::int64_t row, std::int64_t count) {
  for (std::int64_t r = 0; r < count; ++r) {
    float* to = tile_.data() + r * stride_;
    simd_.center(row_of(simd_, task_.rows, row + r, widened_.data()), task_.rows.middle, dims_, to);
    to[dims_] = -task_.squares[row + r];
  }
  for (std::int64_t r = count; r < simd_.tile_rows; ++r) tile_[r * stride_ + dims_] = -kInfinity;
}

// The tile of rows from `row` on with the panel of queries from place `at` on.
void BlockSearch::compare(std::int64_t at, std::int64_t row) {
  const float* thresholds = thresholds_.data() + at;
  std::uint32_t hits = simd_.tile_by_columns(tile_.data(), stride_, dims_ + 1,
                                             panels_.data() + at * (dims_ + 1), thresholds, products_.data());
  for (; hits != 0; hits &= hits - 1) {
    const int r = __builtin_ctz(hits);
    const float* products = products_.data() + r * width_;
    for (std::int64_t c = 0; c < width_; ++c)
      if (products[c] > thresholds[c] && products[c] < kInfinity &&
          !task_.left_out.holds(first_ + at + c, row + r))
        offer(at + c, {products[c], row + r});
  }
}

void BlockSearch::offer(std::int64_t at, Found found) {
  std::vector<Found>& best = best_[at];
  if (static_cast<std::int64_t>(best.size()) == task_.k) {
    if (!is_better(found, best.front())) return;
    std::pop_heap(best.begin(), best.end(), is_better);
    best.pop_back();
  }
  best.push_back(found);
  std::push_heap(best.begin(), best.end(), is_better);
  if (static_cast<std::int64_t>(best.size()) == task_.k) thresholds_[at] = best.front().product;
}

void BlockSearch::merge() {
  for (std::int64_t at = 0; at < count_; ++at) {
    float* values = task_.values + (first_ + at) * task_.k;
    std::int64_t* indices = task_.indices + (first_ + at) * task_.k;
    for (std::int64_t j = 0; j < task_.k && indices[j] >= 0; ++j) offer(at, {-values[j], indices[j]});
    std::vector<Found>& best = best_[at];
    std::sort_heap(best.begin(), best.end(), is_better);
    for (std::size_t j = 0; j < best.size(); ++j) {
      values[j] = -best[j].product;
      indices[j] = best[j].index;
    }
  }
}

}  // namespace

// Items are blocks of queries with parts of the rows. The order in which parts are merged does not matter.
void nearest_by_products(const ProductsTask& task, const Work& work) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t width = simd.panel_width;
  const std::int64_t tiles = divide_up(task.rows.num_rows, simd.tile_rows);
  const std::int64_t panels = divide_up(task.num_queries, width);
  const std::int64_t query_bytes =
      (task.rows.dims + 1) * 4 + task.k * static_cast<std::int64_t>(sizeof(Found));
  const std::int64_t most = std::min(std::max<std::int64_t>(kBlockBytes / (query_bytes * width), 1), panels);
  const std::int64_t blocks = divide_up(panels, most);
  const int threads = team_size(work.threads, tiles * panels, kLeastTiles);
  const std::int64_t wanted = threads == 1 ? 1 : divide_up(kItemsPerThread * threads, blocks);
  const std::int64_t part = std::max(divide_up(tiles, wanted), kLeastTiles) * simd.tile_rows;
  const std::int64_t parts = divide_up(task.rows.num_rows, part);

  std::fill_n(task.values, task.num_queries * task.k, kInfinity);
  std::fill_n(task.indices, task.num_queries * task.k, std::int64_t{-1});
  std::vector<BlockSearch> searches;
  searches.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) searches.emplace_back(simd, task, most * width);
  std::mutex output;
  parallel_for(blocks * parts, threads, Schedule::kDynamic, [&](std::int64_t item, int thread) {
    const std::int64_t first = item / parts * most * width;
    const std::int64_t begin = item % parts * part;
    BlockSearch& search = searches[thread];
    search.run(first, std::min(most * width, task.num_queries - first), begin,
               std::min(begin + part, task.rows.num_rows));
    const std::lock_guard<std::mutex> lock(output);
    search.merge();
  });
}

}  // namespace ensemblead::cpu
