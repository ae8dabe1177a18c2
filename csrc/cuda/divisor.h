// Division by a number that a whole launch shares: a multiplication and a shift instead of a hundred instructions.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "grid.h"

namespace ga_scope::cuda {

// n / d for n in [0, 2^62) and d in [1, 2^62): with 2^s >= d and m = 2^(63 + s) / d rounded up, n m is at most
// n 2^s above n 2^(63 + s) / d, too little to reach the next multiple of 2^(63 + s) (Granlund and Montgomery 1994).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t divisor) : divisor_(divisor) {
    while ((int64_t(1) << shift_) < divisor) ++shift_;
    const unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + shift_);
    multiplier_ = static_cast<uint64_t>((power + divisor - 1) / divisor);
  }

  GA_HOST_DEVICE int64_t divide(int64_t n) const {
    return static_cast<int64_t>(multiply_high(static_cast<uint64_t>(n) << 1, multiplier_) >> shift_);
  }
  GA_HOST_DEVICE int64_t value() const { return divisor_; }

 private:
  int64_t divisor_ = 1;
  uint64_t multiplier_ = uint64_t(1) << 63;
  int shift_ = 0;
};

}  // namespace ga_scope::cuda
