#include "cpu/patch_pooler.hpp"

#include <algorithm>

namespace ensemblead::cpu {
namespace {

constexpr std::int64_t kMaxSlots = 16;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

PlaneBuffer::PlaneBuffer(std::int64_t size) : storage_(new float[static_cast<std::size_t>(size + 16)]) {
  const auto misalignment = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(storage_.get()) % 64);
  data_ = storage_.get() + (64 - misalignment) % 64 / static_cast<std::int64_t>(sizeof(float));
}

PoolLayer::PoolLayer(const FeatureMap& feature_map, const LayerProgram& layer_program)
    : map(feature_map), program(&layer_program) {
  group = map.channels_last ? kPlaneGroup : 1;
  // Successive dimensions share their border channel at most, so the widest span and one more need no
  // reloading.
  slots = map.channels_last ? 2 * group : std::min(program->max_channels + 1, kMaxSlots);
}

std::int64_t PoolLayer::input_plane(std::int64_t height) const {
  return round_up((height + 2 * program->radius_y) * stride() + 2 * program->radius_x + kPlaneSlack,
                  kPlaneSlack);
}

std::int64_t PoolLayer::sum_plane(std::int64_t height) const {
  return round_up(height * stride() + 2 * program->radius_x + kPlaneSlack, kPlaneSlack);
}

void PoolExtents::include(const PoolLayer& layer, std::int64_t height) {
  inputs = std::max(inputs, layer.slots * layer.input_plane(height));
  box = std::max(box, layer.input_plane(height));
  row = std::max(row, layer.sum_plane(height));
  sums = std::max(sums, kPlaneGroup * layer.sum_plane(height));
}

Pooler::Pooler(const PatchLoops& loops, const PoolExtents& extents)
    : loops_(loops), inputs_(extents.inputs), box_(extents.box), row_(extents.row), sums_(extents.sums) {}

void Pooler::start(const PoolLayer& layer, std::int64_t image, RowRange rows) {
  layer_ = &layer;
  image_ = image;
  rows_ = rows;
  seen_ = {std::max<std::int64_t>(rows.begin - layer.program->radius_y, 0),
           std::min(rows.end + layer.program->radius_y, layer.map.height)};
  input_plane_ = layer.input_plane(rows.end - rows.begin);
  sum_plane_ = layer.sum_plane(rows.end - rows.begin);
  // Every load writes the same places of a plane, so the margins stay zero from here on.
  std::fill_n(inputs_.data(), layer.slots * input_plane_, 0.0f);
  loaded_.assign(static_cast<std::size_t>(layer.slots / layer.group), -1);
}

const float* Pooler::pool(std::int64_t begin, std::int64_t end) {
  for (std::int64_t dim = begin; dim < end; ++dim)
    pool_dim(layer_->program->dims[static_cast<std::size_t>(dim)], sums_.data() + (dim - begin) * sum_plane_);
  return sums_.data();
}

void Pooler::pool_dim(const DimProgram& dim, float* sum) {
  const LayerProgram& program = *layer_->program;
  const std::int64_t stride = layer_->stride();
  const std::int64_t ry = program.radius_y;
  const std::int64_t rx = program.radius_x;
  const std::int64_t size = (rows_.end - rows_.begin) * stride;
  const bool has_box = dim.boxes.begin != dim.boxes.end;
  const bool has_rows = has_box || dim.rows.begin != dim.rows.end;
  const PatchTap* box = program.boxes.data() + dim.boxes.begin;
  const PatchTap* row = program.rows.data() + dim.rows.begin;
  const PatchTap* single = program.singles.data() + dim.singles.begin;
  const PatchTap* const last_box = program.boxes.data() + dim.boxes.end;
  const PatchTap* const last_row = program.rows.data() + dim.rows.end;
  const PatchTap* const last_single = program.singles.data() + dim.singles.end;
  bool first = true;
  // As many channels at a time as the slots hold; nearly always all of them at once.
  for (std::int64_t channel_begin = dim.first_channel; channel_begin <= dim.last_channel;) {
    const std::int64_t group_begin = channel_begin / layer_->group * layer_->group;
    const std::int64_t channel_end =
        std::min<std::int64_t>(group_begin + layer_->slots, dim.last_channel + 1);
    const bool last = channel_end > dim.last_channel;
    load(channel_begin, channel_end);
    box_terms_.clear();
    row_terms_.clear();
    sum_terms_.clear();
    for (; box != last_box && box->channel < channel_end; ++box)
      box_terms_.push_back({channel(box->channel), box->weight});
    for (; row != last_row && row->channel < channel_end; ++row)
      row_terms_.push_back({channel(row->channel) + (ry + row->dy) * stride, row->weight});
    for (; single != last_single && single->channel < channel_end; ++single)
      sum_terms_.push_back(
          {channel(single->channel) + (ry + single->dy) * stride + rx + single->dx, single->weight});
    // A box is summed with the margins that its vertical pass needs, a row sum with those of the horizontal
    // one.
    if (has_box)
      loops_.combine(box_.data(), size + 2 * ry * stride + 2 * rx, box_terms_.data(),
                     static_cast<std::int64_t>(box_terms_.size()), !first);
    if (last && has_box)
      for (std::int64_t dy = -ry; dy <= ry; ++dy)
        row_terms_.push_back({box_.data() + (ry + dy) * stride, 1.0f});
    if (has_rows)
      loops_.combine(row_.data(), size + 2 * rx, row_terms_.data(),
                     static_cast<std::int64_t>(row_terms_.size()), !first);
    if (last && has_rows)
      for (std::int64_t dx = -rx; dx <= rx; ++dx) sum_terms_.push_back({row_.data() + rx + dx, 1.0f});
    loops_.combine(sum, size, sum_terms_.data(), static_cast<std::int64_t>(sum_terms_.size()), !first);
    first = false;
    channel_begin = channel_end;
  }
}

void Pooler::load(std::int64_t first, std::int64_t last) {
  const std::int64_t group = layer_->group;
  for (std::int64_t g = first / group; g * group < last; ++g) {
    const auto place = static_cast<std::size_t>(g % static_cast<std::int64_t>(loaded_.size()));
    if (loaded_[place] == g) continue;
    loaded_[place] = g;
    const std::int64_t row = seen_.begin - (rows_.begin - layer_->program->radius_y);
    load_group(g, inputs_.data() + static_cast<std::int64_t>(place) * group * input_plane_ +
                      layer_->program->radius_x + row * layer_->stride());
  }
}

void Pooler::load_group(std::int64_t group, float* target) const {
  const FeatureMap& map = layer_->map;
  const std::int64_t height = seen_.end - seen_.begin;
  const std::int64_t plane = map.height * map.width;
  const auto* bytes = static_cast<const char*>(map.data);
  const auto item = static_cast<std::int64_t>(item_size(map.dtype));
  if (!map.channels_last) {
    const char* source = bytes + ((image_ * map.channels + group) * plane + seen_.begin * map.width) * item;
    const LoadPlane load_plane = map.dtype == DType::kFloat32   ? loops_.load_float32
                                 : map.dtype == DType::kFloat16 ? loops_.load_float16
                                                                : loops_.load_bfloat16;
    load_plane(source, height, map.width, target, layer_->stride());
    return;
  }
  const std::int64_t first = group * kPlaneGroup;
  const char* source = bytes + ((image_ * plane + seen_.begin * map.width) * map.channels + first) * item;
  const LoadPlanes load_planes = map.dtype == DType::kFloat32   ? loops_.load_last_float32
                                 : map.dtype == DType::kFloat16 ? loops_.load_last_float16
                                                                : loops_.load_last_bfloat16;
  load_planes(source, map.channels, std::min(kPlaneGroup, map.channels - first), height, map.width, target,
              layer_->stride(), input_plane_);
}

}  // namespace ensemblead::cpu
