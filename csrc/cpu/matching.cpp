// viou_match and iou_match on the CPU: the best box of every anchor and the best anchor of every box,
// streamed. Neither builds the anchors x boxes matrix: memory is O(anchors + boxes), and boxes that are
// out of an anchor's reach are skipped in blocks.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>

#include "../center_region.h"
#include "boxes.h"
#include "matching_rows.h"
#include "parallel.h"

namespace ga_scope::cpu {
namespace {

constexpr int64_t kAnchorsPerUnit = 2048;  // of one parallel work item of viou_match
constexpr int64_t kBoxesPerBlock = 64;     // of iou_match: boxes that are skipped or compared together

// iou and index per anchor, iou and anchor per box; index -1 and iou 0 where nothing overlaps enough. Last, per
// anchor whether it lies in an ignore box.
using MatchResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The best anchor of every box. Each thread keeps its own; merging prefers the lower anchor on a tie, so
// the outcome does not depend on how the anchors were divided.
template <class Real>
struct BestAnchors {
  std::vector<Real> iou;
  std::vector<int64_t> anchor;

  explicit BestAnchors(int64_t boxes) : iou(boxes, Real(0)), anchor(boxes, -1) {}

  void offer(int64_t box, Real value, int64_t candidate) {
    const bool better = value > iou[box] || (value == iou[box] && value > 0 && candidate < anchor[box]);
    if (better) iou[box] = value, anchor[box] = candidate;
  }
  void merge(const BestAnchors& other) {
    for (size_t g = 0; g < iou.size(); ++g) {
      if (other.anchor[g] >= 0) offer(static_cast<int64_t>(g), other.iou[g], other.anchor[g]);
    }
  }
};

template <class Real>
int64_t first_equal(const Real* values, int64_t count, Real wanted) {
  int64_t i = 0;
  while (i < count && values[i] != wanted) ++i;
  return i;
}

template <class Real>
struct MatchOutput {
  MatchOutput(const Tensor& like, int64_t anchors, int64_t boxes)
      : result(torch::stable::new_zeros(like, {anchors}), integers(like, anchors),
               torch::stable::new_empty(like, {boxes}), integers(like, boxes),
               torch::stable::new_zeros(like, {anchors}, ScalarType::Bool)),
        iou(static_cast<Real*>(std::get<0>(result).data_ptr())),
        index(static_cast<int64_t*>(std::get<1>(result).data_ptr())),
        ignored(static_cast<bool*>(std::get<4>(result).data_ptr())) {}

  static Tensor integers(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {count}, ScalarType::Long);
  }

  void store_boxes(const BestAnchors<Real>& best, Real least) {
    Real* iou_of_box = static_cast<Real*>(std::get<2>(result).data_ptr());
    int64_t* anchor_of_box = static_cast<int64_t*>(std::get<3>(result).data_ptr());
    for (size_t g = 0; g < best.iou.size(); ++g) {
      const bool kept = best.anchor[g] >= 0 && best.iou[g] >= least;
      iou_of_box[g] = kept ? best.iou[g] : Real(0);
      anchor_of_box[g] = kept ? best.anchor[g] : -1;
    }
  }

