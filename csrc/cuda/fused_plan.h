// How a call is cut into the fused convolution's blocks: rows of a tile, parts of the depth, stages in shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ga_scope::cuda {

struct FusedPlan {
  int tile_rows = 0;  // 0: no room for any
  int splits = 1;     // of the depth; each block sums a part of it
  int stages = 0;
  int sample_slots = 0;        // tiles of samples in shared memory
  bool keeps_samples = false;  // one slot per tap: what a sampling group's first chunk worked out serves the others
};

// What the plan depends on.
struct FusedCall {
  int64_t rows, column_tiles;  // column tiles of all groups
  int64_t taps, chunks;        // depth: chunks of 128 bytes of channels, each of every tap
  int64_t chunks_per_sampling_group;
  int64_t output_columns;
  bool deformed;
  int64_t header_bytes[2], stage_bytes[2], slot_bytes[2];  // of tiles of 128 and 64 rows
  int processors;
  int64_t shared_bytes;  // that a block may have
};

constexpr int kMostStages = 4;
constexpr int kMostSplits = 8;
constexpr int kSampleRing = 3;  // samples of this step, the next and the one after

// Stages: two at least; more where they leave a quarter of shared memory's room to L1, which holds the pixels of a
// chunk.
inline FusedPlan fused_stages(const FusedCall& call, int tile) {
  FusedPlan plan;
  plan.keeps_samples = call.deformed && call.chunks_per_sampling_group > 1 && call.taps >= kSampleRing;
  for (;;) {
    plan.sample_slots = static_cast<int>(plan.keeps_samples ? call.taps : kSampleRing);
    const int64_t fixed = call.header_bytes[tile] + plan.sample_slots * call.slot_bytes[tile];
    const auto fitting = [&](int64_t bytes) { return (bytes - fixed) / call.stage_bytes[tile]; };
    if (fitting(call.shared_bytes) >= 2) {
      plan.stages = static_cast<int>(std::clamp<int64_t>(fitting(call.shared_bytes * 3 / 4), 2, kMostStages));
      plan.tile_rows = tile == 0 ? 128 : 64;
      return plan;
    }
    if (!plan.keeps_samples) return plan;
    plan.keeps_samples = false;
  }
}

// The cheapest of both tile heights and all numbers of parts, in issue slots of a scheduler (tools/cuda_budget.py
// counts a step): full waves of blocks, each with its steps and what a block costs beside them, and for parts of the
// depth the sums that they write and another kernel adds up.
inline FusedPlan fused_plan(const FusedCall& call) {
  constexpr int64_t kStepCost[2] = {1331, 841}, kBlockCost[2] = {2600, 1700};
  FusedPlan best;
  int64_t least = INT64_MAX;
  const int64_t steps = call.taps * call.chunks;
  for (int tile = 0; tile < 2; ++tile) {
    FusedPlan plan = fused_stages(call, tile);
    if (plan.tile_rows == 0) continue;
    for (plan.splits = 1; plan.splits <= std::min<int64_t>(kMostSplits, steps); ++plan.splits) {
      const int64_t blocks = (call.rows + plan.tile_rows - 1) / plan.tile_rows * call.column_tiles * plan.splits;
      const int64_t waves = (blocks + call.processors - 1) / call.processors;
      int64_t cost = waves * ((steps + plan.splits - 1) / plan.splits * kStepCost[tile] + kBlockCost[tile]);
      // Each sum is written and read once, at some 16 bytes a clock of a multiprocessor; and a launch.
      if (plan.splits > 1) cost += call.rows * call.output_columns * plan.splits / (2 * call.processors) + 3000;
      if (cost < least) least = cost, best = plan;
    }
  }
  return best;
}

}  // namespace ga_scope::cuda
