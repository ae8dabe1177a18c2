// The best box of every anchor and the best anchors of every box, streamed: no anchors x boxes matrix.
//
// A thread is an anchor and meets its image's boxes tile by tile. A tile's overlaps pass through shared
// memory once more, crosswise, so that a few threads per box find its best anchors of the block and offer the first
// and the last of them with one atomic operation each. Maxima and minima do not depend on order: results are
// deterministic. Which of the anchors between the two tie with them is known only when all have been seen: a block
// per box looks again (MarkBest), with the same arithmetic (product() in overlap.h).
#pragma once

#include <cstdint>

#include "../center_region.h"
#include "../location.h"
#include "../overlap.h"
#include "grid.h"

namespace ga_scope::cuda {

constexpr int kImagesPerLaunch = 64;
constexpr int kNobody = -1;

// The images of a launch: where the anchors, boxes, ignore boxes and thread blocks of each begin, and all of them
// end.
struct ImageRanges {
  int images;
  int64_t anchor[kImagesPerLaunch + 1], box[kImagesPerLaunch + 1], ignore[kImagesPerLaunch + 1];
  int64_t block[kImagesPerLaunch + 1];

  GA_HOST_DEVICE int image_of_block(int64_t b) const {
    int image = 0;
    while (image + 1 < images && b >= block[image + 1]) ++image;
    return image;
  }
};

template <class Real>
GA_KERNEL Box<std::remove_const_t<Real>> read_box(const Pointer<Real>& boxes, int64_t index) {
  const Pointer<Real> at = boxes + 4 * index;
  return {at[0], at[1], at[2], at[3]};
}

// ---- what an anchor is --------------------------------------------------------------------------

// A place whose width and height are free (viou_match).
template <class Real>
struct VariableAnchors {
  struct Anchor {
    Real x, y, cell;
    int level;
  };

  LevelShape levels[kMaxLevels];
  Real strides[kMaxLevels];
  int num_levels;
  int64_t locations_per_image;
  Real cell_offset, min_iou;
  Pointer<const Real> shapes;  // (levels, num_shapes, 2); or null: exact
  int64_t num_shapes;
  Pointer<const Real> size_range;  // (levels, 2); or null: any size

  GA_KERNEL Anchor anchor(int64_t index) const {
    const Location at = decode_location(index, levels, num_levels, locations_per_image);
    const Real stride = strides[at.level];
    return {product(Real(at.x) + cell_offset, stride), product(Real(at.y) + cell_offset, stride), stride, at.level};
  }

  GA_KERNEL Real overlap(const Anchor& at, const Box<Real>& box) const {
    if (!box.valid() || out_of_reach(at, box)) return Real(0);
    const Real left = at.x - box.x1, right = box.x2 - at.x, above = at.y - box.y1, below = box.y2 - at.y;
    if (shapes == nullptr) {
      const Real low = size_range != nullptr ? size_range[2 * at.level] : Real(0);
      const Real high = size_range != nullptr ? size_range[2 * at.level + 1] : Real(INFINITY);
      return best_of_candidates(size_candidates(left, right, box.width(), low, high),
                                size_candidates(above, below, box.height(), low, high), box.area());
    }
    Real best = 0;
    for (int64_t s = 0; s < num_shapes; ++s) {
      const Pointer<const Real> shape = shapes + (at.level * num_shapes + s) * 2;
      const Real overlap_w = centred_overlap(shape[0], left, right, box.width());
      const Real overlap_h = centred_overlap(shape[1], above, below, box.height());
      best = larger(best, iou_of_sides(overlap_w, overlap_h, shape[0], shape[1], box.area()));
    }
    return best;
  }

  GA_KERNEL bool inside(const Anchor& at, const Box<Real>& ignore) const {
    return ignore.valid() && ignore.contains(at.x, at.y);
  }

