// How a kernel is written, so that the same source runs on a GPU and, in tests, on a simulated grid.
//
// A kernel is a struct. Its members are its arguments; kThreads is the size of a block; Shared is what a block keeps in
// shared memory (or shared_bytes() says how much, at launch); and
//
//   template <class Block> GA_KERNEL void operator()(Block& block) const;
//
// is the work of one thread of a block:
//
//   block.index(), block.thread()   which block this is, and which of its threads
//   block.shared<Shared>()          the block's shared memory, uninitialised
//   block.sync()                    a barrier of the whole block
//   block.sync(b, n), arrive(b, n)  a barrier b in [1, 16) of n threads in whole warps: comes and waits, or only comes
//   block.warp()                    the thread's warp: shuffles, ballots, matrices for the tensor cores
//
// Global memory is reached through Pointer<T>, from pointer_to<T>(tensor); several numbers at once through
// load_vector, store_vector and copy_async; arrays of shared memory are Array<T, n>. Whatever keeps an access in
// bounds is written as within(i, end) or clamped(i, low, high), and what spreads it over the banks as swizzle(bits).
//
// The simulated grid (../testing/simulated_grid.h) runs the threads in a random order and checks all of these: a kernel
// that needs a barrier, a wait or a bound that is not there fails, or gives wrong numbers. Tests delete them in turn.
#pragma once

#include <cstdint>

#ifdef GA_SCOPE_SIMULATED
#include "../testing/simulated_grid.h"
#else
#include "device_grid.h"
#endif

namespace ga_scope::cuda {

struct NoShared {};

// Kernels take their arguments by value, levels included.
constexpr int kMaxLevels = 8;

constexpr int kLanes = 32;

}  // namespace ga_scope::cuda
