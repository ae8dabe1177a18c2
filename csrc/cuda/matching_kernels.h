// The best box of every anchor and the best anchor of every box, streamed: no anchors x boxes matrix.
//
// A thread is an anchor and meets its image's boxes tile by tile. A tile's overlaps pass through shared
// memory once more, crosswise, so that a few threads per box find its best anchor of the block and offer it
// with one atomic operation each. Maxima and minima do not depend on order: results are deterministic.
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
GA_HOST_DEVICE Box<Real> read_box(const Real* boxes, int64_t index) {
  const Real* at = boxes + 4 * index;
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
  const Real* shapes;  // (levels, num_shapes, 2); or null: exact
  int64_t num_shapes;
  const Real* size_range;  // (levels, 2); or null: any size

  GA_HOST_DEVICE Anchor anchor(int64_t index) const {
    const Location at = decode_location(index, levels, num_levels, locations_per_image);
    const Real stride = strides[at.level];
    return {(Real(at.x) + cell_offset) * stride, (Real(at.y) + cell_offset) * stride, stride, at.level};
  }

  GA_HOST_DEVICE Real overlap(const Anchor& at, const Box<Real>& box) const {
    if (!box.valid() || out_of_reach(at, box)) return Real(0);
    const Real left = at.x - box.x1, right = box.x2 - at.x, above = at.y - box.y1, below = box.y2 - at.y;
    if (shapes == nullptr) {
      const Real low = size_range ? size_range[2 * at.level] : Real(0);
      const Real high = size_range ? size_range[2 * at.level + 1] : Real(INFINITY);
      return best_of_candidates(size_candidates(left, right, low, high), size_candidates(above, below, low, high),
                                box.area());
    }
    Real best = 0;
    for (int64_t s = 0; s < num_shapes; ++s) {
      const Real* shape = shapes + (at.level * num_shapes + s) * 2;
      const Real overlap = centred_overlap(shape[0], left, right) * centred_overlap(shape[1], above, below);
      best = larger(best, ratio_of_overlap(overlap, shape[0] * shape[1] + box.area()));
    }
    return best;
  }

  GA_HOST_DEVICE bool inside(const Anchor& at, const Box<Real>& ignore) const {
    return ignore.valid() && ignore.contains(at.x, at.y);
  }

  // Below min_iou whatever its size (overlap.h), with a cell to spare against rounding.
  GA_HOST_DEVICE bool out_of_reach(const Anchor& at, const Box<Real>& box) const {
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
  const Real* boxes;  // (A, 4), contiguous
  Real min_iou, ignore_from;

  GA_HOST_DEVICE Anchor anchor(int64_t index) const { return read_box(boxes, index); }

  GA_HOST_DEVICE Real overlap(const Anchor& at, const Box<Real>& box) const {
    return at.valid() && box.valid() ? box_iou(at, box) : Real(0);
  }

  GA_HOST_DEVICE bool inside(const Anchor& at, const Box<Real>& ignore) const {
    return part_inside(at, ignore) >= ignore_from;
  }
};

// ---- the best of all anchors, merged between blocks ---------------------------------------------

// One 64-bit key per box. float: the IoU above the anchor, complemented so that of equal IoUs the lower
// anchor is the larger key. double fills the key itself: a second pass finds the anchor.
template <class Real>
struct BestKey;

template <>
struct BestKey<float> {
  static constexpr int kPasses = 1;
  static constexpr int64_t kMostAnchors = UINT32_MAX;
  GA_KERNEL static uint64_t of(float iou, int64_t anchor) {
    return bits_of(iou) << 32 | (UINT32_MAX - static_cast<uint32_t>(anchor));
  }
  GA_KERNEL static float iou(uint64_t key) { return float_of_bits(static_cast<uint32_t>(key >> 32)); }
  GA_KERNEL static int64_t anchor(uint64_t key) { return UINT32_MAX - static_cast<uint32_t>(key); }
};

template <>
struct BestKey<double> {
  static constexpr int kPasses = 2;
  static constexpr int64_t kMostAnchors = INT64_MAX;
  GA_KERNEL static uint64_t of(double iou, int64_t) { return bits_of(iou); }
  GA_KERNEL static double iou(uint64_t key) { return double_of_bits(key); }
};

template <class Real, class Anchors>
struct Match {
  using Key = BestKey<Real>;
  static constexpr int kThreads = 256;
  static constexpr int kBoxes = 16;                         // per tile
  static constexpr int kThreadsPerBox = kThreads / kBoxes;  // when a box looks for its anchor
  struct Shared {
    Box<Real> box[kBoxes];
    Real iou[kBoxes][kThreads + kThreadsPerBox];  // padded: two boxes of a warp in different banks
  };

  Anchors anchors;
  ImageRanges ranges;
  const Real *boxes, *ignore_boxes;  // (G, 4), contiguous
  int pass;
  uint64_t* best;       // (G,) keys, 0 at the start
  int64_t* best_index;  // (G,) second pass: the lowest anchor with that IoU
  Real* iou;            // (A,)
  int64_t* index;       // (A,)
  bool* ignored;        // (A,)

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    const int image = ranges.image_of_block(block.index());
    const int64_t first = ranges.anchor[image] + (block.index() - ranges.block[image]) * kThreads;
    const int64_t count = smaller(ranges.anchor[image + 1] - first, int64_t(kThreads));
    PerThread<Block, typename Anchors::Anchor> anchor;
    PerThread<Block, Real> top;
    PerThread<Block, int64_t> top_box;
    block.each([&](int thread) {
      if (thread < count) anchor[thread] = anchors.anchor(first + thread);
      top[thread] = 0, top_box[thread] = kNobody;
    });
    for (int64_t tile = ranges.box[image]; tile < ranges.box[image + 1]; tile += kBoxes) {
      const int number = static_cast<int>(smaller(ranges.box[image + 1] - tile, int64_t(kBoxes)));
      block.each([&](int thread) {
        if (thread < number) shared.box[thread] = read_box(boxes, tile + thread);
      });
      block.each([&](int thread) {
        for (int b = 0; b < number; ++b) {
          const Real value = thread < count ? anchors.overlap(anchor[thread], shared.box[b]) : Real(0);
          shared.iou[b][thread] = value;
          if (value > top[thread]) top[thread] = value, top_box[thread] = tile + b;
        }
      });
      block.each([&](int thread) {
        const int b = thread / kThreadsPerBox;
        if (b < number) offer(tile + b, shared.iou[b], thread % kThreadsPerBox, first);
      });
    }
    block.each([&](int thread) {
      if (thread >= count || pass > 0) return;
      const bool kept = top_box[thread] >= 0 && top[thread] >= anchors.min_iou;
      iou[first + thread] = kept ? top[thread] : Real(0);
      index[first + thread] = kept ? top_box[thread] : kNobody;
      ignored[first + thread] = in_ignore_box(anchor[thread], image);
    });
  }

 private:
  // Ignore boxes are few: every thread reads them all, through the cache.
  GA_KERNEL bool in_ignore_box(const typename Anchors::Anchor& anchor, int image) const {
    for (int64_t g = ranges.ignore[image]; g < ranges.ignore[image + 1]; ++g) {
      if (anchors.inside(anchor, read_box(ignore_boxes, g))) return true;
    }
    return false;
  }

  // The best of every kThreadsPerBox-th anchor of the block, offered to the box.
  GA_KERNEL void offer(int64_t box, const Real* row, int part, int64_t first) const {
    Real value = 0;
    int at = 0;
    for (int i = part; i < kThreads; i += kThreadsPerBox) {
      if (row[i] > value) value = row[i], at = i;
    }
    if (!(value > 0)) return;
    const uint64_t key = Key::of(value, first + at);
    if (pass == 0) {
      if (key > read_now(&best[box])) atomic_max(&best[box], key);
    } else if (key == best[box]) {
      atomic_min(&best_index[box], first + at);
    }
  }
};

