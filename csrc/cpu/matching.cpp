// viou_match and iou_match on the CPU: the best box of every anchor and the best anchors of every box,
// streamed. Neither builds the anchors x boxes matrix: memory is O(anchors + boxes), and boxes that are
// out of an anchor's reach are skipped in blocks.
//
// The anchors that tie for a box's best are known only when all have been seen. The first pass therefore notes where
// the first and the last of them lie, and a second one looks again between the two, with the same kernels: what was
// equal is equal.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>

#include "../center_region.h"
#include "boxes.h"
#include "matching_rows.h"
#include "parallel.h"

GA_EXACT_BEGIN

namespace ga_scope::cpu {
namespace {

constexpr int64_t kAnchorsPerUnit = 2048;  // of one parallel work item of viou_match
constexpr int64_t kBoxesPerBlock = 64;     // of iou_match: boxes that are skipped or compared together

// iou and index per anchor, iou and anchor per box; index -1 and iou 0 where nothing overlaps enough. Then per anchor
// the last box that it is best for, and whether it lies in an ignore box.
using MatchResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The best IoU of every box with an anchor, the first anchor that has it, and one that lies not before the last that
// has it. Each thread keeps its own; merging does not depend on how the anchors were divided.
template <class Real>
struct BestAnchors {
  std::vector<Real> iou;
  std::vector<int64_t> first, last;

  explicit BestAnchors(int64_t boxes) : iou(boxes, Real(0)), first(boxes, -1), last(boxes, -1) {}

  // The IoUs of anchors [begin, begin + count) with a box, `top` the largest. Later calls have later anchors.
  void offer(int64_t box, Real top, int64_t begin, const Real* values, int64_t count) {
    if (top > iou[box]) {
      iou[box] = top;
      first[box] = begin + (std::find(values, values + count, top) - values);
      last[box] = begin + count - 1;
    } else if (top == iou[box] && top > 0) {
      last[box] = begin + count - 1;
    }
  }

  void merge(const BestAnchors& other) {
    for (size_t g = 0; g < iou.size(); ++g) {
      if (other.first[g] < 0 || other.iou[g] < iou[g]) continue;
      const bool better = other.iou[g] > iou[g];
      first[g] = better ? other.first[g] : std::min(first[g], other.first[g]);
      last[g] = better ? other.last[g] : std::max(last[g], other.last[g]);
      iou[g] = other.iou[g];
    }
  }

  // Forgets the boxes whose best is below the floor.
  void drop_below(Real least) {
    for (size_t g = 0; g < iou.size(); ++g) {
      if (iou[g] < least) iou[g] = 0, first[g] = -1, last[g] = -1;
    }
  }
};

template <class Real>
struct MatchOutput {
  MatchOutput(const Tensor& like, int64_t anchors, int64_t boxes)
      : result(torch::stable::new_empty(like, {anchors}), integers(like, anchors),
               torch::stable::new_empty(like, {boxes}), integers(like, boxes), integers(like, anchors),
               torch::stable::new_empty(like, {anchors}, ScalarType::Bool)),
        iou(data<Real, 0>()),
        index(data<int64_t, 1>()),
        best_for(data<int64_t, 4>()),
        ignored(data<bool, 5>()) {}

  static Tensor integers(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {count}, ScalarType::Long);
  }

  template <class Value, int kItem>
  Value* data() {
    return static_cast<Value*>(std::get<kItem>(result).data_ptr());
  }

  // No boxes have been seen by a block's anchors; index is written by store_anchors.
  void clear(int64_t first, int64_t count) {
    std::fill_n(iou + first, count, Real(0));
    std::fill_n(best_for + first, count, -1);
    std::fill_n(ignored + first, count, false);
  }

  // Widens a block's indices and drops anchors below the least IoU.
  void store_anchors(int64_t first, int64_t count, Real least, const int32_t* best_box) {
    for (int64_t i = 0; i < count; ++i) {
      const bool kept = best_box[i] >= 0 && iou[first + i] >= least;
      index[first + i] = kept ? best_box[i] : -1;
      if (!kept) iou[first + i] = Real(0);
    }
  }

  void store_boxes(const BestAnchors<Real>& best) {
    std::copy(best.iou.begin(), best.iou.end(), data<Real, 2>());
    std::copy(best.first.begin(), best.first.end(), data<int64_t, 3>());
  }

