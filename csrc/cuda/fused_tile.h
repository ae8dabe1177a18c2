// The shared-memory tiles of the fused convolution: their layout, and how numbers are packed in them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "grid.h"

namespace ga_scope::cuda {

// A tile row holds 128 bytes of the depth (tap, channel): 64 numbers of 16 bits, or 32 tf32.
constexpr int kTileBytes = 128;
constexpr int kVectorBytes = 16;
constexpr int kVectorsPerRow = kTileBytes / kVectorBytes;
constexpr int kStepBytes = 32;  // depth of one tensor-core instruction

// Byte of a 16-byte vector. The exclusive or spreads the eight rows that ldmatrix reads together, and the
// eight that a quarter-warp writes, over all banks. Tiles start at multiples of 128, so a vector 2 k further along
// the depth is at (byte ^ 32 k).
GA_HOST_DEVICE int tile_byte(int row, int vector) {
  return row * kTileBytes + ((vector ^ (row % kVectorsPerRow)) * kVectorBytes);
}

struct alignas(16) Vector {
  uint32_t word[4];
};

// The numbers of a 32-bit word: two of 16 bits, or one float.
template <class T>
GA_KERNEL void widen(uint32_t word, float* numbers) {
  if constexpr (std::is_same_v<T, float>) {
    numbers[0] = float_of_bits(word);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    numbers[0] = float_of_bits(word << 16);
    numbers[1] = float_of_bits(word & 0xffff0000u);
  } else {
    numbers[0] = static_cast<float>(Half(static_cast<uint16_t>(word), Half::from_bits()));
    numbers[1] = static_cast<float>(Half(static_cast<uint16_t>(word >> 16), Half::from_bits()));
  }
}

// The opposite, rounded to what the tensor cores take.
template <class T>
GA_KERNEL uint32_t narrow(const float* numbers) {
  if constexpr (std::is_same_v<T, float>) {
    return static_cast<uint32_t>(bits_of(round_to_tf32(numbers[0])));
  } else {
    return static_cast<uint32_t>(T(numbers[0]).x) | static_cast<uint32_t>(T(numbers[1]).x) << 16;
  }
}

}  // namespace ga_scope::cuda
