#include "cpu/patch_program.hpp"

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

namespace ensemblead::cpu {
namespace {

// The weights of one channel's window, cut to the radii.
struct Window {
  std::int64_t radius_y;
  std::int64_t radius_x;
  std::vector<double> weights;  // [2 * radius_y + 1, 2 * radius_x + 1]

  Window(std::int64_t ry, std::int64_t rx)
      : radius_y(ry), radius_x(rx), weights(static_cast<std::size_t>((2 * ry + 1) * (2 * rx + 1))) {}
  double* row(std::int64_t dy) { return weights.data() + (dy + radius_y) * (2 * radius_x + 1); }
};

// Fills `window` from runs [run, end) as far as they lie in `channel`.
void fill(Window& window, const TapRun* run, const TapRun* end, std::int64_t channel,
          std::int64_t patch_size) {
  std::fill(window.weights.begin(), window.weights.end(), 0.0);
  const std::int64_t center = (patch_size - 1) / 2;
  for (std::int64_t dy = -window.radius_y; dy <= window.radius_y; ++dy) {
    // The flattened positions of this row's first tap and of the one after its last.
    const std::int64_t left = (channel * patch_size + center + dy) * patch_size + center - window.radius_x;
    const std::int64_t right = left + 2 * window.radius_x + 1;
    while (run != end && run->end <= left) ++run;
    for (const TapRun* r = run; r != end && r->begin < right; ++r) {
      for (std::int64_t at = std::max(r->begin, left); at < std::min(r->end, right); ++at)
        window.row(dy)[at - left] = r->weight;
    }
  }
}

// Takes the smallest weight of [begin, end) away from all of it. Rests that are rounding errors are dropped.
double split_off_minimum(double* begin, double* end) {
  const double smallest = *std::min_element(begin, end);
  if (smallest <= 0) return 0;
  for (double* weight = begin; weight != end; ++weight) {
    *weight -= smallest;
    if (*weight < 1e-9 * smallest) *weight = 0;
  }
  return smallest;
}

void take_apart(Window& window, std::int32_t channel, LayerProgram& program) {
  const auto tap = [channel](std::int64_t dy, std::int64_t dx, double weight) {
    return PatchTap{channel, static_cast<std::int32_t>(dy), static_cast<std::int32_t>(dx),
                    static_cast<float>(weight)};
  };
  const std::int64_t ry = window.radius_y;
  const std::int64_t rx = window.radius_x;
  if (ry > 0) {
    const double box =
        split_off_minimum(window.weights.data(), window.weights.data() + window.weights.size());
    if (box > 0) program.boxes.push_back(tap(0, 0, box));
  }
  for (std::int64_t dy = -ry; dy <= ry; ++dy) {
    double* row = window.row(dy);
    if (rx > 0) {
      const double weight = split_off_minimum(row, row + 2 * rx + 1);
      if (weight > 0) program.rows.push_back(tap(dy, 0, weight));
    }
    for (std::int64_t dx = -rx; dx <= rx; ++dx)
      if (row[dx + rx] > 0) program.singles.push_back(tap(dy, dx, row[dx + rx]));
  }
}

// The first pass over one box's channel costs as much as summing it, so a lone box becomes rows.
void unroll_lone_box(DimProgram& dim, LayerProgram& program) {
  if (dim.boxes.end - dim.boxes.begin != 1) return;
  const PatchTap box = program.boxes.back();
  program.boxes.pop_back();
  dim.boxes.end = dim.boxes.begin;
  for (std::int64_t dy = -program.radius_y; dy <= program.radius_y; ++dy) {
    const auto first = program.rows.begin() + dim.rows.begin;
    const auto same = std::find_if(first, program.rows.end(), [&](const PatchTap& row) {
      return row.channel == box.channel && row.dy == dy;
    });
    if (same != program.rows.end()) {
      same->weight += box.weight;
      continue;
    }
    const auto after = std::find_if(first, program.rows.end(),
                                    [&](const PatchTap& row) { return row.channel > box.channel; });
    program.rows.insert(after, {box.channel, static_cast<std::int32_t>(dy), 0, box.weight});
  }
}

LayerProgram layer_program(const LayerTaps& taps, const LayerGeometry& layer, std::int64_t patch_size) {
  LayerProgram program;
  program.radius_y = layer.radius_y;
  program.radius_x = layer.radius_x;
  Window window(layer.radius_y, layer.radius_x);
  const std::int64_t taps_per_channel = patch_size * patch_size;
  for (std::size_t d = 0; d + 1 < taps.offsets.size(); ++d) {
    const TapRun* run = taps.runs.data() + taps.offsets[d];
    const TapRun* end = taps.runs.data() + taps.offsets[d + 1];
    DimProgram dim;
    dim.boxes.begin = static_cast<std::int64_t>(program.boxes.size());
    dim.rows.begin = static_cast<std::int64_t>(program.rows.size());
    dim.singles.begin = static_cast<std::int64_t>(program.singles.size());
    dim.boxes.end = dim.boxes.begin;
    if (run != end) {
      dim.first_channel = static_cast<std::int32_t>(run->begin / taps_per_channel);
      dim.last_channel = static_cast<std::int32_t>((end[-1].end - 1) / taps_per_channel);
      for (std::int32_t channel = dim.first_channel; channel <= dim.last_channel; ++channel) {
        while (run != end && run->end <= channel * taps_per_channel) ++run;
        fill(window, run, end, channel, patch_size);
        take_apart(window, channel, program);
      }
      dim.boxes.end = static_cast<std::int64_t>(program.boxes.size());
      unroll_lone_box(dim, program);
      program.max_channels =
          std::max<std::int64_t>(program.max_channels, dim.last_channel - dim.first_channel + 1);
    }
    dim.rows.end = static_cast<std::int64_t>(program.rows.size());
    dim.singles.end = static_cast<std::int64_t>(program.singles.size());
    program.dims.push_back(dim);
  }
  return program;
}

std::vector<DimBlock> dim_blocks(const PatchProgram& program) {
  std::vector<DimBlock> blocks;
  for (std::int64_t dim = 0; dim < program.dims; ++dim) {
    std::vector<std::size_t> layers;
    for (std::size_t layer = 0; layer < program.layers.size(); ++layer)
      if (!program.layers[layer].dims[static_cast<std::size_t>(dim)].empty()) layers.push_back(layer);
    if (blocks.empty() || blocks.back().layers != layers ||
        blocks.back().end - blocks.back().begin == kDimBlock)
      blocks.push_back({dim, dim, std::move(layers)});
    ++blocks.back().end;
  }
  return blocks;
}

std::shared_ptr<const PatchProgram> build(const std::vector<LayerGeometry>& layers,
                                          const PatchOptions& options) {
  std::vector<std::int64_t> channels;
  for (const LayerGeometry& layer : layers) channels.push_back(layer.channels);
  const std::vector<LayerTaps> taps = patch_taps(channels, options);
  auto program = std::make_shared<PatchProgram>();
  program->dims = output_dim(channels, options);
  for (std::size_t layer = 0; layer < layers.size(); ++layer)
    program->layers.push_back(layer_program(taps[layer], layers[layer], options.patch_size));
  program->blocks = dim_blocks(*program);
  return program;
}

using Key = std::vector<std::int64_t>;

Key key_of(const std::vector<LayerGeometry>& layers, const PatchOptions& options) {
  Key key{static_cast<std::int64_t>(options.mode), options.patch_size};
  for (const LayerGeometry& layer : layers) {
    key.push_back(layer.channels);
    key.push_back(layer.radius_y);
    key.push_back(layer.radius_x);
  }
  if (options.mode == PatchMode::kAdaptive) {
    key.push_back(options.target_dim);
    key.insert(key.end(), options.pretrain_dims.begin(), options.pretrain_dims.end());
  }
  return key;
}

}  // namespace

std::shared_ptr<const PatchProgram> patch_program(const std::vector<LayerGeometry>& layers,
                                                  const PatchOptions& options) {
  constexpr std::size_t kKept = 16;
  static std::mutex mutex;
  static std::list<std::pair<Key, std::shared_ptr<const PatchProgram>>> kept;  // most recently used first
  const Key key = key_of(layers, options);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto entry = kept.begin(); entry != kept.end(); ++entry) {
      if (entry->first != key) continue;
      kept.splice(kept.begin(), kept, entry);
      return entry->second;
    }
  }
  // Outside the lock: two threads may build the same program at once, which is harmless.
  std::shared_ptr<const PatchProgram> program = build(layers, options);
  const std::lock_guard<std::mutex> lock(mutex);
  kept.emplace_front(key, program);
  if (kept.size() > kKept) kept.pop_back();
  return program;
}

}  // namespace ensemblead::cpu