  // Below min_iou whatever its size (overlap.h), with a cell to spare against rounding.
  GA_KERNEL bool out_of_reach(const Anchor& at, const Box<Real>& box) const {
    if (!(min_iou > 0)) return false;
    const Real far_x = larger(at.x - box.x2, box.x1 - at.x) + Real(0.5) * box.width();
    const Real far_y = larger(at.y - box.y2, box.y1 - at.y) + Real(0.5) * box.height();
    return far_x > reach(box.width(), min_iou) + at.cell || far_y > reach(box.height(), min_iou) + at.cell;
  }
};

// A box (iou_match).
template <class Real>
struct FixedAnchors {
  using Anchor = Box<Real>;
  Pointer<const Real> boxes;  // (A, 4), contiguous
  Real min_iou, ignore_from;

  GA_KERNEL Anchor anchor(int64_t index) const { return read_box(boxes, index); }

  GA_KERNEL Real overlap(const Anchor& at, const Box<Real>& box) const {
    return at.valid() && box.valid() ? box_iou(at, box) : Real(0);
  }

  GA_KERNEL bool inside(const Anchor& at, const Box<Real>& ignore) const {
    return part_inside(at, ignore) >= ignore_from;
  }
};

// ---- the best of all anchors, merged between blocks ---------------------------------------------

// 64-bit keys. float: the IoU above the anchor, complemented for the first anchor, so that of equal IoUs the lower one
// is the larger key; as it is for the last. double fills the key itself: a second pass finds the anchors.
template <class Real>
struct BestKey;

template <>
struct BestKey<float> {
  static constexpr int kPasses = 1;
  static constexpr int64_t kMostAnchors = UINT32_MAX;
  GA_KERNEL static uint64_t of(float iou, uint32_t low) { return bits_of(iou) << 32 | low; }
  GA_KERNEL static uint64_t of_first(float iou, int64_t anchor) {
    return of(iou, UINT32_MAX - static_cast<uint32_t>(anchor));
  }
  GA_KERNEL static uint64_t of_last(float iou, int64_t anchor) { return of(iou, static_cast<uint32_t>(anchor)); }
  GA_KERNEL static float iou(uint64_t key) { return float_of_bits(static_cast<uint32_t>(key >> 32)); }
  GA_KERNEL static int64_t first(uint64_t key) { return UINT32_MAX - static_cast<uint32_t>(key); }
  GA_KERNEL static int64_t last(uint64_t key) { return static_cast<uint32_t>(key); }
};

template <>
struct BestKey<double> {
  static constexpr int kPasses = 2;
  static constexpr int64_t kMostAnchors = INT64_MAX;
  GA_KERNEL static uint64_t of_first(double iou, int64_t) { return bits_of(iou); }
  GA_KERNEL static double iou(uint64_t key) { return double_of_bits(key); }
};

// Per box. float: two keys. double: one key, and anchors from the second pass.
struct BestAnchors {
  Pointer<uint64_t> first_key, last_key;  // 0 at the start
  Pointer<int64_t> first, last;
};

template <class Real, class Anchors>
struct Match {
  using Key = BestKey<Real>;
  static constexpr int kThreads = 256;
  static constexpr int kBoxes = 16;                         // per tile
  static constexpr int kThreadsPerBox = kThreads / kBoxes;  // when a box looks for its anchor
  struct Shared {
    Array<Box<Real>, kBoxes> box;
    // Padded: two boxes of a warp in different banks.
    Array<Array<Real, kThreads + kThreadsPerBox>, kBoxes> iou;
  };

