#include "tiling.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "core/checks.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tiling_simd.hpp"

namespace ensemblead::cpu {
namespace {

// One unit of work: large enough that handing it out costs nothing, small enough to stay in the second-level
// cache.
constexpr std::int64_t kBlockBytes = 64 * 1024;

int threads_for(std::int64_t output_bytes, const Work& work) {
  return team_size(work.threads, output_bytes, 2 * kBlockBytes);
}

// `planes` of `height` rows cut into blocks of rows, each in one plane; block b starts at row (b % per_plane)
// * rows.
struct RowBlocks {
  RowBlocks(std::int64_t planes, std::int64_t height_of_plane, std::int64_t row_bytes)
      : height(height_of_plane),
        rows(std::clamp<std::int64_t>(kBlockBytes / row_bytes, 1, height_of_plane)),
        per_plane((height + rows - 1) / rows),
        count(planes * per_plane) {}

  std::int64_t plane(std::int64_t block) const { return block / per_plane; }
  Interval range(std::int64_t block) const {
    const std::int64_t begin = block % per_plane * rows;
    return {begin, std::min(begin + rows, height)};
  }

  std::int64_t height;
  std::int64_t rows;
  std::int64_t per_plane;
  std::int64_t count;
};

// --- tile: bytes only, whatever the dtype ---

// Copies rows [y.begin, y.end) of one tile whose first pixel is `source`; `inside` of its pixels lie in the
// image.
void copy_tile_rows(const char* source, Interval y, Size2 inside, Size2 tile, std::int64_t image_width,
                    std::int64_t item, char* out) {
  const std::int64_t filled = std::clamp(inside.h, y.begin, y.end);
  const std::int64_t out_row = tile.w * item;
  if (tile.w == image_width) {
    const auto bytes = static_cast<std::size_t>((filled - y.begin) * out_row);
    std::memcpy(out + y.begin * out_row, source + y.begin * out_row, bytes);
  } else {
    const auto bytes = static_cast<std::size_t>(inside.w * item);
    for (std::int64_t row = y.begin; row < filled; ++row) {
      char* const target = out + row * out_row;
      std::memcpy(target, source + row * image_width * item, bytes);
      std::memset(target + bytes, 0, static_cast<std::size_t>(out_row) - bytes);
    }
  }
  std::memset(out + filled * out_row, 0, static_cast<std::size_t>((y.end - filled) * out_row));
}

// --- untile ---

// The tiles first ... last cover every pixel of `pixels` on one axis.
struct Run {
  Interval pixels;
  std::int64_t first;
  std::int64_t last;
};

std::vector<Run> runs_of(const TileAxis& axis) {
  std::vector<Run> runs;
  for (const Interval pixels : covering_runs(axis))
    runs.push_back({pixels, axis.first(pixels.begin), axis.last(pixels.begin)});
  return runs;
}

std::int64_t largest_count(const std::vector<Run>& runs) {
  std::int64_t count = 0;
  for (const Run& run : runs) count = std::max(count, run.last - run.first + 1);
  return count;
}

// The tiles of an UntileTask, and the sources of each run of pixels in them.
template <class T>
struct UntileLayout {
  explicit UntileLayout(const UntileTask& task)
      : rows(task.grid.rows),
        cols(task.grid.cols),
        planes(task.images.shape[0] * task.images.shape[1]),
        row_runs(runs_of(rows)),
        col_runs(runs_of(cols)),
        tiles(task.tiles.as<const T>()) {
    const std::int64_t one_tile = planes * rows.tile * cols.tile;
    for (std::int64_t i = 0; i < rows.count; ++i)
      row_offsets.push_back(i * cols.count * one_tile - rows.start(i) * cols.tile);
    for (std::int64_t j = 0; j < cols.count; ++j) col_offsets.push_back(j * one_tile - cols.start(j));
  }

  // The most tiles that cover a pixel.
  std::size_t most_sources() const {
    return static_cast<std::size_t>(largest_count(row_runs) * largest_count(col_runs));
  }

  // The first pixel of `col_run` in row `row` of a plane, in every tile that covers it; returns how many.
  std::int64_t find_sources(std::int64_t plane, std::int64_t row, const Run& row_run, const Run& col_run,
                            const T** sources) const {
    const T* const pixel = tiles + (plane * rows.tile + row) * cols.tile + col_run.pixels.begin;
    std::int64_t count = 0;
    for (std::int64_t i = row_run.first; i <= row_run.last; ++i)
      for (std::int64_t j = col_run.first; j <= col_run.last; ++j)
        sources[count++] = pixel + (row_offsets[i] + col_offsets[j]);
    return count;
  }

