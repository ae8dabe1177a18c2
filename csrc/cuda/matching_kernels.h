// The best box of every anchor and the best anchors of every box, streamed: no anchors x boxes matrix.
//
// A thread is an anchor and meets its image's boxes tile by tile, with the best overlap that each has found so far,
// anywhere. Most pairs cannot be the best for either side, and a bound says so at little cost. Where one may be, its
// warp offers the box its best anchors, the first and the last of them, with one atomic operation each. Blocks begin at
// different tiles, so that few ask for a box at the same time, and the others find it well served. Maxima and minima do
// not depend on order: results are deterministic. Which of the anchors between the two tie with them is known only
// when all have been seen: a block per box looks again (MarkBest), with the same arithmetic (product() in overlap.h).
#pragma once

#include <cstdint>

#include "../center_region.h"
#include "../location.h"
#include "../overlap.h"
#include "grid.h"

namespace ga_scope::cuda {

constexpr int kImagesPerLaunch = 64;
constexpr int kNobody = -1;
// An overlap is out of reach where it stays below the bound even if that were this much smaller: rounding is less.
constexpr float kSurely = 1.0f - 1.0f / (1 << 14);

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

// best_of_candidates of free_size_candidates (overlap.h), bit for bit, with one division instead of four: products
// decide which candidate is divided. Where two come so near that rounding could have decided, all four are.
GA_KERNEL float best_of_free_sizes(const SizeCandidates<float>& w, const SizeCandidates<float>& h, float box_area) {
  constexpr float kNear = 1.0f - 1.0f / (1 << 18);
  // Covers the box: the only one that overlaps it from everywhere.
  float overlap = product(w.far_overlap, h.far_overlap), areas = product(w.far_size, h.far_size) + box_area;
  bool unclear = false;
  const auto challenge = [&](float other_overlap, float other_areas) {
    const float own = product(overlap, other_areas - other_overlap), other = product(other_overlap, areas - overlap);
    const bool better = product(other, kNear) > own;
    unclear = unclear || (!better && !(other < product(own, kNear)));
    overlap = better ? other_overlap : overlap;
    areas = better ? other_areas : areas;
  };
  challenge(product(w.near_overlap, h.far_overlap), product(w.near_size, h.far_size) + box_area);
  challenge(product(w.far_overlap, h.near_overlap), product(w.far_size, h.near_size) + box_area);
  challenge(product(w.near_overlap, h.near_overlap), product(w.near_size, h.near_size) + box_area);
  return unclear ? best_of_candidates(w, h, box_area) : ratio_of_overlap(overlap, areas);
}
GA_KERNEL double best_of_free_sizes(const SizeCandidates<double>& w, const SizeCandidates<double>& h, double box_area) {
  return best_of_candidates(w, h, box_area);
}

// ---- what an anchor is --------------------------------------------------------------------------

// A place whose width and height are free (viou_match).
template <class Real>
struct VariableAnchors {
  struct Anchor {
    Real x, y;
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
    return {product(Real(at.x) + cell_offset, stride), product(Real(at.y) + cell_offset, stride), at.level};
  }

