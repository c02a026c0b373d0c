#include "cpu/tiling_simd.hpp"

#include <type_traits>

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

// --- averages: plain loops, which the compiler vectorises ---

// An element in the type of sums, and back.
template <class T>
inline auto wide(T value) {
  return to_float(value);
}
inline double wide(double value) { return value; }

template <class T>
inline void put(float value, T* out) {
  from_float(value, out);
}
inline void put(double value, double* out) { *out = value; }

// The processor converts float16 by itself, several times as fast as the portable code.
template <class T>
constexpr bool kConvertsVectors = std::is_same_v<T, Float16> && kLanes > 4;

template <class T, class A>
void widen(const T* values, std::int64_t length, A* __restrict out) {
  std::int64_t x = 0;
  if constexpr (kConvertsVectors<T>)
    for (; x + kLanes <= length; x += kLanes) store(out + x, load_converted(values + x));
  for (; x < length; ++x) out[x] = wide(values[x]);
}

template <class T, class A>
void narrow(const A* values, std::int64_t length, T* __restrict out) {
  std::int64_t x = 0;
  if constexpr (kConvertsVectors<T>)
    for (; x + kLanes <= length; x += kLanes) store_converted(out + x, load(values + x));
  for (; x < length; ++x) put(values[x], &out[x]);
}

template <class T, class A, class Out>
void average_few(const T* const* sources, std::int64_t count, A scale, std::int64_t begin,
                 std::int64_t length, Out* __restrict out) {
  const T* const a = sources[0] + begin;
  const T* const b = sources[count > 1 ? 1 : 0] + begin;
  const T* const c = sources[count > 2 ? 2 : 0] + begin;
  const T* const d = sources[count > 3 ? 3 : 0] + begin;
  switch (count) {
    case 1:
      for (std::int64_t x = 0; x < length; ++x) put(scale * wide(a[x]), &out[x]);
      break;
    case 2:
      for (std::int64_t x = 0; x < length; ++x) put(scale * (wide(a[x]) + wide(b[x])), &out[x]);
      break;
    case 3:
      for (std::int64_t x = 0; x < length; ++x)
        put(scale * ((wide(a[x]) + wide(b[x])) + wide(c[x])), &out[x]);
      break;
    default:
      for (std::int64_t x = 0; x < length; ++x)
        put(scale * ((wide(a[x]) + wide(b[x])) + (wide(c[x]) + wide(d[x]))), &out[x]);
  }
}

// The average of float16 values, which are converted by vectors.
template <class Out>
void average_few(const Float16* const* sources, std::int64_t count, float scale, std::int64_t begin,
                 std::int64_t length, Out* __restrict out) {
  constexpr std::int64_t kBlock = 64;
  float values[4][kBlock];
  float mean[kBlock];
  const float* const widened[] = {values[0], values[1], values[2], values[3]};
  for (std::int64_t x = 0; x < length; x += kBlock) {
    const std::int64_t block = length - x < kBlock ? length - x : kBlock;
    for (std::int64_t s = 0; s < count; ++s) widen(sources[s] + begin + x, block, values[s]);
    average_few(widened, count, scale, 0, block, mean);
    narrow(mean, block, out + x);
  }
}

// Pairwise summation as a binary counter: levels[k] holds the sum of 4 * 2^k sources when bit k of `leaves`
// is set. Equal values in 2^k tiles thus only ever double, which is exact, and the error grows with the
// logarithm of `count`.
template <class T, class A>
void average_many(const T* const* sources, std::int64_t count, A scale, std::int64_t begin,
                  std::int64_t length, T* out) {
  constexpr int kBlock = 64;
  A levels[32][kBlock];
  for (std::int64_t x = 0; x < length; x += kBlock) {
    const std::int64_t block = length - x < kBlock ? length - x : kBlock;
    std::int64_t leaves = 0;
    A sum[kBlock];
    for (std::int64_t s = 0; s < count; s += 4, ++leaves) {
      average_few(sources + s, count - s < 4 ? count - s : 4, A(1), begin + x, block, sum);
      int level = 0;
      for (; ((leaves >> level) & 1) != 0; ++level)
        for (std::int64_t l = 0; l < block; ++l) sum[l] += levels[level][l];
      for (std::int64_t l = 0; l < block; ++l) levels[level][l] = sum[l];
    }
    bool first = true;
    for (int level = 0; (leaves >> level) != 0; ++level) {
      if (((leaves >> level) & 1) == 0) continue;
      for (std::int64_t l = 0; l < block; ++l) sum[l] = first ? levels[level][l] : sum[l] + levels[level][l];
      first = false;
    }
    for (std::int64_t l = 0; l < block; ++l) put(scale * sum[l], &out[x + l]);
  }
}

