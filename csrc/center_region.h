// Location targets of Guided Anchoring (section 3.4): which cells of a level lie in the central part of a box.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "location.h"
#include "overlap.h"

GA_EXACT_BEGIN

namespace ga_scope {

// The cells of an axis: cell i of `count` stands for the point (i + offset) * stride.
struct CellAxis {
  double stride, offset;
  int64_t count;

  GA_HOST_DEVICE double point(int64_t cell) const { return product(double(cell) + offset, stride); }
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

// The paper's rule: the cells whose points lie in the part `ratio` of a box about its centre, along one axis; with
// keep_one at least the nearest.
GA_HOST_DEVICE CellRange cells_of_part(double low, double high, double ratio, const CellAxis& axis, bool keep_one) {
  const double centre = 0.5 * (low + high), half = 0.5 * product(ratio, high - low);
  CellRange range = cells_inside(centre - half, centre + half, axis);
  if (keep_one && range.first >= range.last) {
    const int64_t cell = clamp_cell(centre / axis.stride + (0.5 - axis.offset), axis.count);
    range.first = cell < axis.count ? cell : axis.count - 1;
    range.last = range.first + 1;
  }
  return range;
}

// The release's rule: the part's borders in cells, rounded half to even, and both included. As there in the boxes' own
// precision, since what lies halfway depends on it; a border off the map is moved to cell 0 or to the one past the
// last.
template <class Real>
GA_HOST_DEVICE CellRange cells_of_rounded_part(Real low, Real high, double ratio, const CellAxis& axis) {
  const double outside = (1 - ratio) / 2;
  const Real near = Real(1 - outside), far = Real(outside), offset = Real(axis.offset);
  low /= Real(axis.stride), high /= Real(axis.stride);
  CellRange range;
  range.first = clamp_cell(rint(product(near, low) + product(far, high) - offset), axis.count);
  range.last = clamp_cell(rint(product(far, low) + product(near, high) - offset), axis.count) + 1;
  if (range.last > axis.count) range.last = axis.count;
  return range;
}

// A rectangle of a level's cells.
struct CellBlock {
  CellRange rows, columns;
};

// What the targets are made with. rounded: by the release's rule.
struct RegionRule {
  double sigma, center_ratio, ignore_ratio, cell_offset;
  bool rounded;
};

enum class Region { kWhole, kIgnore, kCentre };

// The cells of a region of a box on a level. kWhole: those whose points the box contains.
template <class Real>
GA_HOST_DEVICE CellBlock cells_of_region(const Box<Real>& box, Region region, const RegionRule& rule,
                                         const LevelShape& shape, double stride) {
  const CellAxis y{stride, rule.cell_offset, shape.height}, x{stride, rule.cell_offset, shape.width};
  if (region == Region::kWhole) return {cells_inside(box.y1, box.y2, y), cells_inside(box.x1, box.x2, x)};
  const bool centre = region == Region::kCentre;
  const double ratio = centre ? rule.center_ratio : rule.ignore_ratio;
  if (rule.rounded) {
    return {cells_of_rounded_part(box.y1, box.y2, ratio, y), cells_of_rounded_part(box.x1, box.x2, ratio, x)};
  }
  return {cells_of_part(box.y1, box.y2, ratio, y, centre), cells_of_part(box.x1, box.x2, ratio, x, centre)};
}

// The level whose anchors have about the box's size, floor(log2(sqrt(w h) / base) + 1/2), clamped: the last one with
// 2 w h >= (base 2^level)^2. Compared without logarithms, whose last bit decides where the two are equal (32 x 1024 and
// base 64) and differs between processors: mantissas and exponents apart, so that no product overflows, and with the
// rest of a rounded product (w h - product(w, h), exact as an fma) where the rounded ones are equal.
GA_HOST_DEVICE int level_of_box(double width, double height, double first_base, int num_levels) {
  if (!(width < INFINITY && height < INFINITY)) return num_levels - 1;
  int of_width, of_height, of_base;
  const double w = frexp(width, &of_width), h = frexp(height, &of_height), base = frexp(first_base, &of_base);
  const double area = product(w, h), square = product(base, base);
  for (int level = num_levels - 1; level > 0; --level) {
    const int exponent = of_width + of_height + 1 - 2 * (of_base + level);
    const double scaled = ldexp(area, exponent);
    if (scaled > square) return level;
    if (scaled == square && ldexp(fma(w, h, -area), exponent) >= fma(base, base, -square)) return level;
  }
  return 0;
}

template <class Real>
GA_HOST_DEVICE int level_of_box(const Box<Real>& box, double first_base, int num_levels) {
  return level_of_box(double(box.x2) - double(box.x1), double(box.y2) - double(box.y1), first_base, num_levels);
}

}  // namespace ga_scope

GA_EXACT_END
