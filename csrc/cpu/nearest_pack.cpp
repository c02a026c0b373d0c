#include "cpu/nearest_pack.hpp"

#include <cstring>
#include <limits>

#include "cpu/parallel.hpp"

namespace ensemblead::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kEpsilon = std::numeric_limits<float>::epsilon();

void store_word(std::int32_t value, float* word) { std::memcpy(word, &value, sizeof value); }

}  // namespace

Coder::Coder(const CoresetSimd& simd, const SketchedRows& rows, const float* packed, Side side)
    : simd_(simd),
      layout_(simd, rows),
      side_(side),
      middle_(rows.middle),
      dims_(rows.dims),
      directions_(rows.num_directions),
      direction_panels_(packed),
      leads_(packed + layout_.leads_at),
      zeros_(static_cast<std::size_t>(simd.panel_width), 0.0f),
      always_(static_cast<std::size_t>(simd.tile_rows), -kInfinity),
      products_(static_cast<std::size_t>(simd.tile_rows * simd.panel_width), 0.0f),
      coordinates_(static_cast<std::size_t>(simd.tile_rows * directions_), 0.0f) {}

void Coder::sketch(const float* const* points, std::int64_t count, float* centred, float* words,
                   CodedPoint* coded, SketchNorms* norms) {
  const std::int64_t width = simd_.panel_width;
  for (std::int64_t i = 0; i < count; ++i)
    norms[i].full = simd_.center(points[i], middle_, dims_, centred + i * dims_);
  for (std::int64_t v = 0; v < directions_; v += width) {
    simd_.tile(centred, dims_, dims_, direction_panels_ + v * dims_, zeros_.data(), always_.data(),
               products_.data());
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(products_.data() + i * width, std::min(width, directions_ - v),
                  coordinates_.data() + i * directions_ + v);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const float* coordinates = coordinates_.data() + i * directions_;
    norms[i].sketch = simd_.squared_norm(coordinates, directions_);
    if (norms[i].full < kTooLong) {
      coded[i] =
          code(layout_.sketch, coordinates, coordinates + layout_.lead, words + i * layout_.sketch.words);
    } else {
      std::fill_n(words + i * layout_.sketch.words, layout_.sketch.words, 0.0f);
      coded[i] = {};
    }
  }
}

CodedPoint Coder::whole(const float* sketch, float* centred, float* words) const {
  for (std::int64_t v = 0; v < layout_.lead; ++v) {
    const float* direction = leads_ + v * dims_;
    for (std::int64_t d = 0; d < dims_; ++d) centred[d] -= sketch[v] * direction[d];
  }
  return code(layout_.whole, sketch, centred, words);
}

// For a query x and a row p, with x = X + e and p = P + f by their codes X and P,
//   x.p = X.P + e.p + X.f <= X.P + |e| |p| + |X| |f|,
// which is a product of what is written here. Errors are widened by their rounding.
CodedPoint Coder::code(const CodedForm& form, const float* lead, const float* values, float* words) const {
  const bool is_query = side_ == Side::kQuery;
  auto* codes = reinterpret_cast<unsigned char*>(words + form.front);
  std::fill_n(codes, 4 * form.groups, static_cast<unsigned char>(0));
  const Codes found = simd_.encode(values, form.values, is_query ? kMostQueryCode : kMostRowCode,
                                   is_query ? kMostQueryCode : 0, codes);
  const float wider = 1.0f + static_cast<float>(form.values + 16) * kEpsilon;
  const float whole = found.scale * std::sqrt(found.whole) * wider;
  const float coded = found.scale * std::sqrt(found.coded) * wider;
  const float error = found.scale * std::sqrt(found.error) * wider + 4.0f * kEpsilon * whole;
  std::copy_n(lead, form.lead, words);
  words[form.lead] = is_query ? error : whole;
  words[form.lead + 1] = is_query ? coded : error;
  return {found.scale, found.sum};
}

std::int64_t packed_size(const SketchedRows& rows) { return PackedLayout(coreset_simd(), rows).size; }

namespace {

// One thread's means to pack the rows of one tile at a time.
class RowPacker {
 public:
  RowPacker(const CoresetSimd& simd, const PackTask& task, const PackedLayout& layout)
      : rows_(task.rows),
        packed_(task.packed),
        layout_(layout),
        slack_(sketch_slack(rows_.dims, rows_.num_directions)),
        coder_(simd, rows_, task.packed, Side::kRow),
        points_(static_cast<std::size_t>(simd.tile_rows)),
        centred_(static_cast<std::size_t>(simd.tile_rows * rows_.dims)),
        sketches_(static_cast<std::size_t>(simd.tile_rows * layout.sketch.words)),
        coded_(static_cast<std::size_t>(simd.tile_rows)),
        norms_(static_cast<std::size_t>(simd.tile_rows)),
        whole_(static_cast<std::size_t>(layout.whole.words)),
        widened_(static_cast<std::size_t>(rows_.rows == nullptr ? simd.tile_rows * rows_.dims : 0)),
        simd_(simd) {}

