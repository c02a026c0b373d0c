#include "cpu/weighted_simd.hpp"

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

constexpr int kVectors = 4;  // that are summed together
static_assert(kVectors * kLanes <= kMostCollected);

// a * b + c. Not left to the compiler, which may fuse either product of a sum of two: a column must have the
// same bits wherever its sum is computed.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// kTerms: the number of rows, where it is known; 0 where it is not.
template <int kTerms>
struct Sum {
  const WeightedRows& rows;
  Vec weights[kTerms > 0 ? kTerms : 1];

  explicit Sum(const WeightedRows& of) : rows(of) {
    for (int t = 0; t < kTerms; ++t) weights[t] = broadcast(of.weights[t]);
  }

  template <class Load>
  inline Vec at(const Load& load_from) const {
    Vec sum;
    if constexpr (kTerms > 0) {
      sum = weights[0] * load_from(rows.rows[0]);
#pragma GCC unroll 4
      for (int t = 1; t < kTerms; ++t) sum = multiply_add(weights[t], load_from(rows.rows[t]), sum);
    } else {
      sum = broadcast(rows.weights[0]) * load_from(rows.rows[0]);
      for (std::int64_t t = 1; t < rows.count; ++t)
        sum = multiply_add(broadcast(rows.weights[t]), load_from(rows.rows[t]), sum);
    }
    return rows.scales == nullptr ? sum : sum * load_from(rows.scales);
  }

  inline Vec whole(std::int64_t i) const {
    return at([i](const float* row) { return load(row + i); });
  }
  inline Vec some(std::int64_t i, std::int64_t count) const {
    return at([i, count](const float* row) { return load_some(row + i, count); });
  }
};

void combine(const WeightedRows& rows, std::int64_t size, float* sums) {
  const Sum<0> sum(rows);
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(sums + i, sum.whole(i));
  if (i < size) store_some(sums + i, sum.some(i, size - i), size - i);
}

inline void append(const float* sums, std::uint64_t lanes, std::int64_t first, Collected* found) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctzll(lanes);
    found->values[found->count] = sums[lane];
    found->columns[found->count++] = static_cast<std::int32_t>(first + lane);
  }
}

template <int kTerms>
std::int64_t collect_terms(const WeightedRows& rows, std::int64_t begin, std::int64_t size, float bound,
                           Collected* found) {
  constexpr int kStep = kVectors * kLanes;
  const Sum<kTerms> sum(rows);
  const Vec limit = broadcast(bound);
  float sums[kStep];
  std::int64_t i = begin;
  for (; i + kStep <= size && found->count + kMostCollected <= found->capacity; i += kStep) {
    Vec sum_of[kVectors];
    std::uint64_t lanes = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum_of[v] = sum.whole(i + v * kLanes);
      lanes |= static_cast<std::uint64_t>(greater_lanes(sum_of[v], limit)) << (v * kLanes);
    }
    if (lanes == 0) continue;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, sum_of[v]);
    append(sums, lanes, i, found);
  }
  for (; i < size && found->count + kMostCollected <= found->capacity; i += kLanes) {
    const std::int64_t count = size - i < kLanes ? size - i : kLanes;
    const Vec last = count == kLanes ? sum.whole(i) : sum.some(i, count);
    store(sums, last);
    append(sums, greater_lanes(last, limit) & ((1u << count) - 1u), i, found);
  }
  return i < size ? i : size;
}

std::int64_t collect(const WeightedRows& rows, std::int64_t begin, std::int64_t size, float bound,
                     Collected* found) {
  switch (rows.count) {
    case 1:
      return collect_terms<1>(rows, begin, size, bound, found);
    case 2:
      return collect_terms<2>(rows, begin, size, bound, found);
    case 3:
      return collect_terms<3>(rows, begin, size, bound, found);
    case 4:
      return collect_terms<4>(rows, begin, size, bound, found);
    default:
      return collect_terms<0>(rows, begin, size, bound, found);
  }
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const WeightedSimd weighted_simd = {combine, collect};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
