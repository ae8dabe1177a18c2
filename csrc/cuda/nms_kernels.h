// Greedy non-maximum suppression in two launches, whatever the data: no list of survivors is ever made.
//
// First every pair: bit j % 64 of word (b, i, j / 64) says that box i of batch entry b suppresses the later box j.
// Then a sweep, one block per batch entry, over tiles of 64 boxes: one thread settles the tile among itself, and
// all threads let its survivors suppress what follows.
#pragma once

#include "../nms.h"
#include "grid.h"

namespace ga_scope::cuda {

constexpr int kTile = 64;  // boxes, the bits of a word
constexpr int64_t kMostWords = 1024;

// Words left of the diagonal's are not written: nobody reads them.
template <class Real>
struct PairBits {
  static constexpr int kThreads = kTile;
  struct Shared {
    Box<Real> box[kTile];
    int64_t group[kTile];
  };
  const Box<Real>* boxes;  // (B, K)
  const int64_t* groups;   // (B, K), or null: all of one
  int64_t count, words;    // K, K / 64 rounded up
  double iou_threshold;
  uint64_t* bits;  // (B, K, words)

  int64_t blocks(int64_t batch) const { return batch * words * words; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const int64_t batch = block.index() / (words * words), tiles = block.index() % (words * words);
    const int64_t row = tiles / words, column = tiles % words;
    if (column < row) return;
    Shared& shared = block.template shared<Shared>();
    const int64_t first = batch * count;
    block.each([&](int thread) {
      const int64_t j = column * kTile + thread;
      if (j >= count) return;
      shared.box[thread] = boxes[first + j];
      shared.group[thread] = groups ? groups[first + j] : 0;
    });
    block.each([&](int thread) {
      const int64_t i = row * kTile + thread;
      if (i >= count) return;
      const Box<Real> box = boxes[first + i];
      const int64_t group = groups ? groups[first + i] : 0;
      const int end = static_cast<int>(smaller(count - column * kTile, int64_t(kTile)));
      uint64_t word = 0;
      for (int j = row == column ? thread + 1 : 0; j < end; ++j) {
        if (group == shared.group[j] && suppresses(box, shared.box[j], iou_threshold)) word |= uint64_t(1) << j;
      }
      bits[(first + i) * words + column] = word;
    });
  }
};

struct Sweep {
  static constexpr int kThreads = 256;
  struct Shared {
    uint64_t gone[kMostWords];  // boxes that are suppressed, or were not valid
    uint64_t diagonal[kTile];   // of the tile
    uint64_t survivors;         // of the tile
  };
  const uint64_t* bits;  // PairBits'
  const bool* valid;     // (B, K), or null: all are
  int64_t count, words;
  bool* kept;  // (B, K)

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    const int64_t first = block.index() * count;
    block.each([&](int thread) {
      for (int64_t w = thread; w < words; w += kThreads) shared.gone[w] = not_valid(first, w);
    });
    for (int64_t tile = 0; tile < words; ++tile) {
      const int64_t begin = tile * kTile;
      block.each([&](int thread) {
        if (thread >= kTile) return;
        shared.diagonal[thread] = begin + thread < count ? bits[(first + begin + thread) * words + tile] : 0;
      });
      block.each([&](int thread) {
        if (thread > 0) return;
        uint64_t left = ~shared.gone[tile];
        for (int i = 0; i < kTile; ++i) {
          if (left >> i & 1) left &= ~shared.diagonal[i];
        }
        shared.survivors = left;
      });
      block.each([&](int thread) {
        const uint64_t survivors = shared.survivors;
        if (thread < kTile && begin + thread < count) kept[first + begin + thread] = survivors >> thread & 1;
        for (int64_t w = tile + 1 + thread; w < words; w += kThreads) {
          uint64_t gone = shared.gone[w];
          for (int i = 0; i < kTile; ++i) {
            if (survivors >> i & 1) gone |= bits[(first + begin + i) * words + w];
          }
          shared.gone[w] = gone;
        }
      });
    }
  }

 private:
  GA_KERNEL uint64_t not_valid(int64_t first, int64_t w) const {
    uint64_t word = 0;
    for (int i = 0; i < kTile; ++i) {
      const int64_t j = w * kTile + i;
      if (j >= count || (valid && !valid[first + j])) word |= uint64_t(1) << i;
    }
    return word;
  }
};

}  // namespace ga_scope::cuda
