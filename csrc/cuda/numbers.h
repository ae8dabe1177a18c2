// Several numbers that are loaded, computed with and stored at once.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../compute_type.h"
#include "grid.h"

namespace ga_scope::cuda {

constexpr int kVectorBytes = 16;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Numbers {
  static constexpr int kWords = sizeof(T) * kCount / 4;  // 0: a single number of 16 bits
  static constexpr bool kPacked = sizeof(T) == 2 && kWords > 0;
  std::conditional_t<kPacked, uint32_t, T> part[kPacked ? kWords : kCount];

  GA_KERNEL void widen(ComputeType<T> (&to)[kCount]) const {
    if constexpr (kPacked) {
      GA_UNROLL for (int w = 0; w < kWords; ++w) {
        if constexpr (std::is_same_v<T, BFloat16>) {
          to[2 * w] = float_of_bits(part[w] << 16);
          to[2 * w + 1] = float_of_bits(part[w] & 0xffff0000u);
        } else {
          to[2 * w] = static_cast<float>(Half(static_cast<uint16_t>(part[w]), Half::from_bits()));
          to[2 * w + 1] = static_cast<float>(Half(static_cast<uint16_t>(part[w] >> 16), Half::from_bits()));
        }
      }
    } else {
      GA_UNROLL for (int i = 0; i < kCount; ++i) to[i] = static_cast<ComputeType<T>>(part[i]);
    }
  }

  // The opposite, rounded to nearest.
  static GA_KERNEL Numbers narrow(const ComputeType<T> (&from)[kCount]) {
    Numbers numbers;
    if constexpr (kPacked) {
      GA_UNROLL for (int w = 0; w < kWords; ++w) numbers.part[w] = pack<T>(from[2 * w], from[2 * w + 1]);
    } else {
      GA_UNROLL for (int i = 0; i < kCount; ++i) numbers.part[i] = static_cast<T>(from[i]);
    }
    return numbers;
  }
};

}  // namespace ga_scope::cuda