  GA_KERNEL Real overlap(const Anchor& at, const Box<Real>& box) const {
    if (!box.valid()) return Real(0);
    const Real left = at.x - box.x1, right = box.x2 - at.x, above = at.y - box.y1, below = box.y2 - at.y;
    if (shapes == nullptr && size_range == nullptr) {
      return best_of_free_sizes(free_size_candidates(left, right, box.width()),
                                free_size_candidates(above, below, box.height()), box.area());
    }
    if (shapes == nullptr) {
      const Real low = size_range[2 * at.level], high = size_range[2 * at.level + 1];
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

  // Overlaps a valid box less than `least`, whatever its size (reach() in overlap.h).
  GA_KERNEL bool out_of_reach(const Anchor& at, const Box<Real>& box, Real least) const {
    const Real far_x = larger(at.x - box.x1, box.x2 - at.x), far_y = larger(at.y - box.y1, box.y2 - at.y);
    const Real twice = Real(2) * least * kSurely;
    return !(product(twice, far_x) <= box.width() && product(twice, far_y) <= box.height());
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

  GA_KERNEL bool out_of_reach(const Anchor& at, const Box<Real>& box, Real least) const {
    return !(larger(at.x1, box.x1) < smaller(at.x2, box.x2) && larger(at.y1, box.y1) < smaller(at.y2, box.y2));
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
  static constexpr int kBoxes = 16;  // per tile
  // A box, and the best overlap found for it so far.
  struct Candidate {
    Box<Real> box;
    Real best;
  };
  struct Shared {
    Array<Array<Candidate, kBoxes>, 2> tile;  // this one and the next
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
    const bool has_anchor = within(thread, count);
    const auto anchor = anchors.anchor(first + clamped(int64_t(thread), int64_t(0), count - 1));
    Real top = 0;
    int64_t top_box = kNobody;
    const int64_t begin = ranges.box[image], end = ranges.box[image + 1], tiles = (end - begin + kBoxes - 1) / kBoxes;
    int64_t tile = tiles > 0 ? begin + block.index() % tiles * kBoxes : end;
    if (within(thread, boxes_of(tile, end))) shared.tile[0][thread] = candidate(tile + thread);
    for (int64_t t = 0; t < tiles; ++t) {
      block.sync();
      const int64_t next = tile + kBoxes < end ? tile + kBoxes : begin;
      if (t + 1 < tiles && within(thread, boxes_of(next, end))) {
        shared.tile[(t + 1) % 2][thread] = candidate(next + thread);
      }
      const int number = boxes_of(tile, end);
      for (int b = 0; b < number; ++b) {
        const Candidate& with = shared.tile[t % 2][b];
        Real value = 0;
        const Real least = larger(anchors.min_iou, smaller(top, with.best));
        if (has_anchor && !anchors.out_of_reach(anchor, with.box, least)) value = anchors.overlap(anchor, with.box);
        // Of equal ones the first: the tiles before the one begun with come last.
        if (value > top || (value == top && tile + b < top_box)) top = value, top_box = tile + b;
        const bool offered = value > 0 && value >= with.best;
        if (block.warp().ballot(offered) != 0) offer(block.warp(), tile + b, offered ? value : Real(0), first);
      }
      tile = next;
    }
    if (!has_anchor || pass > 0) return;
    const bool kept = top_box >= 0 && top >= anchors.min_iou;
    iou[first + thread] = kept ? top : Real(0);
    index[first + thread] = kept ? top_box : kNobody;
    best_for[first + thread] = kNobody;
    ignored[first + thread] = in_ignore_box(anchor, image);
  }

 private:
  static GA_KERNEL int boxes_of(int64_t tile, int64_t end) {
    return static_cast<int>(smaller(end - tile, int64_t(kBoxes)));
  }

  GA_KERNEL Candidate candidate(int64_t box) const {
    return {read_box(boxes, box), Key::iou(read_now(best.first_key + box))};
  }

  // Ignore boxes are few: every thread reads them all, through the cache.
  GA_KERNEL bool in_ignore_box(const typename Anchors::Anchor& anchor, int image) const {
    for (int64_t g = ranges.ignore[image]; g < ranges.ignore[image + 1]; ++g) {
      if (anchors.inside(anchor, read_box(ignore_boxes, g))) return true;
    }
    return false;
  }

  // The best of the warp's anchors, the first and the last of them, to a box.
  template <class Warp>
  GA_KERNEL void offer(const Warp& warp, int64_t box, Real value, int64_t begin) const {
    Real most = value;
    GA_UNROLL for (int away = kLanes / 2; away > 0; away /= 2) most = larger(most, warp.shuffle_xor(most, away));
    const uint32_t equal = warp.ballot(value == most);
    if (warp.lane != 0) return;
    const int64_t lane = begin + warp.index * kLanes;
    const int64_t first = lane + lowest_bit(equal), last = lane + highest_bit(equal);
    const uint64_t key = Key::of_first(most, first);
    if constexpr (Key::kPasses == 1) {
      raise(best.first_key + box, key);
      raise(best.last_key + box, Key::of_last(most, last));
    } else if (pass == 0) {
      raise(best.first_key + box, key);
    } else if (key == best.first_key[box]) {
      atomic_min(best.first + box, first);
      atomic_max(best.last + box, last);
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
