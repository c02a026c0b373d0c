// A block of threads for every pair of a query and a combination. Keys below the k-th so far are appended to a
// buffer; when it is full, and at the end, it is sorted and its first k are kept.
#include "weighted.hpp"

#include <algorithm>

#include "core/rank_key.hpp"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that work at once where their buffers are too large for shared memory. Under emulation one goes round.
#if defined(ENSEMBLEAD_CUDA_EMULATED)
constexpr std::int64_t kBlocksInScratch = 1;
#else
constexpr std::int64_t kBlocksInScratch = 256;
#endif

struct WeightedLayout {
  const float* blocks[kMostBlocks];
  const float* weights;
  const float* scales;
  const std::int64_t* left_out_column;
  const std::uint8_t* left_out;
  float* values;
  std::int64_t* indices;
  RankKey* scratch;  // null: shared memory
  std::int64_t num_combinations;
  std::int64_t num_queries;
  std::int64_t num_columns;
  int num_blocks;
  int k;
  int capacity;  // a power of two, at least k + kThreads
};

// Ascending, by all threads of the block.
__device__ void sort_keys(RankKey* keys, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < count / 2; i += kThreads) {
        const int low = 2 * i - (i & (stride - 1));
        const RankKey first = keys[low];
        const RankKey second = keys[low + stride];
        if ((first > second) == ((low & size) == 0)) {
          keys[low] = second;
          keys[low + stride] = first;
        }
      }
      __syncthreads();
    }
  }
}

__device__ RankKey key_of(const WeightedLayout& layout, std::int64_t query, std::int64_t combination,
                          std::int64_t column) {
  const std::int64_t at = query * layout.num_columns + column;
  if (layout.left_out_column != nullptr && layout.left_out_column[query] == column) return kLastKey;
  if (layout.left_out != nullptr && layout.left_out[at] != 0) return kLastKey;
  const float* weights = layout.weights + combination * layout.num_blocks;
  float sum = __fmul_rn(weights[0], layout.blocks[0][at]);
  for (int b = 1; b < layout.num_blocks; ++b) sum = __fmaf_rn(weights[b], layout.blocks[b][at], sum);
  if (layout.scales != nullptr)
    sum = __fmul_rn(sum, layout.scales[combination * layout.num_columns + column]);
  const bool retrievable = sum > __uint_as_float(0xff800000u);  // minus infinity; NaN is not
  return retrievable ? rank_key(sum, static_cast<std::uint32_t>(column)) : kLastKey;
}

__global__ void __launch_bounds__(kThreads) weighted_top_k_kernel(const WeightedLayout layout) {
  __shared__ int found;
  RankKey* keys = layout.scratch == nullptr
                      ? dynamic_shared<RankKey>()
                      : layout.scratch + static_cast<std::int64_t>(blockIdx.x) * layout.capacity;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t pairs = layout.num_queries * layout.num_combinations;
  for (std::int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    // Neighbouring blocks have one query, whose rows they share in the cache.
    const std::int64_t query = pair / layout.num_combinations;
    const std::int64_t combination = pair - query * layout.num_combinations;
    RankKey bound = kLastKey;
    if (thread == 0) found = 0;
    __syncthreads();
    for (std::int64_t first = 0; first < layout.num_columns; first += kThreads) {
      const std::int64_t column = first + thread;
      const RankKey key = column < layout.num_columns ? key_of(layout, query, combination, column) : kLastKey;
      if (key < bound) keys[atomicAdd(&found, 1)] = key;
      __syncthreads();
      const int count = found;
      if (count > layout.capacity - kThreads || first + kThreads >= layout.num_columns) {
        for (int i = count + thread; i < layout.capacity; i += kThreads) keys[i] = kLastKey;
        __syncthreads();
        sort_keys(keys, layout.capacity);
        bound = keys[layout.k - 1];
        if (thread == 0) found = count < layout.k ? count : layout.k;
      }
      __syncthreads();
    }
    const std::int64_t out = (combination * layout.num_queries + query) * layout.k;
    for (int i = thread; i < layout.k; i += kThreads) {
      const bool is_column = keys[i] != kLastKey;
      layout.values[out + i] = is_column ? key_value(keys[i]) : __uint_as_float(0xff800000u);
      layout.indices[out + i] = is_column ? key_column(keys[i]) : -1;
    }
    __syncthreads();
  }
}

std::int64_t capacity_of(std::int64_t k) {
  std::int64_t capacity = 2 * kThreads;
  while (capacity < k + kThreads) capacity *= 2;
  return capacity;
}

bool fits_shared(std::int64_t capacity) {
  return static_cast<std::size_t>(capacity) * sizeof(RankKey) < kSharedWithoutAsking;
}

}  // namespace

std::size_t weighted_top_k_scratch(const WeightedTask& task) {
  const std::int64_t capacity = capacity_of(task.k);
  if (fits_shared(capacity)) return 0;
  const std::int64_t blocks = std::min(kBlocksInScratch, task.num_queries * task.num_combinations);
  return static_cast<std::size_t>(blocks * capacity) * sizeof(RankKey);
}

void weighted_top_k(const WeightedTask& task, const Work& work) {
  const DeviceScope scope(work.device.index);
  WeightedLayout layout{};
  std::copy(task.blocks.begin(), task.blocks.end(), layout.blocks);
  layout.weights = task.weights;
  layout.scales = task.scales;
  layout.left_out_column = task.left_out_column;
  layout.left_out = task.left_out;
  layout.values = task.values;
  layout.indices = task.indices;
  layout.num_combinations = task.num_combinations;
  layout.num_queries = task.num_queries;
  layout.num_columns = task.num_columns;
  layout.num_blocks = static_cast<int>(task.blocks.size());
  layout.k = static_cast<int>(task.k);
  const std::int64_t capacity = capacity_of(task.k);
  layout.capacity = static_cast<int>(capacity);
  const bool shared = fits_shared(capacity);
  layout.scratch = shared ? nullptr : static_cast<RankKey*>(work.scratch.data);
  const std::int64_t pairs = task.num_queries * task.num_combinations;
  const unsigned blocks = grid_size(pairs, 1, shared ? kMaxGridX : kBlocksInScratch);
  const std::size_t bytes = shared ? static_cast<std::size_t>(capacity) * sizeof(RankKey) : 0;
  launch("weighted_top_k_kernel", weighted_top_k_kernel, {blocks, kThreads, bytes, to_stream(work)}, layout);
}

}  // namespace ensemblead::cuda
