// Greedy non-maximum suppression in two launches, whatever the data: no list of survivors is ever made.
//
// First every pair: bit j % 64 of word (b, i, j / 64) says that box i of batch entry b suppresses the later box j.
// Then a sweep, one block per batch entry, over tiles of 64 boxes: one thread settles the tile among itself, and
// all threads let its survivors suppress what follows.
#pragma once

#include "../nms.h"
#include "divisor.h"

namespace ga_scope::cuda {

constexpr int kTile = 64;  // boxes, the bits of a word
constexpr int64_t kMostWords = 1024;

// Words left of the diagonal's are not written: nobody reads them.
template <class Real>
struct PairBits {
  static constexpr int kThreads = kTile;
  struct Shared {
    Array<Box<Real>, kTile> box;
    Array<int64_t, kTile> group;
  };
  Pointer<const Box<Real>> boxes;  // (B, K)
  Pointer<const int64_t> groups;   // (B, K), or null: all of one
  int64_t count, words;            // K, K / 64 rounded up
  Divisor by_words;
  double iou_threshold;
  Pointer<uint64_t> bits;  // (B, K, words)

  int64_t blocks(int64_t batch) const { return batch * words * words; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const int64_t tile_row = by_words.divide(block.index()), column = block.index() - tile_row * words;
    const int64_t batch = by_words.divide(tile_row), row = tile_row - batch * words;
    if (column < row) return;
    Shared& shared = block.template shared<Shared>();
    const int64_t first = batch * count;
    const int thread = block.thread();
    const int64_t j = column * kTile + thread;
    if (within(j, count)) {
      shared.box[thread] = boxes[first + j];
      shared.group[thread] = groups != nullptr ? groups[first + j] : 0;
    }
    block.sync();
    const int64_t i = row * kTile + thread;
    if (!within(i, count)) return;
    const Box<Real> box = boxes[first + i];
    const int64_t group = groups != nullptr ? groups[first + i] : 0;
    const int end = static_cast<int>(smaller(count - column * kTile, int64_t(kTile)));
    uint64_t word = 0;
    for (int k = row == column ? thread + 1 : 0; within(k, end); ++k) {
      if (group == shared.group[k] && suppresses(box, shared.box[k], iou_threshold)) word |= uint64_t(1) << k;
    }
    bits[(first + i) * words + column] = word;
  }
};

struct Sweep {
  static constexpr int kThreads = 256;
  struct Shared {
    Array<uint64_t, kMostWords> gone;  // boxes that are suppressed, or were not valid
    Array<uint64_t, kTile> diagonal;   // of the tile
    uint64_t survivors;                // of the tile
  };
  Pointer<const uint64_t> bits;  // PairBits'
  Pointer<const bool> valid;     // (B, K), or null: all are
  int64_t count, words;
  Pointer<bool> kept;  // (B, K)

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    const int64_t first = block.index() * count;
    const int thread = block.thread();
    for (int64_t w = thread; within(w, words); w += kThreads) shared.gone[w] = not_valid(first, w);
    for (int64_t tile = 0; tile < words; ++tile) {
      const int64_t begin = tile * kTile;
      if (within(thread, kTile)) {
        const bool there = within(begin + thread, count);
        shared.diagonal[thread] = there ? bits[(first + begin + thread) * words + tile] : 0;
      }
      block.sync();
      if (thread == 0) {
        uint64_t left = ~shared.gone[tile];
        for (int i = 0; i < kTile; ++i) {
          if (left >> i & 1) left &= ~shared.diagonal[i];
        }
        shared.survivors = left;
      }
      block.sync();
      const uint64_t survivors = shared.survivors;
      if (thread < kTile && within(begin + thread, count)) kept[first + begin + thread] = survivors >> thread & 1;
      for (int64_t w = tile + 1 + thread; within(w, words); w += kThreads) {
        uint64_t gone = shared.gone[w];
        for (int i = 0; i < kTile; ++i) {
          if (survivors >> i & 1) gone |= bits[(first + begin + i) * words + w];
        }
        shared.gone[w] = gone;
      }
    }
  }

 private:
  GA_KERNEL uint64_t not_valid(int64_t first, int64_t w) const {
    uint64_t word = 0;
    for (int i = 0; i < kTile; ++i) {
      const int64_t j = w * kTile + i;
      if (!within(j, count) || (valid != nullptr && !valid[first + j])) word |= uint64_t(1) << i;
    }
    return word;
  }
};

}  // namespace ga_scope::cuda
