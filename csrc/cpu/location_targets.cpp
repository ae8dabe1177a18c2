// location_targets on the CPU: paints the ignore boxes, and the centre and ignore regions of every other (Guided
// Anchoring, 3.4).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../center_region.h"
#include "boxes.h"
#include "parallel.h"

namespace ga_scope::cpu {
namespace {

template <class Real>
void paint(const std::vector<LevelShape>& levels, const std::vector<double>& strides, std::span<const Box<Real>> boxes,
           std::span<const Box<Real>> ignore_boxes, double sigma, double center_ratio, double ignore_ratio,
           double cell_offset, int8_t* labels) {
  const int num_levels = static_cast<int>(levels.size());
  const auto fill = [&](int level, const Box<Real>& box, double ratio, int8_t label, bool keep_one) {
    const LevelShape& shape = levels[level];
    const double stride = strides[level];
    const double cx = 0.5 * (double(box.x1) + box.x2), cy = 0.5 * (double(box.y1) + box.y2);
    const double half_w = 0.5 * ratio * (double(box.x2) - box.x1), half_h = 0.5 * ratio * (double(box.y2) - box.y1);
    const CellRange columns = cells_of_box(cx, half_w, {stride, cell_offset, shape.width}, keep_one);
    const CellRange rows = cells_of_box(cy, half_h, {stride, cell_offset, shape.height}, keep_one);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      int8_t* row = labels + shape.first + y * shape.width;
      std::fill(row + std::min(columns.first, columns.last), row + columns.last, label);
    }
  };
  for (const Box<Real>& box : ignore_boxes) {
    for (int level = 0; level < num_levels && box.valid(); ++level) fill(level, box, 1, -1, false);
  }
  // All ignore regions before any centre region: CR suppresses IR suppresses OR, in whatever order boxes come.
  for (const bool centres : {false, true}) {
    for (const Box<Real>& box : boxes) {
      if (!box.valid()) continue;
      const int level = level_of_box(double(box.x2) - box.x1, double(box.y2) - box.y1, sigma * strides[0], num_levels);
      if (centres) {
        fill(level, box, center_ratio, 1, true);
        continue;
      }
      fill(level, box, ignore_ratio, -1, false);
      for (int adjacent : {level - 1, level + 1}) {
        if (adjacent >= 0 && adjacent < num_levels) fill(adjacent, box, ignore_ratio, -1, false);
      }
    }
  }
}

Tensor location_targets(Tensor gt_boxes, std::vector<int64_t> gt_counts, Tensor ignore_boxes,
                        std::vector<int64_t> ignore_counts, std::vector<int64_t> heights, std::vector<int64_t> widths,
                        std::vector<double> strides, double sigma, double center_ratio, double ignore_ratio,
                        double cell_offset) {
  const char* op = "location_targets";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> levels = check_levels(op, heights, widths, strides);
  check_regions(op, sigma, center_ratio, ignore_ratio, cell_offset);
  const int64_t locations = locations_of(levels);
  const int64_t images = static_cast<int64_t>(gt_counts.size());
  Tensor labels = torch::stable::new_zeros(gt_boxes, {images * locations}, ScalarType::Char);
  int8_t* data = static_cast<int8_t*>(labels.data_ptr());
  const auto run = [&]<class Real>(Real) {
    const BoxesOfImages<Real> gts(gt_boxes, gt_counts), ignored(ignore_boxes, ignore_counts);
    parallel(images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        paint(levels, strides, gts.of(n), ignored.of(n), sigma, center_ratio, ignore_ratio, cell_offset,
              data + n * locations);
      }
    });
  };
  gt_boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return labels;
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) { m.impl("location_targets", TORCH_BOX(&ga_scope::cpu::location_targets)); }
