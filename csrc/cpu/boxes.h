// Ground-truth boxes of a batch and the levels they are matched with, as the CPU operators take them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../check.h"
#include "../location.h"
#include "../overlap.h"

namespace ga_scope::cpu {

inline int64_t total(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (int64_t count : counts) sum += count;
  return sum;
}

inline void check_boxes(const char* op, const char* name, const Tensor& boxes, const char* counts_name,
                        const std::vector<int64_t>& counts) {
  check_dim(op, name, boxes, 2);
  if (boxes.size(1) != 4) check(false, op, name, "shape [G, 4]", shape_text(boxes));
  const ScalarType dtype = boxes.scalar_type();
  const bool ok = dtype == ScalarType::Float || dtype == ScalarType::Double;
  if (!ok) check(false, op, name, "dtype Float or Double", torch::headeronly::toString(dtype));
  const bool counted =
      std::all_of(counts.begin(), counts.end(), [](int64_t c) { return c >= 0; }) && total(counts) == boxes.size(0);
  if (!counted) check(false, op, counts_name, text("counts that add up to ", boxes.size(0)), list_text(counts));
  check(boxes.size(0) < std::numeric_limits<int32_t>::max(), op, name, "fewer than 2^31 boxes", boxes.size(0));
}

template <class Real>
std::vector<Box<Real>> read_boxes(const Tensor& boxes) {
  const Real* data = static_cast<const Real*>(boxes.data_ptr());
  const int64_t row = boxes.stride(0), column = boxes.stride(1);
  std::vector<Box<Real>> out(boxes.size(0));
  for (int64_t i = 0; i < boxes.size(0); ++i) {
    const Real* at = data + i * row;
    out[i] = {at[0], at[column], at[2 * column], at[3 * column]};
  }
  return out;
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

}  // namespace ga_scope::cpu
