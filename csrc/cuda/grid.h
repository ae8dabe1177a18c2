// How a kernel is written, so that the same source runs on a GPU and, in tests, on a simulated grid.
//
// A kernel is a struct. Its members are its arguments; kThreads is the size of a block; Shared is what a
// block keeps in shared memory; and
//
//   template <class Block> GA_KERNEL void operator()(Block& block) const;
//
// is the work of one block. Outside block.each() control flow is the same for all threads of the block:
//
//   block.index()              which block this is
//   block.shared<Shared>()     the block's shared memory, uninitialised
//   block.each(f)              f(thread) for every thread, then a barrier
//   PerThread<Block, V> v      a V per thread that lives from one each() to the next: v[thread]
//   block.pipeline(p, steps)   producer and consumer warps, below
//
// The simulated grid (../testing/simulated_grid.h) runs the threads of each() in a random order: a kernel that
// depends on the order, for want of a barrier, gives wrong numbers there.
//
// A pipeline is an object with, for a Warp type,
//   kConsumerWarps, kProducers           the block's warps and threads of either role
//   Sums<Warp>                           what a consumer warp keeps in registers
//   produce(step, producer)              fills a stage; producer in [0, kProducers)
//   consume(step, warp, sums)            uses the stage that produce(step) filled
//   finish(warp, sums)                   after the last step
// produce(step + 1) runs while consume(step) does, with a barrier after each step: two stages.
#pragma once

#include <cstdint>

#ifdef GA_SCOPE_SIMULATED
#include "../testing/simulated_grid.h"
#else
#include "device_grid.h"
#endif

namespace ga_scope::cuda {

template <class Block, class Value>
using PerThread = typename Block::template PerThread<Value>;

struct NoShared {};

// Kernels take their arguments by value, levels included.
constexpr int kMaxLevels = 8;

}  // namespace ga_scope::cuda
