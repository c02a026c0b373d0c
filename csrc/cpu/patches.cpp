// Work is cut into items of (image, band of output rows, block of output dimensions). Within an item each
// layer is pooled plane by plane at its own resolution, in planes that stay in cache; groups of planes are
// transposed, and either they are the output rows, or those are interpolated from them.
#include "patches.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/huge_pages.hpp"
#include "cpu/parallel.hpp"
#include "cpu/patch_pooler.hpp"
#include "cpu/patch_program.hpp"
#include "cpu/patches_simd.hpp"

namespace ensemblead::cpu {
namespace {

// Positions of a band: its planes, kPlaneGroup of them and a few inputs, fit a core's own cache.
constexpr std::int64_t kBandPositions = 1024;

// Outputs from this size on leave the caches before they are read anyway.
constexpr std::int64_t kStreamBytes = std::int64_t{4} << 20;
constexpr std::size_t kCacheLine = 64;

// A layer, and how its grid becomes the output's.
struct Layer {
  PoolLayer pool;
  bool same_grid;
  std::vector<Interpolation> rows;
  std::vector<Interpolation> columns;

  // The layer's rows that the output rows [begin, end) are made of.
  RowRange source(RowRange output) const {
    if (same_grid) return output;
    return {rows[static_cast<std::size_t>(output.begin)].low,
            rows[static_cast<std::size_t>(output.end - 1)].high + 1};
  }
};

struct Job {
  std::shared_ptr<const PatchProgram> program;
  std::vector<Layer> layers;
  std::int64_t batch = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t bands = 1;
  float* output = nullptr;
  bool stream = false;

  RowRange band(std::int64_t index) const { return {height * index / bands, height * (index + 1) / bands}; }
};

// Floats of buffers per thread.
struct BufferSizes {
  PoolExtents pool;
  std::int64_t pooled = 0;
  std::int64_t row = 0;
};

// The buffers and steps of one thread.
class Worker {
 public:
  Worker(const Job& job, const PatchLoops& loops, const BufferSizes& sizes)
      : job_(job), loops_(loops), pooler_(loops, sizes.pool), pooled_(sizes.pooled), row_(sizes.row) {}

  void run(std::int64_t image, RowRange rows, const DimBlock& block) {
    bool accumulate = false;
    for (const std::size_t index : block.layers) {
      const Layer& layer = job_.layers[index];
      if (layer.same_grid) {
        write(layer, image, rows, block, accumulate);
      } else {
        resize(layer, image, rows, block, accumulate);
      }
      accumulate = true;
    }
  }

 private:
  // The place of row y of the output, from dimension `dim` on.
  RowTarget target(std::int64_t image, std::int64_t y, std::int64_t dim, const DimBlock& block,
                   bool accumulate) const {
    const std::int64_t dims = job_.program->dims;
    float* data = job_.output + (image * job_.height + y) * job_.width * dims + dim;
    return {data, dims, accumulate, job_.stream && block.layers.size() == 1 && dim % kDimGroup == 0};
  }

  void write(const Layer& layer, std::int64_t image, RowRange rows, const DimBlock& block, bool accumulate) {
    pooler_.start(layer.pool, image, rows);
    for (std::int64_t dim = block.begin; dim < block.end; dim += kPlaneGroup) {
      const std::int64_t end = std::min(dim + kPlaneGroup, block.end);
      const float* planes = pooler_.pool(dim, end);
      for (std::int64_t y = rows.begin; y < rows.end; ++y)
        loops_.transpose_row(planes + (y - rows.begin) * layer.pool.stride(), pooler_.plane_stride(),
                             end - dim, job_.width, target(image, y, dim, block, accumulate));
    }
  }

  void resize(const Layer& layer, std::int64_t image, RowRange rows, const DimBlock& block, bool accumulate) {
    const RowRange source = layer.source(rows);
    const std::int64_t width = layer.pool.map.width;
    const std::int64_t dims = (block.end - block.begin + kPlaneGroup - 1) / kPlaneGroup * kPlaneGroup;
    pooler_.start(layer.pool, image, source);
    for (std::int64_t dim = block.begin; dim < block.end; dim += kPlaneGroup) {
      const float* planes = pooler_.pool(dim, std::min(dim + kPlaneGroup, block.end));
      for (std::int64_t y = 0; y < source.end - source.begin; ++y)
        loops_.transpose_row(planes + y * layer.pool.stride(), pooler_.plane_stride(), kPlaneGroup, width,
                             {pooled_.data() + y * width * dims + dim - block.begin, dims, false, false});
    }
    for (std::int64_t y = rows.begin; y < rows.end; ++y) {
      const Interpolation& row = layer.rows[static_cast<std::size_t>(y)];
      loops_.resize_row(pooled_.data() + (row.low - source.begin) * width * dims,
                        pooled_.data() + (row.high - source.begin) * width * dims, row.weight, width, dims,
                        block.end - block.begin, layer.columns.data(), job_.width, row_.data(),
                        target(image, y, block.begin, block, accumulate));
    }
  }

