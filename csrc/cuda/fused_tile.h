// The shared-memory tiles of the fused convolution: how they lie, and how many a device has room for.
#pragma once

#include "numbers.h"

namespace ga_scope::cuda {

// A tile row holds 128 bytes of the depth (tap, channel): 64 numbers of 16 bits, or 32 tf32.
constexpr int kTileBytes = 128;
constexpr int kVectorsPerRow = kTileBytes / kVectorBytes;
constexpr int kStepBytes = 32;  // depth of one tensor-core instruction
constexpr int kTileColumns = 256;

// Byte of a 16-byte vector. The exclusive or spreads the eight rows that ldmatrix reads together, and the eight that a
// quarter-warp writes, over all banks. Tiles start at multiples of 128, so a vector 2 k further along the depth is at
// (byte ^ 32 k), and a row 8 k further down at byte + 8 k * 128.
GA_HOST_DEVICE int tile_byte(int row, int vector, const Where& where = Where::current()) {
  return row * kTileBytes + ((vector ^ swizzle(row % kVectorsPerRow, where)) * kVectorBytes);
}

// Rounded to what the tensor cores take.
template <class T, int kCount>
GA_KERNEL Numbers<T, kCount> to_operand(float (&numbers)[kCount]) {
  if constexpr (sizeof(T) == 4) {
    GA_UNROLL for (int i = 0; i < kCount; ++i) numbers[i] = round_to_tf32(numbers[i]);
  }
  return Numbers<T, kCount>::narrow(numbers);
}

// Where one tap of one sampling group of a row reads: bytes from the image's first pixel to each of the four, and their
// weights. On the regular grid, the first alone; -1 off the map.
struct alignas(16) TileSample {
  int32_t pixel[4];
  float weight[4];
};

// One step's operands: the rows' samples and the weight's slice.
template <int kTileRows>
struct alignas(128) TileStage {
  unsigned char columns[kTileRows * kTileBytes];
  unsigned char weight[kTileColumns * kTileBytes];
};

}  // namespace ga_scope::cuda