  // Those of the anchors from `first` on whose IoU is `top` are best for the box. Of several boxes the last one stays,
  // whichever thread comes first.
  void mark_best(int64_t box, Real top, int64_t first, const Real* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (values[i] != top) continue;
      const std::atomic_ref<int64_t> last(best_for[first + i]);
      for (int64_t seen = last; seen < box && !last.compare_exchange_weak(seen, box);) {}
    }
  }

  MatchResult result;
  Real* iou;
  int64_t* index;
  int64_t* best_for;
  bool* ignored;
};

constexpr int64_t kBoxesPerTask = 8;  // of the second pass

// work(g) for the boxes whose best IoU reaches `least`; none without it.
template <class Real, class Work>
void for_boxes_above(const BestAnchors<Real>& best, std::optional<double> least, const Work& work) {
  if (!least) return;
  parallel(static_cast<int64_t>(best.iou.size()), kBoxesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      if (best.first[g] >= 0 && best.iou[g] >= static_cast<Real>(*least)) work(g);
    }
  });
}

// ---- viou_match ---------------------------------------------------------------------------------

template <class Real>
struct VariableAnchors {
  std::vector<LevelShape> levels;
  std::vector<double> strides;
  int64_t locations_per_image = 0;
  double cell_offset, min_iou;
  std::vector<Real> shapes;  // (levels, num_shapes, 2); empty: exact
  int64_t num_shapes = 0;
  std::vector<Real> sizes;           // (levels, 2): the range of widths and heights, exact mode
  std::vector<std::vector<Real>> x;  // of every level's columns

  // Of a cell's anchor, along either axis.
  Real position(int64_t level, int64_t cell) const {
    return (static_cast<Real>(cell) + static_cast<Real>(cell_offset)) * static_cast<Real>(strides[level]);
  }

  // An upper bound of the IoU of any anchor of a level with a box of this area.
  Real area_bound(int64_t level, Real area) const {
    if (num_shapes == 0) {
      const Real low = sizes[2 * level] * sizes[2 * level], high = sizes[2 * level + 1] * sizes[2 * level + 1];
      return area > high ? high / area : area < low ? area / low : Real(1);
    }
    Real best = 0;
    for (int64_t s = 0; s < num_shapes; ++s) {
      const Real* shape = &shapes[(level * num_shapes + s) * 2];
      const Real anchor = shape[0] * shape[1];
      best = std::max(best, std::min(anchor, area) / std::max(anchor, area));
    }
    return best;
  }
};

// The cells of a level from which a box may be reached at min_iou: [first, last) of columns or rows.
// One cell wider than the bound of reach(), against rounding.
template <class Real>
CellRange reachable_cells(const VariableAnchors<Real>& anchors, Real low, Real high, int64_t level, int64_t cells) {
  if (!(anchors.min_iou > 0)) return {0, cells};
  const double distance = reach(double(high) - low, anchors.min_iou);
  const double middle = 0.5 * (double(low) + high), stride = anchors.strides[level];
  return {clamp_cell((middle - distance) / stride - anchors.cell_offset - 1, cells),
          clamp_cell((middle + distance) / stride - anchors.cell_offset + 2, cells)};
}

// The cells of a level from which a box may be reached: none where rows.first >= rows.last.
struct Reach {
  CellRange rows{0, 0}, columns{0, 0};
};

// Of every box on every level: (levels, G).
template <class Real>
std::vector<Reach> reach_of_boxes(const VariableAnchors<Real>& anchors, const std::vector<Box<Real>>& boxes) {
  const int64_t count = static_cast<int64_t>(boxes.size()), levels = static_cast<int64_t>(anchors.levels.size());
  std::vector<Reach> reach(levels * count);
  parallel(count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t level = 0; level < levels; ++level) {
      const LevelShape& shape = anchors.levels[level];
      for (int64_t g = begin; g < end; ++g) {
        const Box<Real>& box = boxes[g];
        if (!box.valid()) continue;
        // The margin covers the rounding of the bound itself.
        if (anchors.area_bound(level, box.area()) < anchors.min_iou * 0.999) continue;
        const CellRange columns = reachable_cells(anchors, box.x1, box.x2, level, shape.width);
        if (columns.first >= columns.last) continue;
        reach[level * count + g] = {reachable_cells(anchors, box.y1, box.y2, level, shape.height), columns};
      }
    }
  });
  return reach;
}

