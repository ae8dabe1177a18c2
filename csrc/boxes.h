// The arguments of the operators on boxes, checked: boxes of a batch, and the levels they are matched with.
// Shared by the CPU and CUDA launchers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "check.h"
#include "location.h"

namespace ga_scope {

// Whether the counts divide that many boxes among images. No sum is formed: it could overflow.
inline bool counts_of(const std::vector<int64_t>& counts, int64_t boxes) {
  int64_t rest = boxes;
  for (int64_t count : counts) {
    if (count < 0 || count > rest) return false;
    rest -= count;
  }
  return rest == 0;
}

inline void check_boxes(const char* op, const char* name, const Tensor& boxes, const char* counts_name,
                        const std::vector<int64_t>& counts) {
  check_dim(op, name, boxes, 2);
  if (boxes.size(1) != 4) check(false, op, name, "shape [G, 4]", shape_text(boxes));
  const ScalarType dtype = boxes.scalar_type();
  const bool ok = dtype == ScalarType::Float || dtype == ScalarType::Double;
  if (!ok) check(false, op, name, "dtype Float or Double", torch::headeronly::toString(dtype));
  check(boxes.size(0) < std::numeric_limits<int32_t>::max(), op, name, "fewer than 2^31 boxes", boxes.size(0));
  if (!counts_of(counts, boxes.size(0))) {
    check(false, op, counts_name, text("counts that add up to ", boxes.size(0)), list_text(counts));
  }
}

inline void check_ignore_boxes(const char* op, const Tensor& ignore_boxes, const std::vector<int64_t>& ignore_counts,
                               const Tensor& gt_boxes, const std::vector<int64_t>& gt_counts) {
  check_boxes(op, "ignore_boxes", ignore_boxes, "ignore_counts", ignore_counts);
  check_dtype(op, "ignore_boxes", ignore_boxes, gt_boxes.scalar_type());
  check_same_device(op, "ignore_boxes", ignore_boxes, gt_boxes);
  check(ignore_counts.size() == gt_counts.size(), op, "ignore_counts", text(gt_counts.size(), " images"),
        ignore_counts.size());
}

inline std::vector<int64_t> starts_of(const std::vector<int64_t>& counts) {
  std::vector<int64_t> starts(counts.size() + 1, 0);
  for (size_t i = 0; i < counts.size(); ++i) starts[i + 1] = starts[i] + counts[i];
  return starts;
}

inline std::vector<LevelShape> check_levels(const char* op, const std::vector<int64_t>& heights,
                                            const std::vector<int64_t>& widths, const std::vector<double>& strides) {
  check(!heights.empty(), op, "level_sizes", "at least one level", "none");
  check(widths.size() == heights.size(), op, "level_sizes", text(heights.size(), " widths"), widths.size());
  check(strides.size() == heights.size(), op, "strides", text(heights.size(), " numbers, one per level"),
        strides.size());
  std::vector<LevelShape> levels;
  int64_t locations = 0;
  for (size_t l = 0; l < heights.size(); ++l) {
    check(heights[l] >= 1 && widths[l] >= 1 && heights[l] < (int64_t(1) << 30) && widths[l] < (int64_t(1) << 30), op,
          "level_sizes", "sizes from 1 x 1 to below 2^30", text(heights[l], " x ", widths[l]));
    check(strides[l] > 0 && std::isfinite(strides[l]), op, "strides", "positive numbers", strides[l]);
    levels.push_back({heights[l], widths[l], locations});
    locations += heights[l] * widths[l];
    check(countable({locations}), op, "level_sizes", "fewer than 2^40 locations", text(heights[l], " x ", widths[l]));
  }
  return levels;
}

inline int64_t locations_of(const std::vector<LevelShape>& levels) {
  return levels.back().first + levels.back().height * levels.back().width;
}

// The levels of a batch: the locations of all images are counted, too.
inline std::vector<LevelShape> check_levels_of_images(const char* op, int64_t images,
                                                      const std::vector<int64_t>& heights,
                                                      const std::vector<int64_t>& widths,
                                                      const std::vector<double>& strides) {
  std::vector<LevelShape> levels = check_levels(op, heights, widths, strides);
  check(countable({images, locations_of(levels)}), op, "level_sizes", "fewer than 2^40 locations in the batch",
        text(images, " x ", locations_of(levels)));
  return levels;
}

// The settings of viou_match: exact over a range of sizes, or the best of listed shapes.
struct VariableAnchorArguments {
  std::vector<int64_t> heights, widths;
  std::vector<double> strides;
  std::optional<Tensor> shapes;      // (levels, S, 2)
  std::optional<Tensor> size_range;  // (levels, 2)
  double cell_offset, min_iou;
  std::optional<double> low_quality_from;
};

inline void check_cell_offset(const char* op, double cell_offset) {
  check(std::isfinite(cell_offset), op, "cell_offset", "a finite number", cell_offset);
}

inline void check_low_quality_from(const char* op, std::optional<double> least) {
  if (least) check(*least >= 0 && *least <= 1, op, "low_quality_from", "None or a number in [0, 1]", *least);
}

inline std::vector<LevelShape> check_variable_anchors(const char* op, const Tensor& gt_boxes, int64_t images,
                                                      const VariableAnchorArguments& args) {
  const std::vector<LevelShape> level_shapes =
      check_levels_of_images(op, images, args.heights, args.widths, args.strides);
  const int64_t levels = static_cast<int64_t>(level_shapes.size());
  check(!(args.shapes && args.size_range), op, "size_range", "None where shapes are given", "both");
  check(args.min_iou >= 0 && args.min_iou <= 1, op, "min_iou", "a number in [0, 1]", args.min_iou);
  check_cell_offset(op, args.cell_offset);
  check_low_quality_from(op, args.low_quality_from);
  if (args.shapes) {
    check_dim(op, "shapes", *args.shapes, 3);
    check_shape(op, "shapes", *args.shapes, {levels, args.shapes->size(1), 2});
    check(args.shapes->size(1) >= 1, op, "shapes", "at least one shape per level", "none");
    check(countable({levels, args.shapes->size(1)}), op, "shapes", "fewer than 2^40 shapes", args.shapes->size(1));
    check_dtype(op, "shapes", *args.shapes, gt_boxes.scalar_type());
    check_same_device(op, "shapes", *args.shapes, gt_boxes);
  }
  if (args.size_range) {
    check_shape(op, "size_range", *args.size_range, {levels, 2});
    check_dtype(op, "size_range", *args.size_range, gt_boxes.scalar_type());
    check_same_device(op, "size_range", *args.size_range, gt_boxes);
  }
  return level_shapes;
}

inline void check_ignore_from(const char* op, double ignore_from) {
  check(ignore_from > 0 && ignore_from <= 1, op, "ignore_from", "a number in (0, 1]", ignore_from);
}

inline void check_regions(const char* op, double sigma, double center_ratio, double ignore_ratio, double cell_offset,
                          double first_stride) {
  check_cell_offset(op, cell_offset);
  check(sigma > 0 && std::isfinite(sigma), op, "sigma", "a positive number", sigma);
  check(sigma * first_stride > 0 && std::isfinite(sigma * first_stride), op, "sigma",
        "a positive, finite sigma * strides[0]", sigma * first_stride);
  check(center_ratio >= 0 && center_ratio <= ignore_ratio && ignore_ratio <= 1e6, op, "center_ratio",
        "0 <= center_ratio <= ignore_ratio", text(center_ratio, ", ", ignore_ratio));
}

}  // namespace ga_scope