// Whether a value is NaN or infinite: its exponent is all ones.
inline bool not_finite(float value) { return (detail::bits_of(value) & 0x7f800000u) == 0x7f800000u; }
inline bool not_finite(BFloat16 value) { return (value.bits & 0x7f80u) == 0x7f80u; }
inline bool not_finite(double value) {
  std::uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u;
}

// x - x is 0 for finite x and NaN for others, and NaN stays in a sum.
template <class T>
bool any_not_finite(const T* values, std::int64_t length) {
  std::int64_t x = 0;
  unsigned found = 0;
  if constexpr (!std::is_same_v<T, BFloat16>) {
    using Wide = WideVector<T>;
    typename Wide::Type total{};
    for (; x + Wide::kLanes <= length; x += Wide::kLanes) {
      const typename Wide::Type value = Wide::load(values + x);
      total += value - value;
    }
    for (int lane = 0; lane < Wide::kLanes; ++lane) found |= not_finite(total[lane]) ? 1u : 0u;
  }
  for (; x < length; ++x) found |= not_finite(values[x]) ? 1u : 0u;
  return found != 0;
}

// The mean of values at `at` whose sum is beyond their range: in float64, or of float64 values divided by a
// power of two.
template <class T>
double mean_of_large(const T* const* sources, std::int64_t count, std::int64_t at) {
  double shrink = 1.0;
  if (sizeof(T) == sizeof(double))
    for (std::int64_t n = 1; n < count; n *= 2) shrink *= 0.5;
  double sum = 0.0;
  for (std::int64_t s = 0; s < count; ++s) sum += static_cast<double>(wide(sources[s][at])) * shrink;
  const double mean = sum / (static_cast<double>(count) * shrink);
  // Rounding may lift the mean of the largest float64 values beyond them.
  if (not_finite(mean) && !not_finite(sum)) return mean > 0.0 ? __DBL_MAX__ : -__DBL_MAX__;
  return mean;
}

template <class T, class A>
void average(const T* const* sources, std::int64_t count, A scale, std::int64_t length, T* out) {
  if (count <= 4) {
    average_few(sources, count, scale, 0, length, out);
  } else {
    average_many(sources, count, scale, 0, length, out);
  }
}

// Sums of float16 values are within float32, so these have nothing to mend.
template <>
bool any_not_finite(const Float16*, std::int64_t) {
  return false;
}

template <class T, class A>
void average_large(const T* const* sources, std::int64_t count, std::int64_t length, T* out) {
  for (std::int64_t x = 0; x < length; ++x) {
    if (!any_not_finite(out + x, 1)) continue;
    const double mean = mean_of_large(sources, count, x);
    if (!not_finite(mean)) put(static_cast<A>(mean), &out[x]);
  }
}

// --- blurs: explicit vectors, several sums at once so that the additions of one hide behind the others ---

#if defined(__AVX512F__)
constexpr int kSums = 4;
#elif defined(__AVX2__)
constexpr int kSums = 2;
#else
constexpr int kSums = 1;
#endif

// The taps of output x = 0: `before(k)` and `after(k)` at distance k, `centre` at distance 0.
template <class A>
struct AcrossRows {
  const A* const* rows;
  std::int64_t radius;
  const A* centre() const { return rows[radius]; }
  const A* before(std::int64_t k) const { return rows[radius - k]; }
  const A* after(std::int64_t k) const { return rows[radius + k]; }
};

template <class A>
struct AlongRow {
  const A* row;
  const A* centre() const { return row; }
  const A* before(std::int64_t k) const { return row - k; }
  const A* after(std::int64_t k) const { return row + k; }
};

// `check` becomes NaN in lanes where a sum is not finite.
template <int sums, class A, class Taps>
inline void blur_block(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t x, A* out,
                       typename WideVector<A>::Type& check) {
  using Wide = WideVector<A>;
  typename Wide::Type sum[sums];
  for (int n = 0; n < sums; ++n) sum[n] = weights[radius] * Wide::load(taps.centre() + x + n * Wide::kLanes);
  for (std::int64_t k = 1; k <= radius; ++k) {
    const A weight = weights[radius + k];
    const A* const before = taps.before(k) + x;
    const A* const after = taps.after(k) + x;
    for (int n = 0; n < sums; ++n)
      sum[n] += weight * (Wide::load(before + n * Wide::kLanes) + Wide::load(after + n * Wide::kLanes));
  }
  for (int n = 0; n < sums; ++n) {
    Wide::store(out + x + n * Wide::kLanes, sum[n]);
    check += sum[n] - sum[n];
  }
}