// A row of a level's anchors, as the kernels take it.
template <class Real>
RowOfAnchors<Real> row_of_anchors(const VariableAnchors<Real>& anchors, int64_t level, int64_t y,
                                  const CellRange& columns) {
  RowOfAnchors<Real> row{};
  row.x = anchors.x[level].data() + columns.first;
  row.y = anchors.position(level, y);
  row.count = columns.last - columns.first;
  row.low = anchors.sizes[2 * level], row.high = anchors.sizes[2 * level + 1];
  row.num_shapes = anchors.num_shapes;
  row.shapes = anchors.shapes.data() + level * row.num_shapes * 2;
  return row;
}

// A block of rows of one level of one image.
struct Unit {
  int64_t image, level, row_begin, row_end;
};

template <class Real>
class UnitMatcher {
 public:
  UnitMatcher(const VariableAnchors<Real>& anchors, const BoxesOfImages<Real>& gts, const std::vector<Reach>& reach,
              const BoxesOfImages<Real>& ignored, MatchOutput<Real>& output)
      : anchors_(anchors), gts_(gts), reach_(reach), ignored_(ignored), output_(output), best_(gts.boxes.size()) {}

  void match(const Unit& unit) {
    const LevelShape& shape = anchors_.levels[unit.level];
    const int64_t first = unit.image * anchors_.locations_per_image + shape.first + unit.row_begin * shape.width;
    const int64_t count = (unit.row_end - unit.row_begin) * shape.width;
    output_.clear(first, count);
    best_box_.assign(count, -1);
    iou_.resize(shape.width);
    for (int64_t g = gts_.starts[unit.image]; g < gts_.starts[unit.image + 1]; ++g) match_box(unit, g, first);
    output_.store_anchors(first, count, static_cast<Real>(anchors_.min_iou), best_box_.data());
    for (const Box<Real>& box : ignored_.of(unit.image)) mark_inside(unit, box, output_.ignored + first);
  }

  const BestAnchors<Real>& best() const { return best_; }

 private:
  void match_box(const Unit& unit, int64_t g, int64_t first) {
    const Reach& reach = reach_[unit.level * static_cast<int64_t>(gts_.boxes.size()) + g];
    const int64_t y0 = std::max(reach.rows.first, unit.row_begin), y1 = std::min(reach.rows.last, unit.row_end);
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t at = (y - unit.row_begin) * anchors_.levels[unit.level].width + reach.columns.first;
      const RowOfAnchors<Real> row = row_of_anchors(anchors_, unit.level, y, reach.columns);
      kernels_.viou(row, gts_.boxes[g], iou_.data());
      const Real top = kernels_.update(iou_.data(), row.count, static_cast<int32_t>(g), output_.iou + first + at,
                                       best_box_.data() + at);
      best_.offer(g, top, first + at, iou_.data(), row.count);
    }
  }

  // The unit's locations in the box, in a part of Match.ignored that starts with the unit.
  void mark_inside(const Unit& unit, const Box<Real>& box, bool* ignored) const {
    if (!box.valid()) return;
    const std::vector<Real>& x = anchors_.x[unit.level];
    const int64_t left = std::lower_bound(x.begin(), x.end(), box.x1) - x.begin();
    const int64_t right = std::upper_bound(x.begin(), x.end(), box.x2) - x.begin();
    const int64_t width = static_cast<int64_t>(x.size());
    for (int64_t y = unit.row_begin; y < unit.row_end && left < right; ++y) {
      bool* row = ignored + (y - unit.row_begin) * width;
      if (box.contains(x[left], anchors_.position(unit.level, y))) std::fill(row + left, row + right, true);
    }
  }

  const VariableAnchors<Real>& anchors_;
  const BoxesOfImages<Real>& gts_;
  const std::vector<Reach>& reach_;
  const BoxesOfImages<Real>& ignored_;
  MatchOutput<Real>& output_;
  const MatchingKernels<Real>& kernels_ = matching_kernels<Real>();
  BestAnchors<Real> best_;
  std::vector<Real> iou_;
  std::vector<int32_t> best_box_;
};

