// Compiled once per instruction set: no function of the standard library here, and nothing with external
// linkage but the table, so that no code built for a newer processor can stand in for the baseline's.
#include "cpu/patches_simd.hpp"

#include "core/half.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <utility>

namespace ensemblead::cpu::ENSEMBLEAD_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef float UnalignedVec __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* source) { return *reinterpret_cast<const UnalignedVec*>(source); }
inline void store(float* target, Vec value) { *reinterpret_cast<UnalignedVec*>(target) = value; }

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

// Where lane `i` of an exchange comes from, in the lanes of a and then of b.
template <int kBlock, bool kOdd>
constexpr int source_lane(int i) {
  const int even = (i / kBlock) % 2 == 1 ? kWidth + i - kBlock : i;
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
  exchange<kBlock>(a, b, std::make_integer_sequence<int, kWidth>{});
}

// rows[i][j] <-> rows[j][i]
inline void transpose(Vec (&rows)[kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i += 2) exchange<1>(rows[i], rows[i + 1]);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i)
    if (i % 4 < 2) exchange<2>(rows[i], rows[i + 2]);
#if defined(__AVX2__)
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i)
    if (i % 8 < 4) exchange<4>(rows[i], rows[i + 4]);
#endif
#if defined(__AVX512F__)
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i)
    if (i % 16 < 8) exchange<8>(rows[i], rows[i + 8]);
#endif
}

// One vector of values in float32, and the first `count` < kWidth of one, zeros behind them.
inline Vec load_converted(const float* source) { return load(source); }
template <class T>
inline Vec load_some(const T* source, std::int64_t count) {
  Vec values = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(source[i]);
  return values;
}

#if defined(__AVX512F__)
inline __mmask16 first(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
// The masked forms, because GCC 12 takes the others' undefined operand for a mistake of ours.
inline Vec widen(BFloat16, __m256i bits) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(first(16), bits);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(first(16), wide, 16));
}
inline Vec widen(Float16, __m256i bits) { return _mm512_maskz_cvtph_ps(first(16), bits); }
template <class Half>
inline Vec load_converted(const Half* source) {
  return widen(Half{}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
inline Vec load_some(const float* source, std::int64_t count) {
  return _mm512_maskz_loadu_ps(first(count), source);
}
inline Vec load_some(const BFloat16* source, std::int64_t count) {
  return widen(BFloat16{}, _mm256_maskz_loadu_epi16(first(count), source));
}
inline Vec load_some(const Float16* source, std::int64_t count) {
  return widen(Float16{}, _mm256_maskz_loadu_epi16(first(count), source));
}
inline void store_some(float* target, Vec value, std::int64_t count) {
  _mm512_mask_storeu_ps(target, first(count), value);
}
#else
#if defined(__AVX2__)
inline Vec widen(BFloat16, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec widen(Float16, __m128i bits) { return _mm256_cvtph_ps(bits); }
template <class Half>
inline Vec load_converted(const Half* source) {
  return widen(Half{}, _mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
#else
template <class Half>
inline Vec load_converted(const Half* source) {
  return load_some(source, kWidth);
}
#endif
inline void store_some(float* target, Vec value, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) target[i] = value[i];
}
#endif

inline void put(float* target, Vec value, std::int64_t count, const RowTarget& row) {
  if (count >= kWidth) {
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
    for (; x + kWidth <= width; x += kWidth) store(to + x, load_converted(from + x));
    if (x == width) continue;
    if (width >= kWidth) {
      store(to + width - kWidth, load_converted(from + width - kWidth));  // overlaps its predecessor
    } else {
      store_some(to, load_some(from, width), width);
    }
  }
}

// Up to kWidth positions of up to kWidth channels, transposed and written plane by plane.
template <class T>
inline void load_square(const T* source, std::int64_t channels, std::int64_t count, std::int64_t positions,
                        float* target, std::int64_t plane_stride) {
  Vec square[kWidth];
#pragma GCC unroll 16
  for (int x = 0; x < kWidth; ++x) {
    const T* from = source + x * channels;
    square[x] = x >= positions ? Vec{} : count == kWidth ? load_converted(from) : load_some(from, count);
  }
  transpose(square);
#pragma GCC unroll 16
  for (int c = 0; c < kWidth; ++c) {
    if (c >= count) break;
    if (positions == kWidth) {
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
    for (std::int64_t c = 0; c < count; c += kWidth) {
      for (std::int64_t x = 0; x < width; x += kWidth) {
        const std::int64_t positions = width - x < kWidth ? width - x : kWidth;
        load_square(source + (y * width + x) * channels + c, channels,
                    count - c < kWidth ? count - c : kWidth, positions,
                    target + c * plane_stride + y * stride + x, plane_stride);
      }
    }
  }
}

template <int kVectors>
inline void combine_vectors(float* target, const PlaneTerm* terms, std::int64_t count, bool accumulate,
                            std::int64_t at) {
  Vec sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = accumulate ? load(target + at + v * kWidth) : Vec{};
  for (std::int64_t t = 0; t < count; ++t) {
    const float* source = terms[t].source + at;
    const float weight = terms[t].weight;
    for (int v = 0; v < kVectors; ++v) sum[v] += weight * load(source + v * kWidth);
  }
  for (int v = 0; v < kVectors; ++v) store(target + at + v * kWidth, sum[v]);
}

void combine(float* target, std::int64_t size, const PlaneTerm* terms, std::int64_t count, bool accumulate) {
  std::int64_t at = 0;
  for (; at + 4 * kWidth <= size; at += 4 * kWidth) combine_vectors<4>(target, terms, count, accumulate, at);
  for (; at < size; at += kWidth) combine_vectors<1>(target, terms, count, accumulate, at);
}

void transpose_row(const float* planes, std::int64_t plane_stride, std::int64_t count, std::int64_t width,
                   const RowTarget& target) {
  for (std::int64_t x = 0; x < width; x += kWidth) {
    const std::int64_t positions = width - x < kWidth ? width - x : kWidth;
    for (std::int64_t d = 0; d < count; d += kWidth) {
      Vec rows[kWidth];
      for (int i = 0; i < kWidth; ++i) rows[i] = load(planes + (d + i) * plane_stride + x);
      transpose(rows);
      float* out = target.data + x * target.stride + d;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        if (i < positions) put(out + i * target.stride, rows[i], count - d, target);
    }
  }
}

void resize_row(const float* above, const float* below, float weight, std::int64_t width_in,
                std::int64_t stride, std::int64_t count, const Interpolation* columns, std::int64_t width_out,
                float* scratch, const RowTarget& target) {
  const float rest = 1.0f - weight;
  for (std::int64_t i = 0; i < width_in * stride; i += kWidth)
    store(scratch + i, rest * load(above + i) + weight * load(below + i));
  for (std::int64_t x = 0; x < width_out; ++x) {
    const float* left = scratch + columns[x].low * stride;
    const float* right = scratch + columns[x].high * stride;
    const float to_right = columns[x].weight;
    const float to_left = 1.0f - to_right;
    float* out = target.data + x * target.stride;
    for (std::int64_t d = 0; d < count; d += kWidth)
      put(out + d, to_left * load(left + d) + to_right * load(right + d), count - d, target);
  }
}

}  // namespace

extern const PatchLoops patch_loops;
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

}  // namespace ensemblead::cpu::ENSEMBLEAD_INSTRUCTION_SET