  const Job& job_;
  const PatchLoops& loops_;
  Pooler pooler_;
  PlaneBuffer pooled_;  // a resized layer's pooled rows, channels-last
  PlaneBuffer row_;     // one row between two of them
};

std::vector<LayerGeometry> geometries(const std::vector<FeatureMap>& maps, std::int64_t patch_size) {
  std::vector<LayerGeometry> layers;
  // Taps farther out than the grid's extent see nothing but the padding.
  const std::int64_t radius = (patch_size - 1) / 2;
  for (const FeatureMap& map : maps)
    layers.push_back({map.channels, std::min(radius, map.height - 1), std::min(radius, map.width - 1)});
  return layers;
}

// The most bands of equal height that every layer's planes still fit, or rows of their own.
std::int64_t count_bands(const Job& job) {
  std::int64_t height = job.height;
  const auto fits = [&job](std::int64_t rows) {
    return std::all_of(job.layers.begin(), job.layers.end(), [&](const Layer& layer) {
      const std::int64_t source = layer.same_grid ? rows : rows * layer.pool.map.height / job.height + 1;
      return source * layer.pool.stride() <= kBandPositions;
    });
  };
  while (height > 1 && !fits(height)) --height;
  return (job.height + height - 1) / height;
}

// Whether stores go past the caches. Rows of a block lie a whole row of the output apart, so cached stores
// fetch every line they overwrite and evict each other from a few sets. A small output stays in the cache,
// for the next reader.
bool streams(const Job& job) {
  const auto floats_per_line = static_cast<std::int64_t>(kCacheLine / sizeof(float));
  const std::int64_t bytes =
      job.batch * job.height * job.width * job.program->dims * std::int64_t{sizeof(float)};
  return bytes >= kStreamBytes && job.program->dims % floats_per_line == 0 &&
         reinterpret_cast<std::uintptr_t>(job.output) % kCacheLine == 0;
}

Job make_job(const PatchTask& task) {
  const std::vector<FeatureMap>& maps = task.maps;
  Job job;
  job.program = patch_program(geometries(maps, task.options.patch_size), task.options);
  job.batch = task.batch;
  job.height = maps.front().height;
  job.width = maps.front().width;
  job.output = task.output;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const FeatureMap& map = maps[i];
    Layer layer{
        PoolLayer(map, job.program->layers[i]), map.height == job.height && map.width == job.width, {}, {}};
    if (!layer.same_grid) {
      layer.rows = interpolation(map.height, job.height);
      layer.columns = interpolation(map.width, job.width);
    }
    job.layers.push_back(std::move(layer));
  }
  job.bands = count_bands(job);
  job.stream = streams(job);
  return job;
}

BufferSizes buffer_sizes(const Job& job) {
  BufferSizes sizes;
  for (const Layer& layer : job.layers) {
    for (std::int64_t band = 0; band < job.bands; ++band) {
      const RowRange source = layer.source(job.band(band));
      sizes.pool.include(layer.pool, source.end - source.begin);
      if (layer.same_grid) continue;
      sizes.row = std::max(sizes.row, layer.pool.map.width * kDimBlock);
      sizes.pooled = std::max(sizes.pooled, (source.end - source.begin) * layer.pool.map.width * kDimBlock);
    }
  }
  return sizes;
}

}  // namespace

void aggregate_patches(const PatchTask& task, const Work& work) {
  const Job job = make_job(task);
  const PatchLoops& loops = patch_loops();
  const BufferSizes sizes = buffer_sizes(job);
  const std::vector<DimBlock>& blocks = job.program->blocks;
  const auto num_blocks = static_cast<std::int64_t>(blocks.size());
  const std::int64_t items = task.batch * job.bands * num_blocks;
  const int threads = team_size(work.threads, items, 1);
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < threads; ++i) workers.push_back(std::make_unique<Worker>(job, loops, sizes));
  prefer_huge_pages(task.output,
                    task.batch * job.height * job.width * job.program->dims * std::int64_t{sizeof(float)});
  parallel_for(items, threads, Schedule::kDynamic, [&](std::int64_t item, int thread) {
    const std::int64_t band = item / num_blocks;
    workers[thread]->run(band / job.bands, job.band(band % job.bands), blocks[item % num_blocks]);
    loops.finish_streaming();
  });
}

}  // namespace ensemblead::cpu
