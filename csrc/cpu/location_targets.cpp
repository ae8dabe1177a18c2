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
           std::span<const Box<Real>> ignore_boxes, const RegionRule& rule, int8_t* labels) {
  const int num_levels = static_cast<int>(levels.size());
  const auto fill = [&](int level, const Box<Real>& box, Region region) {
    const LevelShape& shape = levels[level];
    const auto [rows, columns] = cells_of_region(box, region, rule, shape, strides[level]);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      int8_t* row = labels + shape.first + y * shape.width;
      std::fill(row + std::min(columns.first, columns.last), row + columns.last, region == Region::kCentre ? 1 : -1);
    }
  };
  const auto level_of = [&](const Box<Real>& box) { return level_of_box(box, rule.sigma * strides[0], num_levels); };
  for (const Box<Real>& box : ignore_boxes) {
    for (int level = 0; level < num_levels && box.valid(); ++level) fill(level, box, Region::kWhole);
  }
  // First what suppresses nothing: by the paper's rule all ignore regions (CR suppresses IR suppresses OR, in whatever
  // order boxes come), by the release's those on the adjacent levels.
  for (const Box<Real>& box : boxes) {
    if (!box.valid()) continue;
    const int own = level_of(box);
    for (int level = std::max(own - 1, 0); level <= std::min(own + 1, num_levels - 1); ++level) {
      if (level != own || !rule.rounded) fill(level, box, Region::kIgnore);
    }
  }
  // On a box's own level the release writes box by box: a later one's ignore region erases an earlier one's centre.
  for (const Box<Real>& box : boxes) {
    if (!box.valid()) continue;
    const int own = level_of(box);
    if (rule.rounded) fill(own, box, Region::kIgnore);
    fill(own, box, Region::kCentre);
  }
}

Tensor location_targets(Tensor gt_boxes, std::vector<int64_t> gt_counts, Tensor ignore_boxes,
                        std::vector<int64_t> ignore_counts, std::vector<int64_t> heights, std::vector<int64_t> widths,
                        std::vector<double> strides, double sigma, double center_ratio, double ignore_ratio,
                        double cell_offset, bool rounded) {
  const char* op = "location_targets";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> levels =
      check_levels_of_images(op, static_cast<int64_t>(gt_counts.size()), heights, widths, strides);
  check_regions(op, sigma, center_ratio, ignore_ratio, cell_offset, strides[0]);
  const int64_t locations = locations_of(levels);
  const int64_t images = static_cast<int64_t>(gt_counts.size());
  Tensor labels = torch::stable::new_zeros(gt_boxes, {images * locations}, ScalarType::Char);
  int8_t* data = static_cast<int8_t*>(labels.data_ptr());
  const auto run = [&]<class Real>(Real) {
    const BoxesOfImages<Real> gts(gt_boxes, gt_counts), ignored(ignore_boxes, ignore_counts);
    parallel(images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        paint(levels, strides, gts.of(n), ignored.of(n), {sigma, center_ratio, ignore_ratio, cell_offset, rounded},
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
