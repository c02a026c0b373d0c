#include "cpu/patches_simd.hpp"

#include <utility>

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

inline void store_streaming(float* target, Vec value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(target, value);
#elif defined(__AVX2__)
  _mm256_stream_ps(target, value);
#elif defined(__SSE2__)
  _mm_stream_ps(target, value);
#else
  store(target, value);
#endif
}

void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The source of lane `i` of an exchange, in the lanes of a and then of b.
template <int kBlock, bool kOdd>
constexpr int source_lane(int i) {
  const int even = (i / kBlock) % 2 == 1 ? kLanes + i - kBlock : i;
  return kOdd ? even + kBlock : even;
}

// Interleaves blocks of kBlock lanes: a gets the even blocks of both, b the odd ones.
template <int kBlock, int... kIndices>
inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, kIndices...>) {
  const Vec even = __builtin_shufflevector(a, b, source_lane<kBlock, false>(kIndices)...);
  b = __builtin_shufflevector(a, b, source_lane<kBlock, true>(kIndices)...);
  a = even;
}
template <int kBlock>
inline void exchange(Vec& a, Vec& b) {
  exchange<kBlock>(a, b, std::make_integer_sequence<int, kLanes>{});
}

// rows[i][j] <-> rows[j][i]
inline void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) exchange<1>(rows[i], rows[i + 1]);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i % 4 < 2) exchange<2>(rows[i], rows[i + 2]);
#if defined(__AVX2__)
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i % 8 < 4) exchange<4>(rows[i], rows[i + 4]);
#endif
#if defined(__AVX512F__)
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (i % 16 < 8) exchange<8>(rows[i], rows[i + 8]);
#endif
}

inline void put(float* target, Vec value, std::int64_t count, const RowTarget& row) {
  if (count >= kLanes) {
    if (row.stream) {
      store_streaming(target, value);
    } else {
      store(target, row.accumulate ? load(target) + value : value);
    }
  } else {
    store_some(target, row.accumulate ? load_some(target, count) + value : value, count);
  }
}

template <class T>
void load_plane(const void* map, std::int64_t height, std::int64_t width, float* target,
                std::int64_t stride) {
  const T* source = static_cast<const T*>(map);
  for (std::int64_t y = 0; y < height; ++y) {
    const T* from = source + y * width;
    float* to = target + y * stride;
    std::int64_t x = 0;
    for (; x + kLanes <= width; x += kLanes) store(to + x, load_converted(from + x));
    if (x == width) continue;
    if (width >= kLanes) {
      store(to + width - kLanes, load_converted(from + width - kLanes));  // overlaps its predecessor
    } else {
      store_some(to, load_some(from, width), width);
    }
  }
}

// Loads up to kLanes positions of up to kLanes channels, and writes them plane by plane.
template <class T>
inline void load_square(const T* source, std::int64_t channels, std::int64_t count, std::int64_t positions,
                        float* target, std::int64_t plane_stride) {
  Vec square[kLanes];
#pragma GCC unroll 16
  for (int x = 0; x < kLanes; ++x) {
    const T* from = source + x * channels;
    square[x] = x >= positions ? Vec{} : count == kLanes ? load_converted(from) : load_some(from, count);
  }
  transpose(square);
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c) {
    if (c >= count) break;
    if (positions == kLanes) {
      store(target + c * plane_stride, square[c]);
    } else {
      store_some(target + c * plane_stride, square[c], positions);
    }
  }
}

template <class T>
void load_planes(const void* map, std::int64_t channels, std::int64_t count, std::int64_t height,
                 std::int64_t width, float* target, std::int64_t stride, std::int64_t plane_stride) {
  const T* source = static_cast<const T*>(map);
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t c = 0; c < count; c += kLanes) {
      for (std::int64_t x = 0; x < width; x += kLanes) {
        const std::int64_t positions = width - x < kLanes ? width - x : kLanes;
        load_square(source + (y * width + x) * channels + c, channels,
                    count - c < kLanes ? count - c : kLanes, positions,
                    target + c * plane_stride + y * stride + x, plane_stride);
      }
    }
  }
}

template <int kVectors>
inline void combine_vectors(float* target, const PlaneTerm* terms, std::int64_t count, bool accumulate,
                            std::int64_t at) {
  Vec sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = accumulate ? load(target + at + v * kLanes) : Vec{};
  for (std::int64_t t = 0; t < count; ++t) {
    const float* source = terms[t].source + at;
    const float weight = terms[t].weight;
    for (int v = 0; v < kVectors; ++v) sum[v] += weight * load(source + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) store(target + at + v * kLanes, sum[v]);
}

void combine(float* target, std::int64_t size, const PlaneTerm* terms, std::int64_t count, bool accumulate) {
  std::int64_t at = 0;
  for (; at + 4 * kLanes <= size; at += 4 * kLanes) combine_vectors<4>(target, terms, count, accumulate, at);
  for (; at < size; at += kLanes) combine_vectors<1>(target, terms, count, accumulate, at);
}

void transpose_row(const float* planes, std::int64_t plane_stride, std::int64_t count, std::int64_t width,
                   const RowTarget& target) {
  for (std::int64_t x = 0; x < width; x += kLanes) {
    const std::int64_t positions = width - x < kLanes ? width - x : kLanes;
    for (std::int64_t d = 0; d < count; d += kLanes) {
      Vec rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = load(planes + (d + i) * plane_stride + x);
      transpose(rows);
      float* out = target.data + x * target.stride + d;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (i < positions) put(out + i * target.stride, rows[i], count - d, target);
    }
  }
}

void resize_row(const float* above, const float* below, float weight, std::int64_t width_in,
                std::int64_t stride, std::int64_t count, const Interpolation* columns, std::int64_t width_out,
                float* scratch, const RowTarget& target) {
  const float rest = 1.0f - weight;
  for (std::int64_t i = 0; i < width_in * stride; i += kLanes)
    store(scratch + i, rest * load(above + i) + weight * load(below + i));
  for (std::int64_t x = 0; x < width_out; ++x) {
    const float* left = scratch + columns[x].low * stride;
    const float* right = scratch + columns[x].high * stride;
    const float to_right = columns[x].weight;
    const float to_left = 1.0f - to_right;
    float* out = target.data + x * target.stride;
    for (std::int64_t d = 0; d < count; d += kLanes)
      put(out + d, to_left * load(left + d) + to_right * load(right + d), count - d, target);
  }
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const PatchLoops patch_loops = {
    load_plane<float>,
    load_plane<Float16>,
    load_plane<BFloat16>,
    load_planes<float>,
    load_planes<Float16>,
    load_planes<BFloat16>,
    combine,
    transpose_row,
    resize_row,
    finish_streaming,
};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
