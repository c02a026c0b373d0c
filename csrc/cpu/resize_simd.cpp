#include "cpu/resize_simd.hpp"

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

typedef std::uint8_t Bytes __attribute__((vector_size(16)));
typedef std::uint8_t UnalignedBytes __attribute__((vector_size(16), aligned(1), may_alias));
inline Bytes interleaved_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes interleaved_high(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#if !defined(__AVX2__)
inline Bytes interleaved_pairs_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
}
inline Bytes interleaved_pairs_high(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
}
inline Bytes even_bytes(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
#endif
constexpr int kVectors = 16 / kLanes;

// Sixteen whole numbers of 32 bits, of bytes that lie in a row.
struct Sixteen {
  IntVec parts[kVectors];
};

inline Bytes load_bytes(const std::uint8_t* from) { return *reinterpret_cast<const UnalignedBytes*>(from); }
inline void store_bytes(std::uint8_t* to, Bytes bytes) { *reinterpret_cast<UnalignedBytes*>(to) = bytes; }

// Conversions are not left to the compiler: GCC 12 does them lane by lane.
inline Sixteen widened(const std::uint8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {{reinterpret_cast<IntVec>(_mm512_maskz_cvtepu8_epi32(first_lanes(16), bytes))}};
#elif defined(__AVX2__)
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8));
  return {{reinterpret_cast<IntVec>(_mm256_cvtepu8_epi32(low)),
           reinterpret_cast<IntVec>(_mm256_cvtepu8_epi32(high))}};
#else
  // The least byte comes first on all processors that this is compiled for.
  const Bytes none = {};
  const Bytes bytes = load_bytes(from);
  const Bytes low = interleaved_low(bytes, none), high = interleaved_high(bytes, none);
  return {{reinterpret_cast<IntVec>(interleaved_pairs_low(low, none)),
           reinterpret_cast<IntVec>(interleaved_pairs_high(low, none)),
           reinterpret_cast<IntVec>(interleaved_pairs_low(high, none)),
           reinterpret_cast<IntVec>(interleaved_pairs_high(high, none))}};
#endif
}

// Sums that began with one half, as eight bits. Weights are not negative, but their sum may be above one.
inline void store_rounded(std::uint8_t* to, const Sixteen& sums) {
  IntVec values[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const IntVec value = sums.parts[v] >> kResizeBits;
    values[v] = value > 255 ? IntVec{} + 255 : value;
  }
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(first_lanes(16), reinterpret_cast<__m512i>(values[0]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#elif defined(__AVX2__)
  // Both packs work on halves of 128 bits: 0-3, 8-11, 4-7, 12-15 come out.
  const __m256i words =
      _mm256_packus_epi32(reinterpret_cast<__m256i>(values[0]), reinterpret_cast<__m256i>(values[1]));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes =
      _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#else
  const Bytes low = even_bytes(reinterpret_cast<Bytes>(values[0]), reinterpret_cast<Bytes>(values[1]));
  const Bytes high = even_bytes(reinterpret_cast<Bytes>(values[2]), reinterpret_cast<Bytes>(values[3]));
  store_bytes(to, even_bytes(low, high));
#endif
}

inline Sixteen halves() {
  Sixteen sums;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums.parts[v] = IntVec{} + (1 << (kResizeBits - 1));
  return sums;
}

inline void add_weighted(Sixteen& sums, IntVec weight, const std::uint8_t* pixels) {
  const Sixteen values = widened(pixels);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sums.parts[v] += weight * values.parts[v];
}

// Each row interleaved with the one eight below it, four times over: rows become columns.
inline void transpose(Bytes (&block)[16]) {
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
    Bytes mixed[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      mixed[2 * i] = interleaved_low(block[i], block[i + 8]);
      mixed[2 * i + 1] = interleaved_high(block[i], block[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) block[i] = mixed[i];
  }
}

// lanes[byte][row] = rows[row][begin + byte]
void gather_lanes(const std::uint8_t* const* rows, std::int64_t begin, std::int64_t bytes,
                  std::uint8_t* lanes) {
  std::int64_t b = 0;
  Bytes block[16];
  for (; b + 16 <= bytes; b += 16) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) block[r] = load_bytes(rows[r] + begin + b);
    transpose(block);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) store_bytes(lanes + 16 * (b + r), block[r]);
  }
  for (; b < bytes; ++b)
    for (int r = 0; r < 16; ++r) lanes[16 * b + r] = rows[r][begin + b];
}

void scatter_lanes(const std::uint8_t* lanes, std::int64_t bytes, std::uint8_t* rows, std::int64_t stride) {
  Bytes block[16];
  for (std::int64_t b = 0; b < bytes; b += 16) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) block[r] = load_bytes(lanes + 16 * (b + r));
    transpose(block);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) store_bytes(rows + r * stride + b, block[r]);
  }
}

void across(const std::uint8_t* const* rows, const ResizeTaps& taps, std::uint8_t* lanes, std::uint8_t* wide,
            std::uint8_t* results, std::int64_t stride) {
  const std::int64_t last = taps.firsts[taps.size - 1] + taps.counts[taps.size - 1];
  std::int64_t first = 0, end = 0;  // of the pixels in `lanes`
  for (std::int64_t i = 0; i < taps.size; ++i) {
    const std::int64_t needed = taps.firsts[i] + taps.counts[i];
    if (end < needed) {
      first = taps.firsts[i];
      end = first + kResizedPixels < last ? first + kResizedPixels : last;
      if (end < needed) end = needed;
      gather_lanes(rows, kColors * first, kColors * (end - first), lanes);
    }
    const std::int32_t* weights = taps.weights + i * taps.width;
    const std::uint8_t* pixels = lanes + kResizedRows * kColors * (taps.firsts[i] - first);
    Sixteen red = halves(), green = halves(), blue = halves();
    for (std::int64_t t = 0; t < taps.counts[i]; ++t, pixels += kResizedRows * kColors) {
      const IntVec weight = IntVec{} + weights[t];
      add_weighted(red, weight, pixels);
      add_weighted(green, weight, pixels + kResizedRows);
      add_weighted(blue, weight, pixels + 2 * kResizedRows);
    }
    std::uint8_t* result = wide + kResizedRows * kColors * i;
    store_rounded(result, red);
    store_rounded(result + kResizedRows, green);
    store_rounded(result + 2 * kResizedRows, blue);
  }
  scatter_lanes(wide, kColors * taps.size, results, stride);
}

void down(const std::uint8_t* rows, std::int64_t bytes, const std::int32_t* weights, std::int64_t count,
          std::uint8_t* result) {
  for (std::int64_t b = 0; b < bytes; b += kResizedBytes) {
    Sixteen sums[kResizedBytes / 16] = {halves(), halves(), halves(), halves()};
    for (std::int64_t t = 0; t < count; ++t) {
      const IntVec weight = IntVec{} + weights[t];
#pragma GCC unroll 4
      for (int v = 0; v < kResizedBytes / 16; ++v)
        add_weighted(sums[v], weight, rows + t * bytes + b + 16 * v);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kResizedBytes / 16; ++v) store_rounded(result + b + 16 * v, sums[v]);
  }
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const ResizeSimd resize_simd = {across, down};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