  Anchors anchors;
  ImageRanges ranges;
  Pointer<const Real> boxes, ignore_boxes;  // (G, 4), contiguous
  int pass;
  BestAnchors best;
  Pointer<Real> iou;          // (A,)
  Pointer<int64_t> index;     // (A,)
  Pointer<int64_t> best_for;  // (A,) nobody so far
  Pointer<bool> ignored;      // (A,)

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    const int thread = block.thread();
    const int image = ranges.image_of_block(block.index());
    const int64_t first = ranges.anchor[image] + (block.index() - ranges.block[image]) * kThreads;
    const int64_t count = smaller(ranges.anchor[image + 1] - first, int64_t(kThreads));
    const auto anchor = anchors.anchor(first + clamped(int64_t(thread), int64_t(0), count - 1));
    Real top = 0;
    int64_t top_box = kNobody;
    for (int64_t tile = ranges.box[image]; tile < ranges.box[image + 1]; tile += kBoxes) {
      const int number = static_cast<int>(smaller(ranges.box[image + 1] - tile, int64_t(kBoxes)));
      if (within(thread, number)) shared.box[thread] = read_box(boxes, tile + thread);
      block.sync();
      for (int b = 0; b < number; ++b) {
        const Real value = within(thread, count) ? anchors.overlap(anchor, shared.box[b]) : Real(0);
        shared.iou[b][thread] = value;
        if (value > top) top = value, top_box = tile + b;
      }
      block.sync();
      const int b = thread / kThreadsPerBox;
      if (within(b, number)) offer(tile + b, shared.iou[b], thread % kThreadsPerBox, first);
    }
    if (!within(thread, count) || pass > 0) return;
    const bool kept = top_box >= 0 && top >= anchors.min_iou;
    iou[first + thread] = kept ? top : Real(0);
    index[first + thread] = kept ? top_box : kNobody;
    best_for[first + thread] = kNobody;
    ignored[first + thread] = in_ignore_box(anchor, image);
  }

 private:
  // Ignore boxes are few: every thread reads them all, through the cache.
  GA_KERNEL bool in_ignore_box(const typename Anchors::Anchor& anchor, int image) const {
    for (int64_t g = ranges.ignore[image]; g < ranges.ignore[image + 1]; ++g) {
      if (anchors.inside(anchor, read_box(ignore_boxes, g))) return true;
    }
    return false;
  }

  // The best of every kThreadsPerBox-th anchor of the block, the first and the last of them, offered to the box.
  template <class Row>
  GA_KERNEL void offer(int64_t box, const Row& row, int part, int64_t begin) const {
    Real value = 0;
    int first = 0, last = 0;
    for (int i = part; i < kThreads; i += kThreadsPerBox) {
      if (row[i] > value) value = row[i], first = i;
      if (row[i] == value) last = i;
    }
    if (!(value > 0)) return;
    const uint64_t key = Key::of_first(value, begin + first);
    if constexpr (Key::kPasses == 1) {
      raise(best.first_key + box, key);
      raise(best.last_key + box, Key::of_last(value, begin + last));
    } else if (pass == 0) {
      raise(best.first_key + box, key);
    } else if (key == best.first_key[box]) {
      atomic_min(best.first + box, begin + first);
      atomic_max(best.last + box, begin + last);
    }
  }

  GA_KERNEL static void raise(const Pointer<uint64_t>& to, uint64_t key) {
    if (key > read_now(to)) atomic_max(to, key);
  }
};

// Keys as the operator's outputs; best.last, too.
template <class Real>
struct StoreBest {
  BestAnchors best;
  Real min_iou;
  Pointer<Real> iou;

  GA_KERNEL void operator()(int64_t g) const {
    using Key = BestKey<Real>;
    const Real value = Key::iou(best.first_key[g]);
    const bool kept = best.first_key[g] != 0 && value >= min_iou;
    iou[g] = kept ? value : Real(0);
    if constexpr (Key::kPasses == 1) {
      best.first[g] = Key::first(best.first_key[g]);
      best.last[g] = Key::last(best.last_key[g]);
    }
    if (!kept) best.first[g] = best.last[g] = kNobody;
  }
};