// The second pass for one box of an image: its anchors between the first and the last of the best, level by level.
template <class Real>
void mark_best_anchors(const VariableAnchors<Real>& anchors, const BestAnchors<Real>& best, const Box<Real>& box,
                       int64_t g, const std::vector<Reach>& reach, int64_t image, MatchOutput<Real>& output) {
  std::vector<Real> iou;
  for (size_t level = 0; level < anchors.levels.size(); ++level) {
    const LevelShape& shape = anchors.levels[level];
    const int64_t first = image * anchors.locations_per_image + shape.first;
    const int64_t begin = std::max<int64_t>(best.first[g] - first, 0);
    const int64_t end = std::min(best.last[g] + 1 - first, shape.height * shape.width);
    if (begin >= end) continue;
    const Reach& cells = reach[level * best.iou.size() + g];
    const int64_t y0 = std::max(cells.rows.first, begin / shape.width);
    const int64_t y1 = std::min(cells.rows.last, ceil_div(end, shape.width));
    for (int64_t y = y0; y < y1; ++y) {
      const RowOfAnchors<Real> row = row_of_anchors(anchors, level, y, cells.columns);
      iou.resize(row.count);
      matching_kernels<Real>().viou(row, box, iou.data());
      output.mark_best(g, best.iou[g], first + y * shape.width + cells.columns.first, iou.data(), row.count);
    }
  }
}

template <class Real>
MatchResult viou_match_as(const Tensor& gt_boxes, const BoxesOfImages<Real>& gts, const BoxesOfImages<Real>& ignored,
                          const VariableAnchors<Real>& anchors, std::optional<double> low_quality_from) {
  const int64_t images = static_cast<int64_t>(gts.starts.size()) - 1;
  MatchOutput<Real> output(gt_boxes, images * anchors.locations_per_image, gt_boxes.size(0));
  std::vector<Unit> units;
  for (int64_t n = 0; n < images; ++n) {
    for (size_t l = 0; l < anchors.levels.size(); ++l) {
      const LevelShape& shape = anchors.levels[l];
      const int64_t rows = std::max<int64_t>(1, kAnchorsPerUnit / shape.width);
      for (int64_t y = 0; y < shape.height; y += rows) {
        units.push_back({n, static_cast<int64_t>(l), y, std::min(y + rows, shape.height)});
      }
    }
  }
  const std::vector<Reach> reach = reach_of_boxes(anchors, gts.boxes);
  BestAnchors<Real> best(gt_boxes.size(0));
  std::mutex merging;
  parallel(static_cast<int64_t>(units.size()), 1, [&](int64_t begin, int64_t end) {
    UnitMatcher<Real> matcher(anchors, gts, reach, ignored, output);
    for (int64_t u = begin; u < end; ++u) matcher.match(units[u]);
    const std::lock_guard<std::mutex> lock(merging);
    best.merge(matcher.best());
  });
  best.drop_below(static_cast<Real>(anchors.min_iou));
  output.store_boxes(best);
  for_boxes_above(best, low_quality_from, [&](int64_t g) {
    mark_best_anchors(anchors, best, gts.boxes[g], g, reach, best.first[g] / anchors.locations_per_image, output);
  });
  return output.result;
}

template <class Real>
std::vector<Real> read_all(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor);
  const Real* data = static_cast<const Real*>(dense.data_ptr());
  return {data, data + dense.numel()};
}