  MatchResult result;
  Real* iou;
  int64_t* index;
  bool* ignored;
};

// Widens a block's indices and drops anchors below the least IoU.
template <class Real>
void store_anchors(int64_t count, Real least, const int32_t* best_box, Real* iou, int64_t* index) {
  for (int64_t i = 0; i < count; ++i) {
    const bool kept = best_box[i] >= 0 && iou[i] >= least;
    index[i] = kept ? best_box[i] : -1;
    if (!kept) iou[i] = Real(0);
  }
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
  std::vector<Real> sizes;  // (levels, 2): the range of widths and heights, exact mode

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

// A block of rows of one level of one image.
struct Unit {
  int64_t image, level, row_begin, row_end;
};

template <class Real>
class UnitMatcher {
 public:
  UnitMatcher(const VariableAnchors<Real>& anchors, const BoxesOfImages<Real>& gts, const BoxesOfImages<Real>& ignored,
              MatchOutput<Real>& output)
      : anchors_(anchors), gts_(gts), ignored_(ignored), output_(output), best_(gts.boxes.size()) {}

  void match(const Unit& unit) {
    const LevelShape& shape = anchors_.levels[unit.level];
    const int64_t first = unit.image * anchors_.locations_per_image + shape.first + unit.row_begin * shape.width;
    const int64_t count = (unit.row_end - unit.row_begin) * shape.width;
    best_box_.assign(count, -1);
    x_.resize(shape.width);
    iou_.resize(shape.width);
    for (int64_t j = 0; j < shape.width; ++j) x_[j] = position(unit, j);
    Real* iou = output_.iou + first;
    for (int64_t g = gts_.starts[unit.image]; g < gts_.starts[unit.image + 1]; ++g) match_box(unit, g, first, iou);
    store_anchors(count, static_cast<Real>(anchors_.min_iou), best_box_.data(), iou, output_.index + first);
    for (const Box<Real>& box : ignored_.of(unit.image)) mark_inside(unit, box, output_.ignored + first);
  }

  const BestAnchors<Real>& best() const { return best_; }

 private:
  // Of a cell's anchor, along either axis.
  Real position(const Unit& unit, int64_t cell) const {
    return (static_cast<Real>(cell) + static_cast<Real>(anchors_.cell_offset)) *
           static_cast<Real>(anchors_.strides[unit.level]);
  }

  void match_box(const Unit& unit, int64_t g, int64_t first, Real* iou) {
    const Box<Real>& box = gts_.boxes[g];
    const LevelShape& shape = anchors_.levels[unit.level];
    if (!box.valid()) return;
    // The margin covers the rounding of the bound itself.
    if (anchors_.area_bound(unit.level, box.area()) < anchors_.min_iou * 0.999) return;
    const CellRange rows = reachable_cells(anchors_, box.y1, box.y2, unit.level, shape.height);
    const int64_t y0 = std::max(rows.first, unit.row_begin), y1 = std::min(rows.last, unit.row_end);
    if (y0 >= y1) return;
    const CellRange columns = reachable_cells(anchors_, box.x1, box.x2, unit.level, shape.width);
    if (columns.first >= columns.last) return;

    RowOfAnchors<Real> row{};
    row.x = x_.data() + columns.first;
    row.count = columns.last - columns.first;
    row.num_shapes = anchors_.num_shapes;
    if (row.num_shapes) {
      row.shapes = &anchors_.shapes[unit.level * row.num_shapes * 2];
    } else {
      row.low = anchors_.sizes[2 * unit.level], row.high = anchors_.sizes[2 * unit.level + 1];
    }
    for (int64_t y = y0; y < y1; ++y) {
      row.y = position(unit, y);
      const int64_t at = (y - unit.row_begin) * shape.width + columns.first;
      kernels_.viou(row, box, iou_.data());
      const Real top =
          kernels_.update(iou_.data(), row.count, static_cast<int32_t>(g), iou + at, best_box_.data() + at);
      if (top > best_.iou[g]) best_.offer(g, top, first + at + first_equal(iou_.data(), row.count, top));
    }
  }

  // The unit's locations in the box, in a part of Match.ignored that starts with the unit.
  void mark_inside(const Unit& unit, const Box<Real>& box, bool* ignored) const {
    if (!box.valid()) return;
    const int64_t left = std::lower_bound(x_.begin(), x_.end(), box.x1) - x_.begin();
    const int64_t right = std::upper_bound(x_.begin(), x_.end(), box.x2) - x_.begin();
    const int64_t width = static_cast<int64_t>(x_.size());
    for (int64_t y = unit.row_begin; y < unit.row_end && left < right; ++y) {
      bool* row = ignored + (y - unit.row_begin) * width;
      if (box.contains(x_[left], position(unit, y))) std::fill(row + left, row + right, true);
    }
  }

  const VariableAnchors<Real>& anchors_;
  const BoxesOfImages<Real>&gts_, &ignored_;
  MatchOutput<Real>& output_;
  const MatchingKernels<Real>& kernels_ = matching_kernels<Real>();
  BestAnchors<Real> best_;
  std::vector<Real> x_, iou_;
  std::vector<int32_t> best_box_;
};

template <class Real>
MatchResult viou_match_as(const Tensor& gt_boxes, const BoxesOfImages<Real>& gts, const BoxesOfImages<Real>& ignored,
                          const VariableAnchors<Real>& anchors) {
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
  BestAnchors<Real> best(gt_boxes.size(0));
  std::mutex merging;
  parallel(static_cast<int64_t>(units.size()), 1, [&](int64_t begin, int64_t end) {
    UnitMatcher<Real> matcher(anchors, gts, ignored, output);
    for (int64_t u = begin; u < end; ++u) matcher.match(units[u]);
    const std::lock_guard<std::mutex> lock(merging);
    best.merge(matcher.best());
  });
  output.store_boxes(best, static_cast<Real>(anchors.min_iou));
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
                       double cell_offset, double min_iou) {
  const char* op = "viou_match";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> level_shapes =
      check_variable_anchors(op, gt_boxes, {heights, widths, strides, shapes, size_range, cell_offset, min_iou});
  const int64_t levels = static_cast<int64_t>(level_shapes.size());
  const auto run = [&]<class Real>(Real) {
    VariableAnchors<Real> anchors;
    anchors.levels = level_shapes;
    anchors.locations_per_image = locations_of(level_shapes);
    for (int64_t l = 0; l < levels; ++l) {
      anchors.sizes.insert(anchors.sizes.end(), {Real(0), std::numeric_limits<Real>::infinity()});
    }
    anchors.strides = strides;
    anchors.cell_offset = cell_offset, anchors.min_iou = min_iou;
    if (shapes) anchors.shapes = read_all<Real>(*shapes), anchors.num_shapes = shapes->size(1);
    if (size_range) anchors.sizes = read_all<Real>(*size_range);
    using Boxes = BoxesOfImages<Real>;
    return viou_match_as<Real>(gt_boxes, Boxes(gt_boxes, gt_counts), Boxes(ignore_boxes, ignore_counts), anchors);
  };
  return gt_boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

// ---- iou_match ----------------------------------------------------------------------------------

template <class Real>
class BlockMatcher {
 public:
  BlockMatcher(const BoxesOfImages<Real>& anchors, const BoxesOfImages<Real>& gts, const BoxesOfImages<Real>& ignored,
               Real ignore_from, MatchOutput<Real>& output)
      : boxes_(anchors.boxes),
        gts_(gts),
        ignored_(ignored),
        ignore_from_(ignore_from),
        output_(output),
        best_(gts.boxes.size()) {}

  // Boxes [begin, end) of an image, at most kBoxesPerBlock.
  void match(int64_t image, int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    const Box<Real> hull = fill(begin, count);
    std::fill_n(best_box_.begin(), count, -1);
    const BoxColumns<Real> columns{x1_.data(), y1_.data(), x2_.data(), y2_.data(), area_.data(), count};
    Real* iou = output_.iou + begin;
    for (int64_t g = gts_.starts[image]; g < gts_.starts[image + 1]; ++g) {
      const Box<Real>& gt = gts_.boxes[g];
      if (apart(gt, hull)) continue;
      kernels_.iou(columns, gt, iou_.data());
      const Real top = kernels_.update(iou_.data(), count, static_cast<int32_t>(g), iou, best_box_.data());
      if (top > best_.iou[g]) best_.offer(g, top, begin + first_equal(iou_.data(), count, top));
    }
    store_anchors(count, Real(0), best_box_.data(), iou, output_.index + begin);
    for (const Box<Real>& box : ignored_.of(image)) {
      if (apart(box, hull)) continue;
      for (int64_t i = begin; i < end; ++i) {
        if (part_inside(boxes_[i], box) >= ignore_from_) output_.ignored[i] = true;
      }
    }
  }

  const BestAnchors<Real>& best() const { return best_; }

 private:
  static bool apart(const Box<Real>& box, const Box<Real>& hull) {
    return !box.valid() || box.x1 >= hull.x2 || box.x2 <= hull.x1 || box.y1 >= hull.y2 || box.y2 <= hull.y1;
  }

  // Copies the block column by column and returns the smallest box around its valid boxes. A box without
  // area, or with a NaN, gets none: it overlaps nothing.
  Box<Real> fill(int64_t begin, int64_t count) {
    constexpr Real inf = std::numeric_limits<Real>::infinity();
    Box<Real> hull{inf, inf, -inf, -inf};
    for (int64_t i = 0; i < count; ++i) {
      const Box<Real>& source = boxes_[begin + i];
      const Box<Real> box = source.valid() ? source : Box<Real>{inf, inf, inf, inf};
      x1_[i] = box.x1, y1_[i] = box.y1, x2_[i] = box.x2, y2_[i] = box.y2;
      area_[i] = source.valid() ? source.area() : Real(0);
      if (!source.valid()) continue;
      hull = {std::min(hull.x1, box.x1), std::min(hull.y1, box.y1), std::max(hull.x2, box.x2),
              std::max(hull.y2, box.y2)};
    }
    return hull;
  }

  const std::vector<Box<Real>>& boxes_;
  const BoxesOfImages<Real>&gts_, &ignored_;
  const Real ignore_from_;
  MatchOutput<Real>& output_;
  const MatchingKernels<Real>& kernels_ = matching_kernels<Real>();
  BestAnchors<Real> best_;
  std::array<Real, kBoxesPerBlock> x1_, y1_, x2_, y2_, area_, iou_;
  std::array<int32_t, kBoxesPerBlock> best_box_;
};

template <class Real>
MatchResult iou_match_as(const Tensor& like, const BoxesOfImages<Real>& anchors, const BoxesOfImages<Real>& gts,
                         const BoxesOfImages<Real>& ignored, double ignore_from) {
  const int64_t boxes = static_cast<int64_t>(gts.boxes.size());
  MatchOutput<Real> output(like, static_cast<int64_t>(anchors.boxes.size()), boxes);
  struct Block {
    int64_t image, begin, end;
  };
  std::vector<Block> blocks;
  for (size_t n = 0; n + 1 < anchors.starts.size(); ++n) {
    const int64_t end = anchors.starts[n + 1];
    for (int64_t b = anchors.starts[n]; b < end; b += kBoxesPerBlock) {
      blocks.push_back({static_cast<int64_t>(n), b, std::min(b + kBoxesPerBlock, end)});
    }
  }
  BestAnchors<Real> best(boxes);
  std::mutex merging;
  parallel(static_cast<int64_t>(blocks.size()), 16, [&](int64_t begin, int64_t end) {
    BlockMatcher<Real> matcher(anchors, gts, ignored, static_cast<Real>(ignore_from), output);
    for (int64_t i = begin; i < end; ++i) matcher.match(blocks[i].image, blocks[i].begin, blocks[i].end);
    const std::lock_guard<std::mutex> lock(merging);
    best.merge(matcher.best());
  });
  output.store_boxes(best, Real(0));
  return output.result;
}

MatchResult iou_match(Tensor boxes, std::vector<int64_t> counts, Tensor gt_boxes, std::vector<int64_t> gt_counts,
                      Tensor ignore_boxes, std::vector<int64_t> ignore_counts, double ignore_from) {
  const char* op = "iou_match";
  check_boxes(op, "boxes", boxes, "counts", counts);
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_dtype(op, "gt_boxes", gt_boxes, boxes.scalar_type());
  check_same_device(op, "gt_boxes", gt_boxes, boxes);
  check(counts.size() == gt_counts.size(), op, "gt_counts", text(counts.size(), " images"), gt_counts.size());
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  check_ignore_from(op, ignore_from);
  const auto run = [&]<class Real>(Real) {
    using Boxes = BoxesOfImages<Real>;
    return iou_match_as<Real>(gt_boxes, Boxes(boxes, counts), Boxes(gt_boxes, gt_counts),
                              Boxes(ignore_boxes, ignore_counts), ignore_from);
  };
  return boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) {
  m.impl("viou_match", TORCH_BOX(&ga_scope::cpu::viou_match));
  m.impl("iou_match", TORCH_BOX(&ga_scope::cpu::iou_match));
}
