// Division by a number that is known before a kernel starts: a multiplication and a shift on the device,
// where a division takes dozens of instructions.
#pragma once

#include <cstdint>

#include "core/host_device.hpp"

namespace ensemblead {

// Exact for dividends below 2^31; the divisor is in [1, 2^31).
class FastDivide {
 public:
  using Index = std::uint32_t;

  FastDivide() = default;
  // With s = ceil(log2 d) and m = ceil(2^(31 + s) / d), m * d exceeds 2^(31 + s) by less than 2^s, so that
  // for n < 2^31 the quotient n * m / 2^(31 + s) exceeds n / d by less than 1 / d.
  explicit FastDivide(Index divisor) : shift_(31) {
    while ((std::uint64_t{1} << (shift_ - 31)) < divisor) ++shift_;
    multiplier_ = static_cast<Index>(((std::uint64_t{1} << shift_) + divisor - 1) / divisor);
  }

  ENSEMBLEAD_HD Index operator()(Index dividend) const {
    return static_cast<Index>((static_cast<std::uint64_t>(dividend) * multiplier_) >> shift_);
  }

 private:
  Index multiplier_ = std::uint32_t{1} << 31;
  Index shift_ = 31;
};

// Division for dividends that may be larger; slow.
class PlainDivide {
 public:
  using Index = std::uint64_t;

  PlainDivide() = default;
  explicit PlainDivide(Index divisor) : divisor_(divisor) {}
  ENSEMBLEAD_HD Index operator()(Index dividend) const { return dividend / divisor_; }

 private:
  Index divisor_ = 1;
};

}  // namespace ensemblead