MatchResult viou_match(Tensor gt_boxes, std::vector<int64_t> gt_counts, Tensor ignore_boxes,
                       std::vector<int64_t> ignore_counts, std::vector<int64_t> heights, std::vector<int64_t> widths,
                       std::vector<double> strides, std::optional<Tensor> shapes, std::optional<Tensor> size_range,
                       double cell_offset, double min_iou, std::optional<double> low_quality_from) {
  const char* op = "viou_match";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> level_shapes =
      check_variable_anchors(op, gt_boxes, static_cast<int64_t>(gt_counts.size()),
                             {heights, widths, strides, shapes, size_range, cell_offset, min_iou, low_quality_from});
  const int64_t levels = static_cast<int64_t>(level_shapes.size());
  const auto run = [&]<class Real>(Real) {
    VariableAnchors<Real> anchors;
    anchors.levels = level_shapes;
    anchors.locations_per_image = locations_of(level_shapes);
    anchors.strides = strides;
    anchors.cell_offset = cell_offset, anchors.min_iou = min_iou;
    for (int64_t l = 0; l < levels; ++l) {
      anchors.sizes.insert(anchors.sizes.end(), {Real(0), std::numeric_limits<Real>::infinity()});
      anchors.x.emplace_back(level_shapes[l].width);
      for (int64_t j = 0; j < level_shapes[l].width; ++j) anchors.x[l][j] = anchors.position(l, j);
    }
    if (shapes) anchors.shapes = read_all<Real>(*shapes), anchors.num_shapes = shapes->size(1);
    if (size_range) anchors.sizes = read_all<Real>(*size_range);
    using Boxes = BoxesOfImages<Real>;
    return viou_match_as<Real>(gt_boxes, Boxes(gt_boxes, gt_counts), Boxes(ignore_boxes, ignore_counts), anchors,
                               low_quality_from);
  };
  return gt_boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// ---- iou_match ----------------------------------------------------------------------------------

// Up to kBoxesPerBlock boxes in columns, and the smallest box around the valid ones. One without area, or with a NaN,
// overlaps nothing.
template <class Real>
struct BlockOfBoxes {
  int64_t count = 0;
  Box<Real> hull;
  std::array<Real, kBoxesPerBlock> x1, y1, x2, y2, area;

  void read(const Box<Real>* boxes, int64_t number) {
    constexpr Real inf = std::numeric_limits<Real>::infinity();
    count = number;
    hull = {inf, inf, -inf, -inf};
    for (int64_t i = 0; i < count; ++i) {
      const bool valid = boxes[i].valid();
      const Box<Real> box = valid ? boxes[i] : Box<Real>{inf, inf, inf, inf};
      x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2;
      area[i] = valid ? box.area() : Real(0);
      if (!valid) continue;
      hull = {std::min(hull.x1, box.x1), std::min(hull.y1, box.y1), std::max(hull.x2, box.x2),
              std::max(hull.y2, box.y2)};
    }
  }

  BoxColumns<Real> columns() const { return {x1.data(), y1.data(), x2.data(), y2.data(), area.data(), count}; }
};

template <class Real>
bool apart(const Box<Real>& box, const Box<Real>& hull) {
  return !box.valid() || box.x1 >= hull.x2 || box.x2 <= hull.x1 || box.y1 >= hull.y2 || box.y2 <= hull.y1;
}

// Boxes [begin, end) of an image.
template <class Real>
struct Block {
  int64_t image, begin, end;
  Box<Real> hull;
};

template <class Real>
class BlockMatcher {
 public:
  BlockMatcher(const Box<Real>* boxes, const BoxesOfImages<Real>& gts, const BoxesOfImages<Real>& ignored,
               Real ignore_from, MatchOutput<Real>& output)
      : boxes_(boxes),
        gts_(gts),
        ignored_(ignored),
        ignore_from_(ignore_from),
        output_(output),
        best_(gts.boxes.size()) {}

  // Sets the block's hull.
  void match(Block<Real>& block) {
    const int64_t begin = block.begin, count = block.end - block.begin;
    columns_.read(boxes_ + begin, count);
    block.hull = columns_.hull;
    output_.clear(begin, count);
    std::fill_n(best_box_.begin(), count, -1);
    for (int64_t g = gts_.starts[block.image]; g < gts_.starts[block.image + 1]; ++g) {
      const Box<Real>& gt = gts_.boxes[g];
      if (apart(gt, block.hull)) continue;
      kernels_.iou(columns_.columns(), gt, iou_.data());
      const Real top =
          kernels_.update(iou_.data(), count, static_cast<int32_t>(g), output_.iou + begin, best_box_.data());
      best_.offer(g, top, begin, iou_.data(), count);
    }
    output_.store_anchors(begin, count, Real(0), best_box_.data());
    for (const Box<Real>& box : ignored_.of(block.image)) {
      if (apart(box, block.hull)) continue;
      for (int64_t i = begin; i < block.end; ++i) {
        if (part_inside(boxes_[i], box) >= ignore_from_) output_.ignored[i] = true;
      }
    }
  }

  const BestAnchors<Real>& best() const { return best_; }

 private:
  const Box<Real>* boxes_;
  const BoxesOfImages<Real>&gts_, &ignored_;
  const Real ignore_from_;
  MatchOutput<Real>& output_;
  const MatchingKernels<Real>& kernels_ = matching_kernels<Real>();
  BestAnchors<Real> best_;
  BlockOfBoxes<Real> columns_;
  std::array<Real, kBoxesPerBlock> iou_;
  std::array<int32_t, kBoxesPerBlock> best_box_;
};

// The second pass for one box: the blocks, in order, from the one that holds the first of the best.
template <class Real>
void mark_best_anchors(const Box<Real>* boxes, const BestAnchors<Real>& best, const Box<Real>& gt, int64_t g,
                       std::span<const Block<Real>> blocks, MatchOutput<Real>& output) {
  BlockOfBoxes<Real> columns;
  std::array<Real, kBoxesPerBlock> iou;
  for (const Block<Real>& block : blocks) {
    if (block.begin > best.last[g]) return;
    if (apart(gt, block.hull)) continue;
    columns.read(boxes + block.begin, block.end - block.begin);
    matching_kernels<Real>().iou(columns.columns(), gt, iou.data());
    output.mark_best(g, best.iou[g], block.begin, iou.data(), columns.count);
  }
}

template <class Real>
MatchResult iou_match_as(const Tensor& boxes, const std::vector<int64_t>& starts, const BoxesOfImages<Real>& gts,
                         const BoxesOfImages<Real>& ignored, double ignore_from,
                         std::optional<double> low_quality_from) {
  static_assert(sizeof(Box<Real>) == 4 * sizeof(Real));
  const Tensor dense = torch::stable::contiguous(boxes);
  const Box<Real>* anchors = static_cast<const Box<Real>*>(dense.data_ptr());
  MatchOutput<Real> output(boxes, starts.back(), static_cast<int64_t>(gts.boxes.size()));
  std::vector<Block<Real>> blocks;
  for (size_t n = 0; n + 1 < starts.size(); ++n) {
    for (int64_t begin = starts[n]; begin < starts[n + 1]; begin += kBoxesPerBlock) {
      blocks.push_back({static_cast<int64_t>(n), begin, std::min(begin + kBoxesPerBlock, starts[n + 1]), {}});
    }
  }
  BestAnchors<Real> best(gts.boxes.size());
  std::mutex merging;
  parallel(static_cast<int64_t>(blocks.size()), 16, [&](int64_t begin, int64_t end) {
    BlockMatcher<Real> matcher(anchors, gts, ignored, static_cast<Real>(ignore_from), output);
    for (int64_t i = begin; i < end; ++i) matcher.match(blocks[i]);
    const std::lock_guard<std::mutex> lock(merging);
    best.merge(matcher.best());
  });
  output.store_boxes(best);
  for_boxes_above(best, low_quality_from, [&](int64_t g) {
    const auto from = std::upper_bound(blocks.begin(), blocks.end(), best.first[g],
                                       [](int64_t anchor, const Block<Real>& block) { return anchor < block.end; });
    mark_best_anchors<Real>(anchors, best, gts.boxes[g], g, {from, blocks.end()}, output);
  });
  return output.result;
}

MatchResult iou_match(Tensor boxes, std::vector<int64_t> counts, Tensor gt_boxes, std::vector<int64_t> gt_counts,
                      Tensor ignore_boxes, std::vector<int64_t> ignore_counts, double ignore_from,
                      std::optional<double> low_quality_from) {
  const char* op = "iou_match";
  check_boxes(op, "boxes", boxes, "counts", counts);
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_dtype(op, "gt_boxes", gt_boxes, boxes.scalar_type());
  check_same_device(op, "gt_boxes", gt_boxes, boxes);
  check(counts.size() == gt_counts.size(), op, "gt_counts", text(counts.size(), " images"), gt_counts.size());
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  check_ignore_from(op, ignore_from);
  check_low_quality_from(op, low_quality_from);
  const auto run = [&]<class Real>(Real) {
    using Boxes = BoxesOfImages<Real>;
    return iou_match_as<Real>(boxes, starts_of(counts), Boxes(gt_boxes, gt_counts), Boxes(ignore_boxes, ignore_counts),
                              ignore_from, low_quality_from);
  };
  return boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) {
  m.impl("viou_match", TORCH_BOX(&ga_scope::cpu::viou_match));
  m.impl("iou_match", TORCH_BOX(&ga_scope::cpu::iou_match));
}

GA_EXACT_END
