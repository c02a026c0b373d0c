// The order in which rows are picked, and the search for the first rows of that order.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace ensemblead {

// Larger keys are picked first: by value (a squared distance, not negative, so its bits are in its order),
// then by the lowest row. All keys differ.
using PickKey = std::uint64_t;

ENSEMBLEAD_HD constexpr PickKey pick_key(std::uint32_t value_bits, std::uint32_t row) {
  return (PickKey{value_bits} << 32) | static_cast<std::uint32_t>(~row);
}

// Finds a threshold key which at most `limit` rows reach, and at least half as many unless there are fewer
// rows or a gap below the largest values. A histogram of kBuckets counters is taken over all rows, level by
// level: of values 1/2048 of an octave apart, of single values within one such bucket, of row numbers among
// equal values. Each level looks into the one bucket that was too full for the level before.
//
// Rows at or above the threshold are the candidates. No other row's key reaches it, and keys only ever fall,
// so a candidate at or above the threshold that is the best of the candidates is the best of all rows.
struct CandidateSearch {
  static constexpr int kBuckets = 4096;
  static constexpr int kBucketBits = 12;
  static constexpr int kMostLevels = 5;
  static constexpr int kNone = -1;

  std::int64_t limit;
  std::int64_t rows;
  std::int64_t taken;  // rows before the bucket in question
  PickKey threshold;   // the result
  // Bits of a value. Level 0: the largest; level 1: the largest in the bucket; then the one in question.
  std::uint32_t top;
  std::uint32_t first_row;  // from level 2 on: of the bucket in question
  std::int32_t shift;       // from level 2 on: a bucket has 2^shift rows
  std::int32_t level;
  std::int32_t done;

  ENSEMBLEAD_HD static int first_shift(std::int64_t row_count) {
    int shift = 0;
    while ((std::int64_t{kBuckets} << shift) < row_count) ++shift;
    return shift;
  }
  ENSEMBLEAD_HD static int next_shift(int shift) { return shift > kBucketBits ? shift - kBucketBits : 0; }

  // The number of levels that suffices for all values.
  ENSEMBLEAD_HD static int levels(std::int64_t row_count, std::int64_t limit) {
    if (row_count <= limit) return 1;
    int shift = first_shift(row_count);
    int count = 3;
    for (; shift > 0 && (std::int64_t{1} << shift) > limit / 2; shift = next_shift(shift)) ++count;
    return count;
  }

  ENSEMBLEAD_HD void begin(std::uint32_t largest_value) {
    taken = 0;
    top = largest_value;
    level = 0;
    done = 0;
  }

  // The bucket of a row at this level, kNone if it is not in question. The last bucket of level 0 takes every
  // value that is two octaves below the largest, or more.
  ENSEMBLEAD_HD int bucket(std::uint32_t value_bits, std::uint32_t row) const {
    if (level == 0) {
      const std::uint32_t b = (top - value_bits) >> kBucketBits;
      return b < kBuckets - 1 ? static_cast<int>(b) : kBuckets - 1;
    }
    if (level == 1) {
      // A value above the bucket makes this wrap around to a large number.
      const std::uint32_t b = top - value_bits;
      return b < kBuckets ? static_cast<int>(b) : kNone;
    }
    if (value_bits != top || row < first_row) return kNone;
    const std::uint32_t b = (row - first_row) >> shift;
    return b < kBuckets ? static_cast<int>(b) : kNone;
  }

  // `crossing` is the first bucket that no longer fits within the limit (kBuckets if all do), and `before`
  // the number of rows in the buckets before it.
  ENSEMBLEAD_HD void finish_level(int crossing, std::int64_t before) {
    const std::int64_t enough = limit >= 2 ? limit / 2 : 1;
    const std::int64_t total = taken + before;
    if (level == 0) {
      if (crossing == kBuckets) return finish(0);
      const std::uint32_t below = static_cast<std::uint32_t>(crossing) << kBucketBits;
      if (crossing == kBuckets - 1 || total >= enough) return finish(above(top - below));
      top -= below;
    } else if (level == 1) {
      const std::uint32_t value = top - static_cast<std::uint32_t>(crossing);
      if (total >= enough) return finish(above(value));
      top = value;
      first_row = 0;
      shift = first_shift(rows);
    } else {
      const std::uint32_t row = first_row + (static_cast<std::uint32_t>(crossing) << shift);
      // The key after that of `row`, which is the first row left out.
      if (total >= enough || shift == 0) return finish(pick_key(top, row) + 1);
      first_row = row;
      shift = next_shift(shift);
    }
    taken = total;
    ++level;
  }

 private:
  // The lowest key of all values above this one.
  ENSEMBLEAD_HD static PickKey above(std::uint32_t value_bits) { return (PickKey{value_bits} + 1) << 32; }
  ENSEMBLEAD_HD void finish(PickKey key) {
    threshold = key;
    done = 1;
  }
};

}  // namespace ensemblead