// Keys as the operator's outputs.
template <class Real>
struct StoreBest {
  const uint64_t* best;
  const int64_t* best_index;
  Real min_iou;
  Real* iou;
  int64_t* index;

  GA_KERNEL void operator()(int64_t g) const {
    const Real value = BestKey<Real>::iou(best[g]);
    const bool kept = best[g] != 0 && value >= min_iou;
    iou[g] = kept ? value : Real(0);
    if constexpr (BestKey<Real>::kPasses == 1) {
      index[g] = kept ? BestKey<Real>::anchor(best[g]) : kNobody;
    } else {
      index[g] = kept ? best_index[g] : kNobody;
    }
  }
};

// ---- location targets ---------------------------------------------------------------------------

// What is painted of a box, on which levels.
enum class Region {
  kWhole,   // -1 in all of it, everywhere: ignore boxes
  kIgnore,  // -1 in the ignore region, on its level and the adjacent ones
  kCentre,  // 1 in the centre region, on its level
};

// Paints a region of every box, one block per box. Launched for each kind in turn: centres suppress the others
// whatever the order of boxes. Threads that write the same cell write the same label.
template <class Real>
struct PaintRegions {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  LevelShape levels[kMaxLevels];
  double strides[kMaxLevels];
  int num_levels;
  int64_t locations_per_image;
  ImageRanges ranges;
  const Real* boxes;
  double sigma, center_ratio, ignore_ratio, cell_offset;
  Region region;
  int8_t* labels;  // of the launch's first image

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const Box<Real> box = read_box(boxes, block.index() + ranges.box[0]);
    if (!box.valid()) return;
    const double width = double(box.x2) - box.x1, height = double(box.y2) - box.y1;
    const int level = level_of_box(width, height, sigma * strides[0], num_levels);
    const int image = ranges.image_of_block(block.index());
    for (int l = 0; l < num_levels; ++l) {
      const int away = l > level ? l - level : level - l;
      if (region == Region::kWhole) paint(block, image, l, box, 1, -1);
      if (region == Region::kIgnore && away <= 1) paint(block, image, l, box, ignore_ratio, -1);
      if (region == Region::kCentre && away == 0) paint(block, image, l, box, center_ratio, 1);
    }
  }

 private:
  template <class Block>
  GA_KERNEL void paint(Block& block, int image, int level, const Box<Real>& box, double ratio, int8_t label) const {
    const LevelShape& shape = levels[level];
    const double half_w = 0.5 * ratio * (double(box.x2) - box.x1), half_h = 0.5 * ratio * (double(box.y2) - box.y1);
    const double stride = strides[level];
    const double cx = 0.5 * (double(box.x1) + box.x2), cy = 0.5 * (double(box.y1) + box.y2);
    const bool keep_one = region == Region::kCentre;
    const CellRange columns = cells_of_box(cx, half_w, {stride, cell_offset, shape.width}, keep_one);
    const CellRange rows = cells_of_box(cy, half_h, {stride, cell_offset, shape.height}, keep_one);
    const int64_t width = columns.last - columns.first, height = rows.last - rows.first;
    if (width <= 0 || height <= 0) return;
    int8_t* map = labels + image * locations_per_image + shape.first;
    block.each([&](int thread) {
      for (int64_t i = thread; i < width * height; i += kThreads) {
        map[(rows.first + i / width) * shape.width + columns.first + i % width] = label;
      }
    });
  }
};

}  // namespace ga_scope::cuda