  TileAxis rows;
  TileAxis cols;
  std::int64_t planes;
  std::vector<Run> row_runs;
  std::vector<Run> col_runs;
  // The pixel (y, x) of the image lies at row_offsets[i] + y * cols.tile + col_offsets[j] + x in tile (i, j).
  std::vector<std::int64_t> row_offsets;
  std::vector<std::int64_t> col_offsets;
  const T* tiles;
};

// Row `row` of a plane of images, to `out`.
template <class T, class A>
void untile_row(const UntileLayout<T>& layout, const TilingLoops<T, A>& loops, std::int64_t plane,
                std::int64_t row, const Run& row_run, const T** sources, T* out) {
  const auto for_each_run = [&](const auto& function) {
    for (const Run& col_run : layout.col_runs) {
      const std::int64_t count = layout.find_sources(plane, row, row_run, col_run, sources);
      function(count, col_run.pixels.end - col_run.pixels.begin, out + col_run.pixels.begin);
    }
  };
  for_each_run([&](std::int64_t count, std::int64_t length, T* target) {
    if (count == 1) {
      std::memcpy(target, sources[0], static_cast<std::size_t>(length) * sizeof(T));
    } else {
      loops.average(sources, count, A(1) / static_cast<A>(count), length, target);
    }
  });
  // The whole row at once: reading values straight after they were written takes as long as writing them.
  if (!loops.any_not_finite(out, layout.cols.size)) return;
  for_each_run([&](std::int64_t count, std::int64_t length, T* target) {
    if (count > 1) loops.average_large(sources, count, length, target);
  });
}

template <class T, class A>
void untile_as(const UntileTask& task, const TilingLoops<T, A>& loops, const Work& work) {
  const UntileLayout<T> layout(task);
  const std::int64_t height = layout.rows.size;
  const std::int64_t row_bytes = layout.cols.size * static_cast<std::int64_t>(sizeof(T));
  const int threads = threads_for(layout.planes * height * row_bytes, work);
  const std::size_t most = layout.most_sources();
  std::vector<const T*> all_sources(most * static_cast<std::size_t>(threads));
  const RowBlocks blocks(layout.planes, height, row_bytes);
  T* const images = task.images.as<T>();

  parallel_for(blocks.count, threads, Schedule::kStatic, [&](std::int64_t block, int thread) {
    const T** const sources = all_sources.data() + most * static_cast<std::size_t>(thread);
    const std::int64_t plane = blocks.plane(block);
    const Interval range = blocks.range(block);
    for (const Run& run : layout.row_runs) {
      const std::int64_t end = std::min(run.pixels.end, range.end);
      for (std::int64_t row = std::max(run.pixels.begin, range.begin); row < end; ++row)
        untile_row(layout, loops, plane, row, run, sources,
                   images + (plane * height + row) * layout.cols.size);
    }
  });
}

// --- smooth_seams ---

// The blur of a call, in the type that sums are made in.
template <class A>
struct Blur {
  Blur(const SmoothTask& task, const BlurLoops<A>& blur_loops)
      : height(task.grid.rows.size),
        width(task.grid.cols.size),
        row_bands(seam_bands(task.grid.rows, task.width)),
        col_bands(seam_bands(task.grid.cols, task.width)),
        loops(blur_loops) {
    const std::vector<double> half = gaussian_weights(task.sigma);
    radius = static_cast<std::int64_t>(half.size()) - 1;
    for (std::int64_t k = -radius; k <= radius; ++k)
      weights.push_back(static_cast<A>(half[static_cast<std::size_t>(k < 0 ? -k : k)]));
  }

  bool in_row_band(std::int64_t y) const {
    for (const Interval band : row_bands)
      if (y >= band.begin && y < band.end) return true;
    return false;
  }

  std::int64_t height;
  std::int64_t width;
  std::vector<Interval> row_bands;
  std::vector<Interval> col_bands;
  std::vector<A> weights;  // mirrored: 2 * radius + 1
  std::int64_t radius = 0;
  const BlurLoops<A>& loops;
};

// The buffers of one thread: kBlurRows rows blurred across rows with their reflected borders, pointers to the
// rows around them, and, where maps are stored in 16 bits, the rows of a block as float and one finished row.
template <class A>
struct BlurBuffers {
  BlurBuffers(const Blur<A>& blur, std::int64_t widened_rows)
      : across_stride(blur.width + 2 * blur.radius),
        across(static_cast<std::size_t>(kBlurRows * across_stride)),
        rows(static_cast<std::size_t>(2 * blur.radius + kBlurRows)),
        widened(static_cast<std::size_t>(widened_rows * blur.width)),
        finished(static_cast<std::size_t>(widened_rows > 0 ? blur.width : 0)) {}

