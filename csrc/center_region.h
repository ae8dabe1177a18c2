// Location targets of Guided Anchoring (section 3.4): which cells of a level lie in the central part of a box.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ga_scope {

// The cells of an axis: cell i of `count` stands for the point (i + offset) * stride.
struct CellAxis {
  double stride, offset;
  int64_t count;

  GA_HOST_DEVICE double point(int64_t cell) const { return (double(cell) + offset) * stride; }
};

// The cells [first, last) whose points lie in [low, high]. Rounding is settled by the definition itself: the quotient
// only says where to look.
struct CellRange {
  int64_t first, last;
};

GA_HOST_DEVICE int64_t clamp_cell(double value, int64_t cells) {
  if (!(value > 0)) return 0;
  return value < double(cells) ? int64_t(value) : cells;
}

GA_HOST_DEVICE CellRange cells_inside(double low, double high, const CellAxis& axis) {
  CellRange range;
  range.first = clamp_cell(low / axis.stride - axis.offset, axis.count);
  while (range.first > 0 && axis.point(range.first - 1) >= low) --range.first;
  while (range.first < axis.count && !(axis.point(range.first) >= low)) ++range.first;
  range.last = clamp_cell(high / axis.stride - axis.offset + 1, axis.count);
  while (range.last < axis.count && axis.point(range.last) <= high) ++range.last;
  while (range.last > 0 && !(axis.point(range.last - 1) <= high)) --range.last;
  return range;
}

// The cells within `half` of a box's centre; with keep_one at least the nearest.
GA_HOST_DEVICE CellRange cells_of_box(double centre, double half, const CellAxis& axis, bool keep_one) {
  CellRange range = cells_inside(centre - half, centre + half, axis);
  if (keep_one && range.first >= range.last) {
    const int64_t cell = clamp_cell(centre / axis.stride + (0.5 - axis.offset), axis.count);
    range.first = cell < axis.count ? cell : axis.count - 1;
    range.last = range.first + 1;
  }
  return range;
}

// The level whose anchors have about the box's size: base sizes double from level to level.
GA_HOST_DEVICE int level_of_box(double width, double height, double first_base, int num_levels) {
  const double level = floor(log2(sqrt(width * height) / first_base) + 0.5);
  if (!(level > 0)) return 0;
  return level < num_levels - 1 ? int(level) : num_levels - 1;
}

}  // namespace ga_scope