// The anchors that tie for a box's best, one block per box. Of several boxes the last one stays.
template <class Real, class Anchors>
struct MarkBest {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  Anchors anchors;
  Pointer<const Real> boxes, gt_iou;
  Pointer<const int64_t> first, last;  // of the best anchors, per box
  Real least;                          // IoU of a box that takes part
  Pointer<int64_t> best_for;

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const int64_t g = block.index();
    if (first[g] < 0 || gt_iou[g] < least) return;
    const Box<Real> box = read_box(boxes, g);
    for (int64_t i = first[g] + block.thread(); within(i, last[g] + 1); i += kThreads) {
      if (anchors.overlap(anchors.anchor(i), box) == gt_iou[g]) atomic_max(best_for + i, g);
    }
  }
};

// ---- location targets ---------------------------------------------------------------------------

// What is painted of every box, in this order (cpu/location_targets.cpp).
enum class Painting {
  kIgnoreBoxes,  // -1 in all of it, on every level
  kAround,       // -1 in the ignore region on the adjacent levels; by the paper's rule on its own level, too
  kOwn,          // 1 in the centre region on its own level; by the release's rule its ignore region first
};

// Paints one block per box. Threads that write the same cell write the same label; by the release's rule, where the
// last of the boxes that paint a cell decides, they raise its rank (StoreRanks).
template <class Real>
struct PaintRegions {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  LevelShape levels[kMaxLevels];
  double strides[kMaxLevels];
  int num_levels;
  int64_t locations_per_image;
  ImageRanges ranges;
  Pointer<const Real> boxes;
  RegionRule rule;
  Painting painting;
  Pointer<int8_t> labels;   // of the launch's first image
  Pointer<uint64_t> ranks;  // the same, for the release's rule; 0 at the start

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const int64_t index = block.index() + ranges.box[0];
    const Box<Real> box = read_box(boxes, index);
    if (!box.valid()) return;
    const int own = level_of_box(box, rule.sigma * strides[0], num_levels);
    const int64_t image = ranges.image_of_block(block.index());
    for (int level = 0; level < num_levels; ++level) {
      const int away = level > own ? level - own : own - level;
      const Place at{image, level};
      if (painting == Painting::kIgnoreBoxes) paint(block, at, box, Region::kWhole, 0);
      if (painting == Painting::kAround && away <= 1 && !(away == 0 && rule.rounded)) {
        paint(block, at, box, Region::kIgnore, 0);
      }
      if (painting == Painting::kOwn && away == 0) {
        if (rule.rounded) paint(block, at, box, Region::kIgnore, 2 * (index + 1));
        paint(block, at, box, Region::kCentre, rule.rounded ? 2 * (index + 1) + 1 : 0);
      }
    }
  }

 private:
  struct Place {
    int64_t image;
    int level;
  };

  // With a rank, that instead of a label.
  template <class Block>
  GA_KERNEL void paint(Block& block, const Place& at, const Box<Real>& box, Region region, uint64_t rank) const {
    const LevelShape& shape = levels[at.level];
    const CellBlock cells = cells_of_region(box, region, rule, shape, strides[at.level]);
    const int64_t width = cells.columns.last - cells.columns.first, height = cells.rows.last - cells.rows.first;
    if (width <= 0 || height <= 0) return;
    const int64_t map = at.image * locations_per_image + shape.first;
    for (int64_t i = block.thread(); within(i, width * height); i += kThreads) {
      const int64_t cell = map + (cells.rows.first + i / width) * shape.width + cells.columns.first + i % width;
      if (rank != 0) {
        atomic_max(ranks + cell, rank);
      } else {
        labels[cell] = region == Region::kCentre ? 1 : -1;
      }
    }
  }
};

// The label of the last box that painted a cell: odd ranks are centres.
struct StoreRanks {
  Pointer<const uint64_t> ranks;
  Pointer<int8_t> labels;

  GA_KERNEL void operator()(int64_t i) const {
    if (ranks[i] != 0) labels[i] = ranks[i] % 2 ? 1 : -1;
  }
};

}  // namespace ga_scope::cuda
