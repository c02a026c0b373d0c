#include "nearest.hpp"

#include <algorithm>
#include <vector>

#include "cpu/nearest_chunk.hpp"
#include "cpu/nearest_overflow.hpp"
#include "cpu/nearest_places.hpp"
#include "cpu/parallel.hpp"

namespace ensemblead::cpu {

std::int64_t nearest_rows(const NearestTask& task, const Work& work) {
  const CoresetSimd& simd = coreset_simd();
  const std::int64_t tile = simd.tile_rows;
  const int threads = team_size(work.threads, (task.num_queries + tile - 1) / tile, 1);
  const NearPlaces places(task);
  const std::vector<std::int64_t> order = places.order();
  // Small enough that each of several threads has a few chunks, and as many as pay for the work that a chunk
  // does once.
  const std::int64_t share = task.num_queries / (threads == 1 ? 1 : 4 * threads) / tile * tile;
  const std::int64_t most = ChunkSearch::capacity(simd, task.rows);
  const std::int64_t step = std::clamp(share, std::min(4 * tile, most), most);
  std::vector<ChunkSearch> searches;
  searches.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) searches.emplace_back(simd, task, places, step);
  parallel_for(
      (task.num_queries + step - 1) / step, threads, Schedule::kDynamic, [&](std::int64_t item, int thread) {
        searches[thread].run(order.data() + item * step, std::min(step, task.num_queries - item * step));
      });
  refuse_overflow(task);
  std::int64_t direct_pairs = 0;
  for (const ChunkSearch& search : searches) direct_pairs += search.direct_pairs();
  return direct_pairs;
}

}  // namespace ensemblead::cpu
