#include "cpu/tiling_simd.hpp"

namespace ensemblead::cpu::ENSEMBLEAD_INSTRUCTION_SET {
namespace {

// --- averages: plain loops, which the compiler vectorises -----------------------------------------------------------

inline float wide(Float16 value) { return to_float(value); }
inline float wide(BFloat16 value) { return to_float(value); }
inline float wide(float value) { return value; }
inline double wide(double value) { return value; }

inline void store(float value, Float16* out) { from_float(value, out); }
inline void store(float value, BFloat16* out) { from_float(value, out); }
inline void store(float value, float* out) { *out = value; }
inline void store(double value, double* out) { *out = value; }

template <class T, class A, class Out>
void average_few(const T* const* sources, std::int64_t count, A scale, std::int64_t begin, std::int64_t length,
                 Out* __restrict out) {
  const T* const a = sources[0] + begin;
  const T* const b = sources[count > 1 ? 1 : 0] + begin;
  const T* const c = sources[count > 2 ? 2 : 0] + begin;
  const T* const d = sources[count > 3 ? 3 : 0] + begin;
  switch (count) {
    case 1:
      for (std::int64_t x = 0; x < length; ++x) store(scale * wide(a[x]), &out[x]);
      break;
    case 2:
      for (std::int64_t x = 0; x < length; ++x) store(scale * (wide(a[x]) + wide(b[x])), &out[x]);
      break;
    case 3:
      for (std::int64_t x = 0; x < length; ++x) store(scale * ((wide(a[x]) + wide(b[x])) + wide(c[x])), &out[x]);
      break;
    default:
      for (std::int64_t x = 0; x < length; ++x)
        store(scale * ((wide(a[x]) + wide(b[x])) + (wide(c[x]) + wide(d[x]))), &out[x]);
  }
}

// Pairwise summation as a binary counter: levels[k] holds the sum of 4 * 2^k sources when bit k of `leaves` is set.
// Equal values in 2^k tiles thus only ever double, which is exact, and the error grows with the logarithm of `count`.
template <class T, class A>
void average_many(const T* const* sources, std::int64_t count, A scale, std::int64_t begin, std::int64_t length,
                  T* out) {
  constexpr int kLanes = 64;
  A levels[32][kLanes];
  for (std::int64_t x = 0; x < length; x += kLanes) {
    const std::int64_t lanes = length - x < kLanes ? length - x : kLanes;
    std::int64_t leaves = 0;
    A sum[kLanes];
    for (std::int64_t s = 0; s < count; s += 4, ++leaves) {
      average_few(sources + s, count - s < 4 ? count - s : 4, A(1), begin + x, lanes, sum);
      int level = 0;
      for (; ((leaves >> level) & 1) != 0; ++level)
        for (std::int64_t l = 0; l < lanes; ++l) sum[l] += levels[level][l];
      for (std::int64_t l = 0; l < lanes; ++l) levels[level][l] = sum[l];
    }
    bool first = true;
    for (int level = 0; (leaves >> level) != 0; ++level) {
      if (((leaves >> level) & 1) == 0) continue;
      for (std::int64_t l = 0; l < lanes; ++l) sum[l] = first ? levels[level][l] : sum[l] + levels[level][l];
      first = false;
    }
    for (std::int64_t l = 0; l < lanes; ++l) store(scale * sum[l], &out[x + l]);
  }
}

template <class T, class A>
void average(const T* const* sources, std::int64_t count, A scale, std::int64_t length, T* out) {
  if (count <= 4) {
    average_few(sources, count, scale, 0, length, out);
  } else {
    average_many(sources, count, scale, 0, length, out);
  }
}

template <class T, class A>
void widen(const T* values, std::int64_t length, A* __restrict out) {
  for (std::int64_t x = 0; x < length; ++x) out[x] = wide(values[x]);
}

template <class T, class A>
void narrow(const A* values, std::int64_t length, T* __restrict out) {
  for (std::int64_t x = 0; x < length; ++x) store(values[x], &out[x]);
}

// --- blurs: explicit vectors, several sums at once so that the additions of one hide behind the others ----------------

template <class A>
struct Vector {
  typedef A Type __attribute__((vector_size(64), aligned(alignof(A)), may_alias));
  static constexpr int kLanes = 64 / sizeof(A);
};

#if defined(__AVX512F__)
constexpr int kSums = 4;
#elif defined(__AVX__)
constexpr int kSums = 2;
#else
constexpr int kSums = 1;
#endif

// Where the taps of output x = 0 lie: `before(k)` and `after(k)` at distance k, `centre` at distance 0.
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

template <class V, int sums, class A, class Taps>
inline void blur_block(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t x, A* out) {
  constexpr int kLanes = sizeof(V) / sizeof(A);
  V sum[sums];
  for (int n = 0; n < sums; ++n)
    sum[n] = weights[0] * *reinterpret_cast<const V*>(taps.centre() + x + n * kLanes);
  for (std::int64_t k = 1; k <= radius; ++k) {
    const A weight = weights[k];
    const A* const before = taps.before(k) + x;
    const A* const after = taps.after(k) + x;
    for (int n = 0; n < sums; ++n)
      sum[n] += weight * (*reinterpret_cast<const V*>(before + n * kLanes) +
                          *reinterpret_cast<const V*>(after + n * kLanes));
  }
  for (int n = 0; n < sums; ++n) *reinterpret_cast<V*>(out + x + n * kLanes) = sum[n];
}

// A rest shorter than a block is done by one more block that ends at `length` and overlaps the one before.
template <class V, int sums, class A, class Taps>
inline bool blur_in_blocks(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  constexpr std::int64_t kStep = sums * static_cast<std::int64_t>(sizeof(V) / sizeof(A));
  if (length < kStep) return false;
  std::int64_t x = 0;
  for (; x + kStep <= length; x += kStep) blur_block<V, sums>(taps, weights, radius, x, out);
  if (x < length) blur_block<V, sums>(taps, weights, radius, length - kStep, out);
  return true;
}

template <class A, class Taps>
inline void blur(const Taps& taps, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  using V = typename Vector<A>::Type;
  if (blur_in_blocks<V, kSums>(taps, weights, radius, length, out)) return;
  if (kSums > 1 && blur_in_blocks<V, 1>(taps, weights, radius, length, out)) return;
  for (std::int64_t x = 0; x < length; ++x) {
    A sum = weights[0] * taps.centre()[x];
    for (std::int64_t k = 1; k <= radius; ++k) sum += weights[k] * (taps.before(k)[x] + taps.after(k)[x]);
    out[x] = sum;
  }
}

template <class A>
void across_rows(const A* const* rows, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  blur(AcrossRows<A>{rows, radius}, weights, radius, length, out);
}

template <class A>
void along_row(const A* row, const A* weights, std::int64_t radius, std::int64_t length, A* out) {
  blur(AlongRow<A>{row}, weights, radius, length, out);
}

template <class T, class A>
constexpr TilingLoops<T, A> loops() {
  return {average<T, A>, widen<T, A>, narrow<T, A>};
}

}  // namespace

const TilingTable tiling_table = {
    loops<Float16, float>(),
    loops<BFloat16, float>(),
    loops<float, float>(),
    loops<double, double>(),
    {across_rows<float>, along_row<float>},
    {across_rows<double>, along_row<double>},
};

}  // namespace ensemblead::cpu::ENSEMBLEAD_INSTRUCTION_SET