  // Rows `first` to `first + count`, at most simd.tile_rows of them.
  void run(std::int64_t first, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
      points_[i] = row_of(simd_, rows_, first + i, widened_.data() + i * rows_.dims);
    coder_.sketch(points_.data(), count, centred_.data(), sketches_.data(), coded_.data(), norms_.data());
    for (std::int64_t i = 0; i < count; ++i) {
      const float* sketch = sketches_.data() + i * layout_.sketch.words;
      const std::int64_t panel = (first + i) / layout_.width;
      const std::int64_t lane = (first + i) % layout_.width;
      if (layout_.sketch_size > 0)
        put(layout_.sketch, coded_[i], norms_[i], sketch,
            packed_ + layout_.sketches_at + panel * layout_.sketch_size + lane);
      CodedPoint whole;
      std::fill(whole_.begin(), whole_.end(), 0.0f);
      if (norms_[i].full < kTooLong)
        whole = coder_.whole(sketch, centred_.data() + i * rows_.dims, whole_.data());
      put(layout_.whole, whole, {norms_[i].full, norms_[i].full}, whole_.data(),
          packed_ + layout_.wholes_at + panel * layout_.whole_size + lane);
    }
  }

 private:
  // Into the column of a panel. A row that is too long for products starts at infinity: it is always compared.
  void put(const CodedForm& form, CodedPoint point, SketchNorms norms, const float* words, float* to) const {
    const std::int64_t width = layout_.width;
    to[kStartWord * width] = norms.full < kTooLong ? product_start(norms, slack_) : kInfinity;
    to[kScaleWord * width] = point.scale;
    store_word(-kMostQueryCode * point.sum, to + kSumWord * width);
    for (std::int64_t v = 0; v < form.words; ++v)
      std::memcpy(to + (kFrontWord + v) * width, words + v, sizeof(float));
  }

  const SketchedRows& rows_;
  float* packed_;
  const PackedLayout& layout_;
  float slack_;
  Coder coder_;
  std::vector<const float*> points_;
  std::vector<float> centred_;
  std::vector<float> sketches_;
  std::vector<CodedPoint> coded_;
  std::vector<SketchNorms> norms_;
  std::vector<float> whole_;  // one row
  std::vector<float> widened_;
  const CoresetSimd& simd_;
};

// Lanes without a row, in the last panel: they hit nothing.
void clear_last_panel(const PackedLayout& layout, std::int64_t panel_size, float* panels) {
  if (panel_size == 0 || layout.row_panels == 0) return;
  float* panel = panels + (layout.row_panels - 1) * panel_size;
  std::fill_n(panel, panel_size, 0.0f);
  std::fill_n(panel + kStartWord * layout.width, layout.width, -kInfinity);
}

}  // namespace

void pack_rows(const PackTask& task, const Work& work) {
  const CoresetSimd& simd = coreset_simd();
  const SketchedRows& rows = task.rows;
  const PackedLayout layout(simd, rows);
  std::fill_n(task.packed, layout.leads_at, 0.0f);
  for (std::int64_t v = 0; v < rows.num_directions; ++v)
    for (std::int64_t d = 0; d < rows.dims; ++d)
      task.packed[(v / layout.width * rows.dims + d) * layout.width + v % layout.width] =
          task.directions[v * rows.dims + d];
  std::copy_n(task.directions, layout.lead * rows.dims, task.packed + layout.leads_at);
  clear_last_panel(layout, layout.sketch_size, task.packed + layout.sketches_at);
  clear_last_panel(layout, layout.whole_size, task.packed + layout.wholes_at);

  const std::int64_t tile = simd.tile_rows;
  const int threads = most_threads(work.threads);
  std::vector<RowPacker> packers;
  packers.reserve(static_cast<std::size_t>(threads));
  for (int thread = 0; thread < threads; ++thread) packers.emplace_back(simd, task, layout);
  parallel_for((rows.num_rows + tile - 1) / tile, threads, Schedule::kStatic,
               [&](std::int64_t item, int thread) {
                 packers[thread].run(item * tile, std::min(tile, rows.num_rows - item * tile));
               });
}

}  // namespace ensemblead::cpu