// Many sums at once, then one at a time; the rest overlaps the block before it. Returns whether any sum is
// not finite.
template <class A, class Taps>
inline bool blur_row(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  constexpr std::int64_t kWide = WideVector<A>::kLanes;
  typename WideVector<A>::Type check{};
  A rest = 0;
  std::int64_t x = 0;
  for (; x + kSums * kWide <= length; x += kSums * kWide)
    blur_block<kSums>(taps, weights, radius, x, out, check);
  for (; x + kWide <= length; x += kWide) blur_block<1>(taps, weights, radius, x, out, check);
  if (x < length && length >= kWide) {
    blur_block<1>(taps, weights, radius, length - kWide, out, check);
    x = length;
  }
  for (; x < length; ++x) {
    A sum = weights[radius] * taps.centre()[x];
    for (std::int64_t k = 1; k <= radius; ++k)
      sum += weights[radius + k] * (taps.before(k)[x] + taps.after(k)[x]);
    out[x] = sum;
    rest += sum - sum;
  }
  for (int lane = 0; lane < kWide; ++lane) rest += check[lane];
  return rest != A(0);
}

// Two taps together may be beyond the range of their type where their mean is not. Such pixels are computed
// anew, tap by tap.
template <class A, class Taps>
inline void blur(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  if (!blur_row(taps, weights, radius, length, out)) return;
  for (std::int64_t x = 0; x < length; ++x) {
    if (!not_finite(out[x])) continue;
    A sum = weights[radius] * taps.centre()[x];
    for (std::int64_t k = 1; k <= radius; ++k)
      sum += weights[radius + k] * taps.before(k)[x] + weights[radius + k] * taps.after(k)[x];
    if (!not_finite(sum)) out[x] = sum;
  }
}

template <class A>
void across_rows(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  blur(AcrossRows<A>{rows, radius}, weights, radius, length, out);
}

// One vector of each row read, added to the sums of those output rows that it reaches.
template <int vectors, class A>
inline void add_row(const A* row, const A* weights, std::int64_t first, std::int64_t last,
                    typename WideVector<A>::Type (*sum)[vectors]) {
  using Wide = WideVector<A>;
  typename Wide::Type value[vectors];
  for (int n = 0; n < vectors; ++n) value[n] = Wide::load(row + n * Wide::kLanes);
  // Constant bounds, so that the sums stay in registers.
  for (int r = 0; r < kBlurRows; ++r) {
    if (r < first || r > last) continue;
    for (int n = 0; n < vectors; ++n) sum[r][n] += weights[-r] * value[n];
  }
}

// The first and last rows read do not reach all output rows: no weight of 0 stands in, which would turn inf
// into NaN.
template <int vectors, class A>
inline void blur_many_block(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t x,
                            A* out, std::int64_t out_stride) {
  using Wide = WideVector<A>;
  typename Wide::Type sum[kBlurRows][vectors];
  for (int r = 0; r < kBlurRows; ++r)
    for (int n = 0; n < vectors; ++n) sum[r][n] = typename Wide::Type{};
  const std::int64_t taps = 2 * radius + 1;
  for (std::int64_t t = 0; t < kBlurRows - 1; ++t) add_row<vectors>(rows[t] + x, weights + t, 0, t, sum);
  for (std::int64_t t = kBlurRows - 1; t < taps; ++t)
    add_row<vectors>(rows[t] + x, weights + t, 0, kBlurRows - 1, sum);
  for (std::int64_t t = taps; t < taps + kBlurRows - 1; ++t)
    add_row<vectors>(rows[t] + x, weights + t, t - taps + 1, kBlurRows - 1, sum);
  for (int r = 0; r < kBlurRows; ++r)
    for (int n = 0; n < vectors; ++n) Wide::store(out + r * out_stride + x + n * Wide::kLanes, sum[r][n]);
}

template <class A>
void across_many(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length, A* out,
                 std::int64_t out_stride) {
  constexpr std::int64_t kWide = WideVector<A>::kLanes;
  constexpr int kVectors = kSums > 1 ? kSums / 2 : 1;
  if (length < kWide || 2 * radius + 1 < kBlurRows) {
    for (std::int64_t r = 0; r < kBlurRows; ++r)
      across_rows(rows + r, weights, radius, length, out + r * out_stride);
    return;
  }
  std::int64_t x = 0;
  for (; x + kVectors * kWide <= length; x += kVectors * kWide)
    blur_many_block<kVectors>(rows, weights, radius, x, out, out_stride);
  for (; x + kWide <= length; x += kWide) blur_many_block<1>(rows, weights, radius, x, out, out_stride);
  if (x < length) blur_many_block<1>(rows, weights, radius, length - kWide, out, out_stride);
}

template <class A>
void along_row(const A* row, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  blur(AlongRow<A>{row}, weights, radius, length, out);
}

template <class T, class A>
constexpr TilingLoops<T, A> loops() {
  return {average<T, A>, any_not_finite<T>, average_large<T, A>, widen<T, A>, narrow<T, A>};
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const TilingTable tiling_table = {
    loops<Float16, float>(),
    loops<BFloat16, float>(),
    loops<float, float>(),
    loops<double, double>(),
    {across_rows<float>, across_many<float>, along_row<float>},
    {across_rows<double>, across_many<double>, along_row<double>},
};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
