#include "cpu/convolution_simd.hpp"

#include "cpu/simd.hpp"

namespace ensemblead::cpu {
namespace {

// Accumulators of two vectors a row, as many as leave registers for what is multiplied.
constexpr int kRows = kLanes == 16 ? 8 : 4;

// The transforms of Lavin and Gray for the points 0, 1, -1, 2, -2 and infinity, of a row or column.

inline __attribute__((always_inline)) void transform_six(const Vec (&d)[6], Vec (&out)[6]) {
  const Vec even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const Vec far_even = d[4] - d[2], far_odd = 2.0f * (d[3] - d[1]);
  out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far_even + far_odd;
  out[4] = far_even - far_odd;
  out[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

inline __attribute__((always_inline)) void transform_four(const Vec (&d)[4], Vec (&out)[6]) {
  const Vec even = d[0] + d[2], odd = d[1] + d[3];
  const Vec far_even = d[0] + 4.0f * d[2], far_odd = 2.0f * d[1] + 8.0f * d[3];
  out[0] = d[0];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far_even + far_odd;
  out[4] = far_even - far_odd;
  out[5] = d[3];
}

inline __attribute__((always_inline)) void transform_three(const Vec (&g)[3], Vec (&out)[6]) {
  const Vec even = (g[0] + g[2]) * (-1.0f / 6), odd = g[1] * (-1.0f / 6);
  const Vec far_even = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), far_odd = g[1] * (1.0f / 12);
  out[0] = g[0] * 0.25f;
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far_even + far_odd;
  out[4] = far_even - far_odd;
  out[5] = g[2];
}

inline __attribute__((always_inline)) void restore_four(const Vec (&m)[6], Vec (&out)[4]) {
  const Vec even = m[1] + m[2], odd = m[1] - m[2];
  const Vec far_even = m[3] + m[4], far_odd = m[3] - m[4];
  out[0] = m[0] + even + far_even;
  out[1] = odd + 2.0f * far_odd;
  out[2] = even + 4.0f * far_even;
  out[3] = odd + 8.0f * far_odd + m[5];
}

inline __attribute__((always_inline)) void restore_three(const Vec (&m)[6], Vec (&out)[3]) {
  const Vec even = m[1] + m[2], odd = m[2] - m[1];
  const Vec far_even = m[3] + m[4], far_odd = m[3] - m[4];
  out[0] = 0.25f * m[0] - even * (1.0f / 6) + far_even * (1.0f / 24);
  out[1] = odd * (1.0f / 6) + far_odd * (1.0f / 12);
  out[2] = far_even * (1.0f / 6) - even * (1.0f / 6) + m[5];
}

// A transform of columns, then of rows: from kFrom x kFrom values to kTo x kTo.
template <int kFrom, int kTo, class Transform, class Load, class Store>
inline __attribute__((always_inline)) void in_both_directions(const Transform& transform, const Load& load_at,
                                                              const Store& store_at) {
  Vec half[kTo][kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) {
    Vec from[kFrom];
    Vec to[kTo];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) from[i] = load_at(i, j);
    transform(from, to);
#pragma GCC unroll 6
    for (int i = 0; i < kTo; ++i) half[i][j] = to[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) {
    Vec to[kTo];
    transform(half[i], to);
#pragma GCC unroll 6
    for (int j = 0; j < kTo; ++j) store_at(i, j, to[j]);
  }
}

template <int kSize, class Transform>
inline void transform_patch(const Patch<const float>& patch, std::int64_t channels, std::int64_t stride,
                            float* transformed, const Transform& transform) {
  const bool whole = patch.top == 0 && patch.left == 0 && patch.bottom == kSize && patch.right == kSize;
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    const float* from = patch.origin + c;
    float* to = transformed + c;
    const auto store_at = [&](int i, int j, Vec value) { store(to + (i * 6 + j) * stride, value); };
    const auto known = [&](int i, int j) {
      return load(from + i * patch.row_stride + j * patch.column_stride);
    };
    const auto known_or_zero = [&](int i, int j) {
      const bool exists = i >= patch.top && i < patch.bottom && j >= patch.left && j < patch.right;
      return exists ? known(i, j) : Vec{};
    };
    if (whole) {
      in_both_directions<kSize, 6>(transform, known, store_at);
    } else {
      in_both_directions<kSize, 6>(transform, known_or_zero, store_at);
    }
  }
}

void transform_images(const Patch<const float>& patch, std::int64_t channels, std::int64_t stride,
                      float* transformed) {
  transform_patch<6>(patch, channels, stride, transformed,
                     [](const Vec(&from)[6], Vec(&to)[6]) { transform_six(from, to); });
}

void transform_gradients(const Patch<const float>& patch, std::int64_t outputs, std::int64_t stride,
                         float* transformed) {
  transform_patch<4>(patch, outputs, stride, transformed,
                     [](const Vec(&from)[4], Vec(&to)[6]) { transform_four(from, to); });
}

void transform_taps(const float* taps, std::int64_t channels, std::int64_t outputs, std::int64_t begin,
                    std::int64_t end, float* transformed) {
  constexpr int kWidth = 2 * kLanes;
  const std::int64_t stride = channels * outputs;
  for (std::int64_t o = 0; o < outputs; o += kLanes) {
    const std::int64_t panel = o / kWidth * kWidth;
    const std::int64_t width = outputs - panel < kWidth ? kLanes : kWidth;
    for (std::int64_t c = begin; c < end; ++c) {
      const float* from = taps + c * outputs + o;
      float* to = transformed + panel * channels + c * width + (o - panel);
      in_both_directions<3, 6>([](const Vec(&g)[3], Vec(&out)[6]) { transform_three(g, out); },
                               [&](int i, int j) { return load(from + (i * 3 + j) * stride); },
                               [&](int i, int j, Vec value) { store(to + (i * 6 + j) * stride, value); });
    }
  }
}

void restore_taps(const float* transformed, std::int64_t channels, std::int64_t outputs, std::int64_t begin,
                  std::int64_t end, float* taps) {
  const std::int64_t stride = channels * outputs;
  for (std::int64_t at = begin * outputs; at < end * outputs; at += kLanes) {
    in_both_directions<6, 3>(
        [](const Vec(&m)[6], Vec(&out)[3]) { restore_three(m, out); },
        [&](int i, int j) { return load(transformed + (i * 6 + j) * stride + at); },
        [&](int i, int j, Vec value) { store(taps + (i * 3 + j) * stride + at, value); });
  }
}

void restore_results(const float* transformed, std::int64_t stride, int vectors, const float* bias,
                     const Patch<float>& patch) {
  for (int v = 0; v < vectors; ++v) {
    const float* from = transformed + v * kLanes;
    float* to = patch.origin + v * kLanes;
    const Vec added = bias == nullptr ? Vec{} : load(bias + v * kLanes);
    in_both_directions<6, 4>([](const Vec(&m)[6], Vec(&out)[4]) { restore_four(m, out); },
                             [&](int i, int j) { return load(from + (i * 6 + j) * stride); },
                             [&](int i, int j, Vec value) {
                               if (i < patch.bottom && j < patch.right)
                                 store(to + i * patch.row_stride + j * patch.column_stride, value + added);
                             });
  }
}

template <int kVectors>
void multiply_vectors(const Factors& f, float* sums, std::int64_t stride, bool add) {
  Vec sum[kRows][kVectors] = {};
  const float* rows = f.rows;
  const float* panel = f.panel;
  for (std::int64_t t = 0; t < f.terms; ++t, rows += f.row_step, panel += f.panel_step) {
    Vec right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec left = broadcast(rows[r * f.row_stride]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums + r * stride + v * kLanes;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

void multiply(const Factors& factors, int vectors, float* sums, std::int64_t stride, bool add) {
  if (vectors == 2) {
    multiply_vectors<2>(factors, sums, stride, add);
  } else {
    multiply_vectors<1>(factors, sums, stride, add);
  }
}

}  // namespace

namespace ENSEMBLEAD_INSTRUCTION_SET {
const ConvolutionSimd convolution_simd = {
    kRows,    kLanes,          transform_taps, transform_images, transform_gradients,
    multiply, restore_results, restore_taps};
}  // namespace ENSEMBLEAD_INSTRUCTION_SET
}  // namespace ensemblead::cpu