  std::int64_t across_stride;
  std::vector<A> across;
  std::vector<const A*> rows;
  std::vector<A> widened;
  std::vector<A> finished;
};

// The rows of a map from number `first` on.
template <class A>
struct Rows {
  const A* data = nullptr;
  std::int64_t first = 0;
};

// Blurs the columns of `band` across rows, for `count` rows (1 or kBlurRows) starting at y, borders included.
template <class A>
void blur_across(const Blur<A>& blur, Rows<A> rows, std::int64_t y, std::int64_t count, Interval band,
                 BlurBuffers<A>* buffers) {
  const std::int64_t radius = blur.radius;
  const Interval inner{std::max<std::int64_t>(band.begin - radius, 0),
                       std::min(band.end + radius, blur.width)};
  for (std::int64_t t = 0; t < 2 * radius + count; ++t)
    buffers->rows[static_cast<std::size_t>(t)] =
        rows.data + (reflected(y - radius + t, blur.height) - rows.first) * blur.width + inner.begin;
  A* const first = buffers->across.data() + radius;  // index 0 is the first column
  if (count == 1) {
    blur.loops.across_rows(buffers->rows.data(), blur.weights.data(), radius, inner.end - inner.begin,
                           first + inner.begin);
  } else {
    blur.loops.across_many(buffers->rows.data(), blur.weights.data(), radius, inner.end - inner.begin,
                           first + inner.begin, buffers->across_stride);
  }
  for (std::int64_t r = 0; r < count; ++r) {
    A* const across = first + r * buffers->across_stride;
    for (std::int64_t x = band.begin - radius; x < 0; ++x) across[x] = across[reflected(x, blur.width)];
    for (std::int64_t x = blur.width; x < band.end + radius; ++x)
      across[x] = across[reflected(x, blur.width)];
  }
}

// The blur of one band in `count` rows of a map, starting at y: across the rows first, as SciPy does.
template <class T, class A>
void blur_band(const Blur<A>& blur, const TilingLoops<T, A>& loops, Rows<A> rows, std::int64_t y,
               std::int64_t count, Interval band, BlurBuffers<A>* buffers, T* out) {
  blur_across(blur, rows, y, count, band, buffers);
  const std::int64_t length = band.end - band.begin;
  for (std::int64_t r = 0; r < count; ++r) {
    const A* const across = buffers->across.data() + r * buffers->across_stride + blur.radius + band.begin;
    T* const target = out + (y + r) * blur.width + band.begin;
    if constexpr (std::is_same_v<T, A>) {
      blur.loops.along_row(across, blur.weights.data(), blur.radius, length, target);
    } else {
      blur.loops.along_row(across, blur.weights.data(), blur.radius, length, buffers->finished.data());
      loops.narrow(buffers->finished.data(), length, target);
    }
  }
}

template <class T, class A>
void smooth_rows(const Blur<A>& blur, const TilingLoops<T, A>& loops, const T* map, Interval range,
                 BlurBuffers<A>* buffers, T* out) {
  Rows<A> rows;
  if constexpr (std::is_same_v<T, A>) {
    rows = {map, 0};
  } else {
    const std::int64_t first = std::max<std::int64_t>(range.begin - blur.radius, 0);
    const std::int64_t end = std::min(range.end + blur.radius, blur.height);
    loops.widen(map + first * blur.width, (end - first) * blur.width, buffers->widened.data());
    rows = {buffers->widened.data(), first};
  }
  const Interval whole{0, blur.width};
  for (std::int64_t y = range.begin; y < range.end;) {
    const bool all = blur.in_row_band(y);
    std::int64_t same = 1;  // rows from y on that have the same bands
    while (same < kBlurRows && y + same < range.end && blur.in_row_band(y + same) == all) ++same;
    const std::int64_t count = same == kBlurRows ? kBlurRows : 1;
    const Interval* const bands = all ? &whole : blur.col_bands.data();
    const Interval* const bands_end = bands + (all ? 1 : blur.col_bands.size());
    for (std::int64_t row = y; row < y + count; ++row) {
      std::int64_t x = 0;
      for (const Interval* band = bands; band <= bands_end; ++band) {
        const std::int64_t end = band == bands_end ? blur.width : band->begin;
        std::memcpy(out + row * blur.width + x, map + row * blur.width + x,
                    static_cast<std::size_t>(end - x) * sizeof(T));
        if (band != bands_end) x = band->end;
      }
    }
    for (const Interval* band = bands; band < bands_end; ++band)
      blur_band(blur, loops, rows, y, count, *band, buffers, out);
    y += count;
  }
}

template <class T, class A>
void smooth_as(const SmoothTask& task, const TilingLoops<T, A>& loops, const BlurLoops<A>& blur_loops,
               const Work& work) {
  const Blur<A> blur(task, blur_loops);
  const std::int64_t plane_size = blur.height * blur.width;
  const std::int64_t planes = task.maps.size() / plane_size;
  const T* const maps = task.maps.as<const T>();
  T* const smoothed = task.smoothed.as<T>();

  const int threads = threads_for(task.maps.size() * static_cast<std::int64_t>(sizeof(T)), work);
  const RowBlocks blocks(planes, blur.height, blur.width * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t widened_rows =
      std::is_same_v<T, A> ? 0 : std::min(blocks.rows + 2 * blur.radius, blur.height);
  std::vector<BlurBuffers<A>> buffers(static_cast<std::size_t>(threads), BlurBuffers<A>(blur, widened_rows));

  parallel_for(blocks.count, threads, Schedule::kStatic, [&](std::int64_t block, int thread) {
    const std::int64_t offset = blocks.plane(block) * plane_size;
    smooth_rows(blur, loops, maps + offset, blocks.range(block), &buffers[thread], smoothed + offset);
  });
}

[[noreturn]] void refuse(const char* argument, DType dtype) {
  throw TypeError(std::string(argument) + " has dtype " + name(dtype) + ", which no tiling kernel takes");
}

}  // namespace

void tile(const TileTask& task, const Work& work) {
  const TileAxis rows = task.grid.rows;
  const TileAxis cols = task.grid.cols;
  const std::int64_t images = task.images.shape[0] * task.images.shape[1];
  const auto item = static_cast<std::int64_t>(item_size(task.images.dtype));
  const std::int64_t planes = rows.count * cols.count * images;
  const char* const source = task.images.as<const char>();
  char* const out = task.tiles.as<char>();
  const RowBlocks blocks(planes, rows.tile, cols.tile * item);
  const int threads = threads_for(planes * rows.tile * cols.tile * item, work);

  parallel_for(blocks.count, threads, Schedule::kStatic, [&](std::int64_t block, int) {
    const std::int64_t plane = blocks.plane(block);
    const std::int64_t y = rows.start(plane / images / cols.count);
    const std::int64_t x = cols.start(plane / images % cols.count);
    const Size2 inside{std::min(rows.tile, rows.size - y), std::min(cols.tile, cols.size - x)};
    copy_tile_rows(source + ((plane % images * rows.size + y) * cols.size + x) * item, blocks.range(block),
                   inside, {rows.tile, cols.tile}, cols.size, item,
                   out + plane * rows.tile * cols.tile * item);
  });
}

void untile(const UntileTask& task, const Work& work) {
  switch (task.tiles.dtype) {
    case DType::kFloat16:
      return untile_as<Float16, float>(task, tiling_table().float16, work);
    case DType::kBFloat16:
      return untile_as<BFloat16, float>(task, tiling_table().bfloat16, work);
    case DType::kFloat32:
      return untile_as<float, float>(task, tiling_table().float32, work);
    case DType::kFloat64:
      return untile_as<double, double>(task, tiling_table().float64, work);
    default:
      refuse("tiles", task.tiles.dtype);
  }
}

void smooth_seams(const SmoothTask& task, const Work& work) {
  switch (task.maps.dtype) {
    case DType::kFloat16:
      return smooth_as<Float16, float>(task, tiling_table().float16, tiling_table().blur32, work);
    case DType::kBFloat16:
      return smooth_as<BFloat16, float>(task, tiling_table().bfloat16, tiling_table().blur32, work);
    case DType::kFloat32:
      return smooth_as<float, float>(task, tiling_table().float32, tiling_table().blur32, work);
    case DType::kFloat64:
      return smooth_as<double, double>(task, tiling_table().float64, tiling_table().blur64, work);
    default:
      refuse("maps", task.maps.dtype);
  }
}

}  // namespace ensemblead::cpu
