// Location targets of Guided Anchoring (section 3.4): which cells of a level lie in the central part of a box.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ga_scope {

// The cells [first, last) whose centres (i + 1/2) * stride lie in [low, high]. Rounding is settled by the
// definition itself: the quotient only says where to look.
struct CellRange {
  int64_t first, last;
};

GA_HOST_DEVICE double cell_centre(int64_t cell, double stride) { return (double(cell) + 0.5) * stride; }

GA_HOST_DEVICE int64_t clamp_cell(double value, int64_t cells) {
  if (!(value > 0)) return 0;
  return value < double(cells) ? int64_t(value) : cells;
}

GA_HOST_DEVICE CellRange cells_inside(double low, double high, double stride, int64_t cells) {
  CellRange range;
  range.first = clamp_cell(low / stride - 0.5, cells);
  while (range.first > 0 && cell_centre(range.first - 1, stride) >= low) --range.first;
  while (range.first < cells && !(cell_centre(range.first, stride) >= low)) ++range.first;
  range.last = clamp_cell(high / stride + 0.5, cells);
  while (range.last < cells && cell_centre(range.last, stride) <= high) ++range.last;
  while (range.last > 0 && !(cell_centre(range.last - 1, stride) <= high)) --range.last;
  return range;
}

// The cells within `half` of a box's centre; with keep_one at least the cell of the centre itself.
GA_HOST_DEVICE CellRange cells_of_box(double centre, double half, double stride, int64_t cells, bool keep_one) {
  CellRange range = cells_inside(centre - half, centre + half, stride, cells);
  if (keep_one && range.first >= range.last) {
    const int64_t cell = clamp_cell(centre / stride, cells);
    range.first = cell < cells ? cell : cells - 1;
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
